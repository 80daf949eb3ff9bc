"""Firings kept sparsely against dense arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vpd.analysis.clustering import memberships as memberships_module
from vpd.analysis.clustering.collect import Sampling, select
from vpd.analysis.clustering.memberships import from_dense, joined
from vpd.errors import RunError

FIRES = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@settings(max_examples=40, deadline=None)
@given(fires=FIRES, seed=st.integers(0, 99), price=st.sampled_from([0, 10**9]))
def test_against_dense(fires: np.ndarray, seed: int, price: int) -> None:
    """Both ways to count coactivation, some of the subcomponents, groups of them, and parts put together."""
    rng = np.random.default_rng(seed)
    sparse, counts = from_dense(fires), fires.astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memberships_module, "_SPARSE_PRICE", price)
        np.testing.assert_array_equal(sparse.coactivation(), counts.T @ counts)
    np.testing.assert_array_equal(sparse.counts, counts.sum(axis=0))
    some = np.flatnonzero(rng.random(fires.shape[1]) < 0.6)
    np.testing.assert_array_equal(sparse.only(some).matrix().toarray(), counts[:, some])
    labels = np.unique(rng.integers(4, size=fires.shape[1]), return_inverse=True)[1]
    dense = np.stack([fires[:, labels == group].any(axis=1) for group in range(labels.max() + 1)], axis=1)
    np.testing.assert_array_equal(sparse.grouped(labels).matrix().toarray(), dense)
    twice = joined([sparse, from_dense(~fires)])
    np.testing.assert_array_equal(twice.matrix().toarray(), np.concatenate([fires, ~fires]))


def test_selection() -> None:
    fires = np.zeros((20, 5), bool)
    fires[:, 0], fires[:3, 1], fires[:10, 2], fires[:12, 3] = True, True, True, True
    found = select(from_dense(fires), Sampling(min_firings=5, always_on=0.9))
    assert (found.kept.tolist(), found.dead, found.rare, found.always_on) == ([2, 3], 1, 1, 1)
    with pytest.raises(RunError, match=r"0 of 5 .* can be clustered.*1 never fire.*2 do at fewer than 11 and 2 at"):
        select(from_dense(fires[:12]), Sampling(min_firings=11, always_on=0.99))
