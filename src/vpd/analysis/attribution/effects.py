"""Direct effects of everything upstream on what one site reads: a compiled program for each site (method.md §11).

The attribution of a source s to a target t is ``∂a_t/∂a_s · a_s · ci_s`` in the forward with all masks 1 and no delta,
where what every other subcomponent reads is held (:mod:`vpd.targets.direct`). With the mask of s at ``1 + ci_s θ_s`` it
is ``∂a_t/∂θ_s`` at θ = 0: one backward pass gives it for all sources of a target, at every position, or, where θ is
shared by all positions, summed over them.
"""

from collections.abc import Mapping
from functools import cached_property, partial
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
    """The targets of one program call.

    Attributes:
        index: subcomponents of the site, tokens or entries of the output, ``[n]``.
        at: of each the position as a number among all, ``[n]``; None takes all positions.
    """

    index: Int[Array, " n"]
    at: Int[Array, " n"] | None = None


class Effects:
    """The programs of a run.

    Args:
        run: opened.
        by_position: whether sources are told apart by position; else they are summed over all of them.
    """

    def __init__(self, run: Run, by_position: bool) -> None:
        """Nothing is compiled before it is asked for."""
        self._run, self._by_position = run, by_position
        self.target, self.components = _float32((run.experiment.target, run.decomposition.components))

    def facts(self, batch: Shaped[Array, "..."]) -> Facts:
        """Importances, activations, rows and predictions of a batch."""
        return self._facts(self.target, self.components, batch, self._run.causal_importances(batch))

    def of(
        self, site: str, batch: Shaped[Array, "..."], facts: Facts, wanted: Wanted
    ) -> tuple[dict[str, Float[Array, "..."]], dict[str, Float[Array, "..."]] | None]:
        """Attributions of all sources to targets at one site, or at the output.

        Args:
            site: where the targets are, or ``OUTPUT``.
            batch: input of the target.
            facts: of the batch.
            wanted: the targets.

        Returns:
            Signed ones, and where positions are summed over those of ``|a_t|``. ``{source site: [n, C]}``, by position
            ``[n, *leading, C]``; of embeddings ``[n, rows]``, by position ``[n, *leading]``; of an ``INPUT``
            ``[n, d]``, by position ``[n, *leading, d]``.
        """
        return self._programs[site](self.target, self.components, batch, facts, wanted)

    @cached_property
    def _facts(self):
        return jax.jit(facts_of)

    @cached_property
    def _programs(self):
        own = partial(site_effects, self._sizes, self._by_position)
        return {site: jax.jit(partial(own, site)) for site in (*self._run.sites, OUTPUT)}

    @property
    def _sizes(self) -> dict[str, int]:
        """Rows of every embedding."""
        return {name: rows for name, (rows, _, kind) in self.target.matrices().items() if kind == "embedding"}


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


def site_effects(
    rows: Mapping[str, int],
    by_position: bool,
    site: str,
    target: Target,
    components: ComponentSet,
    batch: Shaped[Array, "..."],
    facts: Facts,
    wanted: Wanted,
) -> tuple[Thetas, Thetas | None]:
    """As :meth:`Effects.of`; under jit only the direct paths into this site are in the program."""

    def read(theta: Thetas) -> Float[Array, "*leading d"]:
        masks = {s: 1.0 + ci * theta[s] for s, ci in facts.ci.items()}
        gates = {name: 1.0 + (theta[name] if by_position else theta[name][x]) for name, x in facts.rows.items()}
        x = batch * (1.0 + theta[INPUT]) if INPUT in theta else batch
        found = direct_forward(target, components, x, masks, gates, frozenset({site} - {OUTPUT}))
        if site != OUTPUT:
            return dense(found.inputs[site])
        return dense(found.output) if facts.predicted is None else logits_of(found.output, facts.predicted)[..., None]

    x, pull = jax.vjp(read, _zeros(rows, by_position, batch, facts))
    directions = _directions(site, components, facts, wanted, x.shape[-1])
    weights = _weights(site, facts, wanted, x.shape[:-1])
    signed = jax.vmap(lambda w, d: pull(w[..., None] * d)[0])(weights, directions)
    if by_position:
        return signed, None
    signs = jnp.moveaxis(jnp.sign(x @ directions.T), -1, 0)
    return signed, jax.vmap(lambda w, d: pull(w[..., None] * d)[0])(weights * signs, directions)


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
