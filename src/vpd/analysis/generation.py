"""What a language model writes under a masking of its subcomponents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vpd.analysis.names import parse_subcomponent, refuse_other_sites
from vpd.analysis.prompts import read_prompt, token_prompt
from vpd.analysis.run import Run
from vpd.config.targets import TokenData
from vpd.decomposition import Site, SiteMask, members_in_order
from vpd.decomposition.site import made
from vpd.errors import RunError
from vpd.evaluation.maskings import Masking as Measured
from vpd.evaluation.maskings import masks_of
from vpd.evaluation.samples import last_logits
from vpd.objective import Scene
from vpd.randomness import stream
from vpd.targets import Induction, LanguageModel, Target, masked_site_outputs, recorded_forward
from vpd.training.state import Decomposition
from vpd.training.step import Problem, cast_compute, importances, leading_shape

Masking = Literal["target", "all", "ci", "rounded", "stochastic"]
MASKINGS: tuple[Masking, ...] = get_args(Masking)
_MEASURED: Mapping[Masking, Measured] = {
    "all": "unmasked",
    "ci": "ci_masked",
    "rounded": "rounded_masked",
    "stochastic": "stoch_masked",
}
Factors: TypeAlias = Mapping[str, Float[Array | np.ndarray, " _C"]]


@dataclass(frozen=True)
class Continuation:
    """A prompt and what follows it.

    Attributes:
        prompt: its token ids.
        new: the ids that were made.
        text: what the new ones stand for; None where the run's tokens are no text.
    """

    prompt: list[int]
    new: list[int]
    text: str | None


def generate(
    run: Run,
    prompt: str | Sequence[int],
    masking: str = "target",
    n_new: int = 24,
    factors: Factors | None = None,
    ablate: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
    threshold: float = 0.0,
) -> Continuation:
    """Continue a prompt, token by token.

    The window keeps the prompt's length: a new token enters at its end and the first one leaves, as the causal
    importances of a position may depend on all of the window. They are those of the clean forward on the window.

    Args:
        run: a run of a model with tokens.
        prompt: text, or token ids.
        masking: ``target``: the network as it is; ``all``: every mask 1, without the weight delta; ``ci``: importances
            as masks; ``rounded``: 1 where they are above ``threshold``, else 0; ``stochastic``: drawn above them.
        n_new: tokens to make.
        factors: ``{site: [C]}``, what the masks of its subcomponents are multiplied by: 0 ablates, 2 doubles. With the
            masking ``target`` the masks of these sites are 1 and so is that of the weight delta.
        ablate: subcomponents ``SITE:INDEX`` whose masks are 0.
        temperature: 0 takes the likeliest token; else tokens are drawn from the softmax of logits over it.
        seed: of what is drawn.
        threshold: of the masking ``rounded``.

    Raises:
        RunError: a run without a sequence of tokens, a prompt or masking that can't be used, or a subcomponent that
            there isn't.
    """
    target = run.experiment.target
    if not isinstance(target, LanguageModel | Induction):
        raise RunError(f"{run.path} decomposes a network without a sequence of tokens, so it continues no prompt")
    if masking not in MASKINGS:
        raise RunError(f"{masking!r} is no masking; write one of {', '.join(MASKINGS)}")
    if n_new < 1 or temperature < 0:
        raise RunError("a continuation has at least one new token, and a temperature of at least 0")
    given = read_prompt(run, text=prompt) if isinstance(prompt, str) else token_prompt(run, prompt)
    ids: list[int] = given.batch[0].tolist()
    # Within a stack a site is one array with a layer axis: so are its factors.
    scale = _by_stack(run, _all_factors(run, factors or {}, ablate))
    program = jax.jit(partial(_write, run.experiment.problem, masking, n_new, temperature > 0, threshold))
    window, heat = jnp.asarray(ids, jnp.int32)[None], jnp.asarray(temperature, jnp.float32)
    made_ids = np.asarray(program(target, run.decomposition, window, scale, heat, stream(seed, "generate"))).tolist()
    text = None
    if isinstance(run.config.data, TokenData):
        whole, before = run.tokenizer.decode([*ids, *made_ids]), run.tokenizer.decode(ids)
        text = whole[len(before) :] if whole.startswith(before) else run.tokenizer.decode(made_ids)
    return Continuation(ids, made_ids, text)


def _all_factors(run: Run, factors: Factors, ablate: Sequence[str]) -> dict[str, Float[np.ndarray, " _C"]]:
    """One vector for each site that is named at all."""
    sizes = run.axis.sizes
    refuse_other_sites(list(factors), sizes)
    found: dict[str, Float[np.ndarray, " _C"]] = {}
    for site, given in factors.items():
        if np.shape(given) != (sizes[site],):
            raise RunError(f"the factors of {site!r} have shape {np.shape(given)}; they must be C = {sizes[site]}")
        found[site] = np.array(given, np.float32)
    for text in ablate:
        one = parse_subcomponent(text, sizes)
        found.setdefault(one.site, np.ones(sizes[one.site], np.float32))[one.index] = 0
    return found


def _by_stack(run: Run, factors: Mapping[str, Float[np.ndarray, " _C"]]) -> dict[str, Float[Array, "..."]]:
    """Factors of the problem's sites; of a stack, ones for the matrices that are not named."""
    found: dict[str, np.ndarray] = {}
    for site, i, name in members_in_order(run.experiment.problem.sites):
        if name in factors:
            whole = found.setdefault(site.name, np.ones((*site.stack, site.C), np.float32))
            whole[(i,) if site.stack else ()] = factors[name]
    return {name: jnp.asarray(value) for name, value in found.items()}


def _write(
    problem: Problem,
    masking: Masking,
    n_new: int,
    drawn: bool,
    threshold: float,
    target: Target,
    decomposition: Decomposition,
    window: Int[Array, "1 T"],
    factors: dict[str, Float[Array, "..."]],
    temperature: Float[Array, ""],
    key: Key[Array, ""],
) -> Int[Array, " n_new"]:
    """The new tokens."""
    net = cast_compute(problem, target)
    components = cast_compute(problem, decomposition.components)

    def masks(window: Int[Array, "1 T"], key: Key[Array, ""]) -> dict[str, SiteMask]:
        clean, inputs, _, _ = recorded_forward(net, window, problem.sites)
        leading = leading_shape(problem, inputs)
        scene = Scene(net, components, window, clean, problem.sites, leading, problem.use_delta)
        ci = importances(problem, decomposition.ci_fn, decomposition.components, inputs, 0, 0).lower
        if masking == "target":
            live = [site for site in problem.sites if site.name in factors]
            made_masks = {site.name: _whole(site, leading, ci[site.name]) for site in live}
        else:
            found = masks_of(_MEASURED[masking], scene, ci, key, threshold)
            made_masks = {name: made(mask) for name, mask in found.items()}
        return {name: _scaled(mask, factors.get(name), len(leading)) for name, mask in made_masks.items()}

    def next_token(window: Int[Array, "1 T"], key: Key[Array, ""]) -> tuple[Int[Array, "1 T"], Int[Array, ""]]:
        of_masks, of_token = jax.random.split(key)
        out, _ = masked_site_outputs(net, components, window, masks(window, of_masks))
        logits = last_logits(out)[0]
        new = jax.random.categorical(of_token, logits / temperature) if drawn else jnp.argmax(logits)
        new = new.astype(window.dtype)
        return jnp.concatenate([window[:, 1:], new[None, None]], axis=1), new

    step: Callable[..., tuple[Int[Array, "1 T"], Int[Array, ""]]] = next_token
    _, new = jax.lax.scan(step, window, jax.random.split(key, n_new))
    return new


def _whole(site: Site, leading: tuple[int, ...], ci: Float[Array, "..."]) -> SiteMask:
    """The frozen matrix as all of its parts: every mask 1, and that of the delta."""
    return SiteMask(jnp.ones_like(ci), jnp.ones((*site.stack, *leading), ci.dtype))


def _scaled(mask: SiteMask, factor: Float[Array, "..."] | None, axes: int) -> SiteMask:
    """A mask times a factor a subcomponent, over the leading axes between stack and C."""
    if factor is None:
        return mask
    wide = factor.reshape(*factor.shape[:-1], *(1,) * axes, factor.shape[-1])
    return SiteMask(mask.component * wide.astype(mask.component.dtype), mask.delta, mask.routing)
