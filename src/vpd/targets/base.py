"""The seam: a target writes its forward pass once; every view of it is derived here."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Shaped

from vpd.decomposition import ComponentSet, SiteMask, masked_site, site_frozen
from vpd.decomposition.components import SiteKind

Batch = Shaped[Array, "..."]


@runtime_checkable
class Seam(Protocol):
    """The one call through which a target sends each of its decomposable matrices."""

    def __call__(
        self,
        name: str,
        x: Shaped[Array, "..."],
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
    ) -> Shaped[Array, "..."]:
        """Output ``[*leading, d_out]`` of the site ``name`` at input ``x``; ``weight`` is None for an identity."""
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


def _frozen(
    x: Shaped[Array, "..."],
    weight: Float[Array, "d_in d_out"] | None,
    bias: Float[Array, " d_out"] | None,
    kind: SiteKind,
) -> Shaped[Array, "..."]:
    y = site_frozen(x, weight, kind)
    return y if bias is None else y + bias


def clean_forward(target: Target, batch: Batch) -> tuple[Shaped[Array, "..."], dict[str, Shaped[Array, "..."]]]:
    """Clean output and the input of every matrix, ``{name: [*leading, d_in]}``, in one all-frozen forward."""
    return recorded_forward(target, batch)[:2]


def recorded_forward(
    target: Target, batch: Batch
) -> tuple[Shaped[Array, "..."], dict[str, Shaped[Array, "..."]], dict[str, Shaped[Array, "..."]]]:
    """As :func:`clean_forward`, and every matrix's output, bias included, ``{name: [*leading, d_out]}``."""
    inputs: dict[str, Shaped[Array, "..."]] = {}
    outputs: dict[str, Shaped[Array, "..."]] = {}

    def seam(
        name: str,
        x: Shaped[Array, "..."],
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
    ) -> Shaped[Array, "..."]:
        inputs[name] = x
        outputs[name] = _frozen(x, weight, bias, kind)
        return outputs[name]

    return target.forward(batch, seam), inputs, outputs


def masked_site_outputs(
    target: Target, components: ComponentSet, batch: Batch, masks: Mapping[str, SiteMask]
) -> tuple[Shaped[Array, "..."], dict[str, Shaped[Array, "..."]]]:
    """Masked output and every matrix's output, bias included, ``{name: [*leading, d_out]}``.

    Matrices without a mask are not live: they run frozen, without decomposed arithmetic.
    """
    outputs: dict[str, Shaped[Array, "..."]] = {}

    def seam(
        name: str,
        x: Shaped[Array, "..."],
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
    ) -> Shaped[Array, "..."]:
        if name in masks:
            outputs[name] = masked_site(x, weight, components[name], masks[name], bias, kind)
        else:
            outputs[name] = _frozen(x, weight, bias, kind)
        return outputs[name]

    return target.forward(batch, seam), outputs


def masked_forward(
    target: Target, components: ComponentSet, batch: Batch, masks: Mapping[str, SiteMask]
) -> Shaped[Array, "..."]:
    """Output of the whole target with the sites in ``masks`` live and masked, all others frozen."""
    return masked_site_outputs(target, components, batch, masks)[0]


def frozen_weights(target: Target, batch: Batch) -> dict[str, Float[Array, "..."]]:
    """The weight that each matrix hands to the seam, ``{name: [d_in, d_out]}``; under jit nothing else is computed."""
    weights: dict[str, Float[Array, "..."]] = {}

    def seam(
        name: str,
        x: Shaped[Array, "..."],
        weight: Float[Array, "d_in d_out"] | None,
        bias: Float[Array, " d_out"] | None = None,
        kind: SiteKind = "linear",
    ) -> Shaped[Array, "..."]:
        if weight is not None:
            weights[name] = weight
        return _frozen(x, weight, bias, kind)

    target.forward(batch, seam)
    return weights
