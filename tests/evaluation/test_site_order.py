"""Sites stay in the order of the network, whatever JAX does to the keys of a dictionary."""

import jax
import jax.numpy as jnp

from vpd.decomposition import Site
from vpd.evaluation.accumulate import Sums, in_order, sums_in_order

SITES = tuple(f"layers.{i}.{part}" for i in (0, 2, 10) for part in ("mlp_in", "mlp_out"))


def test_numeric_order_survives_a_program() -> None:
    by_site = {site: jnp.full(1, i) for i, site in enumerate(SITES)}
    sorted_keys = jax.jit(lambda tree: tree)(by_site)
    assert list(sorted_keys) != list(SITES)
    ordered = in_order(sorted_keys, SITES)
    assert list(ordered) == list(SITES) and [int(x[0]) for x in ordered.values()] == list(range(6))


def test_all_sums_are_ordered() -> None:
    by_site = {site: jnp.ones(()) for site in sorted(SITES)}
    zero = jnp.zeros(())
    sums = Sums(zero, {}, {}, {"term": by_site}, {"term": by_site}, {"term": by_site}, by_site, by_site, {})
    got = sums_in_order(sums, [Site(name, 1, 1, 1) for name in SITES])
    nested = (got.hidden_errors["term"], got.hidden_elements["term"], got.minimality["term"])
    assert all(list(x) == list(SITES) for x in (*nested, got.active, got.ci))
    assert got.histogram == {}
