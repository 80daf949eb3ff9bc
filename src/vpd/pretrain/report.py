"""The report of a pretraining run: one HTML file with the losses, what counting has, and what the network wrote."""

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vpd.errors import RunError
from vpd.evaluation.page import Picture, page_source, picture, render_from
from vpd.run_directory import Facts, RunDirectory, write_atomically

KIND = "pretraining"
TEMPLATE = "report.html.jinja"
CAPTION = (
    "Cross-entropy of the next token in nats. Good: the validation loss ends well below the bigram line, which is what "
    "counting pairs of tokens gives, and does not rise while the training loss falls."
)


class Sample(NamedTuple):
    """What the network wrote after a prompt."""

    prompt: str
    text: str


class Losses(NamedTuple):
    """Losses over training, in nats a token."""

    train_steps: Float[np.ndarray, " n"]
    train: Float[np.ndarray, " n"]
    eval_steps: Float[np.ndarray, " m"]
    validation: Float[np.ndarray, " m"]


def is_pretraining(run_dir: Path) -> bool:
    """Whether a run directory holds a pretraining run.

    Raises:
        RunError: where it is no run directory.
    """
    return RunDirectory(run_dir).read_facts().get("kind") == KIND


def write_pretraining_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run directory, whole or not at all, and return its path.

    Raises:
        RunError: without a run directory, or where its records can't be read.
    """
    directory = RunDirectory(run_dir)
    facts, records = directory.read_facts(), _records(directory)
    found = _losses(records)
    step, samples = _samples(records)
    config = directory.config.read_text(encoding="utf-8") if directory.config.is_file() else ""
    path = run_dir / "report.html"
    page = render_from(
        _source,
        TEMPLATE,
        name=str(facts.get("run_id", run_dir.name)),
        headline=headline(facts, found),
        tone=_tone(facts, found),
        status=str(facts.get("status", "status unknown")),
        pictures=_pictures(facts, found),
        rows=_rows(facts, found),
        samples=samples,
        sampled_at=step,
        config=config,
    )
    write_atomically(path, page)
    return path


def headline(facts: Facts, found: Losses) -> str:
    """The answer first: how good the network is, beside counting."""
    bigram = baseline(facts, "bigram")
    if not len(found.validation):
        return "Nothing was evaluated"
    last = f"Validation loss {found.validation[-1]:.3f} nats a token"
    return last if bigram is None else f"{last}, a bigram has {bigram:.3f}"


def baseline(facts: Facts, name: str) -> float | None:
    """What counting has on the evaluated rows, as ``run.json`` says it."""
    counted = facts.get("baselines")
    value = counted.get(name) if isinstance(counted, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _tone(facts: Facts, found: Losses) -> str:
    bigram = baseline(facts, "bigram")
    if bigram is None or not len(found.validation) or facts.get("status") != "finished":
        return ""
    return "good" if found.validation[-1] < bigram else "bad"


def _records(directory: RunDirectory) -> list[Facts]:
    """The records in order; a last line that is cut short is left out."""
    lines = directory.metrics.read_bytes().split(b"\n")[:-1] if directory.metrics.is_file() else []
    try:
        return [record for line in lines if isinstance(record := json.loads(line), dict)]
    except ValueError:
        raise RunError(f"{directory.metrics} holds a line that is no JSON object; mend or delete that line") from None


def _losses(records: list[Facts]) -> Losses:
    train = [(r["step"], r.get("loss/train")) for r in records if r.get("kind") == "train"]
    evals = [
        (r["step"], metrics.get("loss"))
        for r in records
        if r.get("kind") == "eval" and isinstance(metrics := r.get("metrics"), dict)
    ]
    (steps, losses), (at, validation) = _columns(train), _columns(evals)
    return Losses(steps, losses, at, validation)


def _columns(pairs: Sequence[tuple[object, object]]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    numbers = [(float(str(step)), math.nan if value is None else float(str(value))) for step, value in pairs]
    return np.array([step for step, _ in numbers]), np.array([value for _, value in numbers])


def _samples(records: list[Facts]) -> tuple[int | None, list[Sample]]:
    """The last samples, and when they were written."""
    for record in reversed(records):
        written = record.get("samples")
        if record.get("kind") == "samples" and isinstance(written, list):
            return int(str(record["step"])), [Sample(str(s["prompt"]), str(s["text"])) for s in written]
    return None, []


def _rows(facts: Facts, found: Losses) -> list[tuple[str, str]]:
    """Numbers of the run, with the losses first."""
    rows: list[tuple[str, str]] = []
    if len(found.validation):
        rows.append(("validation loss", f"{found.validation[-1]:.4f} nats, at step {int(found.eval_steps[-1]):,}"))
        best = int(np.nanargmin(found.validation)) if np.isfinite(found.validation).any() else 0
        rows.append(
            ("best validation loss", f"{found.validation[best]:.4f} nats, at step {int(found.eval_steps[best]):,}")
        )
    for name in ("bigram", "unigram"):
        value = baseline(facts, name)
        if value is not None:
            rows.append((f"{name} loss", f"{value:.4f} nats"))
    shown = (
        "target",
        "parameters",
        "vocab_size",
        "text",
        "seed",
        "seconds",
        "started",
        "devices",
        "versions",
        "revision",
    )
    return rows + [(key.replace("_", " "), _text(facts[key])) for key in shown if facts.get(key) is not None]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _pictures(facts: Facts, found: Losses) -> list[Picture]:
    if not len(found.train) and not len(found.validation):
        return []
    from vpd.evaluation.figures import png  # matplotlib is slow to import
    from vpd.pretrain.figure import loss_figure

    lines = {name: value for name in ("unigram", "bigram") if (value := baseline(facts, name)) is not None}
    return [picture("losses", png(loss_figure(found, lines)), "Losses over training", CAPTION)]


def _source(name: str) -> str:
    if name != TEMPLATE:
        return page_source(name)
    return resources.files("vpd.pretrain").joinpath(name).read_text(encoding="utf-8")
