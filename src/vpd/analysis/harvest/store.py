"""A finished harvest on disk: SQLite for what is looked at, Parquet for sparse counts, NumPy files for the rest.

What is in which file is said in docs/harvest.md, for those who read it without this package.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from scipy.sparse import csr_array

from vpd.analysis.artefacts import new_artefact
from vpd.analysis.harvest.reservoir import Windows
from vpd.analysis.harvest.settings import KIND, SCHEMA_VERSION, Settings
from vpd.analysis.harvest.totals import Totals
from vpd.analysis.names import FlatAxis
from vpd.analysis.run import Run
from vpd.config.targets import TokenData
from vpd.errors import VpdError

DATABASE, COFIRING, INPUT_TOKENS = "harvest.sqlite", "cofiring.parquet", "input_tokens.parquet"
TOTALS, OUTPUT_MASS, OUTPUT_ROWS = "totals.npz", "output_mass.npy", "output_rows.npy"
# Mean importance above which a subcomponent is alive (method.md §10).
ALIVE = 1e-6
# Rows of a Parquet file that are read together.
GROUP = 1 << 16

TABLES = """
CREATE TABLE components (
    id INTEGER PRIMARY KEY, site TEXT NOT NULL, "index" INTEGER NOT NULL, firing_count INTEGER NOT NULL,
    density REAL NOT NULL, mean_importance REAL NOT NULL, mean_activation REAL NOT NULL, norm REAL NOT NULL,
    alive INTEGER NOT NULL);
CREATE TABLE windows (
    component INTEGER NOT NULL REFERENCES components(id), kind TEXT NOT NULL, rank INTEGER NOT NULL,
    "row" INTEGER NOT NULL, position INTEGER NOT NULL, start INTEGER NOT NULL, inputs TEXT NOT NULL,
    importances TEXT NOT NULL, activations TEXT NOT NULL, PRIMARY KEY (component, kind, rank)) WITHOUT ROWID;
CREATE TABLE vocabulary (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE UNIQUE INDEX by_name ON components(site, "index");
"""


def norms(run: Run) -> Float[np.ndarray, " n"]:
    """``‖V_c‖ ‖U_c‖``, the Frobenius norm of every subcomponent."""
    by_site: dict[str, Float[np.ndarray, " _C"]] = {}
    for site in run.sites:
        pieces = run.components(site)
        V, U = np.asarray(pieces.V, np.float64), np.asarray(pieces.U, np.float64)
        by_site[site] = np.linalg.norm(V, axis=0) * np.linalg.norm(U, axis=1)
    return run.axis.joined(by_site)


def token_texts(run: Run, vocab: int) -> list[str]:
    """What each token stands for; its number where the tokens are no text or the tokenizer is not at hand."""
    if not isinstance(run.config.data, TokenData):
        return [str(i) for i in range(vocab)]
    try:
        tokenizer = run.tokenizer
    except VpdError:
        return [str(i) for i in range(vocab)]
    # A tokenizer may drop the space at the beginning of what it decodes.
    before = tokenizer.decode([0])
    known = min(vocab, tokenizer.vocab_size)
    texts = [tokenizer.decode([0, i]).removeprefix(before) for i in range(known)]
    return texts + [str(i) for i in range(known, vocab)]


def write_harvest(path: Path, run: Run, settings: Settings, totals: Totals) -> None:
    """Write all files of a harvest, and give it its name."""
    facts: dict[str, object] = {
        "kind": KIND,
        "split": settings.split,
        "positions": totals.positions,
        "length": settings.length,
        "threshold": settings.threshold,
        "seed": settings.seed,
        "windows": {"sampled": settings.n_random, "top": settings.n_top, "context": settings.context},
        "vocab": settings.vocab,
        "tokenizer": None if not isinstance(run.config.data, TokenData) else run.config.data.tokenizer_name,
        "tokenizer_sha256": settings.tokenizer,
    }
    with new_artefact(path, SCHEMA_VERSION, run.origin, facts) as folder:
        _write_database(folder / DATABASE, run, settings, totals)
        n = len(run.axis)
        _write_pairs(folder / COFIRING, totals.cofiring.matrix(), ("i", "j"), n)
        sums: dict[str, np.ndarray] = {
            "firing_counts": totals.firing,
            "importance_sums": totals.importance,
            "activation_sums": totals.activation,
            "norms": norms(run),
        }
        if totals.tokens is not None:
            _write_pairs(folder / INPUT_TOKENS, totals.tokens.inputs.matrix(), ("component", "token"), n)
            totals.tokens.save_mass(folder / OUTPUT_MASS, np.flatnonzero(totals.firing))
            sums |= {
                "input_token_totals": totals.tokens.input_totals,
                "output_token_totals": totals.tokens.output_totals,
            }
        sums["positions"] = np.asarray(totals.positions, np.int64)
        np.savez(folder / TOTALS, allow_pickle=False, **sums)


def _write_database(path: Path, run: Run, settings: Settings, totals: Totals) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.executescript(TABLES)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.executemany("INSERT INTO components VALUES (?,?,?,?,?,?,?,?,?)", _components(run, totals))
        for kind, reservoir in (("sampled", totals.sampled), ("top", totals.top)):
            rows = _windows(kind, reservoir.windows)
            connection.executemany("INSERT INTO windows VALUES (?,?,?,?,?,?,?,?,?)", rows)
        if settings.vocab is not None:
            texts = enumerate(token_texts(run, settings.vocab))
            connection.executemany("INSERT INTO vocabulary VALUES (?,?)", texts)
        connection.commit()
    finally:
        connection.close()


def _components(run: Run, totals: Totals) -> Iterator[tuple[object, ...]]:
    axis: FlatAxis = run.axis
    N = totals.positions
    columns = (
        totals.firing.tolist(),
        (totals.firing / N).tolist(),
        (totals.importance / N).tolist(),
        (totals.activation / N).tolist(),
        norms(run).tolist(),
        (totals.importance / N > ALIVE).astype(int).tolist(),
    )
    for place, values in enumerate(zip(*columns, strict=True)):
        one = axis.at(place)
        yield place, one.site, one.index, *values


def _windows(kind: str, windows: Windows) -> Iterator[tuple[object, ...]]:
    first = np.searchsorted(windows.owner, windows.owner, "left")
    ranks = np.arange(len(windows)) - first
    whole = (windows.owner, ranks, windows.row, windows.position, windows.start)
    for i, (owner, rank, row, position, start) in enumerate(zip(*(x.tolist() for x in whole), strict=True)):
        lists = (windows.inputs[i], windows.importances[i], windows.activations[i])
        yield owner, kind, rank, row, position, start, *map(_as_json, lists)


def _as_json(values: np.ndarray) -> str:
    """A list of numbers; floats with the fewest digits that tell two of them apart by five parts in a million."""
    if values.dtype.kind != "f":
        return json.dumps(values.tolist(), separators=(",", ":"))
    return "[" + ",".join(f"{x:.5g}" for x in values.tolist()) + "]"


def _write_pairs(path: Path, matrix: csr_array, names: tuple[str, str], n: int) -> None:
    """A sparse matrix row by row: ``names[0]``, ``names[1]``, ``count``."""
    types = ((names[0], pa.int32()), (names[1], pa.int32()), ("count", pa.int64()))
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types])
    matrix.sort_indices()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for begin, end in _spans(matrix, n):
            some = matrix.indptr[begin : end + 1]
            rows = np.repeat(np.arange(begin, end, dtype=np.int32), np.diff(some))
            columns = matrix.indices[some[0] : some[-1]].astype(np.int32)
            counts = matrix.data[some[0] : some[-1]]
            parts = [pa.array(rows), pa.array(columns), pa.array(counts)]
            writer.write_table(pa.Table.from_arrays(parts, schema=schema))


def _spans(matrix: csr_array, n: int) -> Iterable[tuple[int, int]]:
    """Whole rows of about one group of entries."""
    begin = 0
    while begin < n:
        end = int(np.searchsorted(matrix.indptr, matrix.indptr[begin] + GROUP, "right")) - 1
        end = min(max(end, begin + 1), n)
        yield begin, end
        begin = end
