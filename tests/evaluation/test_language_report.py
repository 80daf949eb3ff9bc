"""The report of a language model: every table from what lies in the run directory, at any number of matrices."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vpd.config import read_run_file
from vpd.config.run import RunConfig
from vpd.errors import RunError
from vpd.evaluation import figures, language_figures
from vpd.evaluation.language_report import (
    attention_rows,
    ce_series,
    l0_series,
    language_tables,
    masking_rows,
    matrix_rows,
    probe_rows,
    sum_rows,
    without_matrices,
)
from vpd.evaluation.maskings import DESCRIPTIONS, MASKINGS
from vpd.evaluation.report import write_report
from vpd.evaluation.site_places import by_kind, layer_of, place_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "glassllm.yaml"
KINDS = {"self_attn.q_proj": 128, "self_attn.k_proj": 96, "mlp.gate_proj": 320}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """The example, with attention patterns as well."""
    read = read_run_file(EXAMPLE).config
    document = read.model_dump(mode="json", exclude_none=True)
    attention = {
        "type": "CIMaskedAttnPatternsReconLoss",
        "n_heads": 4,
        "q_proj_path": "*q_proj",
        "k_proj_path": "*k_proj",
    }
    document["eval"]["metrics"].append(attention)
    return read_run_file(document).config


def metrics(n_layers: int = 4, step: int = 0) -> dict[str, float]:
    found: dict[str, float] = {"CEandKLLosses/ce_target": 5.0}
    for i, masking in enumerate(MASKINGS):
        values = {"ce": 6.0 + i, "ce_difference": 1.0 + i, "ce_unrecovered": i / 8, "kl": 0.5 + i}
        found |= {f"CEandKLLosses/{measure}_{masking}": value for measure, value in values.items()}
    for layer in range(n_layers):
        for n, kind in enumerate(KINDS):
            site = f"model.layers.{layer}.{kind}"
            found[f"CI_L0/{site}"] = 1.0 + n + step
            found[f"CIMeanPerComponent/{site}/alive"] = 20 + n
            found[f"ComponentActivationDensity/{site}/firing"] = 10 + n
        found[f"CIMaskedAttnPatternsReconLoss/model.layers.{layer}"] = 0.25 * layer
    for layer in range(4):
        found[f"CI_L0/layer_{layer}"] = 6.0 + 3 * step
    found |= {"CI_L0/total": n_layers * (6.0 + 3 * step), "ComponentActivationDensity/positions": 8192}
    found |= {"loss/pgd_20_20x0.1": 3.0, "loss/pgd_40_40x0.05": 4.0, "loss/pgd_80_80x0.025": 5.0}
    return found | {"CIMaskedAttnPatternsReconLoss": 0.375}


def make_run(path: Path, config: RunConfig, *evals: dict[str, float], **run: object) -> Path:
    from vpd.config import dump_run_file

    path.mkdir(exist_ok=True)
    records = [{"kind": "eval", "step": 10 * i, "metrics": one, "verdict": []} for i, one in enumerate(evals)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "run.json").write_text(json.dumps({"run_id": "lm", "status": "finished", "target": "lm", **run}))
    (path / "config.yaml").write_text(dump_run_file(config))
    return path


def add_samples(path: Path, step: int, text: str) -> None:
    folder = path / "figures" / str(step)
    folder.mkdir(parents=True)
    continuations = {"target": {"ids": [1], "text": text}, "ci_masked": {"ids": [7, 8]}}
    record = {"prompts": [{"ids": [2], "text": "Once upon", "continuations": continuations}]}
    (folder / "samples.json").write_text(json.dumps(record))


def test_the_page_has_every_table(tmp_path: Path, config: RunConfig) -> None:
    run = make_run(tmp_path / "run", config, metrics(), metrics(step=1), target_source={"quantised": True})
    add_samples(run, 9, "old")
    add_samples(run, 10, f"a time {SCRIPT}")
    html = write_report(run).read_text()
    headings = [
        "What it still predicts",
        "What an adversary can do",
        "Where it attends",
        "Subcomponents",
        "What it writes",
    ]
    assert [h for h in re.findall("<h2>(.*)</h2>", html) if h in headings] == headings
    assert all(words in html for words in DESCRIPTIONS.values())
    assert "counted over 8,192 positions, where that means at least once" in html
    assert "12 matrices, one by one" in html and "the dequantised network is decomposed" in html
    assert "Once upon" in html and "a time" in html and ">old<" not in html and "<td>7 8</td>" in html
    assert SCRIPT not in html and html.count("<script>") == 3
    assert re.findall('class="chart" id="chart-(.*?)"', html) == ["l0", "cross-entropy"]


def test_a_thousand_matrices_are_folded(tmp_path: Path, config: RunConfig) -> None:
    html = write_report(make_run(tmp_path / "run", config, metrics(n_layers=400))).read_text()
    assert "<details><summary>1200 matrices, one by one</summary>" in html
    assert html.index("layers.2.self_attn.q_proj") < html.index("layers.10.self_attn.q_proj")
    assert "dequantised" not in html and "What it writes" not in html


@pytest.mark.parametrize(("ok", "said"), [(True, "every measure holds"), (False, "1 of 1 measures fails")])
def test_a_language_model_is_never_called_solved(tmp_path: Path, config: RunConfig, ok: bool, said: str) -> None:
    run = make_run(tmp_path / "run", config, metrics())
    row = {"measure": "m", "site": "", "value": 1.0, "expected": "2", "ok": ok}
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 0, "metrics": metrics(), "verdict": [row]}))
    assert f"<h1>Finished: {said}</h1>" in write_report(run).read_text()


def test_a_toy_has_none_of_it(tmp_path: Path, config: RunConfig) -> None:
    run = make_run(tmp_path / "run", config, metrics(), target="tms")
    assert "What it still predicts" not in write_report(run).read_text()


def test_what_was_not_measured_is_a_dash(tmp_path: Path, config: RunConfig) -> None:
    few = {name: value for name, value in metrics().items() if "/alive" not in name and "Attn" not in name}
    few["CEandKLLosses/ce_unrecovered_ci_masked"] = float("nan")
    html = write_report(make_run(tmp_path / "run", config, few)).read_text()
    html = html[: html.index("<h2>Metrics</h2>")]
    assert "–</td>" in html and ">nan<" not in html and "Where it attends" not in html


def test_broken_samples_are_named(tmp_path: Path, config: RunConfig) -> None:
    run = make_run(tmp_path / "run", config, metrics())
    add_samples(run, 10, "x")
    (run / "figures" / "10" / "samples.json").write_text('{"prompts": [3]}')
    with pytest.raises(RunError, match=r"samples\.json"):
        write_report(run)


def test_rows_of_maskings() -> None:
    rows = masking_rows(metrics(), "CEandKLLosses")
    assert (rows[0].name, rows[0].ce, rows[0].kl) == ("target", 5.0, 0.0)
    assert [row.kl for row in rows[1:]] == [0.5 + i for i in range(len(MASKINGS))]
    assert masking_rows({}, "CEandKLLosses") == []


def test_rows_of_matrices_and_sums(config: RunConfig) -> None:
    matrices = matrix_rows(config, metrics(n_layers=5))
    assert [m.name for m in matrices][:4] == [f"model.layers.0.{k}" for k in KINDS] + [
        "model.layers.1.self_attn.q_proj"
    ]
    assert [m.C for m in matrices[:3]] == list(KINDS.values())
    assert matrices[2][2:] == (320, 3.0, 22, 12)
    sums = {row.name: row[2:] for row in sum_rows(config, matrices)}
    assert sums["all matrices"] == (5 * 544, 30.0, 5 * 63, 5 * 33)
    assert sums["layer_1"] == (544, 6.0, 63, 33)
    # Layers 0 to 3 are groups of the run file already; `total` is all matrices.
    assert list(sums) == ["all matrices", *(f"layer_{i}" for i in range(4)), "model.layers.4"]


def test_the_console_leaves_single_matrices_out(config: RunConfig) -> None:
    found = metrics()
    left = without_matrices(found, matrix_rows(config, found))
    assert not [name for name in left if "_proj" in name]
    assert {
        "CI_L0/total",
        "ComponentActivationDensity/positions",
        "loss/pgd_20_20x0.1",
        "CEandKLLosses/ce_target",
    } <= set(left)


def test_the_console_has_sums(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    from vpd.commands.tables import print_sums

    print_sums(sum_rows(config, matrix_rows(config, metrics())))
    out = capsys.readouterr().out
    assert re.search(r"all matrices\W+2,176\W+24\W+252\W+132", out) and "_proj" not in out


def test_probes_go_by_budget_and_zero_stands_beside(config: RunConfig) -> None:
    assert config.eval is not None
    rows = probe_rows(config.eval.metrics, metrics())
    assert [row.budget for row in rows[:3]] == [2.0, 2.0, 2.0] and [row.kl for row in rows[:3]] == [3.0, 4.0, 5.0]
    assert rows[-1].name == "zero" and rows[-1].kl == 0.5 + MASKINGS.index("zero_masked")
    assert probe_rows(config.eval.metrics, {}) == []


def test_attention_ends_with_the_mean(config: RunConfig) -> None:
    assert config.eval is not None
    found = attention_rows(config.eval.metrics, metrics())
    assert found is not None
    assert found.rows[1] == ("model.layers.1", [0.25]) and found.rows[-1] == ("mean", [0.375])
    assert attention_rows(config.eval.metrics, {}) is None


def test_series_over_training(config: RunConfig) -> None:
    evals = [metrics(), metrics(step=1)]
    l0 = l0_series(config, evals)
    assert set(l0) == {"all matrices", *(f"layer_{i}" for i in range(4))}  # `total` says the same as all matrices
    np.testing.assert_allclose(l0["all matrices"], [24.0, 36.0])
    ce = ce_series(config, evals)
    assert next(iter(ce)) == "target" and len(ce) == 1 + len(MASKINGS)


def test_the_latest_value_of_each_metric_counts(tmp_path: Path, config: RunConfig) -> None:
    slow = metrics() | {"CEandKLLosses/ce_target": 4.0}
    tables = language_tables(config, [slow, {"CEandKLLosses/ce_target": 3.0}], tmp_path, False)
    assert tables.maskings[0][0].ce == 3.0 and tables.positions == 8192 and len(tables.matrices) == 12


def test_places() -> None:
    assert layer_of("transformer.h.10.attn.c_attn") == "transformer.h.10"
    assert place_of("transformer.h.10.attn.c_attn") == ("attn.c_attn", 10)
    assert place_of("lm_head") == ("lm_head", None) and layer_of("lm_head") == "outside the layers"
    assert by_kind(["wte", "h.0.a", "h.0.b", "h.1.a"]) == {"wte": ["wte"], "a": ["h.0.a", "h.1.a"], "b": ["h.0.b"]}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_layers", [1, 3, 40])
def test_figures_of_many_matrices(n_layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PIXELS_PER_INCH", 40)
    rng = np.random.default_rng(0)
    sites = ["wte", *(f"h.{i}.{kind}" for i in range(n_layers) for kind in KINDS)]
    values = {site: np.where(rng.uniform(size=20) > 0.4, 0.1, 0.0) for site in sites}
    counts = {site: rng.integers(0, 9, 10) for site in sites}
    drawn = [
        language_figures.histograms_by_kind(counts, np.linspace(0, 1, 11)),
        language_figures.spectra_by_kind(values, 1e-6, "A title", "mean", "alive"),
        language_figures.layer_map({site: 0.5 for site in sites}, {site: 0.2 for site in sites}),
    ]
    for figure in drawn:
        assert len(figures.png(figure)) > 1000
        panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
        assert all(ax.has_data() and ax.get_ylabel() for ax in panels)
    titles = [ax.get_title() for ax in drawn[1].axes if ax.get_title()]
    alive = sum(int((values[f"h.{i}.mlp.gate_proj"] > 1e-6).sum()) for i in range(n_layers))
    assert f"mlp.gate_proj: {alive:,} of {20 * n_layers:,} alive" in titles
    rows = np.asarray(drawn[2].axes[0].images[0].get_array())
    assert rows.shape == (n_layers, 3)  # the embedding is in no layer
