"""Sparsity losses on upper causal importances: the power penalty and its smooth-L0 relative."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Importances = Mapping[str, Float[Array, "..."]]
Sums = dict[str, Float[Array, "*stack C"]]

UNSTACKED: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Anneal:
    """A value that goes linearly from ``start`` to ``final`` between two fractions of training; None: constant."""

    start: float
    final: float | None = None
    start_frac: float = 1.0
    end_frac: float = 1.0

    @property
    def constant(self) -> bool:
        """Annealing is off when it would start at the end, or has no final value."""
        return self.final is None or self.start_frac >= 1.0


def anneal(spec: Anneal, fraction: Float[Array, ""] | float) -> Float[Array, ""] | float:
    """Value at a fraction of training (step / steps)."""
    if spec.constant:
        return spec.start
    assert spec.final is not None
    width = max(spec.end_frac - spec.start_frac, 1e-12)
    progress = jnp.clip((fraction - spec.start_frac) / width, 0.0, 1.0)
    return spec.start + (spec.final - spec.start) * progress


@jax.custom_vjp
def _power(base: Float[Array, "*any"], p: Float[Array, ""]) -> Float[Array, "*any"]:
    """``base^p`` for a base above 0; no gradient reaches p."""
    return jnp.exp(p * jnp.log(base))


def _power_forward(
    base: Float[Array, "*any"], p: Float[Array, ""]
) -> tuple[Float[Array, "*any"], tuple[Float[Array, "*any"], Float[Array, ""]]]:
    # One logarithm and one exponential for the value and its slope.
    below = jnp.exp((p - 1) * jnp.log(base))
    return base * below, (below, p)


def _power_backward(
    residuals: tuple[Float[Array, "*any"], Float[Array, ""]], g: Float[Array, "*any"]
) -> tuple[Float[Array, "*any"], Float[Array, ""]]:
    below, p = residuals
    return g * (p * below), jnp.zeros_like(p)


_power.defvjp(_power_forward, _power_backward)


def _log2_1p(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log2(1 + x)


@dataclass(frozen=True)
class ImportanceMinimality:
    """``S_c = Σ_positions (ci_upper + eps)^p``; loss ``Σ S_c/N · (1 + β log2(1 + S_c))`` (method.md §4)."""

    p: Anneal
    beta: float
    eps: float = 1e-12

    def sums(self, upper: Importances, fraction: Float[Array, ""] | float, axes: Mapping[str, int] = UNSTACKED) -> Sums:
        """``{site: S_c [C]}`` over all positions given, in float32.

        Args:
            upper: upper-leaky importances ``{site: [*stack, *leading, C]}``.
            fraction: of training.
            axes: of each stack, how many axes precede the positions; a site that is not named has none.
        """
        p = anneal(self.p, fraction)
        return {s: _positions(self._power(ci.astype(jnp.float32), p), axes.get(s, 0)) for s, ci in upper.items()}

    def _power(self, ci: Float[Array, "..."], p: Float[Array, ""] | float) -> Float[Array, "..."]:
        base = ci + self.eps
        if isinstance(p, float | int):
            return base if p == 1 else jnp.square(base) if p == 2 else base**p
        return _power(base, jnp.asarray(p, base.dtype))

    def loss(
        self, sums: Sums, positions: int | Int[Array, ""] | Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(loss, its β-free value) from sums over the *global* batch: the log is not linear."""
        plain = sum((jnp.sum(S) for S in sums.values()), jnp.zeros(())) / positions
        if self.beta == 0:
            return plain, plain
        frequency = sum((jnp.sum(S * _log2_1p(S)) for S in sums.values()), jnp.zeros(())) / positions
        return plain + self.beta * frequency, plain


@dataclass(frozen=True)
class Frequency:
    """A separate frequency penalty ``coeff · Σ f_c log2(1 + a' f_c)`` with ``f_c = S_c/N``."""

    coeff: float
    reference_datapoint_count: float


@dataclass(frozen=True)
class SmoothL0:
    """``ci² / (ci² + γ²)`` in place of the power, γ annealed."""

    gamma: Anneal
    beta: float
    frequency: Frequency | None = None

    def sums(self, upper: Importances, fraction: Float[Array, ""] | float, axes: Mapping[str, int] = UNSTACKED) -> Sums:
        """``{site: S_c [C]}`` over all positions given, in float32; arguments as for the power penalty."""
        gamma = anneal(self.gamma, fraction)

        def smooth(ci: Float[Array, "..."]) -> Float[Array, "..."]:
            square = jnp.square(ci.astype(jnp.float32))
            return square / (square + gamma**2)

        return {site: _positions(smooth(ci), axes.get(site, 0)) for site, ci in upper.items()}

    def loss(
        self, sums: Sums, positions: int | Int[Array, ""] | Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(loss, its value without β and without the frequency penalty)."""
        loss, plain = ImportanceMinimality(Anneal(1.0), self.beta).loss(sums, positions)
        if self.frequency is not None:
            f = {site: S / positions for site, S in sums.items()}
            a = self.frequency.reference_datapoint_count
            loss = loss + self.frequency.coeff * sum((jnp.sum(x * _log2_1p(a * x)) for x in f.values()), jnp.zeros(()))
        return loss, plain


def _positions(x: Float[Array, "..."], stacked: int) -> Float[Array, "*stack C"]:
    return jnp.sum(x, axis=tuple(range(stacked, x.ndim - 1)))
