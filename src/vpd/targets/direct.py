"""The forward pass in which direct effects alone remain: no subcomponent passes on what moves it (method.md §11)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple  # Any: what jax.checkpoint takes beside

import jax
from jaxtyping import Array, Float, PyTree, Shaped

from vpd.decomposition import Activation, ComponentSet, SiteMask, dense, site_inner
from vpd.decomposition.site import made, with_bias
from vpd.targets.base import Batch, Named, Pass, Seam, Target, Use


@dataclass
class Direct(Pass):
    """All masks 1 and no delta, and a stop-gradient at what every live site reads, ``x @ V``.

    What a subcomponent writes depends on its mask alone. So the gradient of anything with respect to a mask runs over
    the paths that enter no other subcomponent: along the residual stream, through norms, nonlinearities and the
    softmax of attention, and through matrices that are not decomposed. What a subcomponent reads is written down before
    it is held: it is the target of an attribution. Embeddings that are not decomposed can be moved by a gate.

    Attributes:
        gates: what the output of an embedding is multiplied by, ``{name: [*leading]}``.
        inner: written down, ``x @ V`` of every live site.
        rows: written down, what is looked up in each embedding that is not live.
    """

    gates: Mapping[str, Float[Array, "..."]] = field(default_factory=dict)
    inner: dict[str, Float[Array, "..."]] = field(default_factory=dict)
    rows: Named = field(default_factory=dict)

    def _run(self, use: Use) -> Activation:
        if self._wants(use.name):
            self.inputs[use.name] = use.x
        if use.name not in self.live:
            return self._frozen(use)
        assert self.components is not None
        self.used.add(use.name)
        pieces = self.components[use.name]
        self.inner[use.name] = site_inner(use.x, pieces, use.kind)
        y = (jax.lax.stop_gradient(self.inner[use.name]) * made(self.live[use.name]).component) @ pieces.U
        return y if use.bias is None else with_bias(y, use.bias)

    def _frozen(self, use: Use) -> Activation:
        if use.kind != "embedding":
            return use.frozen()
        self.rows[use.name] = use.x
        y = dense(use.frozen())
        return y * self.gates[use.name][..., None] if use.name in self.gates else y

    def recomputed(self, body: Callable[[Seam, PyTree], PyTree], given: PyTree, **how: Any) -> PyTree:
        """In place, so that what is written down stays known."""
        return body(self, given)


class DirectForward(NamedTuple):
    """What :func:`direct_forward` finds.

    Attributes:
        output: of the target.
        inputs: of the wanted sites.
        inner: ``x @ V`` of every site, ``[*leading, C]``, as a function of masks and gates.
        rows: what is looked up in each embedding that is not decomposed.
    """

    output: Activation
    inputs: Named
    inner: dict[str, Float[Array, "..."]]
    rows: Named


def direct_forward(
    target: Target,
    components: ComponentSet,
    batch: Batch,
    masks: Mapping[str, Shaped[Array, "..."]],
    gates: Mapping[str, Shaped[Array, "..."]] | None = None,
    wanted: frozenset[str] = frozenset(),
) -> DirectForward:
    """The forward pass of all subcomponents, in which masks and gates move things along direct paths alone.

    Args:
        target: the frozen network.
        components: V and U.
        batch: its input.
        masks: ``{site: [*leading, C]}`` of every single decomposed matrix, by its own path; 1 leaves it as it is.
        gates: factors on the outputs of embeddings that are not decomposed, ``{name: [*leading]}``.
        wanted: sites whose inputs are written down.
    """
    live = {name: SiteMask(mask) for name, mask in masks.items()}
    seam = Direct(live, components, wanted, gates=gates or {})
    output = target.forward(batch, seam)
    missed = set(masks) - seam.used
    assert not missed, f"the forward pass never reached {sorted(missed)}"
    return DirectForward(output, seam.inputs, seam.inner, seam.rows)
