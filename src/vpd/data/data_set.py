"""A prepared folder: shards of token rows and `meta.json`, looked at before any long work."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vpd.errors import RunError

SCHEMA_VERSION = 1
META = "meta.json"
COLUMNS = {
    "tokens": "int32, a list of exactly `length`: one sequence",
    "documents": "int64, a list: the documents that the row holds parts of, in order, by their number in the source",
    "starts": "int32, a list: where each of them starts in the row; 0 where it goes on from the row before",
}


@dataclass(frozen=True)
class Shard:
    """One parquet file.

    Attributes:
        file: its name in the folder.
        rows: sequences in it.
        bytes: its size.
        sha256: of its content.
        smallest: smallest token id.
        largest: largest token id.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    smallest: int
    largest: int


@dataclass(frozen=True)
class Split:
    """The shards of one split, and what they were made from.

    Attributes:
        documents: documents that are not empty.
        rows: sequences.
        tokens: ids in the rows.
        dropped_tokens: ids left over where the rows of a unit of work ended.
        shards: in order.
    """

    documents: int
    rows: int
    tokens: int
    dropped_tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer of a prepared folder; all but its name None where ids were given without it."""

    name: str
    sha256: str | None
    vocab_size: int | None
    end_of_text: int | None


@dataclass(frozen=True)
class DataSet:
    """What `meta.json` says.

    Attributes:
        path: the folder.
        length: tokens a row.
        tokenizer: which ids these are.
        source: name of what it was made from.
        fingerprint: hash of the source's identity and of everything asked for.
        splits: by name.
    """

    path: Path
    length: int
    tokenizer: TokenizerFacts
    source: str
    fingerprint: str
    splits: dict[str, Split]

    def check_split(self, name: str, length: int) -> Split:
        """A split whose shards are whole and as long as wanted.

        Raises:
            RunError: where there is no such split, it is empty, or a shard is not what `meta.json` says.
        """
        if self.length != length:
            raise RunError(
                f"{self.path} holds rows of {self.length} tokens and data.max_seq_len is {length}; "
                f"write max_seq_len: {self.length}, or prepare the text again with --length {length}"
            )
        if name not in self.splits:
            raise RunError(f"{self.path} has no split {name}; it has {', '.join(self.splits)}")
        split = self.splits[name]
        if not split.shards:
            raise RunError(f"{self.path}: the split {name} is empty; prepare more text, or name another split")
        for shard in split.shards:
            self._check_shard(shard)
        return split

    def _check_shard(self, shard: Shard) -> None:
        path = self.path / shard.file
        again = "prepare the data again, or copy the folder again"
        if not path.is_file():
            raise RunError(f"{self.path} is half-written: {shard.file} is missing; {again}")
        if path.stat().st_size != shard.bytes:
            raise RunError(
                f"{self.path} is half-written: {shard.file} has {path.stat().st_size} bytes and not {shard.bytes}; "
                f"{again}"
            )
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"{self.path}: {shard.file} can't be read as parquet ({type(error).__name__}); {again}"
            ) from None
        if rows != shard.rows or "tokens" not in schema.names or schema.field("tokens").type != row_type(self.length):
            raise RunError(f"{path} does not hold {shard.rows} rows of {self.length} int32 tokens; {again}")

    def check_vocabulary(self, split: str, vocab_size: int) -> None:
        """Whether a model can look all tokens of a split up; its shards are whole.

        Raises:
            RunError: where an id is negative or too large.
        """
        for shard in self.splits[split].shards:
            smallest, largest = token_range(self.path / shard.file)
            if smallest < 0:
                raise RunError(f"{self.path / shard.file} holds the token id {smallest}; prepare the data again")
            if largest >= vocab_size:
                raise RunError(
                    f"{self.path / shard.file} holds the token id {largest} and the model has {vocab_size} tokens; "
                    "prepare the text with the model's own tokenizer"
                )

    def check_tokenizer(self, name: str, sha256: str | None) -> None:
        """Whether the ids are those of a tokenizer.

        Args:
            name: as a run file names it.
            sha256: its hash, where it could be looked at; names are compared otherwise.

        Raises:
            RunError: where they are another's.
        """
        own = self.tokenizer
        same = own.sha256 == sha256 if own.sha256 and sha256 else own.name == name
        if not same:
            raise RunError(
                f"{self.path} was prepared with the tokenizer {own.name} and data.tokenizer_name is {name}, which is "
                "another; name the first, or prepare the text again"
            )

    def dump(self) -> str:
        """The content of `meta.json`."""
        facts = {key: value for key, value in asdict(self).items() if key != "path"}
        return json.dumps({"schema_version": SCHEMA_VERSION, "columns": COLUMNS, **facts}, indent=2) + "\n"


def row_type(length: int) -> pa.DataType:
    """The type of the column of tokens."""
    return pa.list_(pa.int32(), length)


def is_data_set(path: Path) -> bool:
    """Whether a folder says that it was prepared."""
    return (path / META).is_file()


def is_shard(path: Path) -> bool:
    """Whether a parquet file has the columns of a shard."""
    try:
        return pq.read_schema(path).names == list(COLUMNS)
    except (pa.ArrowException, OSError):
        return False


def open_data_set(path: Path) -> DataSet:
    """Read `meta.json`; shards are looked at by :meth:`DataSet.check_split`.

    Raises:
        RunError: where the folder is none that `vpd prepare-data` finished.
    """
    if not path.is_dir():
        raise RunError(f"there is no folder {path}; give one that `vpd prepare-data` made")
    if not is_data_set(path):
        said = "half-written (it has shards and no meta.json)" if any(path.glob("*.parquet")) else "no prepared data"
        raise RunError(f"{path} is {said}; give a folder that `vpd prepare-data` finished")
    try:
        document = json.loads((path / META).read_bytes())
        version = document.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise RunError(f"{path / META} has schema version {version!r} and not {SCHEMA_VERSION}; prepare it again")
        splits = {str(name): split_from(facts) for name, facts in document["splits"].items()}
        tokenizer = TokenizerFacts(**document["tokenizer"])
        length = document["length"]
        if not (isinstance(length, int) and length > 0):
            raise ValueError("length")
        return DataSet(path, length, tokenizer, str(document["source"]), str(document["fingerprint"]), splits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} is no prepared data (its {META} can't be read: {type(error).__name__}); prepare it again"
        ) from None


def split_from(facts: dict[str, object]) -> Split:
    """A split as it was dumped.

    Raises:
        KeyError, TypeError, ValueError: where it is not one.
    """
    sums = [facts[name] for name in ("documents", "rows", "tokens", "dropped_tokens")]
    shards = facts["shards"]
    if not (isinstance(shards, list) and all(isinstance(value, int) for value in sums)):
        raise ValueError("split")
    documents, rows, tokens, dropped = (value for value in sums if isinstance(value, int))
    return Split(documents, rows, tokens, dropped, tuple(_shard(shard) for shard in shards))


def _shard(facts: dict[str, object]) -> Shard:
    sizes = [facts[name] for name in ("rows", "bytes", "smallest", "largest")]
    file = str(facts["file"])
    if not all(isinstance(size, int) for size in sizes) or Path(file).name != file:
        raise ValueError("shard")
    rows, size, smallest, largest = (value for value in sizes if isinstance(value, int))
    return Shard(file, rows, size, str(facts["sha256"]), smallest, largest)


def token_range(path: Path) -> tuple[int, int]:
    """Smallest and largest token id of a shard, from its statistics, and where it has none by reading."""
    with pq.ParquetFile(path) as file:
        footer = file.metadata
        number = next(k for k in range(footer.num_columns) if footer.schema.column(k).path.startswith("tokens"))
        parts = [footer.row_group(k).column(number).statistics for k in range(footer.num_row_groups)]
        if all(part is not None and part.has_min_max for part in parts):
            return min(part.min for part in parts), max(part.max for part in parts)
        ranges = [_range(file.read_row_group(k, ["tokens"])) for k in range(footer.num_row_groups)]
        return min(low for low, _ in ranges), max(high for _, high in ranges)


def _range(table: pa.Table) -> tuple[int, int]:
    ids = table.column("tokens").combine_chunks().flatten().to_numpy()
    return int(ids.min()), int(ids.max())


def sha256_of(content: bytes) -> str:
    """The checksum that `meta.json` keeps of a shard."""
    return hashlib.sha256(content).hexdigest()
