"""What can't be decomposed is refused by parameter, operation and source line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any  # parameters are any pytree

import jax
import jax.numpy as jnp
import pytest

import vpd
from vpd import TraceError, trace
from vpd.targets import clean_forward

W = jax.random.normal(jax.random.key(0), (4, 4))
STACK = jax.random.normal(jax.random.key(1), (3, 4, 4))
X = jnp.ones((2, 4))
HERE = re.escape(Path(__file__).name) + r":\d+"


@jax.custom_vjp
def clipped(x: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose gradient is clipped."""
    return x @ w


def _clipped_forward(x, w):
    return x @ w, (x, w)


def _clipped_backward(kept, g):
    g = jnp.clip(g, -0.1, 0.1)
    return g @ kept[1].T, kept[0].T @ g


clipped.defvjp(_clipped_forward, _clipped_backward)


def in_while(p, x):
    return jax.lax.while_loop(lambda h: jnp.sum(h) < 0, lambda h: h @ p["w"], x)


def in_every_turn(p, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=3)[0]


def by_the_wrong_index(p, x):
    return jax.lax.fori_loop(0, 3, lambda i, h: h @ p["s"][2 - i], x)


def scan_in_scan(p, x):
    def outer(h, w):
        return jax.lax.scan(lambda h, w: (h @ w, None), h, w)[0], None

    return jax.lax.scan(outer, x, p["s"].reshape(3, 1, 4, 4))[0]


def weight_norm(p, x):
    return x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))


REFUSED: dict[str, tuple[Callable[..., jax.Array], str]] = {
    "weight norm": (weight_norm, rf"w is changed before it is used as a matrix \(\w+ at {HERE}\); choose other"),
    "concatenation": (
        lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], 1),
        rf"w is put together with other arrays while the program runs \(concatenate at {HERE}\)",
    ),
    "convolution": (
        lambda p, x: jax.lax.conv(x[:, :, None], p["s"], (1,), "SAME"),
        rf"s is the kernel of a convolution \(conv_general_dilated at {HERE}\)",
    ),
    "while": (in_while, rf"w is used in a loop whose number of iterations is not known \(while at {HERE}\)"),
    "weight times weight": (
        lambda p, x: x @ (p["w"] @ p["v"]),
        rf"w is multiplied by another parameter, v \(dot_general at {HERE}\)",
    ),
    "no batch": (lambda p, x: x + jnp.ones(4) @ p["w"], r"w is multiplied by what does not depend on the batch \(dot"),
    "custom rule": (
        lambda p, x: clipped(x, p["w"]),
        rf"w is used inside a function with a derivative rule.*custom_vjp_call at {HERE}.*inline_custom_rules",
    ),
    "every turn": (in_every_turn, rf"w is the same matrix in every iteration of a loop \(dot_general at {HERE}\)"),
    "wrong index": (by_the_wrong_index, rf"s is taken apart by an index that is not known .*dynamic_slice at {HERE}"),
    "scan in scan": (scan_in_scan, rf"s is stacked along more than one axis \(dot_general at {HERE}\)"),
    "carried": (
        lambda p, x: jax.lax.scan(lambda c, _: ((c[0] @ c[1], c[1].T), None), (x, p["w"]), None, length=2)[0][0],
        rf"w is carried through a loop \(scan at {HERE}\)",
    ),
    "repeated": (
        lambda p, x: jnp.einsum("bd,bde->be", x, jnp.broadcast_to(p["w"], (2, 4, 4))),
        rf"w is repeated before it is used \(broadcast_in_dim at {HERE}\)",
    ),
    "part of a row": (
        lambda p, x: p["w"][x[:, 0].astype(int), 0],
        r"w is looked up by other than whole rows \(gather",
    ),
    "constant rows": (lambda p, x: x + p["w"][jnp.array([0, 1])], "w is looked up by indices that do not depend on"),
    "returned": (lambda p, x: p["w"], "w is returned as it is"),
    "branch": (
        lambda p, x: x @ jax.lax.cond(x[0, 0] > 0, lambda: p["w"], lambda: p["w"].T),
        rf"w leaves a branch as it is \(cond at {HERE}\)",
    ),
    "unused": (lambda p, x: x @ p["v"], "w is never used by the function; choose parameters that it uses"),
    "closed over": (lambda p, x: x @ W, "w is closed over by the function, which has its own copy"),
    "tuple": (lambda p, x: (x @ p["w"], x), "the function returns 2 arrays; return one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str) -> None:
    forward, message = REFUSED[kind]
    chosen = "s" if re.match("s is", message) else "w"
    with pytest.raises(TraceError, match=message):
        trace(forward, {"w": W, "v": W + 1, "s": STACK}, X, {chosen: 2}, vpd.squared_error)


def test_an_unchosen_parameter_may_be_used_in_any_way() -> None:
    def forward(p, x):
        return weight_norm(p, in_while(p, x @ p["v"]))

    target = trace(forward, {"w": W, "v": W}, X, {"v": 2}, vpd.squared_error)
    assert list(target.matrices()) == ["v"]


@pytest.mark.parametrize(
    ("sites", "options", "message"),
    [
        ({"layer/w": 2}, {}, "sites: 'layer/w' matches no parameter; nearest spelling: layers/w"),
        ({"zzz": 2}, {}, "matches no parameter; there are b, layers/v, layers/w"),
        ({"layers/*": 2, "*/w": 3}, {}, r"sites: '\*/w' matches layers/w, which 'layers/\*' matches already"),
        ({"b": 2}, {}, r"sites: 'b' matches no matrix: b is \[4\]"),
        ({"layers/w": 0}, {}, "C = 0; give a number of at least 1"),
        ({}, {}, "nothing is chosen"),
        ({"layers/w": 2}, {"aliases": {"layer/w": "w"}}, "there is no site 'layer/w'; nearest spelling: layers/w"),
        ({"layers/*": 2}, {"aliases": {"layers/w": "layers/v"}}, "two sites would be called 'layers/v'"),
        ({"layers/w": 2}, {"stack_axes": {"layers/w": 2}}, r"layers/w \[4, 4\] has no axis 2"),
        ({"layers/w": 2}, {"stack_axes": {"nothing": 0}}, "stack_axes: 'nothing' matches no parameter"),
    ],
)
def test_names_that_are_not_there(sites: dict[str, int], options: dict[str, Any], message: str) -> None:
    params = {"layers": {"w": W, "v": W}, "b": jnp.ones(4)}
    with pytest.raises(TraceError, match=message):
        trace(lambda p, x: x @ p["layers"]["w"] @ p["layers"]["v"] + p["b"], params, X, sites, **options)


def test_a_vector_is_passed_over_by_a_glob_and_refused_by_name() -> None:
    def forward(p, x):
        return jax.lax.scan(lambda h, w: (h @ w["w"] + w["b"], None), x, p)[0]

    params = {"w": STACK, "b": jnp.ones((3, 4))}
    assert list(trace(forward, params, X, {"*": 2}).matrices()) == [f"layers.{i}.w" for i in range(3)]
    with pytest.raises(TraceError, match="b has no matrix in it"):
        trace(forward, params, X, {"w": 2, "b": 2})


def test_matrices_side_by_side_are_warned_of_unless_they_are_declared() -> None:
    def forward(p, x):
        return jax.vmap(lambda w: jnp.tanh(x @ w))(p["s"]).sum(0) @ p["w"]

    def batched(p, x):
        return jnp.einsum("bed,edf->bf", x[:, None] * jnp.ones((1, 3, 1)), p["s"]) @ p["w"]

    def side_by_side(p, x):
        return jnp.einsum("bed,edf->bef", x[:, None] * jnp.ones((1, 3, 1)), p["s"]).sum(1) @ p["w"]

    params = {"s": STACK, "w": W}
    with pytest.warns(UserWarning, match=rf"s is several matrices in one array \(dot_general at {HERE}\).*stack_axes"):
        assert list(trace(side_by_side, params, X, {"*": 2}).matrices()) == ["w"]
    declared = trace(side_by_side, params, X, {"*": 2}, stack_axes={"s": 0})
    assert list(declared.matrices()) == ["experts.0.s", "experts.1.s", "experts.2.s", "w"]
    # One input for all: one matrix, unless they are declared.
    assert trace(forward, params, X, {"*": 2}).matrices()["s"] == (4, 12, "linear")
    assert "experts.2.s" in trace(forward, params, X, {"*": 2}, stack_axes={"s": 0}).matrices()
    with pytest.raises(TraceError, match="s is summed over the axis declared in stack_axes"):
        trace(batched, params, X, {"*": 2}, stack_axes={"s": 0})


def test_a_rule_beside_a_site_stays_and_one_around_it_is_lost_where_that_is_asked_for() -> None:
    def beside(p, x):
        return clipped(x, jnp.eye(4)) @ p["w"]

    def around(p, x):
        return clipped(x, p["w"])

    for forward, options in ((beside, {}), (around, {"inline_custom_rules": True})):
        target = trace(forward, {"w": W}, X, {"w": 2}, vpd.squared_error, **options)
        slope = jax.grad(lambda x, target=target: jnp.sum(clean_forward(target, x)[0]))(X)
        exact = jnp.ones((2, 4)) @ W.T
        if forward is beside:
            assert jnp.allclose(slope, jnp.clip(exact, -0.1, 0.1))
        else:
            assert jnp.allclose(slope, exact, atol=1e-6)


def test_a_batch_that_makes_another_program_is_refused() -> None:
    def forward(p, x):
        return x @ p["w"] if x.shape[0] < 4 else x @ p["v"]

    target = trace(forward, {"w": W, "v": W}, X, {"w": 2}, vpd.squared_error)
    with pytest.raises(TraceError, match=r"is never used|makes another program"):
        clean_forward(target, jnp.ones((5, 4)))


def test_the_example_is_one_array() -> None:
    with pytest.raises(TraceError, match="example is a dict; give one array"):
        trace(lambda p, x: x["a"] @ p["w"], {"w": W}, {"a": X}, {"w": 2})
