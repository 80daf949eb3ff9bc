"""Names, positions and the life of a traced program: under jit, for other batches, in another type."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_models import loops_and_branches, normal, plain_function, tokens

import vpd
from vpd import TraceError, trace
from vpd.decomposition import Site, SiteMask, init_components
from vpd.targets import clean_forward, masked_forward
from vpd.targets.layers import layers_of
from vpd.targets.traced_build import site_patterns
from vpd.training.build import stacked_sites


def test_names_of_stacks_loops_and_numbers() -> None:
    assert list(loops_and_branches().target().matrices()) == [
        *(f"a.{i}.w" for i in range(3)),
        *(f"r.{i}.w" for i in range(3)),
        *(f"u.{i}.w" for i in range(2)),
        "c/no",
        "c/yes",
    ]
    names = list(plain_function().target().matrices())
    assert names[:5] == ["wte", "layers.0.qkv", "layers.0.out", "layers.0.up", "layers.0.down"]
    assert names[-2:] == ["layers.2.down", "lm_head"]


def test_a_parameter_used_twice_is_two_sites_in_program_order() -> None:
    def forward(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    twice = trace(forward, {"w": normal(0, 4, 3)}, normal(1, 2, 4), {"w": 2})
    assert twice.matrices() == {"w#0": (4, 3, "linear"), "w#1": (3, 4, "linear")}
    named = trace(forward, {"w": normal(0, 4, 3)}, normal(1, 2, 4), {"w": 2}, aliases={"w#0": "in", "w#1": "out"})
    assert list(named.matrices()) == ["in", "out"] and dict(named.subcomponents) == {"in": 2, "out": 2}


def test_one_fused_matrix_is_one_site_and_split_ones_are_several() -> None:
    def fused(p, x):
        q, k = jnp.split(x @ p["w"], 2, -1)
        return q * k

    def split(p, x):
        q, k = jnp.split(p["w"], 2, -1)
        return (x @ q) * (x @ k) + x @ p["w"][:, :3]

    params, x = {"w": normal(0, 4, 6)}, normal(1, 2, 4)
    assert trace(fused, params, x, {"w": 2}).matrices() == {"w": (4, 6, "linear")}
    assert trace(split, params, x, {"w": 2}).matrices() == {f"w#{i}": (4, 3, "linear") for i in range(3)}


def test_aliases_of_stacks() -> None:
    case = plain_function()
    aliases = {"layers": "h", "h.*.up": "h.*.mlp.c_fc", "wte#0": "wte", "wte#1": "head"}
    target = trace(case.forward, case.params, case.batch, case.sites, aliases=aliases)
    assert {"h.0.qkv", "h.2.mlp.c_fc", "head"} <= set(target.matrices())
    with pytest.raises(TraceError, match=r"'layers.\*.up' is a stack, and 'up' is no name for one"):
        trace(case.forward, case.params, case.batch, case.sites, aliases={"layers.*.up": "up"})


def test_patterns_of_a_run_file_name_each_site_once() -> None:
    patterns = site_patterns(plain_function().target())
    assert patterns[:2] == [{"module_pattern": "wte", "C": 3}, {"module_pattern": "layers.*.qkv", "C": 4}]
    odd = trace(lambda p, x: x @ p["a[0]"], {"a[0]": normal(0, 4, 4)}, normal(1, 2, 4), {"a[0]": 2})
    assert site_patterns(odd) == [{"module_pattern": "a[[]0]", "C": 2}]


def test_positions_have_the_batch_first_whatever_the_program_does() -> None:
    """``vmap(in_axes=1)`` would swap batch and sequence; equal sizes would hide it."""

    def forward(p, x):
        h = jax.vmap(lambda row: row @ p["w"], in_axes=1, out_axes=1)(x)
        h = jnp.einsum("btd,de->tbe", h, p["v"])
        return jnp.einsum("tbe,ef->btf", jnp.tanh(h), p["u"])

    params = {name: normal(i, 4, 4) for i, name in enumerate("wvu")}
    x = normal(5, 3, 3, 4)
    target = trace(forward, params, x, {"*": 2}, vpd.squared_error)
    assert target.leading(normal(6, 3, 5, 4)) == (3, 5)
    clean, inputs = clean_forward(target, x)
    np.testing.assert_allclose(clean, forward(params, x), atol=1e-6)
    np.testing.assert_allclose(inputs["w"], x, atol=1e-6)
    np.testing.assert_allclose(inputs["u"], jnp.tanh(x @ params["w"] @ params["v"]), atol=1e-6)
    # A mask for one example changes that example alone.
    sites = [Site(name, 4, 4, 2) for name in "wvu"]
    masks = {n: SiteMask(jnp.ones((3, 3, 2)), jnp.ones((3, 3)).at[1].set(0.0)) for n in "wvu"}
    masked = masked_forward(target, init_components(sites, jax.random.key(0)), x, masks)
    changed = jnp.abs(masked - clean).max((1, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


def test_sites_of_different_positions_are_not_trained_together() -> None:
    def forward(p, x):
        return jnp.tanh((x @ p["w"]).reshape(-1, 4)) @ p["v"]

    target = trace(forward, {"w": normal(0, 4, 4), "v": normal(1, 4, 4)}, normal(2, 2, 3, 4), {"*": 2})
    with pytest.raises(TraceError, match=r"site 'w' has positions \[2, 3\] and 'v' has \[6\]"):
        target.leading(normal(2, 2, 3, 4))


def test_einsums_capture_their_input_in_the_order_of_the_weight() -> None:
    def forward(p, x):
        return jnp.einsum("bij,jik->bk", x, p["w"])

    x = normal(0, 2, 3, 4)
    target = trace(forward, {"w": normal(1, 4, 3, 5)}, x, {"w": 2})
    assert target.matrices() == {"w": (12, 5, "linear")}
    clean, inputs = clean_forward(target, x)
    np.testing.assert_allclose(inputs["w"], x.transpose(0, 2, 1).reshape(2, 12))
    np.testing.assert_allclose(clean, forward({"w": normal(1, 4, 3, 5)}, x), atol=1e-6)


def test_one_trace_for_each_shape_and_no_parameter_is_a_constant() -> None:
    calls = []
    case = plain_function()

    def forward(p, batch):
        calls.append(batch.shape)
        return case.forward(p, batch)

    target = trace(forward, case.params, case.batch, case.sites, **case.options)
    calls.clear()
    run = jax.jit(lambda target, batch: clean_forward(target, batch)[0])
    for _ in range(2):
        for batch in (tokens(2), tokens(4, 3)):
            np.testing.assert_allclose(run(target, batch), case.forward(case.params, batch), atol=1e-5)
    assert run._cache_size() == 2
    # The example itself was traced already.
    assert calls == [(4, 3)]
    # Another network of the same program reuses it.
    other = jax.tree.map(lambda w: w * 2, target)
    np.testing.assert_allclose(
        run(other, case.batch),
        case.forward(jax.tree.map(lambda w: w * 2, case.params), case.batch),
        rtol=1e-4,
        atol=1e-4,
    )
    assert run._cache_size() == 2 and len(calls) == 1
    constants = jax.make_jaxpr(lambda target, batch: clean_forward(target, batch)[0])(target, case.batch).consts
    assert not any(np.size(c) >= 28 for c in constants)


def test_a_bfloat16_copy_of_the_network_runs() -> None:
    case = plain_function()
    target = case.target()
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), target)
    out, _ = clean_forward(half, case.batch)
    assert out.dtype == jnp.bfloat16
    expected = case.forward(case.params, case.batch)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.1 * float(jnp.abs(expected).max()))


def test_layers_are_scanned_and_the_program_does_not_grow_with_depth() -> None:
    def forward(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]

    def lines(depth: int) -> int:
        target = trace(forward, {"w": normal(0, depth, 4, 4)}, normal(1, 2, 4), {"w": 3})
        sites = stacked_sites([Site(n, 4, 4, 3) for n in target.matrices()], layers_of(target))
        masks = {s.name: SiteMask(jnp.ones((depth, 2, 3)), jnp.ones((depth, 2))) for s in sites}
        run = partial(masked_forward, target, init_components(sites, jax.random.key(0)))
        return len(str(jax.make_jaxpr(run)(normal(1, 2, 4), masks)).splitlines())

    assert lines(8) == lines(16)


def test_out_of_range_lookups_keep_their_meaning() -> None:
    table, far = {"w": normal(0, 5, 3)}, jnp.array([1, 7, -1, -9])
    for forward in (
        lambda p, x: p["w"][x],
        lambda p, x: jnp.take(p["w"], x, axis=0),
        lambda p, x: p["w"].at[x].get(mode="fill", fill_value=2.0),
    ):
        target = trace(forward, table, far, {"w": 2}, vpd.squared_error)
        assert target.matrices() == {"w": (5, 3, "embedding")}
        np.testing.assert_array_equal(clean_forward(target, far)[0], forward(table, far))
    columns = trace(lambda p, x: p["w"][:, x], {"w": normal(0, 3, 5)}, jnp.array([1, 2]), {"w": 2})
    assert columns.matrices() == {"w": (5, 3, "embedding")}
    np.testing.assert_array_equal(clean_forward(columns, jnp.array([4, 0]))[0], normal(0, 3, 5)[:, jnp.array([4, 0])])
