"""The byte-level BPE tokenizer that a GGUF file carries in its metadata."""

import hashlib
import json
from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from vpd.data.tiktoken_tokenizer import LLAMA_3_CUT
from vpd.errors import VpdError

CONTROL, USER_DEFINED = 3, 4
# How text is cut before bytes are paired, by the name that the file gives it.
CUTS = ("gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3")


def read_gguf_tokenizer(path: Path) -> tuple[Tokenizer, str, int | None]:
    """The tokenizer, a hash of what defines it, and the token that the file says ends a text.

    Raises:
        VpdError: where the file can't be read, or holds another kind of tokenizer than byte-level BPE.
    """
    try:
        fields = GGUFReader(path).fields
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise VpdError(
            f"tokenizer {path}: not a readable GGUF file ({type(error).__name__}); get the file again"
        ) from None

    def value(name: str) -> object:
        field = fields.get(f"tokenizer.ggml.{name}")
        return None if field is None else field.contents()

    kind, cut = value("model"), value("pre")
    if kind != "gpt2" or cut not in CUTS:
        raise VpdError(
            f"tokenizer {path}: its kind {kind!r} with the cut {cut!r} is not read, only gpt2 with one of "
            f"{', '.join(CUTS)}; name the tokenizer.json of the model"
        )
    tokens, kinds, merges = value("tokens"), value("token_type"), value("merges")
    if not (isinstance(tokens, list) and isinstance(merges, list)):
        raise VpdError(f"tokenizer {path}: the file lacks tokens or merges; name the tokenizer.json of the model")
    kinds = kinds if isinstance(kinds, list) else [1] * len(tokens)
    digest = hashlib.sha256(json.dumps([kind, cut, tokens, kinds, merges]).encode()).hexdigest()
    end = value("eos_token_id")
    return _byte_pairs(tokens, kinds, merges, str(cut)), digest, end if isinstance(end, int) else None


def _byte_pairs(tokens: list[str], kinds: list[int], merges: list[str], cut: str) -> Tokenizer:
    is_llama = cut.startswith("llama")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=is_llama))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_cuts(cut))
    tokenizer.decoder = decoders.ByteLevel()
    marked = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in marked if k == CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in marked if k == USER_DEFINED])
    return tokenizer


def _cuts(cut: str) -> list[pre_tokenizers.PreTokenizer]:
    if cut == "smollm":
        return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if cut == "gpt-2":
        return [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    split = pre_tokenizers.Split(Regex(LLAMA_3_CUT), "isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
