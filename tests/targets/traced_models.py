"""Networks of several libraries and styles, each with the places where its sites' matrices are stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any  # parameters are any pytree

import equinox as eqx
import jax
import jax.numpy as jnp

import vpd

Matrices = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        forward: of parameters and a batch.
        params: of it.
        batch: an input.
        sites: what is decomposed.
        edited: the parameters with other matrices at its sites.
        options: of ``trace``.
    """

    forward: Callable[..., jax.Array]
    params: Any
    batch: jax.Array
    sites: dict[str, int]
    edited: Callable[[Any, Matrices], Any]
    options: dict[str, Any] = field(default_factory=dict)

    def target(self) -> vpd.TracedTarget:
        """The network, traced."""
        return vpd.trace(self.forward, self.params, self.batch, self.sites, vpd.squared_error, **self.options)


def normal(seed: int, *shape: int) -> jax.Array:
    """Normal numbers of standard deviation 1/3."""
    return jax.random.normal(jax.random.key(seed), shape) / 3


def tokens(batch: int = 2, length: int = 5, vocab: int = 7) -> jax.Array:
    """Random tokens."""
    return jax.random.randint(jax.random.key(9), (batch, length), 0, vocab)


def equinox_mlp() -> Case:
    """``eqx.nn.MLP`` under ``vmap``."""
    mlp = eqx.nn.MLP(3, 4, 5, 2, key=jax.random.key(0))

    def edited(model: eqx.nn.MLP, W: Matrices) -> eqx.nn.MLP:
        new = [W[f"layers/{i}/weight"].T for i in range(3)]
        return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, new)

    return Case(lambda m, x: jax.vmap(m)(x), mlp, normal(1, 6, 3), {"layers/*": 3}, edited)


@eqx.filter_jit
def mapped(mlp: eqx.nn.MLP, x: jax.Array) -> jax.Array:
    """An MLP at every position."""
    return jax.vmap(mlp)(x)


class EquinoxBlock(eqx.Module):
    """Attention and MLP, each after a norm."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norm_1: eqx.nn.LayerNorm
    norm_2: eqx.nn.LayerNorm

    def __call__(self, h: jax.Array) -> jax.Array:
        """``[T, d]``."""
        x = jax.vmap(self.norm_1)(h)
        h = h + self.attention(x, x, x, mask=jnp.tril(jnp.ones((len(h), len(h)), bool)))
        return h + mapped(self.mlp, jax.vmap(self.norm_2)(h))


class EquinoxTransformer(eqx.Module):
    """Two blocks, the first recomputed in the backward pass."""

    embed: eqx.nn.Embedding
    blocks: list[EquinoxBlock]
    head: eqx.nn.Linear

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """``[T]``."""
        h = jax.vmap(self.embed)(tokens)
        h = self.blocks[1](eqx.filter_checkpoint(self.blocks[0])(h))
        return jax.vmap(self.head)(h)


PROJECTIONS = ("query_proj", "key_proj", "value_proj", "output_proj")


def equinox_transformer() -> Case:
    """Equinox's own layers, under ``vmap``, ``filter_jit`` and ``filter_checkpoint``."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def block() -> EquinoxBlock:
        attention = eqx.nn.MultiheadAttention(2, 4, key=next(keys))
        mlp = eqx.nn.MLP(4, 4, 6, 1, activation=jax.nn.gelu, key=next(keys))
        return EquinoxBlock(attention, mlp, eqx.nn.LayerNorm(4), eqx.nn.LayerNorm(4))

    model = EquinoxTransformer(
        eqx.nn.Embedding(7, 4, key=next(keys)), [block(), block()], eqx.nn.Linear(4, 7, key=next(keys))
    )

    def edited(model: EquinoxTransformer, W: Matrices) -> EquinoxTransformer:
        def weights(m: EquinoxTransformer) -> list[jax.Array]:
            found = [m.embed.weight, m.head.weight]
            for b in m.blocks:
                found += [getattr(b.attention, name).weight for name in PROJECTIONS]
                found += [layer.weight for layer in b.mlp.layers]
            return found

        new = [W["embed/weight"], W["head/weight"].T]
        for i in range(2):
            new += [W[f"blocks/{i}/attention/{name}/weight"].T for name in PROJECTIONS]
            new += [W[f"blocks/{i}/mlp/layers/{j}/weight"].T for j in range(2)]
        return eqx.tree_at(weights, model, new)

    sites = {"embed/weight": 3, "head/*": 4, "blocks/*/attention/*_proj/weight": 2, "blocks/*/mlp/*": 3}
    return Case(lambda m, x: jax.vmap(m)(x), model, tokens(), sites, edited)


def plain_function() -> Case:
    """A scan, recomputed layers, a nested jit, a fused qkv as einsum with heads, a lookup and a head of one leaf."""
    d, heads, L = 4, 2, 3
    params = {
        "wte": normal(0, 7, d),
        "layers": {
            "norm": 1 + normal(1, L, d),
            "qkv": normal(2, L, d, 3, heads, d // heads),
            "bias": normal(3, L, 3, heads, d // heads),
            "out": normal(4, L, heads, d // heads, d),
            "up": normal(5, L, 6, d),
            "down": normal(6, L, 6, d),
        },
        "scale": normal(7, d),
    }

    @jax.jit
    def mlp(h: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jax.nn.relu(h @ up.T) @ down

    def layer(h: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = h * w["norm"]
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dnhe->btnhe", x, w["qkv"]) + w["bias"], 2, 0)
        scores = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
        h = h + jnp.einsum("bhts,bshe,hed->btd", scores, v, w["out"])
        return h + mlp(h, w["up"], w["down"]), jnp.mean(h)

    def forward(p: dict[str, Any], batch: jax.Array) -> jax.Array:
        h = jnp.take(p["wte"], batch, axis=0)
        h, means = jax.lax.scan(jax.checkpoint(layer), h, p["layers"])
        return (h * p["scale"]) @ p.get("head", p["wte"]).T + means.sum()

    def edited(p: dict[str, Any], W: Matrices) -> dict[str, Any]:
        def stack(name: str) -> jax.Array:
            return jnp.stack([W[f"layers.{i}.{name}"] for i in range(L)])

        layers = p["layers"] | {
            "qkv": stack("qkv").reshape(L, d, 3, heads, d // heads),
            "out": stack("out").reshape(L, heads, d // heads, d),
            "up": stack("up").mT,
            "down": stack("down"),
        }
        return p | {"wte": W["wte"], "head": W["lm_head"].T, "layers": layers}

    sites = {"wte": 3, "layers/*": 4}
    return Case(forward, params, tokens(), sites, edited, {"aliases": {"wte#0": "wte", "wte#1": "lm_head"}})


def loops_and_branches() -> Case:
    """``fori_loop`` with ``w[i]``, a reverse scan with other inputs and outputs, layers by number, a ``cond``."""
    params = {
        "a": {"w": normal(0, 3, 4, 4), "b": normal(1, 3, 4)},
        "r": {"w": normal(2, 3, 4, 4)},
        "u": {"w": normal(3, 2, 4, 4)},
        "c": {"yes": normal(4, 4, 4), "no": normal(5, 4, 4)},
    }

    def forward(p: dict[str, Any], x: jax.Array) -> jax.Array:
        h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["a"]["w"][i] + p["a"]["b"][i]), x)
        shifts = jnp.arange(3.0)[:, None] * h[0]

        def back(carry: tuple[jax.Array, jax.Array], given: tuple[jax.Array, jax.Array]) -> Any:
            (h, n), (w, shift) = carry, given
            h = h + jnp.tanh((h + shift) @ w)
            return (h, n + 1), h * (n + 1.0)

        rounded = p["r"]["w"].astype(jnp.bfloat16).astype(jnp.float32) if "exact" not in p else p["r"]["w"]
        (h, _), seen = jax.lax.scan(back, (h, 0), (rounded, shifts), reverse=True)
        h = h + (seen * jnp.arange(1.0, 4.0)[:, None, None]).sum(0)
        for i in range(2):
            h = jnp.tanh(h @ p["u"]["w"][i])
        return jax.lax.cond(x[0, 0] > 0, lambda h: h @ p["c"]["yes"], lambda h: h @ p["c"]["no"] + 1.0, h)

    def edited(p: dict[str, Any], W: Matrices) -> dict[str, Any]:
        def stack(name: str, n: int) -> jax.Array:
            return jnp.stack([W[f"{name}.{i}.w"] for i in range(n)])

        return {
            "a": p["a"] | {"w": stack("a", 3)},
            "r": {"w": stack("r", 3)},
            "u": {"w": stack("u", 2)},
            "c": {"yes": W["c/yes"], "no": W["c/no"]},
            "exact": 1.0,
        }

    return Case(forward, params, normal(8, 5, 4), {"*": 3}, edited)


def experts() -> Case:
    """A mixture of experts: matrices side by side, as a batched product, on either side, and under ``vmap``."""
    E, d, m = 3, 4, 5
    params = {"gate": normal(0, d, E), "experts": {"up": normal(1, E, d, m), "down": normal(2, m, E, d)}}
    params["many"] = normal(3, E, 2, d)

    def forward(p: dict[str, Any], x: jax.Array) -> jax.Array:
        gate = jax.nn.softmax(x @ p["gate"])
        hidden = jax.nn.relu(jnp.einsum("bd,edm->bem", x, p["experts"]["up"]))
        out = jnp.einsum("bem,med->ebd", hidden, p["experts"]["down"])
        several = jax.vmap(lambda w, h: w @ h.T)(p["many"], out)
        return jnp.einsum("be,ekb->bk", gate, several)

    def edited(p: dict[str, Any], W: Matrices) -> dict[str, Any]:
        up, down = (jnp.stack([W[f"experts.{i}.{n}"] for i in range(E)]) for n in ("up", "down"))
        many = jnp.stack([W[f"experts.{i}.many"] for i in range(E)]).mT
        return {"gate": W["gate"], "experts": {"up": up, "down": jnp.moveaxis(down, 0, 1)}, "many": many}

    axes = {"experts/up": 0, "experts/down": 1, "many": 0}
    return Case(forward, params, normal(8, 6, d), {"*": 3}, edited, {"stack_axes": axes})


CASES: dict[str, Callable[[], Case]] = {
    "equinox_mlp": equinox_mlp,
    "equinox_transformer": equinox_transformer,
    "plain_function": plain_function,
    "loops_and_branches": loops_and_branches,
    "experts": experts,
}
