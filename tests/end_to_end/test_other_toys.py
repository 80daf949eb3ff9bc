"""ResidMLP and induction transformer through the command line: trained, interrupted, opened, evaluated, stored."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from other_toys import INDUCTION, RESID, SCOPES
from tiny_run import Document, Vpd, assert_same_run, final_bytes, one_line, records, tiny, tree

from vpd import SiteMask, open_run, read_run_file
from vpd.config.document import write_document
from vpd.experiment import build, first_state
from vpd.face import decompose
from vpd.run_directory import RunDirectory

TOYS = {"resid": RESID, "induction": INDUCTION}
both = pytest.mark.parametrize("name", TOYS)
# What is nearly the same for both is asked of one in the fast suite.
resid_slow = pytest.mark.parametrize("name", [pytest.param("resid", marks=pytest.mark.slow), "induction"])
induction_slow = pytest.mark.parametrize("name", ["resid", pytest.param("induction", marks=pytest.mark.slow)])
SITES = {
    "resid": {
        "layers.0.mlp_in": 7,
        "layers.0.mlp_out": 5,
        "layers.1.mlp_in.pre_identity": 6,
        "layers.1.mlp_in": 7,
        "layers.1.mlp_out": 5,
    },
    "induction": {
        "wte": 5,
        "h.0.attn.q_proj": 6,
        "h.0.attn.v_proj": 6,
        "h.0.attn.o_proj.pre_identity": 3,
        "lm_head": 5,
    },
}


def batch_of(name: str) -> jax.Array:
    """Two positions axes for sequences, one for features."""
    rng = np.random.default_rng(0)
    tokens, features = rng.integers(0, 7, (3, 8)).astype(np.int32), rng.uniform(-1, 1, (3, 6)).astype(np.float32)
    return jnp.asarray(tokens if name == "induction" else features)


def written(folder: Path, document: Document, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(write_document(document))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Iterator[Path]:
    """Both toys, each trained without interruption."""
    folder = tmp_path_factory.mktemp("other_toys")
    with jax.numpy_dtype_promotion("standard"):
        for name, document in TOYS.items():
            decompose(written(folder, document, name), out_dir=folder / "runs", quiet=True)
    yield folder / "runs"


@resid_slow
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    cut = tmp_path / "runs" / name
    shutil.copytree(trained / name, cut)
    shutil.rmtree(cut / "checkpoints" / "8")
    RunDirectory(cut).update_facts(status="stopped")
    called = vpd("train", written(tmp_path, TOYS[name], name), "--out-dir", tmp_path / "runs", "--quiet")
    assert called.code == 0, called.err
    assert called.out.splitlines()[-1] == str(cut)
    assert_same_run(trained / name, cut)
    losses = [record["loss/total"] for record in records(cut) if record["kind"] == "train"]
    assert np.isfinite(losses).all() and len(set(losses)) == len(losses)


@both
def test_what_is_recorded_and_drawn(name: str, trained: Path) -> None:
    """A metric that is named is computed: a scalar, or a figure in the report."""
    last = next(record for record in reversed(records(trained / name)) if record["kind"] == "eval")
    for site, C in SITES[name].items():
        assert 0 <= last["metrics"][f"CI_L0/{site}"] <= C
    figures = {p.stem for p in (trained / name / "figures" / "8").glob("*.png")}
    expected = {"ci_mean_spectrum", "activation_density", "ci_histogram", "uv_plot"}
    if name == "resid":
        expected |= {"permuted_ci_plot"}
        parts = {f"IdentityCIError/layers.{i}.mlp_{way}" for i in (0, 1) for way in ("in", "out")}
        assert parts <= set(last["metrics"])
        assert last["metrics"]["IdentityCIError/total"] == sum(last["metrics"][part] for part in parts)
        assert last["metrics"]["loss/StochasticReconLoss/hidden_acts"] > 0
        assert last["metrics"]["loss/StochasticHiddenActsReconLoss"] > 0
        matrices = {f"layers.{i}.mlp_{way}" for i in (0, 1) for way in ("in", "out")}
        assert {row["site"] for row in last["verdict"]} == {"layers.*.mlp_in"} | matrices
    else:
        assert "loss/persistent_sc" in last["metrics"]
        assert {f"induction/ablated/{site}" for site in SITES[name]} <= set(last["metrics"])
        assert len([row for row in last["verdict"] if row["expected"]]) == 4
    assert expected <= figures
    report = (trained / name / "report.html").read_text()
    assert report.count("<img ") >= len(figures)


@both
def test_evaluate_finds_what_training_found(name: str, trained: Path, vpd: Vpd) -> None:
    called = vpd("evaluate", trained / name, "--json")
    assert (called.code, called.err) == (0, "")
    found = json.loads(called.out)
    recorded = next(record for record in reversed(records(trained / name)) if record["kind"] == "eval")
    same = set(found["metrics"]) & set(recorded["metrics"])
    assert set(recorded["metrics"]) - same == ({"loss/persistent_sc"} if name == "induction" else set())
    assert {k: found["metrics"][k] for k in same} == pytest.approx({k: recorded["metrics"][k] for k in same}, rel=1e-4)
    assert found["verdict"]["rows"] == recorded["verdict"] or name == "induction"


@both
def test_an_opened_run(name: str, trained: Path) -> None:
    run, batch = open_run(trained / name), batch_of(name)
    ci, clean = run.causal_importances(batch), run.output(batch)
    leading = clean.shape[:-1]
    assert leading == ((3, 8) if name == "induction" else (3,))
    assert {site: x.shape for site, x in ci.items()} == {site: (*leading, C) for site, C in SITES[name].items()}
    assert list(run.sites) == list(SITES[name])
    whole = {site: SiteMask(jnp.ones((*leading, C)), jnp.ones(leading)) for site, C in SITES[name].items()}
    np.testing.assert_allclose(run.masked_output(batch, whole), clean, atol=2e-5)
    assert np.abs(run.masked_output(batch, ci) - clean).max() > 1e-4
    if name == "induction":
        tied = run.components("wte"), run.components("lm_head")
        np.testing.assert_array_equal(tied[0].V, tied[1].U.T)
        np.testing.assert_array_equal(tied[0].U, tied[1].V.T)
        # A lookup: with its subcomponents alone a token's row is (V ∘ m) U.
        out = run.masked_output(batch, {"wte": jnp.zeros((3, 8, 5))})
        np.testing.assert_allclose(out, 0.0, atol=1e-6)


@induction_slow
def test_compare_reads_them(name: str, trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    copy = shutil.copytree(trained / name, tmp_path / "copy")
    called = vpd("compare", trained / name, copy, "-o", tmp_path / "out", "--json")
    assert called.code == 0, called.err
    found = json.loads(called.out)
    assert set(found["sites"]) == set(SITES[name])
    assert ("single-feature" in found["live"]) == (name == "resid")


def source_sizes(run_dir: Path) -> dict[str, int]:
    """Numbers of sources of the head by term."""
    state = {key: len(value) // 4 for key, value in final_bytes(run_dir).items()}
    of_head = {key: n for key, n in state.items() if key.endswith("sources.lm_head")}
    return {key.split(".")[2]: n for key, n in of_head.items()}


def test_persistent_sources_have_one_a_position(trained: Path) -> None:
    assert source_sizes(trained / "induction") == {"persistent_sc": 8 * 6}


@pytest.mark.slow
def test_the_other_scopes_with_positions_go_on_to_the_same_bits(tmp_path: Path) -> None:
    file = written(tmp_path, SCOPES, "scopes")
    whole = decompose(file, out_dir=tmp_path, run_id="whole", quiet=True)
    cut = Path(shutil.copytree(whole.path, tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "8")
    RunDirectory(cut).update_facts(status="stopped")
    decompose(file, out_dir=tmp_path, run_id="cut", quiet=True)
    assert_same_run(whole.path, cut)
    assert source_sizes(cut) == {"persistent_bsc": 64 * 6, "persistent_nsc": 16 * 6}


def test_both_orders_of_a_tied_pair() -> None:
    """Either starts as the second site's draw, and the other is its transpose."""
    state = {}
    target = None
    for pair in (["wte", "lm_head"], ["lm_head", "wte"]):
        document = deepcopy(INDUCTION)
        document["pd"] |= {"tied_weights": [pair], "faithfulness_warmup_steps": 0}
        experiment = build(read_run_file(document | {"eval": None}).config, target)
        target = experiment.target
        pieces = state[pair[1]] = first_state(experiment).decomposition.components
        np.testing.assert_array_equal(pieces["wte"].V, pieces["lm_head"].U.T)
        np.testing.assert_array_equal(pieces["wte"].U, pieces["lm_head"].V.T)
        assert pieces["wte"].V.shape == (7, 5) and set(pieces.owned) == set(SITES["induction"]) - {pair[1]}
    # V [d_in, C] is normal with standard deviation 1/√d_in of the second, U with 1/√C.
    a, b = state["lm_head"]["wte"], state["wte"]["wte"]
    assert (np.asarray(a.V) != b.V).all()


def stored(name: str, path: Path) -> Document:
    """The run file with a stored target."""
    document = tiny() if name == "tiny" else deepcopy(TOYS[name])
    return document | {"target": {"run_path": str(path)}}


@pytest.mark.parametrize("name", ["tiny", *TOYS])
def test_the_target_of_another_run(name: str, trained: Path, finished: Path) -> None:
    """The same target, the same sites, the same first importances as where it was trained in this run."""
    path = finished if name == "tiny" else trained / name
    experiment, earlier = build(read_run_file(stored(name, path)).config), open_run(path).experiment
    jax.tree.map(np.testing.assert_array_equal, experiment.target, earlier.target)
    assert experiment.problem == earlier.problem
    assert experiment.train_batch(jnp.uint32(0), jnp.int32(3)) is not None


@pytest.mark.slow
@both
def test_a_run_on_a_stored_target_is_the_same_run(name: str, trained: Path, tmp_path: Path) -> None:
    run = decompose(written(tmp_path, stored(name, trained / name), name), out_dir=tmp_path / "runs", quiet=True)
    assert final_bytes(run.path) == final_bytes(trained / name)


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("resid", {"decomposition_targets": [{"module_pattern": "layers.2.mlp_in", "C": 7}]}, "decomposition_targets"),
        ("resid", {"identity_decomposition_targets": [{"module_pattern": "layers.9.*", "C": 7}]}, "identity_"),
        ("resid", {"tied_weights": [["layers.0.mlp_in", "layers.1.mlp_in"]]}, "pd.tied_weights"),
        ("resid", {"tied_weights": [["layers.0.mlp_in", "linear1"]]}, "pd.tied_weights"),
        ("induction", {"identity_decomposition_targets": [{"module_pattern": "wte", "C": 3}]}, "identity_"),
        ("induction", {"tied_weights": [["wte", "wte"]]}, "pd.tied_weights"),
    ],
)
def test_what_a_stored_target_does_not_have(
    name: str, changes: Document, key: str, trained: Path, tmp_path: Path, vpd: Vpd
) -> None:
    document = stored(name, trained / name)
    document["pd"] |= changes
    file = written(tmp_path, document | {"eval": None}, "bad")
    before = tree(tmp_path)
    called = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert (called.code, called.out) == (2, "")
    assert key in one_line(called.err)
    assert tree(tmp_path) == before


def test_a_stored_target_of_another_kind(trained: Path, tmp_path: Path, vpd: Vpd) -> None:
    file = written(tmp_path, stored("resid", trained / "induction"), "bad")
    called = vpd("train", file, "--out-dir", tmp_path / "runs", "--quiet")
    assert (called.code, called.out) == (2, "")
    assert "induction transformer" in one_line(called.err)
    assert not (tmp_path / "runs").exists()
