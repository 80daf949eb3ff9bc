"""Prompts: text or token ids as a batch that a run's target reads, and the words that its tokens stand for."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vpd.analysis.run import Run
from vpd.config.targets import TokenData
from vpd.data.tokenizer import TextTokenizer
from vpd.errors import RunError
from vpd.importance.transformer import TransformerCI
from vpd.targets import Induction, LanguageModel


def refuse_without_tokens(run: Run) -> None:
    """Refuse a run whose target reads no sequences of tokens.

    Raises:
        RunError: naming what it reads.
    """
    if not isinstance(run.experiment.target, Induction | LanguageModel):
        name = type(run.experiment.target).__name__
        raise RunError(
            f"{run.path} decomposes a {name}, which reads no sequence of tokens; prompts are for runs that do"
        )


def encoded(run: Run, text: str) -> list[int]:
    """The token ids of a text.

    Raises:
        RunError: a run that reads no text.
    """
    refuse_without_tokens(run)
    return run.tokenizer.encode([text])[0].tolist()


def parsed_tokens(text: str) -> list[int]:
    """Token ids that were written out, parted by commas or spaces.

    Raises:
        RunError: anything but whole numbers.
    """
    words = text.replace(",", " ").split()
    bad = [word for word in words if not word.isdecimal()]
    if bad or not words:
        raise RunError(f"{bad[0] if bad else text!r} is no token id; write whole numbers, as in 3,14,15")
    return [int(word) for word in words]


def as_batch(run: Run, tokens: Sequence[int]) -> Int[Array, "1 T"]:
    """One sequence as a batch.

    Raises:
        RunError: no token, one beyond the vocabulary, or more than target and importance function take.
    """
    refuse_without_tokens(run)
    target, longest = run.experiment.target, longest_prompt(run)
    assert isinstance(target, Induction | LanguageModel)
    vocab = target.wte.shape[0] if isinstance(target, Induction) else target.vocab_size
    beyond = [token for token in tokens if not 0 <= token < vocab]
    if not tokens:
        raise RunError("the prompt has no token; give some text")
    if beyond:
        raise RunError(f"token {beyond[0]} is not in the vocabulary of {run.path}: ids go from 0 to {vocab - 1}")
    if len(tokens) > longest:
        raise RunError(f"the prompt has {len(tokens)} tokens, and {run.path} reads at most {longest}; shorten it")
    return jnp.asarray(np.asarray([list(tokens)], np.int32))


def longest_prompt(run: Run) -> int:
    """How many tokens the target and the importance function take at most."""
    target = run.experiment.target
    assert isinstance(target, Induction | LanguageModel)
    own = target.seq_len if isinstance(target, Induction) else target.max_len
    parts = jax.tree.leaves(run.decomposition.ci_fn, is_leaf=lambda node: isinstance(node, TransformerCI))
    limits = [part.max_len for part in parts if isinstance(part, TransformerCI)]
    return min([own, *limits])


def words_of(run: Run, tokens: Sequence[int]) -> list[str]:
    """Each token as text where the run has a tokenizer, else its id; blanks are made visible."""
    if not isinstance(run.config.data, TokenData):
        return [str(token) for token in tokens]
    return [_visible(run.tokenizer, token) for token in tokens]


def _visible(tokenizer: TextTokenizer, token: int) -> str:
    """As the vocabulary has it, which keeps the space that decoding one token alone may drop."""
    known = tokenizer.tokenizer.id_to_token(token)
    text = tokenizer.decode([token]) if known is None else known
    text = text.replace("Ġ", "·").replace("▁", "·").replace("Ċ", "↵").replace("\n", "↵").replace(" ", "·")
    return text if text.isprintable() and text else f"<{token}>"
