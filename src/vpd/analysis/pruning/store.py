"""Prunings as they are kept in ``prunings/<name>/``: JSON and a picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vpd.analysis.artefacts import new_artefact, open_artefact
from vpd.analysis.labels import read_labels
from vpd.analysis.prompts import Prompt, feature_prompt, token_prompt
from vpd.analysis.pruning.figure import pruning_figure
from vpd.analysis.pruning.prune import EXPLAINED, SUBSET, Pruning, Subset
from vpd.analysis.run import Run
from vpd.errors import RunError
from vpd.evaluation.figures import png
from vpd.run_directory import finite

KIND, SCHEMA_VERSION = "prunings", 1
FILE, PICTURE = "pruning.json", "pruning.png"


def pruning_document(found: Pruning, run: Run) -> dict[str, object]:
    """A pruning as one JSON object: what was asked, and of every subset its size, what it does, and its members."""
    labels = read_labels(run.path)
    is_text = run.config.target_kind == "lm"
    told = [
        {"token": token, "text": run.tokenizer.decode([token]) if is_text else str(token)}
        for token in found.labels or ()
    ]
    return {
        "prompt": {**found.prompt.given, "words": list(found.prompt.words)},
        "positions": list(found.positions),
        "measure": found.measure,
        "steps": found.effort.steps,
        "coeff": found.effort.coeff,
        "seed": found.effort.seed,
        "labels": told,
        "target_ce": found.target_ce,
        "subsets": {name: _subset(name, subset, labels) for name, subset in found.subsets.items()},
    }


def _subset(name: str, subset: Subset, labels: Mapping[str, str]) -> dict[str, object]:
    places: list[dict[str, object]] = []
    for site, masks in subset.masks.items():
        spread = masks if masks.ndim > 1 else masks[None]
        for position, index in np.argwhere(spread > 0):
            member: dict[str, object] = {
                "name": f"{site}:{index}",
                "position": int(position),
                "mask": float(spread[position, index]),
            }
            label = labels.get(f"{site}:{index}")
            places.append(member if label is None else member | {"label": label})
    return {
        "what": EXPLAINED[name],
        "size": subset.size,
        "distinct": subset.distinct,
        **asdict(subset.kept),
        "members": places,
    }


def save_pruning(path: Path, run: Run, found: Pruning) -> dict[str, object]:
    """Write a pruning and its picture, whole or not at all; returns the document.

    Args:
        path: from :func:`vpd.analysis.artefacts.artefact_path`.
        run: it is of.
        found: the pruning.
    """
    document = pruning_document(found, run)
    facts = {"prompt": found.prompt.given, "positions": list(found.positions), "measure": found.measure}
    with new_artefact(path, SCHEMA_VERSION, run.origin, facts) as draft:
        text = json.dumps(finite(document), indent=1, ensure_ascii=False)
        (draft / FILE).write_text(text + "\n", encoding="utf-8")
        (draft / PICTURE).write_bytes(png(pruning_figure(found)))
    return document


def pruned_prompt(run: Run, name: str) -> tuple[Prompt, tuple[int, ...], dict[str, Bool[np.ndarray, "..."]]]:
    """Of a pruning its prompt, its positions and its subset ``{site: [1, *positions, C]}``.

    Args:
        run: opened.
        name: of the pruning.

    Raises:
        RunError: no such pruning, one of another schema, or of another checkpoint.
    """
    artefact = open_artefact(run.path, KIND, SCHEMA_VERSION, name)
    if artefact.origin.step != run.step:
        raise RunError(
            f"{artefact.path} is of step {artefact.origin.step} and the run is at {run.step}; prune it again"
        )
    document = json.loads((artefact.path / FILE).read_bytes())
    given = document["prompt"]
    if "tokens" in given:
        prompt = token_prompt(run, given["tokens"])
        leading: tuple[int, ...] = (1, len(given["tokens"]))
    else:
        prompt = feature_prompt(run, {int(i): float(x) for i, x in given["features"].items()})
        leading = (1,)
    members = {site: np.zeros((*leading, C), bool) for site, C in run.axis.sizes.items()}
    for member in document["subsets"][SUBSET]["members"]:
        site, _, index = member["name"].rpartition(":")
        members[site].reshape(-1, members[site].shape[-1])[member["position"], int(index)] = True
    return prompt, tuple(document["positions"]), members
