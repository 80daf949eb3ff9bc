"""The tokenizer of Llama 3 as it is published: byte sequences and their ranks, one a line."""

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from vpd.errors import VpdError

RANKS = 128_000
_NAMED = (
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id"),
    *("step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", "image"),
)
# 256 special tokens follow the ranks.
_SPECIAL = (*_NAMED, *(f"reserved_special_token_{k}" for k in range(2, 258 - len(_NAMED))))
LLAMA_3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tiktoken(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model` of Llama 3.

    Two neighbouring pieces are merged wherever their bytes have a rank, the lowest first; so every way to part a token
    into two others is a merge.

    Raises:
        VpdError: where the file holds something else.
    """
    try:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error):
        ranks = {}
    if sorted(ranks.values()) != list(range(RANKS)):
        raise VpdError(
            f"tokenizer {path}: of files named .model only those of Llama 3 are read ({RANKS} ranks in the format of "
            "tiktoken); name the tokenizer.json of the same model"
        )
    shown = _shown_bytes()
    names = {token: "".join(shown[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parted = [(token[:k], token[k:]) for k in range(1, len(token))]
        known = [(left, right) for left, right in parted if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(names[left], names[right]) for left, right in known]
    vocabulary = {name: ranks[token] for token, name in names.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in _SPECIAL])
    return tokenizer


def _shown_bytes() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where it can be printed, else one past 255."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte) if byte in printed else chr(256 + others.index(byte)) for byte in range(256)]
