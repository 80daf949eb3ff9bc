"""From a pretraining file to its objects: rows, network, update rule, prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int32

from vpd.config.block import refusal
from vpd.config.pretraining import PretrainingConfig, PretrainingSamples
from vpd.data.data_set import DataSet, open_data_set
from vpd.data.text import tokenizer_for
from vpd.data.text_build import prepared_folder, text_batches
from vpd.data.tokenizer import TextTokenizer
from vpd.data.tokens import RowStore, TokenBatches
from vpd.objective.schedule import Schedule
from vpd.pretrain.baselines import Baselines, baselines, limited
from vpd.pretrain.step import Rule
from vpd.progress import preparing_meter

BLOCK = 8192  # rows that are counted at a time


@dataclass(frozen=True)
class Plan:
    """The objects that a pretraining file describes.

    Attributes:
        config: the file.
        data_set: the prepared text.
        vocab: number of tokens.
        rule: how updates are made.
        rows: batches of the training split by step.
        evaluated: rows that are evaluated, the same each time; None where nothing is.
        tokenizer: for samples; None where there are none, or ids are all there is.
        prompts: token ids that samples go on from.
    """

    config: PretrainingConfig
    data_set: DataSet
    vocab: int
    rule: Rule
    rows: TokenBatches
    evaluated: Int32[np.ndarray, "rows length"] | None
    tokenizer: TextTokenizer | None
    prompts: list[Int32[np.ndarray, "..."]]

    @property
    def tokens_per_step(self) -> int:
        """Next tokens that an update predicts."""
        return self.config.batch_size * (self.config.data.max_seq_len - 1)

    @property
    def extra(self) -> dict[str, object]:
        """What ``config.json`` says beside the model's sizes."""
        data = self.config.data
        return {"tokenizer_name": data.tokenizer_name, "dataset_name": data.dataset_name}

    def baselines(self) -> Baselines | None:
        """What counting predicts on the evaluated rows."""
        if self.evaluated is None:
            return None
        return baselines(limited(self._blocks()), self.evaluated, self.vocab)

    def text(self, ids: Int32[np.ndarray, "..."]) -> str:
        """Token ids as a person reads them."""
        numbers = [int(i) for i in ids]
        return self.tokenizer.decode(numbers) if self.tokenizer else " ".join(map(str, numbers))

    def _blocks(self) -> Iterator[Int32[np.ndarray, "rows length"]]:
        store = RowStore(self.data_set, self.config.data.train_split)
        for first in range(0, store.rows, BLOCK):
            yield store.take(np.arange(first, min(first + BLOCK, store.rows)))


def build_plan(config: PretrainingConfig, quiet: bool = True) -> Plan:
    """Turn a pretraining file into its objects; text is prepared where it was not before.

    Args:
        config: read.
        quiet: no progress bar while text is prepared.

    Raises:
        VpdError: text, tokenizer or prompts that can't be used.
    """
    evaluated = config.eval is not None
    folder = prepared_folder(config.data, partial(preparing_meter, quiet=quiet), config.target.vocab_size, evaluated)
    data_set = open_data_set(folder)
    vocab = config.target.vocab_size or data_set.tokenizer.vocab_size
    if vocab is None:
        said = "the text was given as token ids without its tokenizer, which would tell the number of tokens"
        raise refusal("target.vocab_size", said, "write it")
    rows = text_batches(config.data, folder, config.batch_size, config.seed, "train")
    held_out = _evaluated(config, folder)
    tokenizer = _tokenizer(config)
    prompts = _prompts(config, vocab, held_out, tokenizer)
    return Plan(config, data_set, vocab, rule_from(config), rows, held_out, tokenizer, prompts)


def rule_from(config: PretrainingConfig) -> Rule:
    """How updates are made."""
    optimizer, runtime = config.optimizer, config.runtime
    schedule = optimizer.lr_schedule
    wants = jax.default_backend() != "cpu" if runtime.autocast_bf16 is None else runtime.autocast_bf16
    return Rule(
        Schedule(schedule.start_val, schedule.warmup_pct, schedule.final_val_frac, schedule.fn_type),
        config.steps,
        optimizer.betas,
        optimizer.weight_decay,
        optimizer.grad_clip_norm,
        bfloat16=wants,
        remat=runtime.remat == "block",
    )


def _evaluated(config: PretrainingConfig, folder: Path) -> Int32[np.ndarray, "rows length"] | None:
    """The first batches of the evaluation stream, each row once."""
    if config.eval is None:
        return None
    batches = text_batches(config.data, folder, config.eval.batch_size, config.seed, "eval")
    n = min(config.eval.n_steps, max(1, batches.rows // config.eval.batch_size))
    return np.concatenate([batches[i] for i in range(n)])


def _tokenizer(config: PretrainingConfig) -> TextTokenizer | None:
    if config.samples is None:
        return None
    ids_will_do = config.samples.prompts is None
    return tokenizer_for(config.data.tokenizer_name, tokenized=ids_will_do)


def _prompts(
    config: PretrainingConfig,
    vocab: int,
    evaluated: Int32[np.ndarray, "rows length"] | None,
    tokenizer: TextTokenizer | None,
) -> list[Int32[np.ndarray, "..."]]:
    samples = config.samples
    if samples is None:
        return []
    if samples.prompts is None:
        assert evaluated is not None
        return list(evaluated[: samples.n_prompts, : samples.prompt_tokens])
    assert tokenizer is not None
    found = tokenizer.encode(samples.prompts)
    for i, ids in enumerate(found):
        _check_prompt(f"samples.prompts[{i}]", ids, samples, config.block_size, vocab)
    return found


def _check_prompt(key: str, ids: Int32[np.ndarray, "..."], samples: PretrainingSamples, room: int, vocab: int) -> None:
    if not len(ids):
        raise refusal(key, "the tokenizer makes no token of it", "write some words")
    if len(ids) + samples.length > room:
        said = f"its {len(ids)} tokens and {samples.length} more are longer than the {room} positions"
        raise refusal(key, said, "write a shorter one, or a smaller samples.length")
    if int(ids.max()) >= vocab:
        said = f"it has the token {int(ids.max())}, and the network has {vocab} tokens"
        raise refusal(key, said, "write other words, or target.vocab_size: null")
