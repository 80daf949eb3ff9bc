"""A finished harvest, read back: a component's row of each file, without the others."""

import json
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int, Int64
from scipy.sparse import coo_array, csr_array

from vpd.analysis.artefacts import Artefact, artefact_names, open_artefact
from vpd.analysis.harvest.correlations import PairStatistics, TokenStatistics, pair_statistics, token_statistics
from vpd.analysis.harvest.settings import KIND, SCHEMA_VERSION
from vpd.analysis.harvest.store import (
    COFIRING,
    DATABASE,
    INPUT_TOKENS,
    OUTPUT_MASS,
    OUTPUT_ROWS,
    TOTALS,
)
from vpd.analysis.names import FlatAxis, parse_subcomponent
from vpd.config import read_run_file
from vpd.config.targets import TokenData
from vpd.errors import RunError, VpdError
from vpd.run_directory import RunDirectory


@dataclass(frozen=True)
class Component:
    """A row of the table of components."""

    id: int
    site: str
    index: int
    firing_count: int
    density: float
    mean_importance: float
    mean_activation: float
    norm: float
    alive: bool

    @property
    def name(self) -> str:
        """``SITE:INDEX``."""
        return f"{self.site}:{self.index}"


class Window(NamedTuple):
    """Some positions of a row around one where a subcomponent fires.

    Attributes:
        kind: ``sampled`` or ``top``.
        rank: among those of its kind.
        row: in the stream.
        position: in the row, where it fires.
        start: position of the first entry.
        inputs: tokens, or the example.
        importances: along the window.
        activations: likewise.
    """

    kind: str
    rank: int
    row: int
    position: int
    start: int
    inputs: list[float]
    importances: list[float]
    activations: list[float]

    @property
    def place(self) -> int:
        """Where in the window it fires."""
        return self.position - self.start


class Pairs(NamedTuple):
    """Those that fire together with a subcomponent, itself left out."""

    others: Int[np.ndarray, " k"]
    counts: Int[np.ndarray, " k"]
    statistics: PairStatistics


class TokenTable(NamedTuple):
    """Tokens that occur where a subcomponent fires, or that are expected there."""

    tokens: Int[np.ndarray, " k"]
    masses: Float[np.ndarray, " k"] | Int[np.ndarray, " k"]
    statistics: TokenStatistics


@dataclass(frozen=True)
class Harvest:
    """A finished harvest; each call reads what it needs.

    Attributes:
        artefact: folder, origin and facts.
    """

    artefact: Artefact
    _matrices: dict[str, csr_array] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.artefact.path

    @property
    def axis(self) -> FlatAxis:
        """All subcomponents in a row: their place is the ``id`` of the tables."""
        return FlatAxis(self.artefact.origin.sizes)

    @property
    def has_tokens(self) -> bool:
        """Whether there are token statistics, and the inputs of windows are tokens."""
        return self.artefact.facts.get("vocab") is not None

    @property
    def threshold(self) -> float:
        """A subcomponent fires above it."""
        return float(str(self.artefact.facts["threshold"]))

    @cached_property
    def totals(self) -> dict[str, np.ndarray]:
        """The arrays of ``totals.npz``."""
        with np.load(self.path / TOTALS) as stored:
            return dict(stored)

    @property
    def positions(self) -> int:
        """How many were read."""
        return int(self.totals["positions"])

    @property
    def firing_counts(self) -> Int64[np.ndarray, " n"]:
        """At how many positions each subcomponent fires."""
        return self.totals["firing_counts"]

    @cached_property
    def components(self) -> list[Component]:
        """All of them, in order."""
        with self.database() as connection:
            rows = connection.execute("SELECT * FROM components ORDER BY id").fetchall()
        return [Component(*row[:-1], alive=bool(row[-1])) for row in rows]

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token; empty without tokens."""
        with self.database() as connection:
            return [text for (text,) in connection.execute("SELECT text FROM vocabulary ORDER BY id")]

    def place(self, name: str) -> int:
        """The place of ``SITE:INDEX`` on the axis.

        Raises:
            RunError: a subcomponent that there isn't.
        """
        return self.axis.place(parse_subcomponent(name, self.axis.sizes))

    def windows(self, place: int) -> list[Window]:
        """Of a subcomponent by its place: those with the largest activations first, then the sampled ones."""
        query = (
            'SELECT kind, rank, "row", position, start, inputs, importances, activations '
            "FROM windows WHERE component = ? ORDER BY kind DESC, rank"
        )
        with self.database() as connection:
            rows = connection.execute(query, (place,)).fetchall()
        # A whole number is written without a point.
        return [Window(*row[:5], *([float(x) for x in json.loads(text)] for text in row[5:])) for row in rows]

    def pairs(self, place: int) -> Pairs:
        """Those that ever fire together with a subcomponent."""
        others, counts = self._row(COFIRING, ("i", "j"), place)
        others, counts = others[(apart := others != place)], counts[apart]
        firing = self.firing_counts
        return Pairs(others, counts, pair_statistics(counts, firing[[place]], firing[others], self.positions))

    def input_tokens(self, place: int) -> TokenTable:
        """Tokens that are read where a subcomponent fires."""
        tokens, counts = self._row(INPUT_TOKENS, ("component", "token"), place)
        total = self.totals["input_token_totals"][tokens]
        return TokenTable(tokens, counts, token_statistics(counts, self.firing_counts[[place]], total, self.positions))

    def output_tokens(self, place: int) -> TokenTable:
        """Tokens that the model expects next where a subcomponent fires."""
        rows = np.load(self.path / OUTPUT_ROWS)
        found = np.searchsorted(rows, place)
        if found == len(rows) or rows[found] != place:
            mass = np.zeros(len(self.vocabulary))
        else:
            mass = np.array(np.load(self.path / OUTPUT_MASS, mmap_mode="r")[found])
        total = self.totals["output_token_totals"]
        statistics = token_statistics(mass, self.firing_counts[[place]], total, self.positions)
        return TokenTable(np.arange(len(mass)), mass, statistics)

    def _row(
        self, file: str, names: tuple[str, str], place: int
    ) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """A row of a sparse matrix: its columns and counts."""
        if (whole := self._matrices.get(file)) is not None:
            span = slice(whole.indptr[place], whole.indptr[place + 1])
            return whole.indices[span].astype(np.int64), whole.data[span]
        found = pq.read_table(self.path / file, columns=[names[1], "count"], filters=[(names[0], "=", place)])
        return found.column(names[1]).to_numpy().astype(np.int64), found.column("count").to_numpy()

    def read_ahead(self) -> None:
        """Read the sparse matrices whole, for those who are about to ask for every row."""
        for file, names, width in (
            (COFIRING, ("i", "j"), len(self.axis)),
            (INPUT_TOKENS, ("component", "token"), len(self.vocabulary)),
        ):
            if (self.path / file).is_file():
                table = pq.read_table(self.path / file)
                rows, columns, counts = (table.column(name).to_numpy() for name in (*names, "count"))
                shape = (len(self.axis), width)
                self._matrices[file] = csr_array(coo_array((counts, (rows, columns)), shape=shape))

    @contextmanager
    def database(self) -> Generator[sqlite3.Connection]:
        """The open database, which can't be written."""
        path = self.path / DATABASE
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path} can't be read ({error}); make the harvest again under another --name") from None


def open_harvest(run: str | Path, name: str | None = None) -> Harvest:
    """A finished harvest of a run directory.

    Args:
        run: the run directory.
        name: of the harvest; None takes the only one.

    Raises:
        RunError: none, several without a name, an unfinished one, one of another schema, one whose files are missing,
            or one made with another tokenizer than the run's.
    """
    run = Path(run)
    _refuse_unfinished(run, name)
    found = Harvest(open_artefact(run, KIND, SCHEMA_VERSION, name))
    with found.database() as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{found.path / DATABASE} has schema version {version}, and this version of vpd reads {SCHEMA_VERSION}; "
            "open it with the version that wrote it, or make the harvest again under another --name"
        )
    _refuse_missing_files(found)
    _refuse_another_tokenizer(run, found)
    return found


def _refuse_unfinished(run: Path, name: str | None) -> None:
    """An unfinished harvest lies under a name of its own, beside where it will be."""
    finished = artefact_names(run, KIND)
    begun = sorted(path.name[1:].removesuffix(".parts") for path in (run / KIND).glob(".*.parts"))
    meant = name if name is not None else (begun[0] if len(begun) == 1 and not finished else None)
    if meant in begun and meant not in finished:
        raise RunError(f"{run / KIND / str(meant)} is not finished; go on with vpd harvest {run} --name {meant}")


def _refuse_missing_files(harvest: Harvest) -> None:
    wanted = [DATABASE, COFIRING, TOTALS]
    if harvest.has_tokens:
        wanted += [INPUT_TOKENS, OUTPUT_MASS, OUTPUT_ROWS]
    missing = [file for file in wanted if not (harvest.path / file).is_file()]
    if missing:
        raise RunError(f"{harvest.path} is damaged ({missing[0]} is missing); make it again with --force")
    try:
        pq.read_schema(harvest.path / COFIRING)
        _ = harvest.totals
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(f"{harvest.path} is damaged ({type(error).__name__}); make it again with --force") from None


def _refuse_another_tokenizer(run: Path, harvest: Harvest) -> None:
    """Where the run's tokenizer is at hand, it must be the one whose tokens were counted."""
    own = harvest.artefact.facts.get("tokenizer_sha256")
    config = read_run_file(RunDirectory(run).config).config
    if own is None or not isinstance(config.data, TokenData):
        return
    from vpd.data.tokenizer import load_tokenizer  # what toys do without

    try:
        now = load_tokenizer(config.data.tokenizer_name).sha256
    except VpdError:
        return
    if now != own:
        raise RunError(
            f"{harvest.path} was made with another tokenizer than {config.data.tokenizer_name}, which "
            f"{run} names; bring that one back, or make the harvest again under another --name"
        )
