"""Text to shards: unit by unit, resumable, and visible only when all of it is there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from vpd.data.data_set import (
    META,
    SCHEMA_VERSION,
    DataSet,
    Shard,
    Split,
    TokenizerFacts,
    is_data_set,
    open_data_set,
    sha256_of,
    split_from,
)
from vpd.data.folder_lock import LOCK, held
from vpd.data.processes import in_processes
from vpd.data.rows import Rows, is_held_out, shard_bytes
from vpd.data.sources import Piece, Source, Unit, Wanted, read_piece
from vpd.data.tokenizer import TextTokenizer
from vpd.errors import RunError, VpdError
from vpd.run_directory import write_atomically

CHUNK_CHARACTERS = 1 << 20
PLAN = "plan.json"

Progress = Callable[[int], None]
Watch = Callable[[int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Options:
    """How text becomes rows.

    Attributes:
        length: tokens a row.
        train_split: name of the split to train on.
        eval_split: name of the other; the same name makes one split of everything.
        eval_fraction: of the documents, for the split to evaluate on; 0 for none.
    """

    length: int
    train_split: str = "train"
    eval_split: str = "test"
    eval_fraction: float = 0.05

    def split_of(self, document: int) -> str:
        """Where a document goes by its number."""
        held_out = self.eval_split != self.train_split and is_held_out(document, self.eval_fraction)
        return self.eval_split if held_out else self.train_split

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits to write."""
        both = self.eval_fraction > 0 and self.eval_split != self.train_split
        return (self.train_split, self.eval_split) if both else (self.train_split,)


@dataclass(frozen=True)
class Job:
    """All that a process needs to prepare units into a folder."""

    folder: Path
    wanted: Wanted
    options: Options
    tokenizer: TextTokenizer | None


def fingerprint(source: Source, options: Options, facts: TokenizerFacts) -> str:
    """A hash of everything that the content of a prepared folder depends on."""
    tokenizer = facts.sha256 or facts.name
    asked = [SCHEMA_VERSION, asdict(source.wanted), source.identity, asdict(options), tokenizer]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def tokenizer_facts(name: str, tokenizer: TextTokenizer | None) -> TokenizerFacts:
    """What `meta.json` says of a tokenizer; of one that is not at hand, its name."""
    if tokenizer is None:
        return TokenizerFacts(name, None, None, None)
    return TokenizerFacts(name, tokenizer.sha256, tokenizer.vocab_size, tokenizer.end_of_text)


def prepare(
    source: Source,
    options: Options,
    tokenizer: TextTokenizer | None,
    tokenizer_name: str,
    folder: Path,
    watch: Watch,
    jobs: int = 1,
    wait: bool = False,
) -> DataSet:
    """Write the shards of a source and `meta.json`, in a folder beside that is renamed when all is there.

    Units that an interrupted call has finished are kept where nothing changed in the meantime.

    Args:
        source: the text.
        options: length and splits.
        tokenizer: None where the source holds token ids and their tokenizer is not at hand.
        tokenizer_name: as it was asked for.
        folder: must not exist, or hold just this.
        watch: what shows the progress of so many bytes.
        jobs: processes.
        wait: for another process that prepares the same; it is refused otherwise.

    Raises:
        VpdError: where the source turns out bad, or too small for a row in each split.
        RunError: where the folder holds something else, or can't be written.
    """
    facts = tokenizer_facts(tokenizer_name, tokenizer)
    mark = fingerprint(source, options, facts)
    partial = folder.with_name(f".{folder.name}.partial")
    if (finished := _finished(folder, mark)) is not None:
        return finished
    _refuse_unwritable(folder)
    with held(partial, wait, done=lambda: is_data_set(folder)) as is_ours:
        if not is_ours:
            return _finished(folder, mark) or open_data_set(folder)
        try:
            _start(partial, mark)
            _all_units(Job(partial, source.wanted, options, tokenizer), source, watch, jobs)
            made = _collected(partial, source, options, facts, mark)
        except RunError:
            raise
        except VpdError:  # the source is bad: nothing of it is worth keeping
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _publish(partial, folder, made)
    return open_data_set(folder)


def _refuse_unwritable(folder: Path) -> None:
    parent = next(above for above in folder.absolute().parents if above.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise RunError(f"can't write {folder} ({parent} is no writable folder); choose another folder")


def _finished(folder: Path, mark: str) -> DataSet | None:
    """What a folder holds, if it is just what would be made."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not is_data_set(folder):
        raise RunError(f"{folder} exists and holds something else; choose another folder")
    there = open_data_set(folder)
    if there.fingerprint != mark:
        raise RunError(
            f"{folder} was prepared from another source or with another tokenizer, length or split; "
            "remove it, or choose another folder"
        )
    return there


def _start(partial: Path, mark: str) -> None:
    """Keep what an interrupted call has made of the same; drop what was made of anything else."""
    plan = partial / PLAN
    if not plan.is_file() or plan.read_text() != mark:
        for path in partial.iterdir():
            if path.name != LOCK:
                path.unlink()
        write_atomically(plan, mark)


def _all_units(job: Job, source: Source, watch: Watch, jobs: int) -> None:
    left = [k for k in range(len(source.units)) if _unit_shards(job.folder, k) is None]
    done = source.size - sum(piece.size for k in left for piece in source.units[k])
    with watch(source.size) as progress:

        def made(size: int) -> None:
            nonlocal done
            done += size
            progress(done)

        if jobs == 1 or len(left) < 2:
            for k in left:
                for size in prepare_unit(job, k, source.units[k]):
                    made(size)
        else:
            parts = [[(k, source.units[k]) for k in left[n::jobs]] for n in range(min(jobs, len(left)))]
            in_processes(prepare_units, [(job, part) for part in parts], made)


def prepare_units(job: Job, units: list[tuple[int, Unit]]) -> Iterator[int]:
    """:func:`prepare_unit` for several, in a process among others, which share the cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number, unit in units:
        yield from prepare_unit(job, number, unit)


def prepare_unit(job: Job, number: int, unit: Unit) -> Iterator[int]:
    """Write the shards of one unit, and last what they are; yields the bytes read so far, piece by piece."""
    rows = {name: Rows(job.options.length) for name in job.options.splits}
    for piece in unit:
        for document, ids in _encoded(job, piece):
            split = rows[piece.split or job.options.split_of(document)]
            split.add_alone(document, ids) if job.wanted.tokenized else split.add(document, ids)
        yield piece.size
    splits = {name: asdict(_write(job, name, number, split)) for name, split in rows.items()}
    write_atomically(_unit_file(job.folder, number), json.dumps(splits))


def _encoded(job: Job, piece: Piece) -> Iterator[tuple[int, Int32[np.ndarray, "..."]]]:
    """The documents of a piece as ids, empty ones left out, each with its end-of-text token where text is encoded."""
    numbers: list[int] = []
    texts: list[str] = []
    characters = 0
    for number, document in read_piece(job.wanted, piece):
        if isinstance(document, str):
            if document.strip():
                numbers.append(number)
                texts.append(document)
                characters += len(document)
            if characters >= CHUNK_CHARACTERS:
                yield from zip(numbers, _tokens(job, texts), strict=True)
                numbers, texts, characters = [], [], 0
        elif len(document):
            _check_ids(job, number, document)
            yield number, document
    yield from zip(numbers, _tokens(job, texts), strict=True)


def _tokens(job: Job, texts: list[str]) -> list[Int32[np.ndarray, "..."]]:
    if not texts:
        return []
    assert job.tokenizer is not None, "text is prepared with a tokenizer"
    end = np.asarray([] if job.tokenizer.end_of_text is None else [job.tokenizer.end_of_text], np.int32)
    return [np.concatenate([ids, end]) for ids in job.tokenizer.encode(texts)]


def _check_ids(job: Job, number: int, ids: Int32[np.ndarray, "..."]) -> None:
    if job.tokenizer is not None and ids.max() >= job.tokenizer.vocab_size:
        raise VpdError(
            f"{job.wanted.name}: document {number} holds the token id {ids.max()} and the tokenizer "
            f"{job.tokenizer.name} has {job.tokenizer.vocab_size} tokens; name the tokenizer that made the ids"
        )


def _write(job: Job, name: str, number: int, split: Rows) -> Split:
    """One shard of one split, or none where there is no whole row."""
    table = split.table()
    shards: list[Shard] = []
    if table.num_rows:
        content = shard_bytes(table, split.length)
        file = f"{name}-{number:05d}.parquet"
        write_atomically(job.folder / file, content)
        ids = table.column("tokens").combine_chunks().flatten().to_numpy()
        shards.append(Shard(file, table.num_rows, len(content), sha256_of(content), int(ids.min()), int(ids.max())))
    tokens = table.num_rows * split.length
    return Split(split.documents, table.num_rows, tokens, split.dropped, tuple(shards))


def _unit_file(folder: Path, number: int) -> Path:
    return folder / f"unit-{number:05d}.json"


def _unit_shards(folder: Path, number: int) -> dict[str, Split] | None:
    """What a finished unit consists of; None where it is not finished or not whole."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(_unit_file(folder, number).read_bytes())
        splits = {str(name): split_from(one) for name, one in facts.items()}
        if all((folder / s.file).stat().st_size == s.bytes for one in splits.values() for s in one.shards):
            return splits
    return None


def _collected(partial: Path, source: Source, options: Options, facts: TokenizerFacts, mark: str) -> DataSet:
    units = [_unit_shards(partial, k) for k in range(len(source.units))]
    assert None not in units, "every unit is finished"
    splits = {name: _joined([unit[name] for unit in units if unit]) for name in options.splits}
    for name, split in splits.items():
        if not split.rows:
            more = "a larger part of the documents to evaluate on, " if name != options.train_split else ""
            raise VpdError(
                f"{source.wanted.name}: the split {name} got no row of {options.length} tokens "
                f"({split.documents} documents); give more text, {more}more documents (--separator) or shorter rows"
            )
    return DataSet(partial, options.length, facts, source.wanted.name, mark, splits)


def _joined(parts: list[Split]) -> Split:
    shards = tuple(shard for part in parts for shard in part.shards)
    return Split(
        sum(part.documents for part in parts),
        sum(part.rows for part in parts),
        sum(part.tokens for part in parts),
        sum(part.dropped_tokens for part in parts),
        shards,
    )


def _publish(partial: Path, folder: Path, made: DataSet) -> None:
    """Leave nothing but shards, write `meta.json`, rename."""
    keep = {shard.file for split in made.splits.values() for shard in split.shards}
    for path in partial.iterdir():
        if path.name not in keep | {LOCK}:
            path.unlink()
    write_atomically(partial / META, made.dump())
    os.rename(partial, folder)
    (folder / LOCK).unlink()  # not before: who waits for it would begin anew in what is being renamed
