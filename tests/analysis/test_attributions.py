"""Attributions over data and graphs of prompts: what is kept, what is said of it, and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import called

from vpd import RunError
from vpd.analysis.artefacts import artefact_path
from vpd.analysis.attribution import OUTPUT, Effects, Wanted, attribute_data, load_attributions, save_attributions
from vpd.analysis.attribution.export import TOP, Names, graph_document
from vpd.analysis.attribution.graph import IMPORTANT, prompt_graph
from vpd.analysis.attribution.store import Attributions
from vpd.analysis.attribution.sums import FILE, Asked
from vpd.analysis.labels import read_labels
from vpd.analysis.parts import Parts
from vpd.analysis.prompts import read_positions, read_prompt, token_prompt
from vpd.analysis.run import Run
from vpd.config import read_run_file
from vpd.errors import Stopped
from vpd.experiment import build
from vpd.run_directory import RunDirectory
from vpd.targets import init_induction
from vpd.training.build import init_state

EXAMPLE = Path(__file__).parents[2] / "examples" / "induction.yaml"
SITE = "h.1.attn.k_proj"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An induction transformer that nothing was trained of, with the subcomponents that training would start from."""
    config = read_run_file(EXAMPLE).config
    experiment = build(config, jax.jit(partial(init_induction, 64, 16, 2, 1, 32))(0))
    start = jax.jit(lambda: init_state(experiment.problem, config.pd, (), (32, 32)).decomposition)
    return Run(RunDirectory(tmp_path_factory.mktemp("induction")), experiment, start(), 0, "finished")


def test_attributions_over_data(run: Run) -> None:
    """Normalised by the source's summed CI and the target's RMS; what is written is what is read."""
    found = attribute_data(run, 1, SITE)
    batch = run.experiment.eval_batch(jnp.asarray(0, jnp.uint32), jnp.asarray(0, jnp.int32))
    effects = Effects(run, by_position=False)
    facts = effects.facts(batch)
    source, value = found.top_sources(f"{SITE}:3", 1)[0]
    site, index = source.split(":")
    signed, _ = effects.of(SITE, batch, facts, Wanted(jnp.full(16, 3)))
    mass = (
        np.sum(np.asarray(batch) == int(index)) if site == "wte" else np.asarray(facts.ci[site])[..., int(index)].sum()
    )
    rms = np.sqrt(np.square(np.asarray(facts.activations[SITE])[..., 3]).mean())
    np.testing.assert_allclose(value, float(signed[site][0, int(index)]) / mass / rms, rtol=1e-3)
    assert (f"{SITE}:3", value) in found.top_targets(source, 32)
    assert found.top_targets(f"{SITE}:3") == []

    (run.path / "labels" / "mine").mkdir(parents=True)
    (run.path / "labels" / "mine" / "labels.json").write_text(json.dumps({f"{SITE}:3": "reads what came before"}))
    save_attributions(artefact_path(run.path, "attributions", "first"), run, found, 5, {})
    again = load_attributions(run.path)
    assert again.top_sources(f"{SITE}:3", 7, absolute=True) == found.top_sources(f"{SITE}:3", 7, absolute=True)
    entries = json.loads((run.path / "attributions" / "first" / TOP).read_text())["subcomponents"]
    entry = next(entry for entry in entries if entry["name"] == f"{SITE}:3")
    assert entry["label"] == "reads what came before"
    assert [one["name"] for one in entry["sources"]] == [name for name, _ in found.top_sources(f"{SITE}:3", 5)]
    for unknown in ("h.7.attn.k_proj:3", f"{SITE}:32", SITE):
        with pytest.raises(RunError, match="no attributions are known"):
            found.top_sources(unknown)
    with pytest.raises(RunError, match="matches no site"):
        attribute_data(run, 1, "h.9.*")
    with pytest.raises(RunError, match="is there already"):
        artefact_path(run.path, "attributions", "first")


def test_the_graph_of_a_prompt(run: Run) -> None:
    """Every node but the outputs has the influence of its edges; edges go forward, from nodes that are important."""
    prompt = token_prompt(run, [0, 5, 9, 5])
    graph = prompt_graph(run, prompt, (1, 3), threshold=0.002)
    ci = run.causal_importances(prompt.batch)
    order = {site: i for i, site in enumerate(("wte", *run.sites, OUTPUT))}
    assert [node.position for node in graph.influence if node.site == OUTPUT] == [1, 3]
    assert len({edge.source.site for edge in graph.edges}) > 2
    for node, influence in graph.influence.items():
        out = [edge.strength for edge in graph.edges if edge.source == node]
        assert influence == pytest.approx(sum(out) if node.site != OUTPUT else 0.5)
    for edge in graph.edges:
        assert order[edge.source.site] < order[edge.target.site] and edge.source.position <= edge.target.position
        assert edge.strength >= 0.002 and edge.strength == pytest.approx(abs(edge.share) * graph.influence[edge.target])
        assert edge.value * edge.share > 0
        if edge.source.site in ci:
            assert ci[edge.source.site][0, edge.source.position, edge.source.index] > IMPORTANT
    document = graph_document(graph, prompt, Names(run))
    assert document["prompt"] == {"tokens": [0, 5, 9, 5], "words": ["0", "5", "9", "5"]}
    assert len(document["nodes"]) == len(graph.influence) and len(document["edges"]) == len(graph.edges)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one input"),
        ({"tokens": "1", "text": "a"}, "give one input"),
        ({"text": "a"}, "--tokens 1,2,3"),
        ({"tokens": ""}, "the prompt is empty"),
        ({"tokens": "1,x"}, "'x' is no token id"),
        ({"tokens": "1,64"}, "knows no token 64; its tokens are 0 to 63"),
        ({"tokens": "-1"}, "knows no token -1"),
        ({"tokens": ",".join(["1"] * 33)}, "has 33 tokens and .* reads at most 32"),
        ({"features": "1"}, "reads no features"),
    ],
)
def test_refused_prompts(given: dict[str, str], said: str, run: Run) -> None:
    with pytest.raises(RunError, match=said):
        read_prompt(run, **given)


@pytest.mark.parametrize("given", ["4", "-5", "a", "1,,2", ""])
def test_refused_positions(given: str) -> None:
    with pytest.raises(RunError, match="--positions"):
        read_positions(given, 4)
    assert read_positions("-1,0,3", 4) == (0, 3) and read_positions(None, 4) == (3,)


@pytest.mark.parametrize("content", ["{", "[]", '{"linear1:0": 3}'])
def test_labels_that_are_none(content: str, tmp_path: Path) -> None:
    assert read_labels(tmp_path) == {}
    (tmp_path / "labels" / "x").mkdir(parents=True)
    (tmp_path / "labels" / "x" / "labels.json").write_text(content)
    with pytest.raises(RunError, match="mend it"):
        read_labels(tmp_path)


def test_sums_that_are_cut_short_go_on_to_the_same_bits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a save was due, where a signal came, and where one command was enough."""
    whole = attribute_data(run, 2, SITE)
    asked = Asked(run.step, 2, SITE, 128)

    def begun() -> Parts[Asked]:
        parts = Parts(run.path, "attributions", "cut", Asked)
        parts.begin(asked, force=False)
        return parts

    @contextmanager
    def watch(total: int) -> Generator[Callable[[int], None]]:
        assert total == 64
        yield lambda done: signal.raise_signal(signal.SIGTERM) if done == at else None

    for at, wanted in ((16, 16), (48, 48)):
        parts = begun()
        with parts.held("the data"), pytest.raises(Stopped, match=f"after {at} of 64 targets; the same command"):
            attribute_data(run, 2, SITE, watch=watch, parts=parts)
        assert parts.done() == wanted
    at = -1
    monkeypatch.setattr(Parts, "due", lambda self: True)
    parts = begun()
    with pytest.raises(RunError, match=r"begun with batches 2 and not 3; go on with the same"):
        parts.begin(replace(asked, batches=3), force=False)
    with parts.held("the data"):
        with pytest.raises(RunError, match="another process is reading the data"), begun().held("the data"):
            pass
        assert_same(attribute_data(run, 2, SITE, watch=watch, parts=parts), whole)
    assert parts.done() == 64
    assert_same(attribute_data(run, 2, SITE, parts=parts), whole)
    file = parts.place(0, 64) / FILE
    for content in (file.read_bytes()[:-100], b""):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"can't be gone on from .*; remove .*\.cut\.parts, and the same command"):
            attribute_data(run, 2, SITE, parts=parts)
    shutil.rmtree(parts.path)


def assert_same(one: Attributions, other: Attributions) -> None:
    for field in fields(Attributions):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def test_a_killed_command_goes_on(tiny_run: Run, tmp_path: Path) -> None:
    """A process that is killed after one save; the same command, of its options, ends as if it had never been."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    given = ["attribute", str(tmp_path / "run"), "--batches", "3", "--quiet"]
    script = Path(__file__).with_name("killed_attribution.py")

    def start(name: str, at: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(script), str(at), *given, "--name", name]
        return subprocess.run(command, capture_output=True, text=True)

    assert start("whole", 0).returncode == 0
    assert start("cut", 2).returncode == -signal.SIGKILL
    with pytest.raises(RunError, match="cut"):
        load_attributions(tmp_path / "run", "cut")
    again = start("cut", 0)
    assert again.returncode == 0, again.stderr
    assert_same(load_attributions(tmp_path / "run", "cut"), load_attributions(tmp_path / "run", "whole"))
    assert sorted(path.name for path in (tmp_path / "run" / "attributions").iterdir()) == ["cut", "whole"]


def test_commands(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A toy from pruning to a graph of its subset; a second time nothing is overwritten."""
    path = tmp_path / "run"
    shutil.copytree(tiny_run.path, path)
    vpd = partial(called, monkeypatch, capfd)
    with jax.numpy_dtype_promotion("standard"):
        pruned = vpd("prune", path, "--features", "1,3=0.5", "--steps", 30, "--quiet", "--json")
        assert pruned.code == 0, pruned.err
        found = json.loads(pruned.out)
        assert found["prompt"]["features"] == {"1": 0.75, "3": 0.5} and found["target_ce"] is None
        assert found == {"path": str(path / "prunings" / "prompt")} | json.loads(
            (path / "prunings" / "prompt" / "pruning.json").read_text()
        )
        subset = {(one["name"], one["position"]) for one in found["subsets"]["subset"]["members"]}
        graph = vpd("attribute", path, "--pruning", "prompt", "--threshold", 1e-6, "--quiet", "--json")
        assert graph.code == 0, graph.err
        nodes = json.loads(graph.out)["nodes"]
        own = {(node["name"], node["position"]) for node in nodes if node["site"] in tiny_run.sites}
        assert own and own <= subset
        data = vpd("attribute", path, "--quiet")
        assert data.code == 0 and data.out.splitlines()[-1] == str(path / "attributions" / "dataset")
        assert load_attributions(path).positions == tiny_run.config.pd.batch_size
        for again in (("prune", path, "--features", "1"), ("attribute", path), ("attribute", path, "--features", "0")):
            refused = vpd(*again)
            assert refused.code == 2 and "is there already" in refused.err
        for given, said in (
            (("attribute", path, "--tokens", "1,2"), "reads no sequence"),
            (("attribute", path, "--features", "5"), "no feature 5; its features are 0 to 4"),
            (("attribute", path, "--features", "a"), "INDEX=VALUE"),
            (("attribute", path, "--positions", "0"), "give one input"),
            (("attribute", path, "--features", "1", "--pruning", "prompt"), "leave the others out"),
            (("attribute", path, "--pruning", "other"), "does not exist"),
            (("prune", path, "--features", "1", "--measure", "ce", "--name", "x"), "cross-entropy is of tokens"),
            (("prune", path, "--features", "1", "--measure", "l2"), "--measure 'l2'"),
        ):
            refused = vpd(*given)
            assert refused.code == 2 and said in refused.err, refused.err
            assert len(refused.err.splitlines()) == 1
    assert sorted(p.name for p in (path / "attributions").iterdir()) == ["dataset", "prompt"]
