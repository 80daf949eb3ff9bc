"""One update of a language model on the cross-entropy of next tokens, as one program."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from vpd.objective.adam import adam_direction
from vpd.objective.schedule import Schedule
from vpd.pretrain.model import is_decayed
from vpd.targets import LanguageModel
from vpd.targets.base import Pass
from vpd.targets.divergence import cross_entropy
from vpd.training.optimizers import Moments, clip_by_norm, descend

Logs = dict[str, Float[Array, ""]]


class PretrainState(eqx.Module):
    """All that a pretraining run is: float32 parameters, the moments of Adam, the number of updates made."""

    model: LanguageModel
    moments: Moments
    step: Int[Array, ""]


@dataclass(frozen=True)
class Rule:
    """How an update is made.

    Attributes:
        lr: learning rate over the run.
        steps: updates of the run.
        betas: decay of the moments.
        weight_decay: of matrices and embeddings.
        clip_norm: global norm to which gradients are clipped; None does not clip.
        bfloat16: whether the forward pass is computed in it.
        remat: whether the backward pass recomputes layers.
        eps: of Adam, after the root.
    """

    lr: Schedule
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = None
    bfloat16: bool = False
    remat: bool = False
    eps: float = 1e-8


def first_state(model: LanguageModel) -> PretrainState:
    """The state before the first update; every array is its own, as donation needs."""
    zeros = [jax.tree.map(jnp.zeros_like, model) for _ in range(2)]
    return PretrainState(jax.tree.map(jnp.copy, model), Moments(*zeros), jnp.zeros((), jnp.int32))


def next_token_losses(
    model: LanguageModel, rows: Int32[Array, "B T"], bfloat16: bool = False, remat: bool = False
) -> Float[Array, "B T-1"]:
    """``−log p(rows[:, t + 1] | rows[:, : t + 1])`` in nats, at every position that has a next token.

    Args:
        model: float32 parameters.
        rows: token ids.
        bfloat16: whether the forward pass is computed in it; softmax and loss are float32 all the same.
        remat: whether the backward pass recomputes layers.
    """
    computed = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model) if bfloat16 else model
    return cross_entropy(computed.forward(rows[:, :-1], Pass(remat=remat)), rows[:, 1:])


def mean_loss(model: LanguageModel, rows: Int32[Array, "B T"]) -> Float[Array, ""]:
    """Mean over positions, computed in float32: what evaluation measures."""
    return jnp.mean(next_token_losses(model, rows))


def update(rule: Rule, state: PretrainState, given: Int32[Array, "1 B T"]) -> tuple[PretrainState, Logs]:
    """One step of AdamW; the loss and the gradient norm are those before it.

    Args:
        rule: how.
        state: before the update.
        given: the batch of this step, as the reader hands it over.
    """

    def loss(model: LanguageModel) -> Float[Array, ""]:
        return jnp.mean(next_token_losses(model, given[0], rule.bfloat16, rule.remat))

    value, gradients = jax.value_and_grad(loss)(state.model)
    gradients, norm = clip_by_norm(gradients, rule.clip_norm)
    moments = state.moments
    direction, m, v = adam_direction(gradients, moments.m, moments.v, state.step + 1, rule.betas, rule.eps)
    lr, decayed = rule.lr(state.step, rule.steps), is_decayed(state.model)
    (matrices, rest), (along, beside) = (eqx.partition(tree, decayed) for tree in (state.model, direction))
    model = eqx.combine(descend(matrices, along, lr, rule.weight_decay), descend(rest, beside, lr, 0.0))
    return PretrainState(model, Moments(m, v), state.step + 1), {"loss/train": value, "grad_norm": norm}


def compiled_update(rule: Rule, model: LanguageModel, batch: tuple[int, int]) -> jax.stages.Compiled:
    """The training program of a run, which donates its state.

    Args:
        rule: how updates are made.
        model: real or abstract.
        batch: rows and tokens a row.
    """
    template = jax.eval_shape(first_state, model)
    given = jax.ShapeDtypeStruct((1, *batch), jnp.int32)
    return jax.jit(partial(update, rule), donate_argnums=0).lower(template, given).compile()
