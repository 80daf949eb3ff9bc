"""One input to look at: a text, token ids or features, as the batch of a single example that a run's target reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from vpd.analysis.run import Run
from vpd.config.importance import ChunkwiseTransformerCI, GlobalTransformerCI
from vpd.data.tokenizer import TextTokenizer
from vpd.errors import RunError
from vpd.targets import GPT2, TMS, Induction, Llama, LlamaSimpleMLP, ResidMLP

# The value of a feature that is given by its index alone: that of the probes of method.md §10.
MAGNITUDE = 0.75


@dataclass(frozen=True)
class Prompt:
    """An input and how its positions are called.

    Attributes:
        batch: ``[1, T]`` token ids or ``[1, f]`` features.
        words: of each position.
        given: as it was asked for, for records: ``{"tokens": ...}`` or ``{"features": ...}``.
    """

    batch: Shaped[Array, "..."]
    words: tuple[str, ...]
    given: dict[str, object]

    @property
    def has_tokens(self) -> bool:
        """Whether it is a sequence of tokens."""
        return "tokens" in self.given


def read_prompt(run: Run, text: str | None = None, tokens: str | None = None, features: str | None = None) -> Prompt:
    """The input that one of three options describes.

    Args:
        run: that is to read it.
        text: for a language model.
        tokens: ids with commas between.
        features: ``INDEX`` or ``INDEX=VALUE`` with commas between, for a toy; by itself an index is 0.75.

    Raises:
        RunError: not exactly one of them, one that the run can't read, an empty or too long one, or unknown tokens.
    """
    if sum(given is not None for given in (text, tokens, features)) != 1:
        raise RunError("give one input: --prompt TEXT or --tokens 1,2,3 for sequences, --features 0,3=0.5 for toys")
    if features is not None:
        return feature_prompt(run, _features(features))
    refuse_without_tokens(run)
    if text is None:
        return token_prompt(run, parsed_tokens(tokens or ""))
    if run.config.target_kind != "lm":
        raise RunError(f"{run.path} decomposes a network that reads no text; give its tokens: --tokens 1,2,3")
    return token_prompt(run, [int(i) for i in run.tokenizer.encode([text])[0]])


def refuse_without_tokens(run: Run) -> None:
    """Refuse a run whose network reads no sequences.

    Raises:
        RunError: with what it reads.
    """
    if not run.config.has_sequence:
        raise RunError(
            f"{run.path} decomposes a network that reads no sequence; give --features 0,3=0.5 in place of it"
        )


def token_prompt(run: Run, ids: Sequence[int]) -> Prompt:
    """A sequence of token ids.

    Raises:
        RunError: an empty or too long one, or tokens that the network does not know.
    """
    if not ids:
        raise RunError("the prompt is empty; give at least one token")
    longest = context_length(run)
    if longest is not None and len(ids) > longest:
        raise RunError(f"the prompt has {len(ids)} tokens and {run.path} reads at most {longest}; shorten it")
    vocab = _vocab_size(run)
    for i in ids:
        if i < 0 or (vocab is not None and i >= vocab):
            known = "from 0 on" if vocab is None else f"0 to {vocab - 1}"
            raise RunError(f"the network knows no token {i}; its tokens are {known}")
    return Prompt(jnp.asarray([list(ids)], jnp.int32), words_of(run, ids), {"tokens": list(ids)})


def words_of(run: Run, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as text where the run has a tokenizer, else its id; blanks are made visible."""
    if run.config.target_kind != "lm":
        return tuple(map(str, ids))
    return tuple(_visible(run.tokenizer, i) for i in ids)


def _visible(tokenizer: TextTokenizer, token: int) -> str:
    """As the vocabulary has it, which keeps the space that decoding one token alone may drop."""
    known = tokenizer.tokenizer.id_to_token(token)
    text = tokenizer.decode([token]) if known is None else known
    text = text.replace("Ġ", "·").replace("▁", "·").replace("Ċ", "↵").replace("\n", "↵").replace(" ", "·")
    return text if text.isprintable() and text else f"<{token}>"


def feature_prompt(run: Run, features: dict[int, float]) -> Prompt:
    """Sparse features.

    Raises:
        RunError: none, a network that reads none, or one that it does not have.
    """
    target = run.experiment.target
    if not isinstance(target, TMS | ResidMLP):
        raise RunError(f"{run.path} decomposes a network that reads no features; give --tokens 1,2,3 in place of them")
    if not features:
        raise RunError("the input has no feature; give at least one, as in --features 0")
    for index in features:
        if not 0 <= index < target.n_features:
            raise RunError(f"the network has no feature {index}; its features are 0 to {target.n_features - 1}")
    x = np.zeros((1, target.n_features), np.float32)
    x[0, list(features)] = list(features.values())
    words = (", ".join(f"{i}={value:g}" for i, value in features.items()),)
    return Prompt(jnp.asarray(x), words, {"features": {str(i): value for i, value in features.items()}})


def context_length(run: Run) -> int | None:
    """The longest sequence that a run's network and CI function read; None where neither has a bound."""
    target, ci = run.experiment.target, run.config.pd.ci_config
    bounds: list[int] = []
    if isinstance(target, LlamaSimpleMLP | Llama | GPT2):
        bounds.append(target.max_len)
    if isinstance(target, Induction):
        bounds.append(target.seq_len)
    if isinstance(ci, GlobalTransformerCI | ChunkwiseTransformerCI):
        bounds.append(ci.simple_transformer_ci_cfg.attn_config.max_len)
    return min(bounds, default=None)


def read_positions(text: str | None, length: int) -> tuple[int, ...]:
    """Positions with commas between, from the end where they are negative; the last one by default.

    Raises:
        RunError: another form, or positions that a prompt of this length does not have.
    """
    if text is None:
        return (length - 1,)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise RunError(f"--positions {text!r}: write numbers with commas between, as in 3,7 or -1") from None
    for number in numbers:
        if not -length <= number < length:
            raise RunError(f"--positions {number}: the prompt has the positions 0 to {length - 1}")
    return tuple(sorted({number % length for number in numbers}))


def parsed_tokens(text: str) -> list[int]:
    """Token ids that were written out, parted by commas or spaces.

    Raises:
        RunError: anything but whole numbers.
    """
    words = text.replace(",", " ").split()
    bad = [word for word in words if not word.lstrip("-").isdecimal()]
    if bad:
        raise RunError(f"{bad[0]!r} is no token id; write ids with commas between, as in 1,2,3")
    return [int(word) for word in words]


def _features(text: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        index, equals, value = part.partition("=")
        try:
            found[int(index)] = float(value) if equals else MAGNITUDE
        except ValueError:
            raise RunError(f"--features {part!r}: write INDEX or INDEX=VALUE, as in 0,3=0.5") from None
    return found


def _vocab_size(run: Run) -> int | None:
    match run.experiment.target:
        case LlamaSimpleMLP() | Llama() | GPT2() as target:
            return target.vocab_size
        case Induction() as target:
            return target.wte.shape[0]
        case _:
            return None
