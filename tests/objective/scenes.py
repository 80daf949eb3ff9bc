"""Small targets, run-file blocks and scenes that tests of several rooms share."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal  # blocks of a run file are nested anything

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from vpd.config.metrics import CIHiddenActsReconLoss
from vpd.config.run import PD
from vpd.decomposition import Components, ComponentSet, Site
from vpd.objective import ReconTerm, Scene
from vpd.objective.build import term_from
from vpd.targets import TMS, Induction, ResidMLP, recorded_forward
from vpd.targets.base import with_identities
from vpd.targets.induction import AttentionLayer
from vpd.targets.resid_mlp import Layer

# Tests compile far longer than they compute.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})

# Every class of the grid as a run file may write it.
FRESH = {"init": "random", "step_size": 0.1, "n_steps": 3, "mask_scope": "bc"}
ADAM = {"type": "adam", "beta1": 0.5, "beta2": 0.99, "lr_schedule": {"start_val": 0.05}}
STORED = {"optimizer": ADAM, "scope": {"type": "bc"}, "n_warmup_steps": 2}
LOSSES: dict[str, dict[str, Any]] = {
    "UnmaskedReconLoss": {},
    "CIMaskedReconLoss": {},
    "CIMaskedReconSubsetLoss": {},
    "CIMaskedReconLayerwiseLoss": {},
    "CIHiddenActsReconLoss": {},
    "StochasticReconLoss": {},
    "StochasticReconSubsetLoss": {"routing": {"type": "static_probability", "p": 0.6}},
    "StochasticReconLayerwiseLoss": {},
    "ChunkwiseSubsetReconLoss": {"sites_per_chunk": 2, "n_samples": 3},
    "StochasticHiddenActsReconLoss": {},
    "PGDReconLoss": FRESH,
    "PGDReconSubsetLoss": FRESH,
    "PGDReconLayerwiseLoss": FRESH,
    "PersistentPGDReconLoss": STORED,
    "PersistentPGDReconSubsetLoss": STORED | {"n_samples": 4},
    "MergedStochasticPersistentReconLoss": STORED | {"n_samples": 3, "adv_fraction": 0.5},
}


class Chain(eqx.Module):
    """Two layers on tokens: a lookup, a matrix with a bias, a mix over positions, a matrix."""

    embed: jax.Array
    fc1: jax.Array
    bias: jax.Array
    fc2: jax.Array

    def forward(self, batch, seam):
        """``[B, T]`` tokens to ``[B, T, out]``."""
        x = seam("embed", batch, self.embed, kind="embedding")
        h = jnp.tanh(seam("fc1", x, self.fc1, self.bias))
        return seam("fc2", h + jnp.mean(h, axis=1, keepdims=True), self.fc2)

    def divergence(self, clean, masked):
        """Squared error, in the dtype of the outputs."""
        return jnp.mean(jnp.square(clean - masked), axis=-1)

    def matrices(self):
        """In the order of the forward pass."""
        (vocab, d), (_, h), (_, out) = self.embed.shape, self.fc1.shape, self.fc2.shape
        return {
            "embed": (vocab, d, "embedding"),
            "fc1": (d, h, "linear"),
            "fc2": (h, out, "linear"),
        }


# Values come from NumPy: nothing is compiled for them.


def normal(*shape: int, key: int = 0) -> jax.Array:
    """N(0, 1) in float32."""
    return jnp.asarray(np.random.default_rng([key, *shape]).normal(size=shape).astype(np.float32))


def uniform(*shape: int, key: int = 0) -> jax.Array:
    """U[0, 1] in float32."""
    return jnp.asarray(np.random.default_rng([key, *shape]).uniform(size=shape).astype(np.float32))


def filled(make: Callable[[jax.Array], Any], key: int = 0) -> Any:
    """What ``make`` makes of a random key, with N(0, 1) for values."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(make, jax.random.key(0)))
    return jax.tree.unflatten(structure, [normal(*x.shape, key=key + i) for i, x in enumerate(leaves)])


def chain(vocab: int = 6, d: int = 4, h: int = 5, out: int = 3) -> Chain:
    """A random one."""
    return Chain(normal(vocab, d), normal(d, h), normal(h), normal(h, out))


def tms(hidden: int = 0, f: int = 4, h: int = 3, untied: bool = False) -> TMS:
    """A random one whose bias keeps many outputs above 0, so that its relu hides little."""
    layers = tuple(normal(h, h, key=i) for i in range(hidden))
    bias = jnp.asarray(np.linspace(0.5, 2.0, f, dtype=np.float32))
    return TMS(normal(f, h), bias, layers, normal(h, f, key=1) if untied else None)


def resid(
    n_layers: int = 1,
    f: int = 4,
    d: int = 6,
    mlp: int = 5,
    act: Literal["gelu", "relu"] = "gelu",
    biases: bool = True,
    identity: bool = False,
) -> ResidMLP:
    """A random one; with ``identity`` its embedding is one, and the stream as wide as the input."""
    W_E = jnp.asarray(np.eye(f, dtype=np.float32)) if identity else normal(f, d)
    d = f if identity else d
    layers = [
        Layer(
            normal(d, mlp, key=i),
            normal(mlp, d, key=i) / 2,
            normal(mlp, key=i) if biases else None,
            normal(d, key=i + 9) if biases else None,
        )
        for i in range(n_layers)
    ]
    return ResidMLP(W_E, tuple(layers), act)


def induction(n_layers: int = 1, vocab: int = 6, d: int = 4, n_heads: int = 1, seq_len: int = 8) -> Induction:
    """A random one, its attention far from uniform."""
    layers = [AttentionLayer(*(normal(d, d, key=4 * i + j) for j in range(4))) for i in range(n_layers)]
    return Induction(normal(vocab, d), tuple(layers), n_heads, seq_len)


def sites_of(target, C: int = 3, identities: bool = False) -> tuple[Site, ...]:
    """All its matrices, and of a chain an inserted identity, with numbers of subcomponents that differ.

    Args:
        target: any.
        C: of the first site.
        identities: insert every identity that can be.
    """
    inserted = ("fc1.pre_identity",) if isinstance(target, Chain) else ()
    every = with_identities(target.matrices()).items()
    chosen = [(s, matrix) for s, matrix in every if identities or matrix[2] != "identity" or s in inserted]
    return tuple(Site(s, d_in, d_out, C + i, kind) for i, (s, (d_in, d_out, kind)) in enumerate(chosen))


def batch_of(target, leading: tuple[int, ...] = (5,), key: int = 7) -> jax.Array:
    """Tokens where there is an embedding, features for a TMS and a ResidMLP."""
    if isinstance(target, Chain | Induction):
        vocab = (target.embed if isinstance(target, Chain) else target.wte).shape[0]
        return jnp.asarray(np.random.default_rng(key).integers(0, vocab, leading).astype(np.int32))
    return uniform(*leading, target.n_features, key=key)


def components_of(sites: tuple[Site, ...], key: int = 1) -> ComponentSet:
    """Random components, about as large as fresh ones."""
    return ComponentSet(
        {
            s.name: Components(normal(s.d_in, s.C, key=key + i) / 2, normal(s.C, s.d_out, key=key + i) / 2)
            for i, s in enumerate(sites)
        }
    )


def scene_of(
    target,
    leading: tuple[int, ...] = (5,),
    use_delta: bool = True,
    key: int = 1,
    C: int = 3,
    identities: bool = False,
) -> Scene:
    """Random components on a random batch."""
    sites, batch = sites_of(target, C, identities), batch_of(target, leading)
    clean, _, outputs, _ = jit(recorded_forward)(target, batch)
    return Scene(target, components_of(sites, key), batch, clean, sites, leading, use_delta, clean_outputs=outputs)


def importances_of(scene: Scene, key: int = 2) -> dict[str, jax.Array]:
    """Random importances strictly inside [0, 1]."""
    return {s.name: uniform(*scene.leading, s.C, key=key + i) for i, s in enumerate(scene.sites)}


def stored_of(scene: Scene, key: int = 3) -> dict[str, jax.Array]:
    """Sources of scope bc."""
    ones = (1,) * (len(scene.leading) - 1)
    return {
        s.name: uniform(scene.leading[0], *ones, s.C + int(scene.use_delta), key=key + i)
        for i, s in enumerate(scene.sites)
    }


# Small targets of every kind, each with the leading shape of a batch.
TARGETS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "tms": (tms, (5,)),
    "tms-untied": (partial(tms, untied=True), (5,)),
    "tms-id": (partial(tms, hidden=1), (5,)),
    "tms-id-untied": (partial(tms, hidden=2, untied=True), (5,)),
    "resid": (resid, (5,)),
    "resid-relu": (partial(resid, act="relu", biases=False), (5,)),
    "resid-2": (partial(resid, n_layers=2), (5,)),
    "resid-identity": (partial(resid, n_layers=2, identity=True), (5,)),
    "chain": (chain, (3, 4)),
    "induction": (induction, (3, 8)),
    "induction-2": (partial(induction, n_layers=2, n_heads=2, d=8), (3, 8)),
}


def pd_of(losses: list[dict[str, Any]], **changes: Any) -> PD:
    """A run file's `pd` block around some losses."""
    rate = {"lr_schedule": {"start_val": 0.01}}
    block = {
        "decomposition_targets": [{"module_pattern": "*", "C": 3}],
        "ci_config": {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [4]},
        "loss_metrics": losses,
        "components_optimizer": rate,
        "ci_fn_optimizer": rate,
        "steps": 20,
        "batch_size": 5,
        "n_mask_samples": 2,
    }
    return PD.model_validate(block | changes)


def grid_term(name: str, scene: Scene, coeff: float = 1.0, **changes: Any) -> ReconTerm:
    """The term of a class, with the settings of :data:`LOSSES` unless changed."""
    if name == "CIHiddenActsReconLoss":  # only ever evaluated, so not among the losses of a run file
        loss = CIHiddenActsReconLoss.model_validate({"type": name})
        return term_from(loss, pd_of([{"type": "UnmaskedReconLoss", "coeff": 1.0}]), len(scene.leading) > 1, coeff)
    pd = pd_of([{"type": name, "coeff": coeff} | LOSSES[name] | changes])
    return term_from(pd.loss_metrics[0], pd, len(scene.leading) > 1, coeff)
