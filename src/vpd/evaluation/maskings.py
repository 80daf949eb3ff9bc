"""What a language model still predicts under each way to mask it: CEandKLLosses (method.md §10)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vpd.decomposition import Activation, Mask, Site, SiteMask, for_each, interpolate, site_numbers
from vpd.objective import Scene
from vpd.targets import masked_site_outputs
from vpd.targets.divergence import cross_entropy

Masking = Literal[
    "ci_masked",
    "unmasked",
    "stoch_masked",
    "random_masked",
    "rounded_masked",
    "zero_masked",
    "ci_shuffled",
    "stoch_shuffled",
]
MASKINGS: tuple[Masking, ...] = get_args(Masking)
DESCRIPTIONS: Mapping[Masking, str] = {
    "ci_masked": "masks are the importances",
    "unmasked": "all masks 1, no weight delta",
    "stoch_masked": "masks drawn between the importance and 1",
    "random_masked": "masks drawn from U[0, 1], whatever the importances",
    "rounded_masked": "importances rounded to 0 or 1 at a threshold",
    "zero_masked": "all masks 0",
    "ci_shuffled": "the importances of each position dealt to other subcomponents of the same matrix: equal L0",
    "stoch_shuffled": "masks drawn from importances so dealt",
}
WORDS: Mapping[str, str] = {
    "target": "target",
    "ci_masked": "importances as masks",
    "unmasked": "unmasked",
    "stoch_masked": "stochastic",
    "random_masked": "random",
    "rounded_masked": "rounded",
    "zero_masked": "zero",
    "ci_shuffled": "importances, shuffled",
    "stoch_shuffled": "stochastic, shuffled",
}
Importances = Mapping[str, Float[Array, "..."]]
Scalar = Float[Array | np.ndarray, "..."]


class MaskedLosses(eqx.Module):
    """Means over one batch, or over batches.

    Attributes:
        clean: cross-entropy of the target itself.
        ce: cross-entropy under each masking, in nats.
        kl: divergence from the target's output.
        unrecovered: of the cross-entropy lost by masking everything, the part that this masking loses.
    """

    clean: Scalar
    ce: dict[str, Scalar]
    kl: dict[str, Scalar]
    unrecovered: dict[str, Scalar]


def masked_losses(
    scene: Scene,
    ci: Importances,
    key: Key[Array, ""],
    rounding_threshold: float,
    maskings: Sequence[Masking] = MASKINGS,
) -> MaskedLosses:
    """Cross-entropy of next tokens inside each sequence, and divergence over all positions, of one batch.

    Args:
        scene: target, components, tokens ``[B, T]`` and clean output.
        ci: lower importances.
        key: for the drawn masks.
        rounding_threshold: importances above it are 1 in the rounded masking.
        maskings: which; without ``zero_masked`` nothing is said of what is unrecovered.
    """
    clean = next_token_loss(scene.clean, scene.batch)
    ce: dict[str, Scalar] = {}
    kl: dict[str, Scalar] = {}
    for name in maskings:
        masks = masks_of(name, scene, ci, jax.random.fold_in(key, MASKINGS.index(name)), rounding_threshold)
        out, _ = masked_site_outputs(scene.target, scene.components, scene.batch, masks, scene.resume)
        ce[name] = next_token_loss(out, scene.batch)
        kl[name] = jnp.mean(scene.target.divergence(scene.clean, out))
    lost = ce["zero_masked"] - clean if "zero_masked" in ce else jnp.asarray(jnp.nan)
    return MaskedLosses(clean, ce, kl, {name: (x - clean) / lost for name, x in ce.items()})


def next_token_loss(logits: Activation, tokens: Int[Array, "B T"]) -> Float[Array, ""]:
    """Mean cross-entropy of the T − 1 next tokens inside each sequence."""
    following = jnp.roll(tokens, -1, axis=-1)
    return jnp.mean(cross_entropy(logits, following)[..., :-1])


def masks_of(
    masking: Masking, scene: Scene, ci: Importances, key: Key[Array, ""], rounding_threshold: float = 0.0
) -> dict[str, Mask]:
    """The masks of every site; only the stochastic ones have a delta channel, where the run has one."""
    numbers = site_numbers(scene.sites)

    def drawn(site: Site, channels: int) -> Float[Array, "..."]:
        shape = (*scene.leading, channels)
        return for_each(site, numbers, lambda n: jax.random.uniform(jax.random.fold_in(key, n), shape))

    def stochastic(site: Site, ci: Float[Array, "..."]) -> SiteMask:
        return interpolate(ci, drawn(site, site.C + int(scene.use_delta)).astype(ci.dtype))

    def shuffled(site: Site, ci: Float[Array, "..."]) -> Float[Array, "..."]:
        dealt = jax.random.fold_in(jax.random.fold_in(key, len(numbers)), numbers[site.name][0])
        return jax.random.permutation(dealt, ci, axis=-1, independent=True)

    def mask(site: Site) -> SiteMask:
        own = ci[site.name]
        match masking:
            case "ci_masked":
                return SiteMask(own)
            case "unmasked":
                return SiteMask(jnp.ones_like(own))
            case "zero_masked":
                return SiteMask(jnp.zeros_like(own))
            case "random_masked":
                return SiteMask(drawn(site, site.C).astype(own.dtype))
            case "rounded_masked":
                return SiteMask((own > rounding_threshold).astype(own.dtype))
            case "stoch_masked":
                return stochastic(site, own)
            case "ci_shuffled":
                return SiteMask(shuffled(site, own))
            case "stoch_shuffled":
                return stochastic(site, shuffled(site, own))

    return {site.name: mask(site) for site in scene.sites}


def named_losses(key: str, losses: MaskedLosses) -> dict[str, Scalar]:
    """``<key>/ce_<masking>``, its difference from the target's, what is unrecovered, and the KL; of any shape."""
    found: dict[str, Scalar] = {f"{key}/ce_target": losses.clean}
    for name in losses.ce:
        found[f"{key}/ce_{name}"] = losses.ce[name]
        found[f"{key}/ce_difference_{name}"] = losses.ce[name] - losses.clean
        found[f"{key}/ce_unrecovered_{name}"] = losses.unrecovered[name]
        found[f"{key}/kl_{name}"] = losses.kl[name]
    return found


def as_metrics(key: str, losses: MaskedLosses) -> dict[str, float]:
    """Flat scalars of means over batches, under the names of :func:`named_losses`."""
    return {name: float(value) for name, value in named_losses(key, losses).items()}
