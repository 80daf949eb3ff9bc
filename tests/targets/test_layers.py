"""Layers in runs: cuts, stacks against single matrices, recomputation, and the part of a network that is run once."""

import os
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal, uniform
from targets.language_models import VOCAB, llama, simple_mlp, tokens

from vpd.config.run import PD
from vpd.decomposition import (
    Components,
    ComponentSet,
    Interpolated,
    Mask,
    Site,
    SiteMask,
    dense,
    members_in_order,
    unstacked,
)
from vpd.targets import frozen_weights, masked_site_outputs, recorded_forward
from vpd.targets import layers as layers_module
from vpd.targets.layers import Layers, Resume, layers_of, whole_arrays, with_cuts
from vpd.training.build import cut_for, init_state, problem_from, sites_from, stacked_sites
from vpd.training.step import train_step

TOKENS = tokens()
BATCH, LENGTH = TOKENS.shape
# Recomputed layers round as kept ones do where operations are fused as in a run, which the suite leaves out for speed.
FUSED = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ.get("XLA_FLAGS", "") else {}
fused_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0} | FUSED)


def pd_of(patterns: dict[str, int], identities: tuple[str, ...] = ()) -> PD:
    rate = {"lr_schedule": {"start_val": 0.01}}
    return PD.model_validate(
        {
            "decomposition_targets": [{"module_pattern": p, "C": C} for p, C in patterns.items()],
            "identity_decomposition_targets": [{"module_pattern": p, "C": 2} for p in identities] or None,
            "ci_config": {"mode": "layerwise", "fn_type": "shared_mlp", "hidden_dims": []},
            "loss_metrics": [{"type": "StochasticReconLoss", "coeff": 1.0}],
            "components_optimizer": rate,
            "ci_fn_optimizer": rate,
            "n_mask_samples": 2,
            "steps": 5,
            "batch_size": BATCH,
        }
    )


def numbered(depth: int) -> Layers:
    return Layers(({"w": jnp.arange(depth), "b": jnp.arange(depth)[:, None] * 10},), "h")


def firsts(layers: Layers) -> list[tuple[int, int]]:
    return [(run.first, run.depth) for run in layers]


def test_cuts() -> None:
    layers = numbered(6)
    assert firsts(layers) == [(0, 6)] and layers.depth == 6
    cut = layers.cut([4, 2, 2, 99])
    assert firsts(cut) == [(0, 2), (2, 2), (4, 2)] and cut.depth == 6
    assert [list(run.stack["w"]) for run in cut] == [[0, 1], [2, 3], [4, 5]]
    assert firsts(cut.cut([])) == [(0, 6)] and list(cut.whole["w"]) == list(range(6))
    assert cut.cut([5]).runs[1]["b"].tolist() == [[50]]
    assert [str(run.span) for run in cut] == ["h.0-1", "h.2-3", "h.4-5"]


def test_arrays_are_whole_whatever_the_cuts() -> None:
    model = simple_mlp(4)
    every = [(x.shape, x) for x in jax.tree.leaves(model)]
    for cuts in ((), (2,), (1, 3)):
        found = list(whole_arrays(with_cuts(model, lambda _, cuts=cuts: cuts)))
        assert [shape for shape, _ in found] == [shape for shape, _ in every]
        assert max(len(parts) for _, parts in found) == len(cuts) + 1
        for (_, parts), (_, x) in zip(found, every, strict=True):
            assert b"".join(np.asarray(part).tobytes() for part in parts) == np.asarray(x).tobytes()


def test_shapes_alone_are_cut_as_arrays_are() -> None:
    layers = numbered(6)
    abstract = jax.eval_shape(lambda: layers)
    for cuts in ([4, 2], [1, 2, 3], []):
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), layers.cut([3]).cut(cuts))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract.cut([3]).cut(cuts)) == shapes


def test_layers_that_stand_alone() -> None:
    cut = numbered(6).cut([2])
    found = cut.split(lambda i: i in (0, 4))
    assert [(run.first, run.depth) for run in found] == [(0, 1), (1, 1), (2, 2), (4, 1), (5, 1)]
    assert [int(run.layer(0)["w"]) for run in found] == [0, 1, 2, 4, 5]
    assert [(run.first, run.depth) for run in cut.split(lambda i: False)] == [(0, 2), (2, 4)]


# Any matrices of any layers, each with its own C; names of what is expected to be stacked.
CHOICES: dict[str, tuple[dict[str, int], tuple[str, ...], set[str]]] = {
    "all alike": ({"h.*.attn.q_proj": 2, "h.*.mlp.*": 3}, (), {"h.0-5.attn.q_proj", "h.0-5.mlp.c_fc"}),
    "ends too": ({"wte": 2, "h.*.mlp.c_fc": 3, "lm_head": 4}, (), {"wte", "h.0-5.mlp.c_fc", "lm_head"}),
    "other C in the middle": (
        {"h.[01].mlp.c_fc": 2, "h.[23].mlp.c_fc": 3, "h.[45].mlp.c_fc": 2},
        (),
        {"h.0-1.mlp.c_fc", "h.2-3.mlp.c_fc", "h.4-5.mlp.c_fc"},
    ),
    "identities": (
        {"h.*.attn.v_proj": 2, "h.5.mlp.down_proj": 3},
        ("h.[1-4].attn.o_proj",),
        {"h.1-4.attn.o_proj.pre_identity", "h.1-4.attn.v_proj", "h.0.attn.v_proj", "h.5.mlp.down_proj"},
    ),
    "gaps": ({"h.1.mlp.c_fc": 2, "h.[345].attn.*": 2}, (), {"h.1.mlp.c_fc", "h.3-5.attn.k_proj"}),
}


class Case:
    """A network with random components, masks and gradients to ask for, stacked and in single matrices."""

    def __init__(self, patterns: dict[str, int], identities: tuple[str, ...], depth: int) -> None:
        self.model = simple_mlp(depth)
        self.stacks = sites_from(pd_of(patterns, identities), self.model)
        self.single = tuple(replace(site, name=name, span=None) for site, _, name in members_in_order(self.stacks))
        self.held = {
            s.name: (
                Components(normal(s.d_in, s.C, key=i) / 3, normal(s.C, s.d_out, key=i) / 3),
                self._mask(i, s),
            )
            for i, s in enumerate(self.single)
        }

    def _mask(self, i: int, site: Site) -> Mask:
        """One of every kind."""
        leading, C = (BATCH, LENGTH), site.C
        ci, routing = uniform(*leading, C, key=i), uniform(*leading, key=i + 50) > 0.3
        # Equal kinds within a stack, as training makes them.
        if site.name.endswith(("c_fc", "q_proj")):
            return Interpolated(ci, uniform(BATCH, LENGTH, C + 1, key=i + 100), routing)
        if site.name.endswith("down_proj"):
            return Interpolated(ci, uniform(1, 1, C, key=i + 100))
        return SiteMask(ci, uniform(*leading, key=i + 150), routing)

    def given(self, sites: tuple[Site, ...]) -> tuple[dict[str, Components], dict[str, Mask]]:
        def of(site: Site):
            rows = [self.held[name] for name in site.members]
            return rows[0] if site.span is None else jax.tree.map(lambda *x: jnp.stack(x), *rows)

        found = {site.name: of(site) for site in sites}
        return {s: c for s, (c, _) in found.items()}, {s: m for s, (_, m) in found.items()}

    def slopes(self, sites: tuple[Site, ...], remat: bool = False) -> dict[str, jax.Array]:
        """The loss, and its gradients of V, U, masks, sources and delta masks, by single matrix."""
        net = cut_for(self.model, sites)
        pieces, masks = self.given(sites)
        moved, routes = (
            {s: replace(m, routing=None) for s, m in masks.items()},
            {s: m.routing for s, m in masks.items()},
        )

        def loss(pieces: dict[str, Components], masks: dict[str, Mask]) -> tuple[jax.Array, dict[str, jax.Array]]:
            live = {s: replace(m, routing=routes[s]) for s, m in masks.items()}
            out, outputs = masked_site_outputs(net, ComponentSet(pieces), TOKENS, live, remat=remat)
            return jnp.mean(jnp.square(dense(out))), {s: dense(x) for s, x in outputs.items()}

        (value, outputs), slopes = fused_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(pieces, moved)
        found = {"loss": value} | {f"{n}/output": x for n, x in unstacked(outputs, sites).items()}
        for part in ("V", "U"):
            found |= {
                f"{n}/{part}": x
                for n, x in unstacked({s: getattr(c, part) for s, c in slopes[0].items()}, sites).items()
            }
        for part in ("ci", "source", "component", "delta"):
            own = {s: getattr(m, part) for s, m in slopes[1].items() if getattr(m, part, None) is not None}
            found |= {f"{n}/{part}": x for n, x in unstacked(own, sites).items()}
        return found


def assert_close(a: dict[str, jax.Array], b: dict[str, jax.Array], tolerance: float) -> None:
    """Of equal names, each within a part of its largest value."""
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.shape == b[name].shape, name
        np.testing.assert_allclose(x, b[name], atol=tolerance * float(jnp.abs(b[name]).max()), err_msg=name)
        assert np.any(x) or name.endswith("/routing"), name


@pytest.mark.parametrize("choice", CHOICES)
def test_stacks_are_their_matrices(choice: str) -> None:
    """In a scan over six layers, values and every gradient."""
    patterns, identities, expected = CHOICES[choice]
    case = Case(patterns, identities, 6)
    assert expected <= {site.name for site in case.stacks}
    assert_close(case.slopes(case.stacks), case.slopes(case.single), 2e-5)


@pytest.mark.parametrize("unrolled", [4, 1])
def test_few_layers_are_written_out(unrolled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "UNROLLED", unrolled)
    case = Case({"wte": 2, "h.*.attn.*": 2, "h.*.mlp.*": 3}, ("h.*.mlp.c_fc",), 3)
    whole = case.slopes(case.stacks)
    assert_close(whole, case.slopes(case.single), 2e-5)
    assert_close(whole, case.slopes(case.stacks, remat=True), 1e-6)


def test_recomputed_layers() -> None:
    case = Case({"h.*.attn.v_proj": 2, "h.*.mlp.*": 3}, (), 6)
    for sites in (case.stacks, case.single):
        assert_close(case.slopes(sites), case.slopes(sites, remat=True), 1e-6)


@pytest.mark.parametrize("patterns", [{"h.*.mlp.c_fc": 2}, {f"h.{i}.mlp.c_fc": 2 + i for i in range(3)}])
def test_every_layer_is_recomputed(patterns: dict[str, int]) -> None:
    """Those that stand alone too."""
    case = Case(patterns, (), 3)
    net = cut_for(case.model, case.stacks)
    pieces, masks = case.given(case.stacks)

    def program(remat: bool) -> str:
        def loss(pieces):
            return jnp.mean(dense(masked_site_outputs(net, ComponentSet(pieces), TOKENS, masks, remat=remat)[0]))

        return str(jax.make_jaxpr(jax.grad(loss))(pieces))

    shape = "f32[8,4]"  # of keys and values: no gradient of them is needed, so that they are multiplied once
    assert len(net.layers.runs) == len(case.stacks)
    assert program(True).count("tanh") > program(False).count("tanh") and shape in program(True)


# What is decomposed, and the layer and part at which masked forwards begin, in stacks (with a whole layer) and single.
LATE = {
    "one MLP": ({"h.4.mlp.*": 3}, (4, 1), (4, 1)),
    "late layers": ({"h.[3-5].attn.q_proj": 2, "h.[3-5].mlp.*": 3}, (3, 0), (3, 0)),
    "an MLP and what follows": ({"h.4.mlp.*": 3, "h.5.*": 2}, (4, 1), (4, 1)),
    "late MLPs": ({"h.[45].mlp.c_fc": 3}, (4, 0), (4, 1)),
}


@pytest.mark.parametrize("choice", LATE)
def test_forwards_resume_where_the_decomposition_begins(choice: str) -> None:
    patterns, *begin = LATE[choice]
    case = Case(patterns, (), 6)
    for sites, expected in zip((case.stacks, case.single), begin, strict=True):
        net = cut_for(case.model, sites)
        pieces, masks = case.given(sites)
        resume = jit(lambda m, net=net, sites=sites: recorded_forward(net, m, sites).resume)(TOKENS)
        assert resume is not None and (resume.first, resume.part) == expected

        def run(pieces, masks, resume: Resume | None, net=net):
            def loss(pieces):
                out, _ = masked_site_outputs(net, ComponentSet(pieces), TOKENS, masks, resume)
                return jnp.mean(jnp.square(dense(out))), dense(out)

            return jax.value_and_grad(loss, has_aux=True)(pieces)

        (_, whole), g = jit(run)(pieces, masks, None)
        (_, resumed), g_resumed = jit(run)(pieces, masks, resume)
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), g, g_resumed)


@pytest.mark.parametrize("alone", ["h.4.mlp.c_fc", "h.5.mlp.down_proj"])
def test_a_matrix_alone_resumes_too(alone: str) -> None:
    """Layerwise terms make one matrix of a stack live; their forwards begin where the decomposition does."""
    case = Case({"h.[3-5].mlp.*": 3}, (), 6)
    net = cut_for(case.model, case.stacks)
    pieces, _ = case.given(case.stacks)
    components = ComponentSet(pieces, members=tuple((s.name, s.members) for s in case.stacks))
    resume = jit(lambda t: recorded_forward(net, t, case.stacks).resume)(TOKENS)
    mask = {alone: case.held[alone][1]}
    whole, resumed = (
        jit(lambda r: dense(masked_site_outputs(net, components, TOKENS, mask, r)[0]))(r) for r in (None, resume)
    )
    np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-5)


def test_nothing_to_resume_from_where_the_embedding_is_a_site() -> None:
    case = Case({"wte": 2, "h.4.mlp.c_fc": 3}, (), 6)
    net = cut_for(case.model, case.stacks)
    assert jit(lambda t: recorded_forward(net, t, case.stacks).resume)(TOKENS) is None


def test_layers_not_cut_for_the_sites_are_refused() -> None:
    """A forward can't begin within a run of layers."""
    case = Case({"h.[3-5].mlp.*": 3}, (), 6)
    resume = Resume(jnp.zeros((BATCH, LENGTH, 8)), "h", 3, 0)
    pieces, masks = case.given(case.stacks)
    with pytest.raises(AssertionError, match="begins within"):
        masked_site_outputs(case.model, ComponentSet(pieces), TOKENS, {}, resume)
    with pytest.raises(AssertionError, match="never reached"):
        jax.eval_shape(lambda: masked_site_outputs(case.model, ComponentSet(pieces), TOKENS, masks))


def test_a_site_that_the_forward_never_reaches() -> None:
    case = Case({"h.*.mlp.c_fc": 2}, (), 3)
    pieces, masks = case.given(case.single)
    pieces["h.7.mlp.c_fc"], masks["h.7.mlp.c_fc"] = pieces["h.0.mlp.c_fc"], masks["h.0.mlp.c_fc"]
    with pytest.raises(AssertionError, match=r"never reached \['h.7.mlp.c_fc'\]"):
        jax.eval_shape(lambda: masked_site_outputs(case.model, ComponentSet(pieces), TOKENS, masks))


def test_a_matrix_of_a_stack_that_is_not_there() -> None:
    case = Case({"h.*.mlp.c_fc": 2}, (), 3)
    pieces, masks = case.given(case.stacks)
    (name,) = pieces
    wrong = name.replace("c_fc", "gate_proj")
    for remat in (False, True):
        with pytest.raises(AssertionError, match="never reached"):
            given = ComponentSet({wrong: pieces[name]}), {wrong: masks[name]}
            jax.eval_shape(lambda c, m, r=remat: masked_site_outputs(case.model, c, TOKENS, m, remat=r), *given)


def products(program: str, shape: str) -> int:
    """Matrix products with an operand of this shape."""
    return sum("dot_general" in line and shape in line for line in program.splitlines())


def key_products(patterns: dict[str, int], depth: int, reuse: bool) -> int:
    """Products with key and value projections, which alone have their shape, in a step beyond the clean forward."""
    model, pd = simple_mlp(depth), pd_of(patterns)
    sites = sites_from(pd, model)
    net = cut_for(model, sites)
    problem = replace(problem_from(pd, sites, has_sequence=True), reuse_prefix=reuse)
    state = jax.eval_shape(lambda: init_state(problem, pd, (), (BATCH, LENGTH)))
    assert net.layers.whole.k_proj.shape == (depth, 8, 4)
    clean = jax.jit(lambda net, batch: recorded_forward(net, batch, sites).output).lower(net, TOKENS)
    step = jax.jit(lambda net, state, batch: train_step(problem, net, state, batch, 0)).lower(net, state, TOKENS)
    once, all_ = (products(program.as_text(), "tensor<8x4xf32>") for program in (clean, step))
    assert once >= 2
    return all_ - once


@pytest.mark.parametrize(
    ("late", "alone"),
    [
        ({"h.5.mlp.*": 3}, {"h.0.mlp.*": 3}),
        ({"h.[45].mlp.*": 3}, {"h.[01].mlp.*": 3}),
        ({"h.5.attn.o_proj": 3, "h.5.mlp.*": 3}, {"h.0.attn.o_proj": 3, "h.0.mlp.*": 3}),
    ],
)
def test_what_comes_before_the_decomposition_is_in_the_program_once(
    late: dict[str, int], alone: dict[str, int]
) -> None:
    """Masked forwards hold the products that they would hold if there were no layers before the decomposed ones."""
    found = key_products(late, 6, True)
    assert found == key_products(alone, 2 if "h.[01].mlp.*" in alone else 1, True)
    assert key_products(late, 6, False) > found


def test_frozen_weights_are_those_that_are_stored() -> None:
    """Of stacks the arrays themselves: nothing is copied."""
    model = llama(6)
    flat = [Site(n, i, o, 2, kind) for n, (i, o, kind) in model.matrices().items()]
    sites = stacked_sites(flat, layers_of(model))
    net = cut_for(model, sites)
    leaves = jax.tree.leaves_with_path(net)
    closed, found = jax.make_jaxpr(lambda m, t: frozen_weights(m, t, sites), return_shape=True)(net, TOKENS)
    outputs = dict(zip(jax.tree.leaves({s: s for s in found}), closed.jaxpr.outvars, strict=True))
    given = {jax.tree_util.keystr(path): var for (path, _), var in zip(leaves, closed.jaxpr.invars, strict=False)}
    for site in sites:
        if site.span is not None:
            field = site.name.rpartition(".")[2]
            assert outputs[site.name] is given[f".layers.runs[0].{field}"], site.name
    assert outputs["model.embed_tokens"] is given[".embed_tokens"] and found["lm_head"].shape[1] == VOCAB
