"""Small language models of every kind, their layers stacked, with random norms and biases."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from objective.scenes import normal

from vpd.rotary import Scaling
from vpd.targets import LanguageModel, init_gpt2, init_llama, init_simple_mlp_lm

SCALING = Scaling(8.0, 1.0, 4.0, 16)
VOCAB, MAX_LEN = 20, 40


def llama(n_layers: int = 3, tied: bool = False, scaling: Scaling | None = SCALING) -> LanguageModel:
    return spread(
        lambda: init_llama(
            VOCAB, 8, n_layers, 4, 2, 12, 0, tied, head_dim=4, rope_base=500.0, scaling=scaling, max_len=MAX_LEN
        )
    )


def gpt2(n_layers: int = 3, tied: bool = True) -> LanguageModel:
    return spread(lambda: init_gpt2(VOCAB, 8, n_layers, 2, 0, tied=tied, max_len=MAX_LEN))


def simple_mlp(n_layers: int = 3, tied: bool = True) -> LanguageModel:
    return spread(lambda: init_simple_mlp_lm(VOCAB, 8, n_layers, 2, 1, 12, 0, tied, max_len=MAX_LEN))


MODELS: dict[str, Callable[..., LanguageModel]] = {"llama": llama, "gpt2": gpt2, "simple_mlp": simple_mlp}


def spread(make: Callable[[], LanguageModel]) -> LanguageModel:
    """What ``make`` describes, with values of which none is 0 or 1 by design."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(make))
    drawn = [normal(*x.shape, key=i) * 0.4 + (0.5 if len(x.shape) < 3 and i else 0.0) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def tokens(batch: int = 2, length: int = 7, key: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(key).integers(0, VOCAB, (batch, length)).astype(np.int32))


def same(a: LanguageModel, b: LanguageModel) -> bool:
    """Whether two models have the same structure, types and bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)
