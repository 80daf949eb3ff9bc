"""Properties of conversion: today's run told in an older vocabulary comes back; nothing in a file is overlooked."""

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from good_file import Document, edited
from hypothesis import given, settings
from hypothesis import strategies as st
from older_files import FLAT, FLAT_LM, KNOTS
from test_vocabulary import LOSSES

from vpd.config import read_run_file
from vpd.config.document import parse_document
from vpd.config.legacy.convert import convert_document

_FLAT_NAMES = {
    "cadence.train_log_every": "train_log_freq",
    "cadence.save_every": "save_freq",
    "eval.every": "eval_freq",
    "eval.slow_every": "slow_eval_freq",
    "eval.n_steps": "n_eval_steps",
    "eval.batch_size": "eval_batch_size",
    "eval.slow_on_first_step": "slow_eval_on_first_step",
    "pd.decomposition_targets": "module_info",
    "pd.ci_config.fn_type": "ci_fn_type",
    "pd.ci_config.hidden_dims": "ci_fn_hidden_dims",
    "target.run_path": "pretrained_model_path",
    "data.feature_probability": "task_config.feature_probability",
    "data.data_generation_type": "task_config.data_generation_type",
}
_fraction = st.floats(0, 0.99)
_value = st.floats(1e-6, 1e3)
_schedule = st.fixed_dictionaries(
    {
        "start_val": _value,
        "warmup_pct": st.just(0.0) | st.floats(0.001, 0.9),
        "fn_type": st.sampled_from(["linear", "cosine"]),
        "final_val_frac": _fraction,
    }
) | st.fixed_dictionaries({"start_val": _value, "warmup_pct": st.floats(0, 0.9)})


def _terms(names: list[str]) -> st.SearchStrategy[list[Document]]:
    def term(name: str) -> st.SearchStrategy[Document]:
        return _value.map(lambda coeff: {**deepcopy(LOSSES[name]), "type": name, "coeff": coeff})

    drawn = st.sampled_from(names).flatmap(term)
    return st.lists(drawn, min_size=1, max_size=5, unique_by=lambda entry: entry["type"])


_pd: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "steps": st.integers(1000, 10**6),
        "n_mask_samples": st.integers(1, 5),
        "sampling": st.sampled_from(["continuous", "binomial"]),
        "use_delta_component": st.booleans(),
        "faithfulness_warmup_steps": st.integers(1, 99),
        "faithfulness_warmup_lr": _value,
    }
)
_flat_terms = _terms([name for name in LOSSES if "Merged" not in name and "Smooth" not in name])
_knots_terms = _terms([name for name in LOSSES if "nsc" not in str(LOSSES[name])])


@settings(max_examples=40, deadline=None)
@given(pd=_pd, terms=_flat_terms, schedule=_schedule, ci=st.sampled_from(["mlp", "shared_mlp"]), order=st.randoms())
def test_a_flat_file_comes_back(pd: Document, terms: Any, schedule: Document, ci: str, order: random.Random) -> None:
    def edit(document: Document) -> None:
        document["pd"].update(pd, loss_metrics=terms)
        for group in ("components_optimizer", "ci_fn_optimizer"):
            document["pd"][group] = {"lr_schedule": schedule}
        document["pd"]["ci_config"]["fn_type"] = ci
        for term in terms:
            if term.get("scope", {}).get("type") == "nsc":
                term["scope"]["type"] = "repeat_across_batch"
        document["cadence"].pop("dense_log_phase")
        document["target"] = {"run_path": order.choice(["team/toys/runs/x1", "stored/tms"])}

    native = edited(edit)
    _assert_comes_back(native, _shuffled(_as_flat(native, order), order))


@settings(max_examples=40, deadline=None)
@given(pd=_pd, terms=_knots_terms, schedule=_schedule, other=_schedule, order=st.randoms())
def test_a_knots_file_comes_back(
    pd: Document, terms: Any, schedule: Document, other: Document, order: random.Random
) -> None:
    def edit(document: Document) -> None:
        document["pd"].update(pd, loss_metrics=terms)
        document["pd"]["components_optimizer"] = {"type": "muon", "lr_schedule": schedule}
        document["pd"]["ci_fn_optimizer"] = {"betas": [0.5, 0.75], "lr_schedule": other}
        document["cadence"]["keep_last_n_checkpoints"] = 2
        for term in terms:
            if term["type"].startswith("Smooth"):
                term["gamma_anneal_start_frac"] = order.choice([0.0, 0.25])
                term["gamma_anneal_end_frac"] = order.choice([0.5, 1.0])

    native = edited(edit)
    _assert_comes_back(native, _shuffled(_as_knots(native), order))


def _assert_comes_back(native: Document, older: Document) -> None:
    found = convert_document(older)
    assert found is not None and found.text is not None, found
    assert (
        read_run_file(parse_document(found.text, "new"), supported=False).config
        == read_run_file(native, supported=False).config
    )
    assert sorted(str(row.old) for row in found.rows) == sorted(_leaves(older, ""))


def _as_flat(native: Document, order: random.Random) -> Document:
    native = deepcopy(native)
    older: Document = {"output_loss_type": "mse", "pretrained_model_class": "lab.TMSModel", "image_freq": 5}
    older["task_config"] = {"task_name": "tms"}
    older["lr_schedule"] = native["pd"].pop("components_optimizer")["lr_schedule"]
    del native["pd"]["ci_fn_optimizer"]
    del native["pd"]["ci_config"]["mode"]
    older["loss_metric_configs"] = [_flat_term(term, order) for term in native["pd"].pop("loss_metrics")]
    older["eval_metric_configs"] = [_flat_term(term, order) for term in native["eval"].pop("metrics")]
    for path, value in _two_levels(native):
        name = _FLAT_NAMES.get(path, path.rpartition(".")[2])
        owner, _, last = name.rpartition(".")
        (older[owner] if owner else older)[last] = value
    if older["pretrained_model_path"].startswith("team/"):
        older["pretrained_model_path"] = "wandb:" + older["pretrained_model_path"]
    return older


def _two_levels(native: Document) -> Iterator[tuple[str, object]]:
    for block, keys in native.items():
        for key, value in keys.items():
            if key == "ci_config":
                yield from ((f"{block}.{key}.{inner}", child) for inner, child in value.items())
            else:
                yield f"{block}.{key}", value


def _flat_term(term: Document, order: random.Random) -> Document:
    older = {"classname" if key == "type" else key: value for key, value in term.items()}
    if older.get("scope", {}).get("type") == "repeat_across_batch" and order.random() < 0.5:
        older["scope"] = {"type": "batch_invariant", "n_masks": older["scope"]["n_sources"]}
    if list(older.get("optimizer", {}).get("lr_schedule", ())) == ["start_val"]:
        older["optimizer"]["lr"] = older["optimizer"].pop("lr_schedule")["start_val"]
    return older


def _as_knots(native: Document) -> Document:
    older = deepcopy(native)
    pd = older["pd"]
    sites = [{"name": item["module_pattern"], "C": item["C"]} for item in pd.pop("decomposition_targets")]
    ci = {"type": "layerwise_mlp", "hidden_dims": pd.pop("ci_config")["hidden_dims"]}
    older["decomposition"] = {"sites": {"kind": "explicit", "sites": sites}, "ci": ci}
    for group in ("components_optimizer", "ci_fn_optimizer"):
        pd[group]["lr_schedule"] = _knots(pd[group]["lr_schedule"])
    pd["loss_metrics"] = [_knots_term(term) for term in pd["loss_metrics"]]
    older["eval"]["metrics"] = [_knots_term(term) for term in older["eval"]["metrics"]]
    cadence = older["cadence"]
    retention = {"kind": "keep_last", "n": cadence.pop("keep_last_n_checkpoints")}
    save_every = cadence.pop("save_every")
    cadence["checkpointing"] = {"kind": "periodic", "save_every": save_every, "retention": retention}
    return older


def _knots_term(term: Document) -> Document:
    term = deepcopy(term)
    if term["type"] == "MergedStochasticPersistentReconLoss":
        term["type"] = "MergedStochasticSubsetPPGDReconLoss"
    if "scope" in term:
        term["source_shape"] = term.pop("scope")["type"]
        term["optimizer"]["lr_schedule"] = _knots(term["optimizer"]["lr_schedule"])
    if term.get("mask_scope") == "c":
        term["source_shape"] = term.pop("mask_scope")
    if term["type"].startswith("Smooth"):
        start, end = term.pop("gamma_anneal_start_frac"), term.pop("gamma_anneal_end_frac")
        final, gamma = term.pop("gamma_anneal_final_gamma"), term.pop("gamma")
        points = [(0.0, 1.0), (start, 1.0), (end, final / gamma), (1.0, final / gamma)]
        term |= {"type": "ImportanceMinimalityLoss", "gamma": {"max_val": gamma, "points": _points(points)}}
        del term["beta"]
    return term


def _knots(schedule: Document) -> Document:
    warmup, final = schedule.get("warmup_pct", 0.0), schedule.get("final_val_frac", 1.0)
    points = _points([*([(0.0, 0.0)] if warmup else []), (warmup, 1.0), (1.0, final)])
    if "fn_type" in schedule:
        points[-1]["interp"] = schedule["fn_type"]
    return {"max_val": schedule["start_val"], "points": points}


def _points(pairs: list[tuple[float, float]]) -> list[Document]:
    return [{"at": at, "frac": frac} for at, frac in dict(pairs).items()]


def _shuffled(document: Document, order: random.Random) -> Document:
    keys = list(document)
    order.shuffle(keys)
    return {key: document[key] for key in keys}


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}[{i}]")
    else:
        yield key


_junk = st.sampled_from(
    [None, -1, 0, 1.5, "", "x", "c", True, [], {}, [1], [{}], {"x": 1}, {"kind": 3}, [{"type": []}]]
)


@settings(max_examples=120, deadline=None)
@given(
    which=st.sampled_from([FLAT, FLAT_LM, KNOTS]), junk=_junk, key=st.none() | st.just("nonsense"), order=st.randoms()
)
def test_no_field_is_overlooked_whatever_a_file_says(
    which: Document, junk: object, key: str | None, order: random.Random
) -> None:
    """One place of a good older file holds something else, or one block has another key."""
    older = deepcopy(which)
    owner = older
    while True:
        name = order.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        child: Any = owner[name]
        if not isinstance(child, dict | list) or not child or order.random() < 0.3:
            break
        owner = child
    if key is not None and isinstance(owner, dict):
        name = key
    owner[name] = junk
    found = convert_document(older)
    if found is None:
        return
    assert sorted(str(row.old) for row in found.rows if row.old) == sorted(_leaves(older, ""))
    assert (found.config is None) == bool(found.refused)
    if name == key:
        assert any("nonsense" in str(row.old) for row in found.refused)
    if found.config is not None:
        assert found.text is not None
        read_run_file(parse_document(found.text, "new"), supported=False)
