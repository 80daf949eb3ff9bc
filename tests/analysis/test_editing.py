"""Edits: against masked forwards and sums written out, saved and read again, and what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from opened import opened
from tiny_run import called

from vpd import ConfigError, Edit, RunError, SiteMask
from vpd.analysis.editing.continuations import learned_continuations
from vpd.analysis.editing.effect import effects
from vpd.analysis.editing.search import rank_ablations
from vpd.analysis.editing.sets import Examples, examples_of
from vpd.analysis.editing.spec import parse_edits, read_edits
from vpd.analysis.editing.weights import with_added
from vpd.analysis.run import Run
from vpd.config.targets import FileSpec
from vpd.targets import ResidMLP, clean_forward, init_resid_mlp
from vpd.targets.checkpoint import load_language_model
from vpd.targets.weights import load_target

SAME = 1e-5  # of outputs of order 1, in float32
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], jnp.int32)


@pytest.fixture(scope="module")
def induction(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opened("induction", tmp_path_factory.mktemp("induction"))


@pytest.fixture(scope="module")
def tms(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opened("tms", tmp_path_factory.mktemp("tms"))


def masks_with(run: Run, site: str, factors: dict[int, float]) -> SiteMask:
    """Masks of 1 but for some, the delta on."""
    mask = np.ones((*TOKENS.shape, run.axis.sizes[site]), np.float32)
    for index, factor in factors.items():
        mask[..., index] = factor
    return SiteMask(jnp.asarray(mask), jnp.ones(TOKENS.shape))


def test_ablated_and_boosted_is_the_masked_forward_with_the_delta_on(induction: Run) -> None:
    q, v = "h.0.attn.q_proj", "h.1.attn.v_proj"
    edited = induction.edited([Edit(f"{q}:1", 0.0), Edit(f"{q}:4", 3.0), Edit(f"{v}:2", -1.0)])
    masks = {q: masks_with(induction, q, {1: 0.0, 4: 3.0}), v: masks_with(induction, v, {2: -1.0})}
    got, expected = edited.output(TOKENS), induction.masked_output(TOKENS, masks)
    np.testing.assert_allclose(got, expected, atol=SAME)
    assert float(jnp.abs(expected - induction.output(TOKENS)).max()) > 100 * SAME


def test_where_an_edit_holds(induction: Run) -> None:
    """At two positions, of which one is beyond the sequence, and where the importance is above a half."""
    site = "h.1.attn.v_proj"
    ci = np.asarray(induction.causal_importances(TOKENS)[site])
    index = int(np.argmax(np.var(ci, axis=(0, 1))))
    threshold = float(np.median(ci[..., index]))
    edited = induction.edited(
        [Edit(f"{site}:{index}", 0.0, positions=(2, 5, 40), when_active=threshold), Edit(f"{site}:{index - 1}", 2.0)]
    )
    mask = np.ones(ci.shape, np.float32)
    mask[..., index - 1] = 2.0
    for t in (2, 5):
        mask[:, t, index] = np.where(ci[:, t, index] > threshold, 0.0, 1.0)
    assert 0 < (mask[..., index] == 0).sum() < 4
    expected = induction.masked_output(TOKENS, {site: SiteMask(jnp.asarray(mask), jnp.ones(TOKENS.shape))})
    np.testing.assert_allclose(edited.output(TOKENS), expected, atol=SAME)


def test_another_direction_at_the_old_length(tms: Run) -> None:
    pieces, other = tms.components("linear1"), tms.components("linear2")
    V, U = np.asarray(pieces.V), np.asarray(pieces.U)
    edit = Edit("linear1:2", 0.5, read=[0.0, 0.0, 3.0, 0.0, 0.0], write="linear1:0")
    x = np.eye(5, dtype=np.float32)
    v = np.asarray([0, 0, 1, 0, 0]) * np.linalg.norm(V[:, 2])
    u = U[0] / np.linalg.norm(U[0]) * np.linalg.norm(U[2])
    W = np.asarray(tms.experiment.target.linear1)
    new = W - np.outer(V[:, 2], U[2]) + 0.5 * np.outer(v, u)
    expected = np.maximum(x @ new @ W.T + np.asarray(tms.experiment.target.bias), 0)
    np.testing.assert_allclose(tms.edited([edit]).output(jnp.asarray(x)), expected, atol=SAME)
    assert other.V.shape == (2, 6)


LANGUAGE = {"simple_mlp": "LlamaSimpleMLP", "llama": "Llama", "gpt2": "GPT2"}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_saved_language_model_is_read_by_its_own_loader(name: str, tmp_path: Path) -> None:
    run = opened(name, tmp_path / "run")
    site = run.sites[-1]
    C = run.axis.sizes[site]
    edited = run.edited([Edit(f"{site}:{c}", factor) for c, factor in ((0, 0.0), (C - 1, -2.0))])
    path = edited.save(tmp_path / "edited")
    model, facts = load_language_model(FileSpec(kind="file", path=str(path), model_class=LANGUAGE[name]))
    assert facts.format == "safetensors"
    read, _ = jax.jit(clean_forward)(model, TOKENS)
    np.testing.assert_allclose(read, edited.output(TOKENS), atol=SAME)
    masks = {site: masks_with(run, site, {0: 0.0, C - 1: -2.0})}
    np.testing.assert_allclose(read, run.masked_output(TOKENS, masks), atol=SAME)
    assert json.loads((path / "meta.json").read_text())["edits"][0] == {"subcomponent": f"{site}:0", "factor": 0.0}
    with pytest.raises(RunError, match="is there already"):
        edited.save(path)


@pytest.mark.parametrize("name", ["tms", "induction"])
def test_a_saved_toy_is_read_again(name: str, tms: Run, induction: Run, tmp_path: Path) -> None:
    """A tied TMS is saved as two matrices, of which one alone is edited."""
    run, batch = (tms, jnp.eye(5)) if name == "tms" else (induction, TOKENS)
    edited = run.edited([Edit(f"{run.sites[0]}:1", 0.0), Edit(f"{run.sites[0]}:3", read=f"{run.sites[0]}:0")])
    path = edited.save(tmp_path / "new" / "edited")
    read, _ = jax.jit(clean_forward)(load_target(path / "target.safetensors"), batch)
    np.testing.assert_allclose(read, edited.output(batch), atol=SAME)
    assert not np.allclose(read, run.output(batch), atol=1e-3)


def test_weights_of_other_matrices(tmp_path: Path) -> None:
    """A residual MLP's; and a tied head, which stays what it was when the embedding is edited."""
    resid = init_resid_mlp(4, 6, 3, 2, "gelu", True, False, False, 0)
    delta = np.full((3, 6), 0.5, np.float32)
    new = with_added(resid, {"layers.1.mlp_out": delta})
    assert isinstance(new, ResidMLP)
    np.testing.assert_allclose(new.layers[1].mlp_out, resid.layers[1].mlp_out + 0.5)
    np.testing.assert_array_equal(new.layers[0].mlp_out, resid.layers[0].mlp_out)
    model = opened("simple_mlp", tmp_path, "v").experiment.target
    edited = with_added(model, {"wte": np.ones((20, 8), np.float32)})
    np.testing.assert_allclose(edited.wte, model.wte + 1)
    np.testing.assert_allclose(edited.lm_head, model.wte.T)


def test_effects_against_sums_written_out(induction: Run) -> None:
    site = "h.1.attn.o_proj"
    edited = induction.edited([Edit(f"{site}:{c}", 0.0) for c in range(3)])
    on = np.zeros(TOKENS.shape, bool)
    on[0, [1, 4]] = on[1, 3] = True
    off = ~on
    off[:, -1] = False
    batch = np.asarray(TOKENS)
    found = effects(edited, [Examples(batch, {"on": on, "off": off})] * 3)
    p, q = (
        np.asarray(jax.nn.log_softmax(x, axis=-1), np.float64)
        for x in (induction.output(TOKENS), edited.output(TOKENS))
    )
    following = np.roll(batch, -1, axis=1)
    ce = [-np.take_along_axis(x, following[..., None], axis=-1)[..., 0] for x in (p, q)]
    values = {
        "kl": (np.exp(p) * (p - q)).sum(-1),
        "changed": p.argmax(-1) != q.argmax(-1),
        "ce_change": ce[1] - ce[0],
        "right_after": q.argmax(-1) == following,
    }
    for name, where in (("on", on), ("off", off)):
        assert (found[name].positions, found[name].sequences) == (3 * where.sum(), 6)
        for key, value in values.items():
            estimate = found[name].measures[key]
            np.testing.assert_allclose(estimate.value, value[where].mean(), rtol=1e-4, atol=1e-6)
            assert estimate.low is not None and estimate.low <= estimate.value + 1e-9 <= estimate.high + 2e-9
    with pytest.raises(RunError, match="positions on is empty"):
        effects(edited, [Examples(batch, {"on": np.zeros_like(on)})])


def test_candidates_are_ranked_by_what_ablating_them_does(induction: Run) -> None:
    batch = np.asarray(TOKENS)
    on = np.zeros(batch.shape, bool)
    on[:, 3] = True
    off = ~on
    off[:, -1] = False
    examples = [Examples(batch, {"on": on, "off": off})]
    ranked = rank_ablations(induction, examples, 3)
    gaps = [one.alone["on"]["kl"].value - one.alone["off"]["kl"].value for one in ranked]
    assert len(ranked) == 3 and gaps == sorted(gaps, reverse=True) and all(one.on_ci > one.off_ci for one in ranked)
    both = effects(induction.edited([Edit(str(one.subcomponent), 0.0) for one in ranked[:2]]), examples)
    np.testing.assert_allclose(
        ranked[1].together["on"]["kl"].value, both["on"].measures["kl"].value, rtol=1e-3, atol=1e-6
    )


def test_learned_continuations(induction: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences over and over: every four tokens of them occur once in each sequence that has them."""
    same = replace(induction, experiment=replace(induction.experiment, train_batch=lambda seed, step: TOKENS))
    monkeypatch.setattr("vpd.analysis.editing.continuations.LEAST_PROBABILITY", 0.0)
    found = learned_continuations(same, 5, 100, quiet=True)
    keys = {tuple(row[t : t + 4]) for row in np.asarray(TOKENS).tolist() for t in range(5)}
    assert {one.text for one in found} == {f"{a},{b},{c}=>{d}" for a, b, c, d in keys}
    assert {(one.sequences, one.occurrences) for one in found} == {(5, 5)}
    p = np.asarray(jax.nn.softmax(induction.output(TOKENS), axis=-1))
    first = next(one for one in found if one.text == "3,1,4=>1")
    np.testing.assert_allclose(first.probability, p[0, 2, 1], rtol=1e-4)
    ci = induction.axis.joined({s: np.asarray(x) for s, x in induction.causal_importances(TOKENS).items()})
    assert first.subcomponents == int(np.sum(ci[0, 2] - ci.mean(axis=(0, 1)) > 0.2))
    monkeypatch.undo()
    with pytest.raises(RunError, match="give more --batches"):
        learned_continuations(same, 4, 3, quiet=True)


def first_of(found: Iterator[Examples]) -> Examples:
    return next(found)


def test_sets_of_positions(induction: Run, tms: Run, tmp_path: Path) -> None:
    batch = np.asarray(induction.experiment.train_batch(0, 0))
    got = first_of(examples_of(induction, "repeated", "rest", 1))
    for b, t in np.ndindex(*batch.shape):
        last = t == batch.shape[1] - 1
        assert got.where["on"][b, t] == (not last and batch[b, t] in batch[b, :t])
        assert got.where["off"][b, t] == (not last and batch[b, t] not in batch[b, :t])
    a, b, c = (int(x) for x in batch[0, 2:5])
    after = first_of(examples_of(induction, f"{a}=>{b},{c}", "all", 1)).where["on"]
    assert after[0, 2] and after[0, 3] and not after[0, 4]
    assert first_of(examples_of(induction, f"{a},{b}=>", "all", 1)).where["on"][0, 3]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3,1,4=>1\n\n2,7\n")
    asked = list(examples_of(induction, str(prompts), "all", 1))
    assert asked[0].batch.tolist() == [[3, 1, 4, 1], [2, 7, 0, 0]]
    assert asked[0].where["on"].tolist() == [[False, False, True, False], [True, False, False, False]]
    assert list(asked[1].where) == ["off"]
    features = np.asarray(tms.experiment.train_batch(jnp.asarray(0, jnp.uint32), jnp.asarray(0, jnp.int32)))
    where = first_of(examples_of(tms, "feature:3", "rest", 1)).where
    np.testing.assert_array_equal(where["on"], features[:, 3] != 0)
    np.testing.assert_array_equal(where["off"], features[:, 3] == 0)


@pytest.mark.parametrize(
    ("on", "off", "why"),
    [
        ("some", "rest", "neither a file nor a set"),
        ("feature:1", "rest", "sparse features"),
        ("=>3", "rest", "nothing before =>"),
        ("3=>x", "rest", "no token id"),
        ("rest", "all", "must be no file"),
    ],
)
def test_sets_that_are_none(on: str, off: str, why: str, induction: Run) -> None:
    with pytest.raises(RunError, match=why):
        examples_of(induction, on, off, 1)


def test_sets_of_another_network(tms: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3,1,4\n")
    for on, why in (
        ("repeated", "means positions of tokens"),
        ("1=>2", "means positions of tokens"),
        (str(prompts), "means positions of tokens"),
        ("feature:5", "from 0 to 4"),
    ):
        with pytest.raises(RunError, match=why):
            examples_of(tms, on, "all", 1)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Edit("linear9:0", 0.0), "linear1, linear2"),
        (Edit("linear1:6", 0.0), "0 to 5"),
        (Edit("linear1:0", float("nan")), "no finite number"),
        (Edit("linear1:0"), "changes nothing"),
        (Edit("linear1:0", read=[1.0, 2.0]), r"shape \(2,\)"),
        (Edit("linear1:0", write=[0.0, 0.0]), "length 0"),
        (Edit("linear1:0", 0.0, positions=(1,)), "need a sequence"),
        (Edit("linear1:0", 0.0, when_active=1.5), "no importance"),
    ],
)
def test_edits_that_make_no_sense(edit: Edit, why: str, tms: Run) -> None:
    with pytest.raises(RunError, match=why):
        tms.edited([edit])


def test_edits_that_no_weight_can_say(tms: Run, induction: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="edited twice"):
        tms.edited([Edit("linear1:0", 0.0), Edit("linear1:0", 2.0)])
    with pytest.raises(RunError, match="nothing to edit"):
        tms.edited([])
    with pytest.raises(RunError, match="no weight can say"):
        induction.edited([Edit("h.0.attn.q_proj:0", 0.0, positions=(3,))]).save(tmp_path / "x")
    with pytest.raises(RunError, match="no weight can say"):
        tms.edited([Edit("linear1:0", 0.0, when_active=0.1)]).save(tmp_path / "x")
    with pytest.raises(RunError, match="one matrix"):
        with_added(induction.experiment.target, {"wte": np.zeros((20, 8), np.float32)})
    assert not (tmp_path / "x").exists()


def test_edits_as_they_are_written(tmp_path: Path) -> None:
    found = parse_edits(["a:1,b:2", "c:3"], ["d:4=2.5"], "0,7", 0.1)
    assert [(edit.subcomponent, edit.factor) for edit in found] == [("a:1", 0), ("b:2", 0), ("c:3", 0), ("d:4", 2.5)]
    assert all(edit.positions == (0, 7) and edit.when_active == 0.1 for edit in found)
    np.save(tmp_path / "u.npy", np.asarray([1.0, 2.0]))
    spec = tmp_path / "edits.yaml"
    spec.write_text(
        "edits:\n- {subcomponent: 'a:1', factor: 0.0}\n"
        "- {subcomponent: 'b:2', read: 'c:3', write: u.npy, positions: [4]}\n"
    )
    first, second = read_edits(spec)
    assert first == Edit("a:1", 0.0) and (second.factor, second.read, second.positions) == (1.0, "c:3", (4,))
    assert np.asarray(second.write).tolist() == [1.0, 2.0]
    for bad in ("d:4", "d:4=", "d:4=many", "d:4=inf"):
        with pytest.raises(RunError, match="gives no finite number"):
            parse_edits([], [bad], None, None)
    for content, why in (
        ("edits: []", "edits"),
        ("edits: [{subcomponent: 'a:1', facto: 0}]", "facto"),
        ("edits: [{subcomponent: 'a:1', factor: much}]", "much"),
        ("ablate: a", "ablate"),
    ):
        spec.write_text(content)
        with pytest.raises(ConfigError, match=why):
            read_edits(spec)


def test_the_command(
    tms: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vpd.commands.edit.open_run", lambda path: tms)
    place = tmp_path / "edited"
    given = (
        "edit",
        tms.path,
        "--ablate",
        "linear1:0,linear1:1",
        "--boost",
        "linear2:3=2",
        "--on",
        "feature:2",
        "--quiet",
    )
    first = called(monkeypatch, capfd, *given, "--batches", 20, "--save", place, "--json")
    assert first.code == 0, first.err
    said = json.loads(first.out)
    assert said["sets"] == {"on": "feature:2", "off": "rest"} and len(said["edits"]) == 3
    assert said["on"]["measures"]["squared_error"]["value"] >= 0 and said["saved"] == str(place)
    assert (place / "target.safetensors").exists()
    shown = called(monkeypatch, capfd, *given, "--batches", 20)
    assert shown.code == 0 and "squared_error" in shown.out
    before = (place / "target.safetensors").read_bytes()
    for bad, why in (
        (("--save", place, "--ablate", "linear1:0"), "is there already"),
        (("--ablate", "linear1:77"), "0 to 5"),
        (("--boost", "linear1:1=big"), "no finite number"),
        (("--rank", 3), "what is on target"),
        (("--save", tmp_path / "n"), "nothing is edited"),
        ((), "nothing to edit"),
        (("--ablate", "linear1:0", "--off", "all"), "give --on too"),
        (("--ablate", "linear1:0", "--on", "repeated"), "means positions of tokens"),
    ):
        refused = called(monkeypatch, capfd, "edit", tms.path, *bad)
        assert refused.code == 2 and why in refused.err and refused.err.count("\n") == 1, refused.err
    assert (place / "target.safetensors").read_bytes() == before and not (tmp_path / "n").exists()
