"""Where text comes from: files, packages or the hub, cut into units of work that don't depend on who does them."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32

from vpd.data.hub import hub_documents, refuse_no_hub
from vpd.data.packages import PREFIX, package_place, package_version
from vpd.data.tokenizer import HUB_NAME
from vpd.errors import VpdError

# A corpus is cut into about so many units, within these sizes, whatever the number of processes that prepare it.
UNITS = 16
SMALLEST_UNIT, LARGEST_UNIT = 1 << 20, 1 << 28

Document = str | Int32[np.ndarray, "..."]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source.

    Attributes:
        name: a file, a folder, a pattern, ``package:NAME`` or a data set of the hub.
        column: of parquet files and of the hub.
        tokenized: whether the column holds token ids.
        separator: what parts the documents of a text file; None where a file is one document.
        data_files: patterns within a folder or a data set of the hub; all files where there are none.
        revision: of a data set of the hub.
        streaming: whether a data set of the hub is read without keeping its files.
    """

    name: str
    column: str = "text"
    tokenized: bool = False
    separator: str | None = None
    data_files: tuple[str, ...] = ()
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read in one go.

    Attributes:
        path: a file; empty for the hub.
        row_groups: of a parquet file.
        first: number of its first document in the whole source.
        documents: how many it has; 0 where that is not known beforehand.
        size: bytes, for cutting the source and for showing progress.
        split: that all its documents belong to; None where their numbers decide.
    """

    path: str
    row_groups: tuple[int, ...]
    first: int
    documents: int
    size: int
    split: str | None = None


Unit = tuple[Piece, ...]


@dataclass(frozen=True)
class Source:
    """A source that was found and looked at.

    Attributes:
        wanted: what was asked for.
        identity: what changes when the source does: names, sizes and times of files, or a package's version.
        units: its pieces, grouped.
    """

    wanted: Wanted
    identity: tuple[tuple[str | int, ...], ...]
    units: tuple[Unit, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.size for unit in self.units for piece in unit)


def find_source(wanted: Wanted, splits: tuple[str, ...]) -> Source:
    """Look a source up.

    Files belong to splits where their names say so for each of them (``train-00000.parquet``, ``test/a.txt``), and
    those that name none are left out. On the hub a split is what the hub calls so.

    Args:
        wanted: what is asked for.
        splits: names of those to make.

    Raises:
        VpdError: where there is nothing of that name, or it has no such column.
    """
    version, root, files = _files_of(wanted)
    if not files:
        identity = (wanted.name, wanted.revision or "", *wanted.data_files)
        return Source(wanted, (identity,), tuple((Piece("", (), 0, 0, 0, split),) for split in splits))
    named = {file: split for split in splits for file in files if _is_named(file, root, split)}
    by_name = len(splits) > 1 and set(named.values()) == set(splits)
    files = [file for file in files if file in named] if by_name else files
    pieces: list[Piece] = []
    first = 0
    for file in files:
        found = _parquet_pieces(file, first, wanted) if _is_parquet(file) else [_text_piece(file, first, wanted)]
        pieces += [replace(piece, split=named[file]) for piece in found] if by_name else found
        first = pieces[-1].first + pieces[-1].documents if pieces else first
    if not pieces:
        raise VpdError(f"{wanted.name}: its files hold no document; give another source")
    return Source(wanted, tuple(_identity(file, root, version) for file in files), _units(pieces))


def read_piece(wanted: Wanted, piece: Piece) -> Iterator[tuple[int, Document]]:
    """The documents of one piece with their numbers.

    Raises:
        VpdError: where one is not what was asked for.
    """
    if not piece.path:
        rows = hub_documents(
            wanted.name, piece.split or "train", wanted.column, wanted.data_files, wanted.revision, wanted.streaming
        )
        yield from ((k, _checked(row, wanted)) for k, row in enumerate(rows))
    elif not piece.row_groups:
        text = _text(Path(piece.path))
        yield from enumerate(text.split(wanted.separator) if wanted.separator else [text], piece.first)
    else:
        yield from enumerate(_parquet_documents(wanted, piece), piece.first)


def _files_of(wanted: Wanted) -> tuple[str, Path, list[Path]]:
    """The version of what the files belong to, the folder that they are named from, and the files in order."""
    name = wanted.name
    if name.startswith(PREFIX):
        module, place = package_place(name)
        files = [place] if place.is_file() else _in_folder(place, wanted.data_files)
        return _found(wanted, package_version(module), place, files)
    path = Path(name).expanduser()
    if path.is_dir():
        return _found(wanted, "", path, _in_folder(path, wanted.data_files))
    if path.is_file():
        return "", path.parent, [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if matches:
        return "", Path(), matches
    if path.exists() or path.suffix in (".txt", ".parquet") or not HUB_NAME.fullmatch(name):
        raise VpdError(f"{name}: there is no such file, folder or pattern with text; give a .txt or .parquet file")
    refuse_no_hub(name)
    return "", Path(), []


def _found(wanted: Wanted, version: str, place: Path, files: list[Path]) -> tuple[str, Path, list[Path]]:
    if not files:
        patterns = " or ".join(wanted.data_files) or "*.parquet or *.txt"
        raise VpdError(f"{wanted.name}: there is no {patterns} in it; give a folder with text")
    return version, place, files


def _in_folder(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files that match; without patterns all parquet files, and where there is none all text files."""
    if patterns:
        return sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})
    return sorted(folder.rglob("*.parquet")) or sorted(folder.rglob("*.txt"))


def _is_named(file: Path, root: Path, split: str) -> bool:
    within = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", within.as_posix()) is not None


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _identity(file: Path, root: Path, version: str) -> tuple[str | int, ...]:
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
    stat = file.stat()
    return (name, stat.st_size, version or stat.st_mtime_ns)


def _units(pieces: list[Piece]) -> tuple[Unit, ...]:
    goal = min(max(sum(piece.size for piece in pieces) // UNITS, SMALLEST_UNIT), LARGEST_UNIT)
    units: list[list[Piece]] = [[]]
    for piece in pieces:
        if units[-1] and sum(p.size for p in units[-1]) + piece.size > goal:
            units.append([])
        units[-1].append(piece)
    return tuple(tuple(unit) for unit in units)


def _text_piece(path: Path, first: int, wanted: Wanted) -> Piece:
    if wanted.tokenized:
        raise VpdError(f"{path}: a text file holds no token ids; give parquet files, or text without --tokenized")
    documents = _text(path).count(wanted.separator) + 1 if wanted.separator else 1
    return Piece(str(path), (), first, documents, path.stat().st_size)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise VpdError(f"{path}: not UTF-8 text; convert the file, or leave it out") from None


def _parquet_pieces(path: Path, first: int, wanted: Wanted) -> list[Piece]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise VpdError(f"{path}: not a readable parquet file ({type(error).__name__}); get the file again") from None
    with file:
        schema, footer = file.schema_arrow, file.metadata
        if wanted.column not in schema.names:
            columns = ", ".join(schema.names)
            raise VpdError(f"{path}: there is no column {wanted.column}; its columns are {columns}")
        kind = schema.field(wanted.column).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if is_text == wanted.tokenized or not (is_text or _is_tokens(kind)):
            asked = "lists of token ids" if wanted.tokenized else "text"
            raise VpdError(f"{path}: the column {wanted.column} holds {kind} and not {asked}; name another column")
        pieces: list[Piece] = []
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            pieces.append(Piece(str(path), (number,), first, group.num_rows, group.total_byte_size))
            first += group.num_rows
        return pieces


def _is_tokens(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_integer(kind.value_type)


def _parquet_documents(wanted: Wanted, piece: Piece) -> Iterator[Document]:
    try:
        with pq.ParquetFile(piece.path) as file:
            for batch in file.iter_batches(1024, list(piece.row_groups), [wanted.column]):
                for row in batch.column(0):
                    yield _checked(row.values.to_numpy() if wanted.tokenized and row.is_valid else row.as_py(), wanted)
    except (pa.ArrowException, OSError) as error:
        raise VpdError(f"{piece.path}: can't be read to its end ({type(error).__name__}); get the file again") from None


def _checked(row: object, wanted: Wanted) -> Document:
    """A document as asked for; a missing one is an empty one."""
    if not wanted.tokenized:
        if row is None or isinstance(row, str):
            return row or ""
        raise VpdError(f"{wanted.name}: the column {wanted.column} holds {type(row).__name__} and not text")
    ids = np.asarray([] if row is None else row, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= 2**31):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise VpdError(
            f"{wanted.name}: the column {wanted.column} holds the token id {bad}; ids are 0 or more and fit 32 bits"
        )
    return ids.astype(np.int32)
