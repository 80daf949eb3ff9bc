"""A small tokenizer and small texts for tests of token data."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers

from vpd.data.data_set import DataSet

LENGTH = 16
Make = Callable[..., DataSet]
WORDS = [f"w{k}" for k in range(60)]
END = 0


def write_tokenizer(path: Path, words: list[str] = WORDS) -> Path:
    """A tokenizer.json of one token a word; token 0 ends a text, 1 is any other word."""
    vocabulary = {token: k for k, token in enumerate(["<|endoftext|>", "<other>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def documents(count: int, seed: int = 0, words: int = 40) -> list[str]:
    """Texts of very different lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 2 * words))) for _ in range(count)]


def write_texts(folder: Path, texts: list[str]) -> Path:
    """One file a text, in order."""
    folder.mkdir()
    for k, text in enumerate(texts):
        (folder / f"{k:05d}.txt").write_text(text)
    return folder


def write_parquet(path: Path, column: str, values: list, kind: pa.DataType | None = None, group: int = 7) -> Path:
    """One column in several row groups."""
    pq.write_table(pa.table({column: pa.array(values, kind)}), path, row_group_size=group)
    return path


def expected_ids(texts: list[str]) -> list[list[int]]:
    """What the tokenizer above makes of each text."""
    numbers = {word: k + 2 for k, word in enumerate(WORDS)}
    return [[*(numbers[word] for word in text.split()), END] for text in texts]


def edit_meta(folder: Path, **changes: object) -> None:
    """Replace keys of meta.json."""
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@contextmanager
def unwatched(size: int) -> Generator[Callable[[int], None]]:
    """No progress shown."""
    yield lambda done: None
