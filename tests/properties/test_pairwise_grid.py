"""Every legal pair of choices in a run file makes a right training step, every illegal one is refused by its key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any  # a patched function of JAX takes anything
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.scenes import jit
from properties.covering import Case, Pair, Value, all_pairs, completed, covering, pairs_of, reachable, showing_values
from properties.grid_axes import AXES, LOSS_BLOCKS, TARGETS, document, refused_key

from vpd.config import read_run_file
from vpd.config.losses import PersistentAdversary
from vpd.decomposition import SiteMask
from vpd.errors import ConfigError
from vpd.experiment import Experiment, build, first_state
from vpd.importance.mlp import GlobalMLP, LayerwiseMLP, split_sites
from vpd.importance.squash import swish_hard
from vpd.importance.transformer import TransformerCI, chunk_widths
from vpd.objective import faithfulness_loss
from vpd.objective.build import GRID
from vpd.targets import clean_forward, frozen_weights, masked_forward
from vpd.targets.base import dense_inputs
from vpd.targets.build import fresh_target
from vpd.training import step as training_step
from vpd.training.state import TrainState
from vpd.training.step import Gradients

ALPHA, SEED = 0.01, 3


def legal(one: Value, other: Value) -> bool:
    return refused_key(one, other) is None


CASES = covering(AXES, legal)
MINIMALITY = {"ImportanceMinimalityLoss", "SmoothL0ImportanceMinimalityLoss"}
# Their masks, where they have any, are not made of importances.
WITHOUT_IMPORTANCES = {"FaithfulnessLoss", "UnmaskedReconLoss"}


def test_the_cases_are_few_and_show_every_legal_pair() -> None:
    shown = {pair for case in CASES for pair in pairs_of(AXES, case)}
    assert shown == set(reachable(AXES, legal))
    assert len(CASES) <= 150
    assert set(GRID) <= set(AXES["loss"]) and set(LOSS_BLOCKS) <= {case["loss"] for case in CASES}


def refused_case(pair: Pair) -> Case:
    """A case with a pair that no legal case has, and as little as possible else that is refused."""
    order = list(AXES)
    only = completed(AXES, dict(pair), lambda *met: set(met) == set(pair) or legal(*met), order, lambda *_: 0)
    if only is not None:
        return only
    # Legal in itself, but each loss refuses one of the two; or a loss that refuses everything.
    by_loss = completed(AXES, dict(pair), lambda a, b: "loss" in (a[0], b[0]) or legal(a, b), order, lambda *_: 0)
    assert by_loss is not None
    return by_loss


def test_every_illegal_pair_is_refused_by_its_key() -> None:
    fine = set(reachable(AXES, legal))
    illegal = [pair for pair in all_pairs(AXES) if pair not in fine]
    assert len(illegal) > 100
    for pair in illegal:
        case = refused_case(pair)
        keys = {refused_key(*met) for met in pairs_of(AXES, case)} - {None}
        with pytest.raises(ConfigError) as caught:
            read_run_file(document(case))
        place, _, rest = str(caught.value).partition(": ")
        assert any(key in place for key in keys) and "; " in rest, (pair, str(caught.value))


def scan(body: Callable[..., Any], carry: Any, xs: Any, length: int | None = None) -> tuple[Any, Any]:
    ys = []
    for i in range(jax.tree.leaves(xs)[0].shape[0] if length is None else length):
        carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *ys)


def fori_loop(start: int, end: int, body: Callable[..., Any], carry: Any, unroll: bool = False) -> Any:
    for i in range(start, end):
        carry = body(i, carry)
    return carry


Run = Callable[..., Any]


def as_a_whole(function: Callable[..., Any], *given: Any) -> Any:
    """As one program, as runs have it: a compile for each case."""
    return jit(function)(*given)


def by_operations(function: Callable[..., Any], *given: Any) -> Any:
    """Operation by operation, loops in Python: each operation is compiled once for all cases."""
    with mock.patch.object(jax.lax, "scan", scan), mock.patch.object(jax.lax, "fori_loop", fori_loop):
        return function(*given)


Step = tuple[TrainState, Gradients, dict[str, np.ndarray]]


def one_step(run: Run, experiment: Experiment, state: TrainState, batch: jax.Array) -> Step:
    """A training step, and the gradients that it used."""
    original = training_step.step_gradients

    def step(target: Any, state: TrainState, batch: jax.Array, seed: jax.Array) -> Any:
        kept: list[Gradients] = []

        def spy(*given: Any) -> Any:
            gradients, logs = original(*given)
            kept.append(gradients)
            return gradients, logs

        with mock.patch.object(training_step, "step_gradients", spy):
            after, logs = training_step.train_step(experiment.problem, target, state, batch, seed)
        return after, kept[0], logs

    return run(step, experiment.target, state, batch, jnp.asarray(SEED, jnp.uint32))


def nonzero(tree: Any) -> bool:
    return any(np.asarray(x).any() for x in jax.tree.leaves(tree))


def finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def clip(z: np.ndarray) -> np.ndarray:
    return np.clip(z, 0, 1)


def above(z: np.ndarray) -> np.ndarray:
    return np.where(z > 1, 1 + ALPHA * (z - 1), clip(z))


# method.md §3: (lower, upper).
SQUASH: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {
    "normal": (lambda z: 1 / (1 + np.exp(-z)),) * 2,
    "hard": (clip, clip),
    "leaky_hard": (clip, above),
    "lower_leaky_hard": (clip, clip),
    "upper_leaky_hard": (above, above),
    "swish_hard": (lambda z: np.asarray(swish_hard(jnp.asarray(z))),) * 2,
}


def by_site(ci_fn: Any, sites: list[str]) -> dict[str, Any]:
    """The part of a CI function's gradient that one site's preactivations alone have."""
    match ci_fn:
        case LayerwiseMLP():
            return {site: ci_fn.sites[site] for site in sites}
        case GlobalMLP():
            return split_sites(ci_fn.mlp.out.b, ci_fn.sites)
        case TransformerCI():
            parts = zip(ci_fn.networks.head.b, chunk_widths(ci_fn.sites, ci_fn.per_chunk), strict=True)
            return split_sites(jnp.concatenate([b[:C] for b, (_, C) in parts]), ci_fn.sites)
        case _:
            raise AssertionError(f"say where {type(ci_fn).__name__} has the parts of a site")


def check_gradients(case: Case, experiment: Experiment, gradients: Gradients) -> None:
    """Present where the loss depends on something, exactly 0 elsewhere; none for what is frozen."""
    loss, active = str(case["loss"]), case["coeff"] != 0
    sites = {site.name: site for site in experiment.problem.sites}
    small = TARGETS[str(case["target"])]
    assert set(sites) == {*small.sites, *(f"{site}.pre_identity" for site in small.identities)}
    assert set(gradients.components) == set(sites)
    for name, site in sites.items():
        pieces = gradients.components[name]
        # A sparsity loss reaches V alone, and only where the CI function reads component activations.
        reads_V = case["fn_type"] == "mlp" or site.kind == "embedding"
        assert nonzero(pieces.V) == (active and (loss not in MINIMALITY or reads_V)), f"V of {name}"
        tied = case["target"] == "tms" and reads_V
        assert nonzero(pieces.U) == (active and (loss not in MINIMALITY or tied)), f"U of {name}"
    for name, part in by_site(gradients.ci_fn, list(sites)).items():
        assert nonzero(part) == (active and loss not in WITHOUT_IMPORTANCES), f"CI function at {name}"
    if not active or loss in WITHOUT_IMPORTANCES:
        assert not nonzero(gradients.ci_fn)


def check_updates(before: TrainState, after: TrainState, gradients: Gradients) -> None:
    """What has a gradient moves, and nothing else."""
    for group in ("components", "ci_fn"):
        old, new = getattr(before.decomposition, group), getattr(after.decomposition, group)
        gradient = getattr(gradients, group)
        for x, y, g in zip(*map(jax.tree.leaves, (old, new, gradient)), strict=True):
            assert np.array_equal(x, y) != nonzero(g)
    assert int(after.training.step) == 1


def check_adversaries(case: Case, before: TrainState, after: TrainState) -> None:
    """Persistent sources make their warm-up ascents and the last one, and stay in [0, 1]."""
    persistent = issubclass(LOSS_BLOCKS[str(case["loss"])], PersistentAdversary)
    assert list(after.training.adversaries) == ([case["loss"]] if persistent else [])
    for name, adversary in after.training.adversaries.items():
        assert int(adversary.ascents) == 2
        old = before.training.adversaries[name].sources
        for site, x in adversary.sources.items():
            assert np.asarray(x).min() >= 0 and np.asarray(x).max() <= 1
            assert x.shape[-1] == 3 + bool(case["use_delta_component"])
            assert not np.array_equal(x, old[site]), site


def check_losses(
    case: Case, run: Run, experiment: Experiment, state: TrainState, batch: jax.Array, logs: Mapping[str, Any]
) -> None:
    """The total is the weighted term; what has a closed form has its value."""
    loss, coeff, problem = str(case["loss"]), float(case["coeff"]), experiment.problem
    term = float(logs[f"loss/{loss}"])
    hidden = float(logs.get(f"loss/{loss}/hidden_acts", 0.0))
    assert term > 0 and (hidden > 0) == case["rider"]
    np.testing.assert_allclose(logs["loss/total"], coeff * (term + 0.25 * hidden), rtol=1e-5)
    components, target = state.decomposition.components, experiment.target
    if loss == "FaithfulnessLoss":
        want = faithfulness_loss(problem.sites, run(frozen_weights, target, batch), components)
        np.testing.assert_allclose(term, want, rtol=1e-6)
    if loss not in MINIMALITY | {"CIMaskedReconLoss"}:
        return
    clean, inputs = run(clean_forward, target, batch)
    z = run(lambda d: d.ci_fn(dense_inputs(inputs), d.components), state.decomposition)
    lower, upper = SQUASH[str(case["sigmoid_type"])]
    if loss in MINIMALITY:
        ci = {site: np.asarray(upper(np.asarray(x)), np.float64) for site, x in z.items()}
        penalised = {s: (x + 1e-12) ** 2 if loss.startswith("Imp") else x**2 / (x**2 + 1) for s, x in ci.items()}
        N = next(iter(ci.values())).size // 3
        sums = [x.reshape(-1, 3).sum(0) for x in penalised.values()]
        want = sum((S / N * (1 + 0.5 * np.log2(1 + S))).sum() for S in sums)
        np.testing.assert_allclose(term, want, rtol=1e-5)
    elif case["sampling"] == "continuous":
        masks = {site: SiteMask(jnp.asarray(lower(np.asarray(x)), jnp.float32)) for site, x in z.items()}
        out = run(masked_forward, target, components, batch, masks)
        np.testing.assert_allclose(term, np.mean(target.divergence(clean, out)), rtol=1e-4)


def check(case: Case, run: Run) -> None:
    """One step of the case, from its run file."""
    config = read_run_file(document(case)).config
    experiment = build(config, fresh_target(config.target))
    state = first_state(experiment)
    batch = experiment.train_batch(jnp.asarray(SEED, jnp.uint32), jnp.asarray(0, jnp.int32))
    after, gradients, logs = one_step(run, experiment, state, batch)
    assert finite(logs) and finite(gradients) and finite(after)
    check_losses(case, run, experiment, state, batch, logs)
    check_gradients(case, experiment, gradients)
    check_updates(state, after, gradients)
    check_adversaries(case, state, after)


def check_all(cases: Sequence[Case], run: Run, subtests: pytest.Subtests) -> None:
    for case in cases:
        with subtests.test(msg=" ".join(f"{axis}={value}" for axis, value in case.items())):
            check(case, run)


def test_a_step_of_cases_that_show_every_value(subtests: pytest.Subtests) -> None:
    check_all(showing_values(AXES, CASES), as_a_whole, subtests)


@pytest.mark.slow
@pytest.mark.parametrize("fn_type", AXES["fn_type"])
def test_a_step_of_every_case(fn_type: str, subtests: pytest.Subtests) -> None:
    check_all([case for case in CASES if case["fn_type"] == fn_type], by_operations, subtests)
