"""Attention through subcomponents: sums against the masked model's own scores, and closed forms."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.texts import WORDS, write_tokenizer
from opened import opened
from targets.language_models import SCALING
from tiny_run import called

from vpd import RunError
from vpd.analysis.attention.heads import head_fractions, head_spaces, heads_spanned
from vpd.analysis.attention.interactions import query_key_pairs, value_output_pairs
from vpd.analysis.attention.layers import attention_layers, attention_weights, chosen_layers
from vpd.analysis.attention.scores import Masking, ScoreParts, prompt_scores
from vpd.analysis.attention.typical import Typical, typical_sizes
from vpd.analysis.run import Run
from vpd.evaluation.attention_patterns import heads_of
from vpd.rotary import frequencies
from vpd.targets import recorded_forward
from vpd.targets.attention import attention_pattern

Scores = Callable[[str, Masking], list[ScoreParts]]
SUMS = 1e-4  # of scores of a few units, in float32
FAMILIES = ("simple_mlp", "llama", "gpt2", "induction")
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2]], jnp.int32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run of each family."""
    return {name: opened(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def unit_sizes(run: Run, sites: Sequence[str]) -> Typical:
    """Every subcomponent with an activation of 1."""
    ones = {site: np.ones(run.axis.sizes[site]) for site in sites}
    return Typical(ones, ones, ones, 1)


@pytest.fixture(scope="module")
def scores(runs: dict[str, Run]) -> Scores:
    """Scores of both layers, taken apart once for each network and masking."""
    return cache(lambda name, masking: prompt_scores(runs[name], chosen_layers(runs[name], None), TOKENS, masking))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("masking", ["ci", "target"])
def test_the_parts_sum_to_the_masked_models_scores(name: str, masking: Masking, scores: Scores) -> None:
    both = scores(name, masking)
    assert [found.layer.path.rpartition(".")[2] for found in both] == ["0", "1"]
    for found in both:
        assert ("delta" in found.queries.labels) == (masking == "target")
        np.testing.assert_allclose(found.total(), found.scores, atol=SUMS)
        by_pairs = sum(found.at(1, 5, 2).ravel())
        np.testing.assert_allclose(by_pairs, found.scores[1, 5, 2], atol=SUMS)
        np.testing.assert_allclose(found.contribution(0, 0)[1, 5, 2], found.at(1, 5, 2)[0, 0], atol=SUMS)
        assert np.abs(found.scores).max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_masks_and_deltas_one_the_scores_are_the_targets(
    name: str, runs: dict[str, Run], scores: Scores
) -> None:
    """The scores that are taken apart are those behind the attention pattern that the target itself computes."""
    target = runs[name].experiment.target
    heads, outputs = heads_of(target), jax.jit(lambda m: recorded_forward(m, TOKENS).outputs)(target)
    for found in scores(name, "target"):
        ends = [found.layer.projections[role] for role in ("q", "k")]
        q, k = (jnp.asarray(outputs[end.site])[..., end.columns] for end in ends)
        expected = attention_pattern(q, k, heads.n_heads, heads.n_kv_heads, heads.base, heads.scaling)
        np.testing.assert_allclose(found.attention, np.exp(expected[0]), atol=SUMS)


def test_what_a_softmax_sees_of_a_pair(scores: Scores) -> None:
    """Size and pattern of a pair against loops over queries and their keys."""
    found = scores("llama", "target")[0]
    i, j = found.summary.strongest(1)[0]
    values = found.contribution(i, j)
    T, squares, sizes = TOKENS.shape[1], 0.0, 0.0
    for t in range(T):
        row = values[2, t, : t + 1].astype(np.float64)
        squares += float(np.sum((row - row.mean()) ** 2))
        sizes += float(np.abs(row).sum())
    pairs = T * (T + 1) / 2
    np.testing.assert_allclose(found.summary.pattern[2, i, j], math.sqrt(squares / pairs), rtol=1e-4)
    np.testing.assert_allclose(found.summary.size[2, i, j], sizes / pairs, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_static_interactions_are_what_a_prompt_adds_at_unit_activations(
    name: str, runs: dict[str, Run], scores: Scores
) -> None:
    """The contribution of a pair is its interaction at that offset times both masked activations."""
    run = runs[name]
    layer = chosen_layers(run, "1")[0]
    sites = [layer.projections[role].site for role in ("q", "k")]
    pairs = query_key_pairs(run, layer, unit_sizes(run, sites), 7)
    found = scores(name, "target")[1]
    assert pairs is not None and len(pairs.offsets) == (1 if name == "gpt2" else 7)
    rotary = heads_of(run.experiment.target)
    c, d = int(pairs.first[0]), int(pairs.second[-1])
    added = found.contribution(
        found.queries.labels.index(f"{sites[0]}:{c}"), found.keys.labels.index(f"{sites[1]}:{d}")
    )
    # Activations: what is left of the vectors when their directions are divided out.
    inner = [_inner(run, layer, role, index) for role, index in (("q", c), ("k", d))]
    for t, s in ((5, 2), (6, 6), (3, 0)):
        at = 0 if rotary.base is None else t - s
        expected = pairs.interaction[:, 0, -1, at] * inner[0][t] * inner[1][s]
        np.testing.assert_allclose(added[:, t, s], expected, atol=1e-5)


def _inner(run: Run, layer: object, role: str, index: int) -> np.ndarray:
    """``x · V_c`` on the prompt, at all masks and deltas 1."""
    site = layer.projections[role].site
    activations = np.asarray(run.component_activations(TOKENS)[site])[0, :, index]
    return activations / np.linalg.norm(np.asarray(run.components(site).U)[index])


def test_offsets_turn_as_the_scaled_frequencies_do(runs: dict[str, Run]) -> None:
    """Against cosines written out: heads of four dimensions, grouped by two, Llama's stretched frequencies."""
    run = runs["llama"]
    layer = chosen_layers(run, "0")[0]
    assert layer.heads.scaling == SCALING and layer.group == 2
    sites = [layer.projections[role].site for role in ("q", "k")]
    pairs = query_key_pairs(run, layer, unit_sizes(run, sites), 20)
    assert pairs is not None
    q = np.asarray(run.components(sites[0]).U, np.float64)[pairs.first[1]].reshape(4, 4)
    k = np.asarray(run.components(sites[1]).U, np.float64)[pairs.second[0]].reshape(2, 4)
    for head in range(4):
        for offset in (0, 1, 19):
            total = 0.0
            for j, f in enumerate(frequencies(2, 500.0, SCALING)):
                a, b, c, d = q[head, j], q[head, j + 2], k[head // 2, j], k[head // 2, j + 2]
                total += (a * c + b * d) * math.cos(offset * f) + (a * d - b * c) * math.sin(offset * f)
            np.testing.assert_allclose(pairs.interaction[head, 1, 0, offset], total / 2, atol=1e-9)


def test_heads_that_a_subcomponent_spans(runs: dict[str, Run]) -> None:
    run = runs["llama"]
    layer = chosen_layers(run, "0")[0]
    for role, heads in (("q", 4), ("k", 2), ("v", 2), ("o", 4)):
        fractions = head_fractions(run, layer, role)
        assert fractions is not None and fractions.shape[1] == heads
        np.testing.assert_allclose(fractions.sum(axis=1), 1.0)
    V = np.asarray(run.components(layer.projections["o"].site).V)
    last = head_fractions(run, layer, "o")
    assert last is not None
    np.testing.assert_allclose(last[0, 3], np.sum(V[12:, 0] ** 2) / np.sum(V[:, 0] ** 2), rtol=1e-5)
    spanned = heads_spanned(np.asarray([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(spanned, [1, 4, 2, 0])


def test_values_through_a_head_to_outputs(runs: dict[str, Run]) -> None:
    run = runs["simple_mlp"]  # two heads that share one of keys and values
    layer = chosen_layers(run, "0")[0]
    sites = [layer.projections[role].site for role in ("v", "o")]
    pairs = value_output_pairs(run, layer, unit_sizes(run, sites))
    assert pairs is not None
    U, V = np.asarray(run.components(sites[0]).U), np.asarray(run.components(sites[1]).V)
    v, o = pairs.first[0], pairs.second[1]
    np.testing.assert_allclose(pairs.interaction[:, 0, 1, 0], [U[v] @ V[:4, o], U[v] @ V[4:, o]], rtol=1e-4, atol=1e-7)


def test_overlap_of_what_heads_read_and_write(runs: dict[str, Run]) -> None:
    """Two heads that read one subspace and write to planes that share a line at a right angle to the rest."""
    run = runs["simple_mlp"]
    (layer,) = chosen_layers(run, "0")
    weights = {name: np.array(w) for name, w in attention_weights(run).items()}
    out = np.zeros((8, 8), np.float32)
    out[0:4, 0:4] = np.eye(4) * 3
    out[4:8, 2:6] = np.eye(4)
    weights[layer.projections["o"].site] = out
    value = np.zeros((8, 4), np.float32)
    value[4:8] = np.eye(4) * 2
    weights[layer.projections["v"].site] = value
    spaces = head_spaces([layer], weights)
    np.testing.assert_allclose(spaces.overlap("read"), 1.0)
    np.testing.assert_allclose(spaces.overlap("write"), [[1, 0.5], [0.5, 1]], atol=1e-9)
    np.testing.assert_allclose(spaces.overlap("write_read"), [[0, 0], [0.5, 0.5]], atol=1e-9)
    np.testing.assert_allclose(spaces.angles("write", 0, 1), [1, 1, 0, 0], atol=1e-9)


def test_a_projection_that_is_not_decomposed_is_one_part(tmp_path: Path) -> None:
    run = opened("simple_mlp", tmp_path, "k")
    (found,) = prompt_scores(run, chosen_layers(run, "1"), TOKENS)
    assert found.queries.labels == ("frozen",)
    np.testing.assert_allclose(found.total(), found.scores, atol=SUMS)
    layer = chosen_layers(run, "1")[0]
    assert query_key_pairs(run, layer, unit_sizes(run, [layer.projections["k"].site]), 4) is None


def test_typical_sizes_are_moments_of_masked_activations(runs: dict[str, Run]) -> None:
    run = runs["llama"]
    site = "model.layers.1.self_attn.v_proj"
    found = typical_sizes(run, [site], 2, quiet=True)
    used: list[np.ndarray] = []
    for i in range(2):
        batch = run.experiment.train_batch(0, i)
        norms = np.linalg.norm(np.asarray(run.components(site).U), axis=1)
        x = np.asarray(run.component_activations(batch)[site]) / norms * np.asarray(run.causal_importances(batch)[site])
        used.append(x.reshape(-1, x.shape[-1]))
    every = np.concatenate(used)
    assert found.positions == len(every) == 32
    np.testing.assert_allclose(found.size[site], np.sqrt((every**2).mean(axis=0)), rtol=1e-5)
    np.testing.assert_allclose(found.mean[site], every.mean(axis=0), rtol=1e-4, atol=1e-7)


def test_the_command_writes_tables_figures_and_a_page(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runs["llama"]
    monkeypatch.setattr("vpd.commands.attention.open_run", lambda path: run)
    write_tokenizer(run.path / "tokenizer.json", WORDS[:18])
    given = ("attention", run.path, "--prompt", "w1 w5 w2 w5 w3", "--top", 2, "--batches", 1, "--layer", 1, "--quiet")
    first = called(monkeypatch, capfd, *given, "--json")
    assert first.code == 0, first.err
    said = json.loads(first.out)
    folder = run.path / "attention" / "first"
    assert said["tokens"] == [3, 7, 4, 7, 5]
    assert said["layers"] == ["model.layers.1"] and len(said["queries_keys"]) == 2 and len(said["prompt"]) == 8
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".png", ".npz", ".json", ".html"}
    with (folder / "prompt.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["pattern"]) == said["prompt"][0]["pattern"]
    arrays = np.load(folder / "interactions.npz")
    assert arrays["model.layers.1/qk/interaction"].shape[0] == 4
    again = called(monkeypatch, capfd, *given)
    assert again.code == 2 and "is there already" in again.err
    for bad, why in (
        (("--tokens", "3,x"), "is no token id"),
        (("--tokens", "3,99"), "its tokens are 0 to 19"),
        (("--layer", "9"), "there is no layer '9'"),
        (("--masking", "half"), "neither ci nor target"),
        (("--tokens", "1", "--prompt", "w1"), "give one input"),
    ):
        refused = called(monkeypatch, capfd, "attention", run.path, "--name", "other", *bad)
        assert refused.code == 2 and why in refused.err and refused.err.count("\n") == 1, refused.err
    assert not (run.path / "attention" / "other").exists()


def test_what_can_not_be_looked_at(tmp_path: Path, runs: dict[str, Run]) -> None:
    with pytest.raises(RunError, match="TMS, in which vpd knows no attention"):
        attention_layers(opened("tms", tmp_path))
    with pytest.raises(RunError, match=r"no layer '7'; the layers are h\.0, h\.1"):
        chosen_layers(runs["simple_mlp"], "7")
