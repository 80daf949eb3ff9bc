"""The seam: a target writes its forward pass once; every view of it is derived here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Shaped

from vpd.decomposition import Activation, ComponentSet, SiteMask, dense, masked_site, site_frozen
from vpd.decomposition.components import SiteKind
from vpd.decomposition.site import with_bias

Batch = Shaped[Array, "..."]
Matrices = Mapping[str, tuple[int, int, SiteKind]]


@runtime_checkable
class Seam(Protocol):
    """The one call through which a target sends each of its decomposable matrices."""

    def __call__(
        self,
        name: str,
        x: Activation,
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
        factored: bool = False,
    ) -> Activation:
        """Output ``[*leading, d_out]`` of the site ``name`` at input ``x``.

        Args:
            name: path of the matrix.
            x: ``[*leading, d_in]``, or ``[*leading]`` of row indices.
            weight: ``[d_in, d_out]``, transposed here if it is stored the other way; None for an identity.
            bias: ``[d_out]``.
            kind: what the matrix does.
            factored: leave the output as a sum of products, for a stream that is only multiplied further.
        """
        ...


@runtime_checkable
class Target(Protocol):
    """A frozen network that can be decomposed."""

    def forward(self, batch: Batch, seam: Seam) -> Shaped[Array, "..."]:
        """The whole forward pass; each decomposable matrix is applied by ``seam``."""
        ...

    def divergence(
        self, clean: Float[Array, "*leading out"], masked: Float[Array, "*leading out"]
    ) -> Float[Array, "*leading"]:
        """How far the masked output is from the clean one, per position, in float32."""
        ...

    def matrices(self) -> dict[str, tuple[int, int, SiteKind]]:
        """Every decomposable matrix in numeric layer order: ``{name: (d_in, d_out, kind)}``."""
        ...


@dataclass(frozen=True)
class Use:
    """One use of a matrix in the forward pass: what :class:`Seam` is called with."""

    name: str
    x: Activation
    weight: Float[Array, "d_in d_out"] | None
    bias: Float[Array, " d_out"] | None
    kind: SiteKind
    factored: bool

    def frozen(self) -> Activation:
        """What the frozen matrix computes, bias included."""
        y = site_frozen(self.x, self.weight, self.kind, self.factored)
        return y if self.bias is None else with_bias(y, self.bias)

    def masked(self, components: ComponentSet, mask: SiteMask) -> Activation:
        """What the masked subcomponents compute, bias included."""
        pieces = components[self.name]
        return masked_site(self.x, self.weight, pieces, mask, self.bias, self.kind, self.factored)


def _seam(apply: Callable[[Use], Activation]) -> Seam:
    def seam(
        name: str,
        x: Activation,
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
        factored: bool = False,
    ) -> Activation:
        return apply(Use(name, x, weight, bias, kind, factored))

    return seam


def pre_identity(name: str) -> str:
    """The site of the identity that can be inserted before a matrix."""
    return f"{name}.pre_identity"


def with_identities(matrices: Matrices) -> dict[str, tuple[int, int, SiteKind]]:
    """Every matrix that can be a site: those of the target, a linear one after the identity that can be inserted."""
    sites: dict[str, tuple[int, int, SiteKind]] = {}
    for name, (d_in, d_out, kind) in matrices.items():
        if kind == "linear":
            sites[pre_identity(name)] = (d_in, d_in, "identity")
        sites[name] = (d_in, d_out, kind)
    return sites


def clean_forward(target: Target, batch: Batch) -> tuple[Shaped[Array, "..."], dict[str, Activation]]:
    """Clean output and the input of every site, ``{name: [*leading, d_in]}``, in one all-frozen forward."""
    return recorded_forward(target, batch)[:2]


def recorded_forward(
    target: Target, batch: Batch
) -> tuple[Shaped[Array, "..."], dict[str, Activation], dict[str, Activation]]:
    """As :func:`clean_forward`, and every site's output, bias included, ``{name: [*leading, d_out]}``."""
    inputs: dict[str, Activation] = {}
    outputs: dict[str, Activation] = {}

    def apply(use: Use) -> Activation:
        if use.kind == "linear":
            inputs[pre_identity(use.name)] = outputs[pre_identity(use.name)] = use.x
        inputs[use.name] = use.x
        outputs[use.name] = use.frozen()
        return outputs[use.name]

    return target.forward(batch, _seam(apply)), inputs, outputs


def masked_site_outputs(
    target: Target, components: ComponentSet, batch: Batch, masks: Mapping[str, SiteMask]
) -> tuple[Shaped[Array, "..."], dict[str, Activation]]:
    """Masked output and every site's output, bias included, ``{name: [*leading, d_out]}``.

    Sites without a mask are not live: they run frozen, without decomposed arithmetic.
    """
    outputs: dict[str, Activation] = {}

    def run(use: Use) -> Activation:
        outputs[use.name] = use.masked(components, masks[use.name]) if use.name in masks else use.frozen()
        return outputs[use.name]

    def apply(use: Use) -> Activation:
        if use.kind != "linear":
            return run(use)
        x = run(Use(pre_identity(use.name), use.x, None, None, "identity", False))
        return run(replace(use, x=x))

    return target.forward(batch, _seam(apply)), outputs


def masked_forward(
    target: Target, components: ComponentSet, batch: Batch, masks: Mapping[str, SiteMask]
) -> Shaped[Array, "..."]:
    """Output of the whole target with the sites in ``masks`` live and masked, all others frozen."""
    return masked_site_outputs(target, components, batch, masks)[0]


def frozen_weights(target: Target, batch: Batch) -> dict[str, Float[Array, "..."]]:
    """The weight that each matrix hands to the seam, ``{name: [d_in, d_out]}``; under jit nothing else is computed."""
    weights: dict[str, Float[Array, "..."]] = {}

    def apply(use: Use) -> Activation:
        if use.weight is not None:
            weights[use.name] = use.weight
        return use.frozen()

    target.forward(batch, _seam(apply))
    return weights


def dense_inputs(inputs: Mapping[str, Activation]) -> dict[str, Shaped[Array, "..."]]:
    """Site inputs as arrays."""
    return {name: dense(x) for name, x in inputs.items()}
