"""Distributions of routing."""

from collections import Counter
from itertools import combinations

import jax
import numpy as np
import pytest
from objective.scenes import jit

from vpd.decomposition import AllRouting, Site, StaticProbability, UniformKSubset, draw_routing

SITES = ["a", "b", "c", "d"]
LEADING = (60, 100)
FLAT = [Site(name, 3, 3, C=2) for name in SITES]
DRAWN = {
    "subset": UniformKSubset(),
    "0": StaticProbability(0.0),
    "0.2": StaticProbability(0.2),
    "0.9": StaticProbability(0.9),
    "1": StaticProbability(1.0),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Two draws ``[2, site, *leading]`` with different keys for every distribution, and of a single site."""

    @jit
    def draw(seed: jax.Array) -> dict:
        key = jax.random.key(seed)
        routes = {name: draw_routing(routing, key, FLAT, LEADING) for name, routing in DRAWN.items()}
        return routes | {"alone": draw_routing(UniformKSubset(), key, FLAT[:1], LEADING)}

    draws = [draw(np.int32(seed)) for seed in (0, 1)]
    assert all(list(routes) == SITES for name, routes in draws[0].items() if name != "alone")
    return {name: np.stack([np.stack(list(d[name].values())) for d in draws]) for name in draws[0]}


def test_everywhere_has_no_routing() -> None:
    assert draw_routing(AllRouting(), jax.random.key(0), FLAT, LEADING) == dict.fromkeys(SITES)


def test_k_is_uniform_and_so_is_the_subset(drawn) -> None:
    keep = drawn["subset"][0]
    assert keep.shape == (4, *LEADING) and keep.dtype == bool
    assert keep.any(axis=0).all()
    subsets = Counter(tuple(np.flatnonzero(column)) for column in keep.reshape(4, -1).T)
    n = keep[0].size
    for k in range(1, 5):
        of_size = list(combinations(range(4), k))
        total = sum(subsets[s] for s in of_size)
        assert abs(total / n - 1 / 4) < 4 * (0.25 * 0.75 / n) ** 0.5
        chi_square = sum((subsets[s] - total / len(of_size)) ** 2 / (total / len(of_size)) for s in of_size)
        assert chi_square < 25  # at most five degrees of freedom


def test_a_single_site_is_always_routed(drawn) -> None:
    assert drawn["alone"].all()


@pytest.mark.parametrize("p", ["0", "0.2", "0.9", "1"])
def test_static_probability(drawn, p: str) -> None:
    keep = drawn[p][0].reshape(4, -1)
    assert (np.abs(keep.mean(axis=1) - float(p)) <= 4.5 * (float(p) * (1 - float(p)) / keep[0].size) ** 0.5).all()
    if 0 < float(p) < 1:
        assert np.abs(np.corrcoef(keep) - np.eye(4)).max() < 0.06


@pytest.mark.parametrize("name", ["subset", "0.2"])
def test_positions_and_keys_differ(drawn, name: str) -> None:
    first, second = drawn[name]
    for other in (second, np.roll(first, 1, axis=1), np.roll(first, 1, axis=2)):
        assert (first != other).mean() > 0.25
