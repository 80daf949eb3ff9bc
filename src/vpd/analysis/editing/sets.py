"""Where an edit's effect is measured: positions of the run's own data, or of prompts.

Words that name positions of the evaluation data:

* ``all``: every position that has a next token; of networks without sequences every example;
* ``repeated``: where the token occurred before in its sequence, so that induction can tell the next one;
* ``TEXT=>NEXT``: positions at which NEXT is about to follow TEXT; ``TEXT=>`` right after TEXT, whatever follows;
* ``feature:I``: examples in which feature I is active, of networks on sparse features;
* ``rest``: the positions of the same data that the other set does not have.

A file has one prompt a line, ``TEXT`` (all positions) or ``TEXT=>NEXT``. Networks without a tokenizer have token ids in
place of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

from vpd.analysis.prompts import parsed_tokens, token_prompt
from vpd.analysis.run import Run
from vpd.config.targets import TokenData
from vpd.data.tokenizer import TextTokenizer
from vpd.errors import RunError
from vpd.targets import TMS, Induction, LanguageModel, ResidMLP

ALL, REPEATED, REST, FEATURE, ARROW = "all", "repeated", "rest", "feature:", "=>"

Where = Bool[np.ndarray, "..."]
Tokens = Int[np.ndarray, "B T"]


@dataclass(frozen=True)
class Examples:
    """A batch, and the positions of it that belong to each set.

    Attributes:
        batch: input of the target.
        where: ``{set: [*leading]}``.
    """

    batch: Shaped[np.ndarray, "..."]
    where: dict[str, Where]


@dataclass(frozen=True)
class Continuation:
    """A sequence of tokens, and how many of its last ones are what follows."""

    tokens: tuple[int, ...]
    following: int


def examples_of(run: Run, on: str, off: str | None, batches: int, first: int = 0) -> Iterator[Examples]:
    """Batches with the positions that are on target (``on``) and off it (``off``).

    Args:
        run: opened.
        on: a word, or a file of prompts.
        off: likewise, or ``rest``; None leaves that set out.
        batches: of evaluation data.
        first: number of the first of them.

    Raises:
        RunError: a word that means nothing for this run, a file that can't be read, or ``rest`` of prompts.
    """
    words = {"on": on} if off is None else {"on": on, "off": off}
    prompts = {name: None if word == REST else _prompts(run, word) for name, word in words.items()}
    if on == REST or (off == REST and prompts["on"] is not None):
        raise RunError("rest is what else there is in the data of --on, which must be no file; write --off all")
    choosers = {n: _Chooser(run, word) for n, word in words.items() if word != REST and prompts[n] is None}
    return _examples(run, prompts, choosers, off == REST, range(first, first + batches))


def _examples(
    run: Run,
    prompts: dict[str, list[Continuation] | None],
    choosers: "dict[str, _Chooser]",
    rest: bool,
    batches: range,
) -> Iterator[Examples]:
    for name, own in prompts.items():
        if own is not None:
            yield _padded(name, own)
    for i in batches if choosers else ():
        batch = np.asarray(run.batch(i))
        every = _measurable(run, batch)
        where = {name: chooser(batch) & every for name, chooser in choosers.items()}
        if rest:
            where["off"] = every & ~where["on"]
        yield Examples(batch, where)


def _measurable(run: Run, batch: Shaped[np.ndarray, "..."]) -> Where:
    """Positions with a next token; every example where there is no sequence."""
    leading = run.leading(jnp.asarray(batch))
    every = np.ones(leading, bool)
    if run.config.has_sequence:
        every[..., -1] = False
    return every


class _Chooser:
    """Which positions of a batch a word means."""

    def __init__(self, run: Run, word: str) -> None:
        self._run, self._word = run, word
        self._feature: int | None = None
        self._tokens: Continuation | None = None
        if word in (ALL, REPEATED):
            if word == REPEATED:
                refuse_without_sequence(run, word)
        elif word.startswith(FEATURE):
            self._feature = _feature(run, word)
        elif ARROW in word:
            refuse_without_sequence(run, word)
            self._tokens = continuation(run, word)
        else:
            raise RunError(
                f"{word!r} is neither a file nor a set; write {ALL}, {REPEATED}, {REST}, TEXT=>NEXT, feature:I, "
                "or the path of a file of prompts"
            )

    def __call__(self, batch: Shaped[np.ndarray, "..."]) -> Where:
        if self._feature is not None:
            return batch[..., self._feature] != 0
        if self._tokens is not None:
            return _before(batch, self._tokens)
        if self._word == REPEATED:
            return _repeated(batch)
        return np.ones(self._run.leading(jnp.asarray(batch)), bool)


def refuse_without_sequence(run: Run, word: str) -> None:
    """Refuse what asks for tokens of a network that reads none.

    Raises:
        RunError: with what can be asked for.
    """
    if not isinstance(run.experiment.target, Induction | LanguageModel):
        raise RunError(
            f"{word!r} means positions of tokens, and {run.path} decomposes a network that reads none; "
            f"write {ALL}, or {FEATURE}I where it reads sparse features"
        )


def _feature(run: Run, word: str) -> int:
    target, number = run.experiment.target, word.removeprefix(FEATURE)
    if not isinstance(target, TMS | ResidMLP):
        raise RunError(f"{word!r} is for networks on sparse features, and {run.path} decomposes none")
    if not number.isdecimal() or int(number) >= target.n_features:
        raise RunError(f"{word!r}: the features of {run.path} go from 0 to {target.n_features - 1}")
    return int(number)


def _repeated(tokens: Tokens) -> Bool[np.ndarray, "B T"]:
    same = tokens[:, :, None] == tokens[:, None, :]
    return np.any(same & np.tril(np.ones(same.shape[1:], bool), -1), axis=-1)


def _before(tokens: Tokens, wanted: Continuation) -> Bool[np.ndarray, "B T"]:
    """The positions that predict the following tokens, wherever the sequence occurs; without any, its end."""
    n, T = len(wanted.tokens), tokens.shape[1]
    found = np.zeros(tokens.shape, bool)
    if n > T:
        return found
    begins = np.all(np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1) == np.asarray(wanted.tokens), axis=-1)
    first = n - 1 - wanted.following
    for place in range(first, n - 1) if wanted.following else [n - 1]:
        found[:, place : place + begins.shape[1]] |= begins
    return found


def continuation(run: Run, text: str) -> Continuation:
    """The tokens that ``TEXT=>NEXT`` means.

    Raises:
        RunError: no text, or text whose tokens are others with what follows than without.
    """
    before, _, after = text.partition(ARROW)
    first, whole = _tokens(run, before), _tokens(run, before + _joint(run, after) + after)
    if not first:
        raise RunError(f"{text!r} has nothing before {ARROW}; write TEXT{ARROW}NEXT")
    if whole[: len(first)] != first:
        raise RunError(f"{text!r}: with what follows, the text has other tokens at its end; cut it at another place")
    return Continuation(tuple(whole), len(whole) - len(first))


def _joint(run: Run, after: str) -> str:
    """Token ids are parted by commas."""
    return "" if isinstance(run.config.data, TokenData) or not after else ","


def _tokens(run: Run, text: str) -> list[int]:
    if not isinstance(run.config.data, TokenData):
        return parsed_tokens(text)
    tokenizer: TextTokenizer = run.tokenizer
    return tokenizer.encode([text])[0].tolist()


def _prompts(run: Run, word: str) -> list[Continuation] | None:
    """The prompts of a file; None where the word names none."""
    path = Path(word).expanduser()
    if ARROW in word or not path.is_file():
        return None
    refuse_without_sequence(run, word)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} can't be read as text ({type(error).__name__}); give a file with a prompt a line"
        ) from None
    if not lines:
        raise RunError(f"{path} holds no prompt; write one a line, TEXT or TEXT=>NEXT")
    found = [continuation(run, line) if ARROW in line else Continuation(tuple(_tokens(run, line)), 0) for line in lines]
    for line, one in zip(lines, found, strict=True):
        token_prompt(run, one.tokens)
        if len(one.tokens) < 2:
            raise RunError(f"{path}: {line!r} has one token, after which nothing is predicted; write a longer prompt")
    return found


def _padded(name: str, prompts: Sequence[Continuation]) -> Examples:
    """Prompts of any lengths in one batch: what stands behind a prompt's end changes nothing before it."""
    longest = max(len(one.tokens) for one in prompts)
    batch = np.zeros((len(prompts), longest), np.int32)
    where = np.zeros(batch.shape, bool)
    for row, one in enumerate(prompts):
        n = len(one.tokens)
        batch[row, :n] = one.tokens
        where[row, (n - 1 - one.following if one.following else 0) : n - 1] = True
    return Examples(batch, {name: where})
