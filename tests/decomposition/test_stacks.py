"""Stacks: how their matrices are numbered and named, and that whatever is drawn for them does not depend on them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit, normal

from vpd.decomposition import (
    AllRouting,
    Site,
    Span,
    StaticProbability,
    UniformKSubset,
    draw_routing,
    for_each,
    init_components,
    members_in_order,
    site_groups,
    site_numbers,
    unstacked,
)
from vpd.importance import causal_importances, squash_pair
from vpd.importance.mlp import init_layerwise_mlp
from vpd.objective.adversary import AdamAscent, drawn_sources, init_adversary, source_shapes
from vpd.objective.recon import ReconTerm, Scene, Stochastic, live_groups, recon_forwards

SPAN, LATE = Span("h", 0, 3), Span("h", 3, 2)
STACKED = (
    Site("wte", 7, 4, 3, "embedding"),
    Site("h.0-2.q", 4, 6, 2, span=SPAN),
    Site("h.0-2.fc.pre_identity", 4, 4, 3, "identity", SPAN),
    Site("h.0-2.fc", 4, 5, 3, span=SPAN),
    Site("h.3-4.fc", 4, 5, 4, span=LATE),
    Site("h.5.q", 4, 6, 2),
    Site("h.5.fc", 4, 5, 3),
    Site("head", 4, 7, 2),
)
SINGLE = tuple(replace(site, name=name, span=None) for site, _, name in members_in_order(STACKED))
NAMES = (
    "wte",
    *(f"h.{i}.{matrix}" for i in range(3) for matrix in ("q", "fc.pre_identity", "fc")),
    *("h.3.fc", "h.4.fc", "h.5.q", "h.5.fc", "head"),
)
KEY = jax.random.key(5)
LEADING = (4, 6)


def test_matrices_are_numbered_layer_by_layer() -> None:
    assert [(name, site.members[i]) for site, i, name in members_in_order(STACKED)] == [(n, n) for n in NAMES]
    numbers = site_numbers(STACKED)
    assert numbers["wte"] == (0,) and numbers["h.0-2.q"] == (1, 4, 7) and numbers["h.0-2.fc"] == (3, 6, 9)
    assert numbers["h.3-4.fc"] == (10, 11) and numbers["head"] == (14,)
    assert sorted(n for own in numbers.values() for n in own) == list(range(len(NAMES)))
    assert {name: n for n, name in enumerate(NAMES)} == {name: n for name, (n,) in site_numbers(SINGLE).items()}


def test_names_and_sizes() -> None:
    stack, single = STACKED[1], STACKED[0]
    assert (stack.stack, stack.depth, stack.members) == ((3,), 3, ("h.0.q", "h.1.q", "h.2.q"))
    assert (single.stack, single.depth, single.members) == ((), 1, ("wte",))
    assert STACKED[4].members == ("h.3.fc", "h.4.fc") and str(LATE) == "h.3-4"
    ten = Site("model.layers.9-11.mlp.up", 2, 2, 1, span=Span("model.layers", 9, 3))
    assert ten.members == ("model.layers.9.mlp.up", "model.layers.10.mlp.up", "model.layers.11.mlp.up")


def test_groups_are_the_sites_of_the_same_layers() -> None:
    groups = [[site.name for site in group] for group in site_groups(STACKED)]
    layered = ["h.0-2.q", "h.0-2.fc.pre_identity", "h.0-2.fc"]
    assert groups == [["wte"], layered, ["h.3-4.fc"], ["h.5.q"], ["h.5.fc"], ["head"]]


def test_unstacked_takes_what_is_there() -> None:
    held = {"head": np.arange(2), "h.0-2.fc": np.arange(6).reshape(3, 2)}
    found = unstacked(held, STACKED)
    assert list(found) == ["h.0.fc", "h.1.fc", "h.2.fc", "head"]
    np.testing.assert_array_equal(found["h.1.fc"], [2, 3])
    assert unstacked({}, STACKED) == {}
    one = unstacked({"h.3-4.fc": np.arange(2.0)}, STACKED)["h.4.fc"]
    assert isinstance(one, np.ndarray) and one.shape == () and one == 1  # an array still


def test_a_stack_is_a_map_over_numbers() -> None:
    numbers = site_numbers(STACKED)
    draw = partial(jax.random.fold_in, KEY)
    whole = jax.random.key_data(for_each(STACKED[1], numbers, draw))
    for i, n in enumerate(numbers["h.0-2.q"]):
        np.testing.assert_array_equal(whole[i], jax.random.key_data(draw(n)))
    np.testing.assert_array_equal(
        jax.random.key_data(for_each(STACKED[0], numbers, draw)), jax.random.key_data(draw(0))
    )


def assert_same(stacked: Mapping[str, jax.Array], single: Mapping[str, jax.Array], exactly: bool = True) -> None:
    """What is known of the stacks' matrices is what is known of the single ones."""
    found = unstacked(stacked, STACKED)
    assert list(found) == list(NAMES) and set(single) == set(NAMES)
    for name, value in found.items():
        assert value.shape == single[name].shape and value.dtype == single[name].dtype
        np.testing.assert_allclose(value, single[name], rtol=0 if exactly else 1e-5, atol=0 if exactly else 1e-5)
    assert len({np.asarray(x).tobytes() for x in found.values()}) == len(NAMES)  # no two alike


@pytest.mark.parametrize("part", ["V", "U"])
def test_components(part: str) -> None:
    stacked, single = (jit(partial(init_components, sites))(KEY) for sites in (STACKED, SINGLE))
    assert_same({s: getattr(c, part) for s, c in stacked.owned.items()}, {s: getattr(single[s], part) for s in NAMES})
    for name in NAMES:  # a stack is found by the paths of its matrices too
        np.testing.assert_array_equal(getattr(stacked[name], part), getattr(single[name], part))
    with pytest.raises(KeyError):
        stacked["h.3.q"]


def test_singular_pairs() -> None:
    single = {s.name: normal(s.d_in, s.d_out, key=i) for i, s in enumerate(SINGLE) if s.kind != "identity"}
    weights = {
        s.name: single[s.name] if s.span is None else jnp.stack([single[n] for n in s.members])
        for s in STACKED
        if s.kind != "identity"
    }
    make = lambda sites, given: jit(lambda key, W: init_components(sites, key, weights=W))(KEY, given)  # noqa: E731
    a, b = make(STACKED, weights), make(SINGLE, single)
    for name in NAMES:
        for x, y in ((a[name].V, b[name].V), (a[name].U, b[name].U)):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", ["c", "sc", "nsc", "bc", "bsc"])
def test_persistent_sources(scope: str) -> None:
    stacked, single = (
        jit(lambda k, s=sites: init_adversary(s, source_shapes(s, scope, LEADING, True, 2), k, AdamAscent(), False))(
            KEY
        )
        for sites in (STACKED, SINGLE)
    )
    assert_same(stacked.sources, single.sources)
    assert {s: x.shape for s, x in stacked.m.items()} == {s: x.shape for s, x in stacked.sources.items()}


def test_fresh_sources() -> None:
    stacked, single = (
        jit(lambda k, s=sites: drawn_sources(s, source_shapes(s, "bc", LEADING, False), k, jax.random.normal))(KEY)
        for sites in (STACKED, SINGLE)
    )
    assert_same(stacked, single)


def scene(sites: tuple[Site, ...]) -> Scene:
    """As much of one as draws look at."""
    nothing = jnp.zeros(())
    make: Callable[..., Scene] = partial(Scene.__new__, Scene)
    found = make()
    for name, value in {"sites": sites, "leading": LEADING, "use_delta": True, "batch": nothing}.items():
        object.__setattr__(found, name, value)
    return found


def forwards(term: ReconTerm, sites: tuple[Site, ...]) -> list:
    """Sources and routing of every forward."""
    return jit(lambda key: recon_forwards(term, scene(sites), {}, key, None))(KEY)


@pytest.mark.parametrize("sampling", ["continuous", "binomial"])
def test_stochastic_sources(sampling: str) -> None:
    term = ReconTerm("x", 1.0, Stochastic(sampling), UniformKSubset(), n_samples=2)
    stacked, single = (forwards(term, sites) for sites in (STACKED, SINGLE))
    for (sources, routes), (one, one_routes) in zip(stacked, single, strict=True):
        assert_same(sources, one)
        assert_same(routes, one_routes)


@pytest.mark.parametrize("live", [pytest.param("each", marks=pytest.mark.slow), 4])
def test_sources_of_groups_of_single_matrices(live: str | int) -> None:
    """A group may end within a layer; matrices of a stack draw with their own numbers."""
    term = ReconTerm("x", 1.0, Stochastic(), UniformKSubset(), live=live)
    assert live_groups(term, STACKED) == live_groups(term, SINGLE)
    stacked, single = (forwards(term, sites) for sites in (STACKED, SINGLE))
    assert len(stacked) == len(single) == (len(NAMES) if live == "each" else 4)
    for given, expected in zip(stacked, single, strict=True):
        jax.tree.map(np.testing.assert_array_equal, given, expected)


@pytest.mark.parametrize("routing", [StaticProbability(0.4), UniformKSubset()])
def test_routing(routing: StaticProbability | UniformKSubset) -> None:
    stacked, single = (jit(lambda k, s=sites: draw_routing(routing, k, s, LEADING))(KEY) for sites in (STACKED, SINGLE))
    assert_same(stacked, single)
    assert draw_routing(AllRouting(), KEY, STACKED, LEADING) == dict.fromkeys(s.name for s in STACKED)


@pytest.mark.parametrize("fn_type", [pytest.param("mlp", marks=pytest.mark.slow), "vector_mlp", "shared_mlp"])
def test_layerwise_networks(fn_type: str) -> None:
    stacked, single = (
        jit(lambda k, s=sites: init_layerwise_mlp(fn_type, s, [3], k).sites)(KEY) for sites in (STACKED, SINGLE)
    )
    leaves = lambda networks: {s: jax.tree.leaves(mlp) for s, mlp in networks.items()}  # noqa: E731
    given, expected = leaves(stacked), leaves(single)
    for i in (0, 2):  # the weights of the hidden layer and of the output; biases are 0
        assert_same({s: x[i] for s, x in given.items()}, {s: x[i] for s, x in expected.items()})


def test_binomial_jitter() -> None:
    z = {s.name: normal(*LEADING, s.C, key=i) for i, s in enumerate(SINGLE)}
    together = {s.name: z[s.name] if s.span is None else jnp.stack([z[n] for n in s.members]) for s in STACKED}
    pair = squash_pair("normal")
    stacked = jit(lambda z, key: causal_importances(z, pair, key, STACKED))(together, KEY)
    single = jit(lambda z, key: causal_importances(z, pair, key, SINGLE))(z, KEY)
    assert_same(stacked.lower, single.lower)
    assert_same(stacked.upper, single.upper)
