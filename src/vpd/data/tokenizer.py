"""Tokenizers from a file, an installed package or the hub, all as `tokenizers.Tokenizer`."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vpd.data.packages import PREFIX, package_place
from vpd.errors import VpdError

# The token that ends a document, by the names that tokenizers give it; the first that is there is taken.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[EOS]")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Where a package holds several tokenizers, the one that is meant when only the package is named.
_DEFAULTS = {"glassllm": "weights/en.tokenizer.json", "llama_models": "llama3/tokenizer.model"}
_FORMS = ("*.gguf", "tokenizer.model", "tokenizer.json", "*.tokenizer.json")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and what tells it from another.

    Attributes:
        name: as it was asked for.
        sha256: of its file; of a GGUF file, of the tokenizer in its metadata.
        vocab_size: largest token id + 1.
        end_of_text: the token that ends a document; None where it has none.
        tokenizer: does the work.
    """

    name: str
    sha256: str
    vocab_size: int
    end_of_text: int | None
    tokenizer: Tokenizer

    def encode(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "..."]]:
        """The token ids of each text, with no special token added."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens written out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer that a name means.

    Args:
        name: a ``tokenizer.json`` or a folder with one, a GGUF file, a ``tokenizer.model`` of Llama 3, ``package:NAME``
            or ``package:NAME/FILE`` of an installed package, or a name on the hub.

    Raises:
        VpdError: where there is none, or it can't be read.
    """
    if name.startswith(PREFIX):
        return _from_file(name, _in_package(name))
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.is_file():
            raise VpdError(f"tokenizer {name}: the folder holds no tokenizer.json; name the file itself")
    if path.is_file():
        return _from_file(name, path)
    if path.suffix in (".json", ".gguf", ".model") or not HUB_NAME.fullmatch(name):
        raise VpdError(f"tokenizer {name}: there is no such file; name a tokenizer.json, a GGUF file or package:NAME")
    return _from_file(name, _from_hub(name))


def _in_package(name: str) -> Path:
    module, path = package_place(name)
    if path.is_file():
        return path
    if module in _DEFAULTS and (path / _DEFAULTS[module]).is_file():
        return path / _DEFAULTS[module]
    found = sorted(file for form in _FORMS for file in path.rglob(form))
    if len(found) == 1:
        return found[0]
    said = "several tokenizers" if found else "no tokenizer.json and no GGUF file"
    raise VpdError(f"tokenizer {name}: the package holds {said}; name one file as package:NAME/FILE")


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise VpdError(
            f"tokenizer {name}: there is no such file, and for the hub the extra hub is needed: "
            "pip install 'vpd-jax[hub]'"
        ) from None
    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:  # what the hub's client raises when it has no answer or a bad one
        raise VpdError(
            f"tokenizer {name}: there is no such file, and the hub gave no tokenizer.json ({type(error).__name__}); "
            "name a local tokenizer.json, a GGUF file or package:NAME"
        ) from None


def _from_file(name: str, path: Path) -> TextTokenizer:
    if path.suffix == ".gguf":
        from vpd.data.gguf_tokenizer import read_gguf_tokenizer

        tokenizer, digest, end = read_gguf_tokenizer(path)
        return _described(name, digest, tokenizer, end)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".model":
        from vpd.data.tiktoken_tokenizer import read_tiktoken

        return _described(name, digest, read_tiktoken(path), None)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise VpdError(f"tokenizer {name}: {path} is no JSON; name a tokenizer.json or a GGUF file") from None
    if isinstance(document, dict) and {"alphabet", "merges"} <= document.keys():
        return _described(name, digest, _character_pairs(document["alphabet"], document["merges"]), None)
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises no narrower class
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VpdError(f"tokenizer {name}: {path} is no tokenizer.json ({said}); name another file") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _described(name, digest, tokenizer, None)


def _described(name: str, digest: str, tokenizer: Tokenizer, end: int | None) -> TextTokenizer:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise VpdError(f"tokenizer {name}: its vocabulary is empty; name another file")
    named = [vocabulary[token] for token in END_OF_TEXT if token in vocabulary]
    return TextTokenizer(name, digest, max(vocabulary.values()) + 1, named[0] if named else end, tokenizer)


def _character_pairs(alphabet: list[str], merges: list[list[str]]) -> Tokenizer:
    """The byte-pair encoding over characters of glassllm: spaces are marked, newlines stand alone.

    Its four special tokens come first and are never read from text.
    """
    pairs = [(left, right) for left, right in merges]
    tokens = ["<pad>", "<unk>", "<bos>", "<eos>", *alphabet, *(left + right for left, right in pairs)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer
