"""Attributions against finite differences, closed forms, and each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from objective.scenes import normal
from targets.language_models import llama, tokens

from vpd.analysis.attribution.effects import INPUT, OUTPUT, Facts, Wanted, effects_on, facts_of
from vpd.decomposition import Activation, Components, ComponentSet, SiteMask, dense, site_inner
from vpd.targets import TMS, Target, init_induction, init_resid_mlp
from vpd.targets.base import Pass, Use

# Central differences of relative step h err by O(h²), and float32 by 1e-7 / (h · share of the target): 1 % holds for
# edges above this part of all that flows into their target.
STEP, FLOOR, TOLERANCE = 0.02, 2e-3, 0.01
TARGETS = 40


@dataclass
class Held(Pass):
    """All subcomponents read what they are given, and what they would read is written down; no derivative anywhere."""

    given: Mapping[str, Float[Array, "..."]] = field(default_factory=dict)
    read: dict[str, Float[Array, "..."]] = field(default_factory=dict)
    moved: Mapping[str, Float[Array, "..."]] = field(default_factory=dict)

    def _run(self, use: Use) -> Activation:
        if use.name not in self.live:
            y = use.frozen()
            return y * self.moved[use.name][..., None] if use.name in self.moved else y
        assert self.components is not None
        pieces = self.components[use.name]
        self.read[use.name] = site_inner(use.x, pieces, use.kind)
        inner = self.given.get(use.name, self.read[use.name])
        y = inner @ pieces.U
        return y if use.bias is None else y + use.bias


class Case(NamedTuple):
    target: Target
    batch: Array
    C: int
    sites: dict[str, tuple[str, ...]]  # targets, and the sources of each


def _llama_sites() -> dict[str, tuple[str, ...]]:
    first, second = "model.layers.0.", "model.layers.1."
    attention = tuple(f"{first}self_attn.{name}_proj" for name in "qkv")
    written = (f"{first}self_attn.o_proj", f"{first}mlp.down_proj")
    return {
        f"{first}self_attn.o_proj": attention,
        f"{first}mlp.down_proj": (f"{first}mlp.gate_proj", f"{first}mlp.up_proj"),
        f"{second}mlp.up_proj": (*written, f"{second}self_attn.o_proj"),
    }


def _case(name: str) -> Case:
    match name:
        case "induction":
            wanted = {f"h.1.attn.{p}_proj": ("h.0.attn.o_proj",) for p in "qkv"}
            wanted |= {"h.1.attn.o_proj": tuple(f"h.1.attn.{p}_proj" for p in "qkv"), OUTPUT: ("h.1.attn.o_proj",)}
            model = init_induction(20, 8, 2, 2, 7, 0)
            return Case(jax.tree.map(lambda x: 2.0 * x, model), tokens(), 6, wanted)
        case "llama":
            return Case(llama(2), tokens(), 10, _llama_sites())
        case "tms":
            target = TMS(linear1=normal(5, 3, key=1), bias=jnp.full(5, 0.3), linear2=normal(3, 5, key=2))
            return Case(target, jnp.abs(normal(16, 5, key=3)), 4, {"linear2": ("linear1",), OUTPUT: ("linear2",)})
        case _:
            target = init_resid_mlp(6, 4, 8, 2, "gelu", in_bias=True, seed=3)
            wanted = {"layers.0.mlp_out": ("layers.0.mlp_in",), "layers.1.mlp_in": ("layers.0.mlp_out",)}
            wanted["layers.1.mlp_out"] = ("layers.1.mlp_in",)
            return Case(target, normal(16, 6, key=3), 5, wanted)


def _pieces(case: Case) -> ComponentSet:
    """Sites of the layers, each with random subcomponents."""
    owned: dict[str, Components] = {}
    for i, (name, (d_in, d_out, kind)) in enumerate(case.target.matrices().items()):
        if kind == "linear" and name != "lm_head":
            V, U = normal(d_in, case.C, key=2 * i) / d_in**0.5, normal(case.C, d_out, key=2 * i + 1) / case.C**0.5
            owned[name] = Components(V, U)
    return ComponentSet(owned)


def _facts(case: Case, pieces: ComponentSet) -> Facts:
    leading = case.batch.shape if case.batch.dtype == jnp.int32 else case.batch.shape[:-1]
    ci = {s: jax.nn.sigmoid(normal(*leading, case.C, key=i)) for i, s in enumerate(pieces)}
    return jax.jit(facts_of)(case.target, pieces, case.batch, ci)


def _sizes(target: Target) -> dict[str, int]:
    return {name: rows for name, (rows, _, kind) in target.matrices().items() if kind == "embedding"}


def _read(case: Case, pieces: ComponentSet, given: Mapping[str, Array], facts: Facts) -> dict[str, Array]:
    """What each site's subcomponents read where all of them are given what they read, times ‖U‖; and the output."""
    seam = Held({s: SiteMask(jnp.ones(())) for s in pieces}, pieces, given=given)
    output = dense(case.target.forward(case.batch, seam))
    if facts.predicted is not None:
        output = jnp.take_along_axis(output, facts.predicted[..., None], axis=-1)
    read = {s: x * jnp.linalg.norm(pieces[s].U, axis=-1) for s, x in seam.read.items()} | {OUTPUT: output}
    return {s: read[s].reshape(-1, read[s].shape[-1]) for s in case.sites}


@pytest.mark.parametrize("name", ["induction", "llama", "tms", "resid_mlp"])
def test_finite_differences(name: str) -> None:
    """One hundred random edges of each network: signed, and across positions where a site mixes them."""
    case = _case(name)
    pieces = _pieces(case)
    facts, rng = _facts(case, pieces), np.random.default_rng(0)
    clean = {s: x / jnp.linalg.norm(pieces[s].U, axis=-1) for s, x in facts.activations.items()}
    leading = next(iter(clean.values())).shape[:-1]
    read = jax.jit(lambda given: _read(case, pieces, given, facts))
    effects = jax.jit(
        lambda wanted: effects_on(_sizes(case.target), True, case.target, pieces, case.batch, facts, wanted)[0]
    )
    n = int(np.prod(leading))
    nowhere = Wanted(jnp.zeros(TARGETS, jnp.int32), jnp.full(TARGETS, -1, jnp.int32))
    errors, crossed, signs = [], 0, set()
    for site, sources in case.sites.items():
        width = case.C if site != OUTPUT else 1 if facts.predicted is not None else facts.outputs.shape[-1]
        at, index = rng.integers(0, n, TARGETS), rng.integers(0, width, TARGETS)
        wanted = Wanted(jnp.asarray(index, jnp.int32), jnp.asarray(at, jnp.int32))
        found = effects(dict.fromkeys(case.sites, nowhere) | {site: wanted})
        total = sum(np.abs(x).reshape(TARGETS, -1).sum(1) for x in found.values())
        kept = 0
        for source in rng.permutation(np.repeat(sources, 2000)):
            if kept == -(-100 // len(case.sites)):
                break
            target, where, c = rng.integers(0, TARGETS), rng.integers(0, n), rng.integers(0, case.C)
            place = (*np.unravel_index(where, leading), c)
            value = float(found[source][(target, *place)])
            if value == 0 or abs(value) < FLOOR * total[target]:
                continue
            kept += 1
            high, low = (read(clean | {source: clean[source].at[place].multiply(1 + h)})[site] for h in (STEP, -STEP))
            moved = float((high - low)[at[target], index[target]]) / (2 * STEP) * float(facts.ci[source][place])
            errors.append(abs(moved - value) / abs(value))
            crossed += where != at[target]
            signs.add(value > 0)
    assert len(errors) >= 100 and signs == {True, False}
    assert crossed >= 10 or len(leading) == 1
    assert max(errors) < TOLERANCE, sorted(errors)[-5:]


def test_linear_paths_add_up() -> None:
    """Into a query of a network without norms all paths are linear: what flows in at importance 1 is what is read."""
    case = _case("induction")
    pieces = _pieces(case)
    ci = {s: jnp.ones((*case.batch.shape, case.C)) for s in pieces}
    facts = jax.jit(facts_of)(case.target, pieces, case.batch, ci)
    at = jnp.arange(case.batch.size)
    nowhere = Wanted(jnp.zeros_like(at), jnp.full_like(at, -1))
    sites = ("h.0.attn.q_proj", "h.1.attn.k_proj")
    effects = jax.jit(
        lambda wanted: effects_on(_sizes(case.target), True, case.target, pieces, case.batch, facts, wanted)[0]
    )
    for site in sites:
        found = effects(dict.fromkeys(sites, nowhere) | {site: Wanted(at % case.C, at)})
        total = sum(np.asarray(x).reshape(at.size, -1).sum(1) for x in found.values())
        read = facts.activations[site].reshape(at.size, -1)[at, at % case.C]
        np.testing.assert_allclose(total, read, rtol=1e-4, atol=1e-5)
        sources = {s for s in pieces if np.any(found[s])}
        assert sources == ({"h.0.attn.o_proj"} if site[2] == "1" else set())


@pytest.mark.parametrize(("name", "site"), [("induction", "h.1.attn.o_proj"), ("induction", OUTPUT), ("tms", OUTPUT)])
def test_sums_over_positions(name: str, site: str) -> None:
    """Over a batch: sums of what each position gives, with the sign of the target in the absolute variant."""
    case = _case(name)
    pieces = _pieces(case)
    facts = _facts(case, pieces)
    effects = jax.jit(
        lambda by_position, wanted: effects_on(
            _sizes(case.target), by_position, case.target, pieces, case.batch, facts, {site: wanted}
        ),
        static_argnums=0,
    )
    leading = next(iter(facts.ci.values())).shape[:-1]
    n = int(np.prod(leading))
    index = 2 if facts.predicted is None or site != OUTPUT else int(facts.predicted[0, 3])
    single, _ = effects(True, Wanted(jnp.full(n, index), jnp.arange(n)))
    signed, absolute = effects(False, Wanted(jnp.asarray([index])))
    assert absolute is not None
    if site != OUTPUT:
        values = facts.activations[site][..., index]
    elif facts.predicted is None:
        values = facts.outputs[..., index]
    else:
        values = jnp.where(facts.predicted == index, facts.outputs, 0.0)
    there = np.asarray(values != 0).reshape(n)
    for source, found in single.items():
        x = np.asarray(found)[there]
        signs = np.sign(np.asarray(values).reshape(n)[there])
        for wanted, summed in ((x, signed), (x * signs.reshape(-1, *(1 for _ in x.shape[1:])), absolute)):
            rows = facts.rows.get(source)
            if rows is None:
                total = wanted.reshape(-1, x.shape[-1]).sum(0)
            else:
                total = np.zeros(summed[source].shape[-1])
                np.add.at(total, np.asarray(rows).reshape(-1), wanted.sum(0).reshape(-1))
            np.testing.assert_allclose(summed[source][0], total, rtol=1e-3, atol=1e-5)
    assert (INPUT in single) == (name == "tms")
