"""Direct effects of everything upstream on what a site reads (method.md §11).

The attribution of a source s to a target t is ``∂a_t/∂a_s · a_s · ci_s`` in the forward with all masks 1 and no delta,
where what every other subcomponent reads is held (:mod:`vpd.targets.direct`). With the mask of s at ``1 + ci_s θ_s`` it
is ``∂a_t/∂θ_s`` at θ = 0: one backward pass gives it for all sources of a target, at every position, or, where θ is
shared by all positions, summed over them.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vpd.analysis.run import Run
from vpd.decomposition import Activation, ComponentSet, Factored, dense
from vpd.targets import Target, clean_forward
from vpd.targets.direct import direct_forward

# The two ends of a network: entries of an input that is no lookup, and of the output.
INPUT, OUTPUT = "input", "output"

Thetas = dict[str, Float[Array, "..."]]


class Facts(NamedTuple):
    """What is known of a batch before anything is attributed.

    Attributes:
        ci: lower causal importances, ``{site: [*leading, C]}``.
        activations: ``‖U_c‖ · x·V_c`` in the forward with all masks 1, likewise.
        rows: what is looked up in each embedding that is not decomposed, ``{name: [*leading]}``.
        predicted: the likeliest token at every position, ``[*leading]``; None where outputs are no logits.
        outputs: its logit, or the output itself ``[*leading, d]``.
    """

    ci: dict[str, Float[Array, "..."]]
    activations: dict[str, Float[Array, "..."]]
    rows: dict[str, Int[Array, "..."]]
    predicted: Int[Array, "..."] | None
    outputs: Float[Array, "..."]


class Wanted(eqx.Module):
    """Targets at one site.

    Attributes:
        index: subcomponents of the site, tokens or entries of the output, ``[n]``.
        at: of each the position as a number among all, ``[n]``, none where it is −1; None takes all positions.
    """

    index: Int[Array, " n"]
    at: Int[Array, " n"] | None = None


class Effects:
    """The programs of a run.

    Summed over positions there is a program for each site, with the direct paths into it alone. By position there is
    one for all sites: prompts are short, and what costs is compiling.
    """

    def __init__(self, run: Run, by_position: bool) -> None:
        """Nothing is compiled before it is asked for.

        Args:
            run: opened.
            by_position: whether sources are told apart by position; else they are summed over all of them.
        """
        self._run, self._by_position = run, by_position
        self.target, self.components = _float32((run.experiment.target, run.decomposition.components))
        matrices = self.target.matrices()
        rows = {name: rows for name, (rows, _, kind) in matrices.items() if kind == "embedding"}
        self._facts, self._effects = jax.jit(facts_of), jax.jit(partial(effects_on, rows, by_position))

    def facts(self, batch: Shaped[Array, "..."]) -> Facts:
        """Importances, activations, rows and predictions of a batch."""
        return self._facts(self.target, self.components, batch, self._run.causal_importances(batch))

    def of(self, site: str, batch: Shaped[Array, "..."], facts: Facts, wanted: Wanted) -> tuple[Thetas, Thetas | None]:
        """Attributions of all sources to targets at one site, or at the output; arguments as for :func:`effects_on`."""
        every = {site: wanted}
        if self._by_position:
            nowhere = Wanted(jnp.zeros_like(wanted.index), jnp.full_like(wanted.index, -1))
            every = dict.fromkeys((*self._run.sites, OUTPUT), nowhere) | every
        return self._effects(self.target, self.components, batch, facts, every)


def facts_of(target: Target, components: ComponentSet, batch: Shaped[Array, "..."], ci: dict[str, Array]) -> Facts:
    """What is known of a batch, from one clean forward and one of all subcomponents."""
    clean = clean_forward(target, batch, ())[0]
    found = direct_forward(target, components, batch, {site: jnp.ones(x.shape) for site, x in ci.items()})
    activations = {site: x * jnp.linalg.norm(components[site].U, axis=-1) for site, x in found.inner.items()}
    rows = {name: dense(x) for name, x in found.rows.items()}
    if not jnp.issubdtype(batch.dtype, jnp.integer):
        return Facts(ci, activations, rows, None, dense(found.output))
    predicted = jnp.argmax(clean, axis=-1)
    return Facts(ci, activations, rows, predicted, logits_of(found.output, predicted))


def logits_of(output: Activation, tokens: Int[Array, "*leading"]) -> Float[Array, "*leading"]:
    """The logit of one token at every position; of a product only what is asked for is formed."""
    if not isinstance(output, Factored):
        return jnp.take_along_axis(output, tokens[..., None], axis=-1)[..., 0]
    parts = [jnp.sum(z * jnp.moveaxis(basis[:, tokens], 0, -1), axis=-1) for z, basis in output.terms]
    return sum(parts[1:], parts[0])


def effects_on(
    rows: Mapping[str, int],
    by_position: bool,
    target: Target,
    components: ComponentSet,
    batch: Shaped[Array, "..."],
    facts: Facts,
    wanted: dict[str, Wanted],
) -> tuple[Thetas, Thetas | None]:
    """Attributions of all sources to some targets; under jit only the paths into the sites named are in the program.

    Args:
        rows: of every embedding.
        by_position: whether sources are told apart by position.
        target: the frozen network.
        components: V and U.
        batch: its input.
        facts: of the batch.
        wanted: the targets by site, ``OUTPUT`` among them; the n-th of all sites are added up.

    Returns:
        Signed ones, and where positions are summed over those of ``|a_t|``. ``{source site: [n, C]}``, by position
        ``[n, *leading, C]``; of embeddings ``[n, rows]``, by position ``[n, *leading]``; of an ``INPUT`` ``[n, d]``, by
        position ``[n, *leading, d]``.
    """

    def read(theta: Thetas) -> dict[str, Float[Array, "..."]]:
        masks = {s: 1.0 + ci * theta[s] for s, ci in facts.ci.items()}
        gates = {name: 1.0 + (theta[name] if by_position else theta[name][x]) for name, x in facts.rows.items()}
        x = batch * (1.0 + theta[INPUT]) if INPUT in theta else batch
        found = direct_forward(target, components, x, masks, gates, frozenset(wanted) - {OUTPUT})
        read = {site: dense(found.inputs[site]) for site in wanted if site != OUTPUT and _moves(found.inputs[site])}
        if OUTPUT not in wanted:
            return read
        if facts.predicted is None:
            return read | {OUTPUT: dense(found.output)}
        return read | {OUTPUT: logits_of(found.output, facts.predicted)[..., None]}

    x, pull = jax.vjp(read, _zeros(rows, by_position, batch, facts))
    directions = {s: _directions(s, components, facts, wanted[s], x[s].shape[-1]) for s in x}
    weights = {s: _weights(s, facts, wanted[s], x[s].shape[:-1]) for s in x}

    def pulled(weights: Thetas) -> Thetas:
        return jax.vmap(lambda w, d: pull({s: w[s][..., None] * d[s] for s in x})[0])(weights, directions)

    if by_position:
        return pulled(weights), None
    signs = {s: jnp.moveaxis(jnp.sign(x[s] @ directions[s].T), -1, 0) for s in x}
    return pulled(weights), pulled({s: w * signs[s] for s, w in weights.items()})


def _moves(x: Activation) -> bool:
    """Whether anything can flow into it: rows that are looked up are what they are."""
    return isinstance(x, Factored) or jnp.issubdtype(x.dtype, jnp.floating)


def _zeros(rows: Mapping[str, int], by_position: bool, batch: Shaped[Array, "..."], facts: Facts) -> Thetas:
    """θ at 0 for all sources."""
    theta = {s: jnp.zeros(ci.shape if by_position else ci.shape[-1:]) for s, ci in facts.ci.items()}
    theta |= {name: jnp.zeros(x.shape if by_position else rows[name]) for name, x in facts.rows.items()}
    if jnp.issubdtype(batch.dtype, jnp.floating):
        theta[INPUT] = jnp.zeros(batch.shape if by_position else batch.shape[-1:])
    return theta


def _directions(
    site: str, components: ComponentSet, facts: Facts, wanted: Wanted, width: int
) -> Float[Array, "n width"]:
    """Of each target, how its activation is read from what the site reads: ``a_t = x · direction``."""
    if site != OUTPUT:
        pieces = components[site]
        return (pieces.V[:, wanted.index] * jnp.linalg.norm(pieces.U[wanted.index], axis=-1)).T
    if facts.predicted is None:
        return jax.nn.one_hot(wanted.index, width)
    return jnp.ones((wanted.index.shape[0], 1))


def _weights(site: str, facts: Facts, wanted: Wanted, leading: tuple[int, ...]) -> Float[Array, "n *leading"]:
    """Of each target, at which positions it is."""
    n = wanted.index.shape[0]
    if wanted.at is not None:
        size = 1
        for axis in leading:
            size *= axis
        return jax.nn.one_hot(wanted.at, size).reshape(n, *leading)
    if site == OUTPUT and facts.predicted is not None:
        return (facts.predicted == wanted.index.reshape(n, *(1 for _ in leading))).astype(jnp.float32)
    return jnp.ones((n, *leading))


def _float32(tree: tuple[Target, ComponentSet]) -> tuple[Target, ComponentSet]:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
