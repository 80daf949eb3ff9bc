"""Intruder trials: can a reader tell which window is another subcomponent's? No label is needed (method.md §11)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from scipy.stats import binomtest

from vpd.analysis.harvest.reading import Harvest, Window
from vpd.errors import RunError
from vpd.run_directory import write_atomically

OWN_WINDOWS = 4
# An intruder is one of so many neighbours by density on each side.
NEIGHBOURS = 10
# Fewer firings make no windows that could be told apart.
FEWEST = 20
HOW = (
    "In each trial all windows but one show positions where the same subcomponent fires, marked by «», and one shows "
    "where another one fires. Write the number of that one in place of null."
)


@dataclass(frozen=True)
class Trials:
    """Trials and their answers.

    Attributes:
        id: names the set, so that answers are not held against another.
        texts: windows of each trial, in the order in which they are shown.
        intruders: which is the intruder.
        owners: the subcomponent of each trial.
        others: and the one that the intruder is of.
    """

    id: str
    texts: tuple[tuple[str, ...], ...]
    intruders: tuple[int, ...]
    owners: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How many intruders were found.

    Attributes:
        right: intruders found.
        answered: trials with an answer.
        low: lower end of the 95 % interval of the part that is found (Clopper and Pearson 1934).
        high: its upper end.
        chance: what guessing would find.
        p_value: how likely guessing finds so many or more.
    """

    right: int
    answered: int
    low: float
    high: float
    chance: float
    p_value: float


def make_trials(harvest: Harvest, n: int, seed: int = 0) -> Trials:
    """Trials over subcomponents drawn from those that fire often enough.

    Args:
        harvest: of a run with tokens.
        n: how many.
        seed: of every draw.

    Raises:
        RunError: inputs without tokens, or too few subcomponents that fire.
    """
    if not harvest.has_tokens:
        raise RunError(
            f"{harvest.path} is of a run without a sequence of tokens, so there is nothing to read in trials"
        )
    able = _able(harvest)
    if len(able) < 2:
        raise RunError(
            f"{harvest.path} has {len(able)} subcomponents with {FEWEST} firings and {OWN_WINDOWS} sampled windows, "
            "and trials need two; harvest more positions or windows"
        )
    rng = np.random.default_rng(seed)
    owners = rng.permutation(len(able))[np.arange(n) % len(able)]
    texts: list[tuple[str, ...]] = []
    intruders: list[int] = []
    names: list[tuple[str, str]] = []
    for own in owners:
        near = [i for i in range(own - NEIGHBOURS, own + NEIGHBOURS + 1) if 0 <= i < len(able) and i != own]
        other = int(rng.choice(near))
        windows = _sampled(harvest, int(able[own]), OWN_WINDOWS, rng)
        place = int(rng.integers(OWN_WINDOWS + 1))
        windows.insert(place, _sampled(harvest, int(able[other]), 1, rng)[0])
        texts.append(tuple(marked(harvest, window) for window in windows))
        intruders.append(place)
        names.append((str(harvest.axis.at(int(able[own]))), str(harvest.axis.at(int(able[other])))))
    digest = hashlib.sha256(json.dumps([texts, intruders]).encode()).hexdigest()[:16]
    return Trials(digest, tuple(texts), tuple(intruders), tuple(a for a, _ in names), tuple(b for _, b in names))


def _able(harvest: Harvest) -> Int[np.ndarray, " k"]:
    """Those that fire often enough, by density."""
    firing = harvest.firing_counts
    order = np.argsort(-firing, kind="stable")
    with harvest.database() as connection:
        query = "SELECT component FROM windows WHERE kind = 'sampled' GROUP BY component HAVING COUNT(*) >= ?"
        having = {place for (place,) in connection.execute(query, (OWN_WINDOWS,))}
    return np.asarray([i for i in order if firing[i] >= FEWEST and int(i) in having], np.int64)


def _sampled(harvest: Harvest, place: int, k: int, rng: np.random.Generator) -> list[Window]:
    windows = [window for window in harvest.windows(place) if window.kind == "sampled"]
    return [windows[i] for i in rng.permutation(len(windows))[:k]]


def marked(harvest: Harvest, window: Window) -> str:
    """The text of a window, the token at its position between «»."""
    texts = [harvest.vocabulary[int(token)] for token in window.inputs]
    texts[window.place] = f"«{texts[window.place]}»"
    return "".join(texts)


def key_path(path: Path) -> Path:
    """The file with the answers, beside the one with the trials."""
    return path.with_name(f"{path.stem}.key.json")


def write_trials(path: Path, trials: Trials) -> None:
    """The trials as they are shown and, in a file of their own, their answers.

    Raises:
        RunError: a file that is there already.
    """
    for file in (path, key_path(path)):
        if file.exists():
            raise RunError(f"{file} is there already; give another file with -o")
    shown = [{"windows": dict(enumerate(texts)), "intruder": None} for texts in trials.texts]
    key = {"set": trials.id, "intruders": trials.intruders, "owners": trials.owners, "others": trials.others}
    write_atomically(key_path(path), json.dumps(key, indent=2) + "\n")
    document = {"set": trials.id, "how": HOW, "trials": shown}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def score_answers(path: Path, key: Path | None = None) -> Score:
    """Hold the filled-in file of trials against its key.

    Args:
        path: the trials, with a number in place of null where the reader knew one.
        key: the answers; beside the trials by default.

    Raises:
        RunError: a file that can't be read, answers of another set, or one that is no number of a window.
    """
    key = key or key_path(path)
    answers, truth = _object(path), _object(key)
    if answers.get("set") != truth.get("set"):
        raise RunError(f"{path} has answers of another set of trials than {key}; name its own with --key")
    trials, intruders = answers.get("trials"), truth.get("intruders")
    if not isinstance(trials, Sequence) or not isinstance(intruders, Sequence) or len(trials) != len(intruders):
        raise RunError(f"{path} does not hold the trials that {key} has the answers of")
    given = [_answer(path, number, trial) for number, trial in enumerate(trials)]
    known = [(answer, right) for answer, right in zip(given, intruders, strict=True) if answer is not None]
    if not known:
        raise RunError(f"{path} has no answer yet; write the number of a window in place of null")
    right, chance = sum(answer == place for answer, place in known), 1 / (OWN_WINDOWS + 1)
    test = binomtest(right, len(known), chance, alternative="greater")
    interval = binomtest(right, len(known)).proportion_ci(0.95, method="exact")
    return Score(right, len(known), float(interval.low), float(interval.high), chance, float(test.pvalue))


def _answer(path: Path, number: int, trial: object) -> int | None:
    answer = trial.get("intruder") if isinstance(trial, Mapping) else "nothing"
    if answer is None or (type(answer) is int and 0 <= answer <= OWN_WINDOWS):
        return answer
    raise RunError(
        f"{path}: the answer of trial {number} is {answer!r}; write a number from 0 to {OWN_WINDOWS}, or null"
    )


def _object(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read as JSON ({type(error).__name__}); name a file of trials") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} is no JSON object; name a file of trials")
    return found
