"""Each check on numbers recorded from runs that failed on purpose, and none on those of a healthy one."""

from dataclasses import replace

import pytest

from vpd.evaluation.convergence import Trend, progress, trend
from vpd.evaluation.diagnosis import BARS, Course, diagnose
from vpd.evaluation.health import AdversaryHealth, Health, SiteHealth
from vpd.objective.schedule import Schedule


def sites(l0: float, alive: int, two_signed: int, delta: float, C: int = 20) -> list[SiteHealth]:
    return [SiteHealth(s, C, l0, alive, two_signed, delta, 5) for s in ("linear1", "linear2")]


def recon(ci: float, unmasked: float, zero: float = 0.014) -> dict[str, float]:
    return {"ci": ci, "unmasked": unmasked, "zero": zero, "stochastic": ci}


ALIVE_ADVERSARY = {"PersistentPGDReconLoss": AdversaryHealth(0.000288, 0.000221, 0.47)}
HEALTHY = Health(recon(0.000314, 4.6e-10), sites(0.19, 5, 0, 5e-5), ALIVE_ADVERSARY)
SETTLED = Course(10_000, 10_000, Trend(-0.015, 0.017, 6000, 10_000), Trend(-0.019, 0.03, 6000, 10_000))
# TMS 5-2: what runs recorded at their end, one failure each.
RECORDED: dict[str, tuple[Health, Course]] = {
    "collapsed importance": (replace(HEALTHY, recon=recon(0.014, 3.1e-9), sites=sites(0.0, 0, 0, 1.6e-4)), SETTLED),
    "too dense": (
        Health(recon(5e-13, 4e-13), sites(20.0, 20, 3, 1e-4), {"adversary": AdversaryHealth(5e-13, 5e-13, 0.0012)}),
        SETTLED,
    ),
    "polysemantic by sign": (replace(HEALTHY, sites=sites(0.3, 6, 2, 3e-4)), SETTLED),
    "C too small": (replace(HEALTHY, sites=sites(0.326, 3, 2, 6e-4, C=3)), SETTLED),
    "under-trained": (HEALTHY, replace(SETTLED, l0=Trend(-0.093, 0.020, 180, 300))),
    "unfaithful sum": (replace(HEALTHY, sites=sites(0.19, 5, 0, 0.117)), replace(SETTLED, deltas=[1.2, 0.117])),
    "exploding deltas": (
        replace(HEALTHY, recon=recon(0.0127, 0.0153), sites=sites(4.6, 11, 1, 4.27)),
        replace(SETTLED, deltas=[1.36, 2.0, 4.27]),
    ),
    "dead adversary": (
        replace(HEALTHY, adversaries={"PersistentPGDReconLoss": AdversaryHealth(0.000304, 0.000305, 0.0)}),
        SETTLED,
    ),
}
# SmolLM2: masks that are the importances lose what masks of 0 lose, but for the fifth digit, with an L0 of 4.5.
SMOL = Health(recon(0.11496, 0.001, 0.11500), [SiteHealth("model.layers.29.mlp.down_proj", 512, 4.5, 300, 0, 0.02)])


def names(health: Health, course: Course = SETTLED) -> list[str]:
    return [diagnosis.name for diagnosis in diagnose(health, course)]


@pytest.mark.parametrize("failure", RECORDED)
def test_each_failure_alone_is_named(failure: str) -> None:
    (found,) = diagnose(*RECORDED[failure])
    assert found.name == failure
    assert found.sentence.endswith(".") and found.knob.endswith(".") and found.evidence


def test_a_healthy_run_has_none() -> None:
    assert names(HEALTHY) == []


def test_a_difference_in_the_fifth_digit_is_collapse() -> None:
    assert names(SMOL) == ["collapsed importance"]


@pytest.mark.parametrize(("saved", "collapsed"), [(0.09, True), (0.11, False)])
def test_the_bar_of_collapse_is_a_part_of_what_could_be_saved(saved: float, collapsed: bool) -> None:
    health = replace(HEALTHY, recon=recon(1.0 - saved, 0.0, zero=1.0))
    assert ("collapsed importance" in names(health)) == collapsed


def test_without_faithful_weights_importances_are_not_called_collapsed() -> None:
    """Where unmasked subcomponents save nothing either, it is not the importances that fail."""
    health = replace(HEALTHY, recon=recon(1.0, 0.99, zero=1.0), sites=sites(0.0, 0, 0, 0.8))
    assert names(health) == ["unfaithful sum"]


def test_dense_layers_are_not_too_dense_and_have_both_signs() -> None:
    dense = SiteHealth("hidden_layers.0", 2, 1.9, 2, 2, 1e-4, 2, True)
    assert names(replace(HEALTHY, sites=[*HEALTHY.sites, dense])) == []


@pytest.mark.parametrize(("number", "named"), [(40, False), (60, True)])
def test_signs_where_no_mechanism_is_known(number: int, named: bool) -> None:
    health = replace(HEALTHY, sites=[SiteHealth("h.0.mlp.c_fc", 200, 20.0, 100, number, 0.01)])
    assert ("polysemantic by sign" in names(health)) == named


@pytest.mark.parametrize(("alive", "named"), [(191, True), (189, False)])
def test_room_where_no_mechanism_is_known(alive: int, named: bool) -> None:
    health = replace(HEALTHY, sites=[SiteHealth("h.0.mlp.c_fc", 200, 20.0, alive, 0, 0.01)])
    assert ("C too small" in names(health)) == named


def test_deltas_that_began_large_are_no_explosion() -> None:
    health = replace(HEALTHY, sites=sites(0.19, 5, 0, 1.1))
    assert names(health, replace(SETTLED, deltas=[1.2, 1.1])) == ["unfaithful sum"]


def test_what_anneals_still_is_not_settled() -> None:
    early = Course(5000, 10_000, annealed={"p of ImportanceMinimalityLoss": (1.0, 0.4)})
    (found,) = diagnose(HEALTHY, early)
    assert found.name == "under-trained" and "at 1 on its way to 0.4" in found.sentence


@pytest.mark.parametrize("change", [-0.5, -0.09])
def test_a_slope_within_its_noise_is_none(change: float) -> None:
    assert names(HEALTHY, replace(SETTLED, l0=Trend(change, 0.6 * abs(change), 0, 1))) == []


CONSTANT, COSINE = Schedule(0.01), Schedule(0.01, fn_type="cosine", final_val_frac=0.0)


def test_progress_is_the_summed_learning_rate() -> None:
    steps = [0, 250, 500, 1000]
    assert progress(steps, CONSTANT, 1000) == pytest.approx([0, 0.25, 0.5, 1], abs=2e-3)
    # ∫ (1 + cos πu) / 2 up to a half, over the whole: 1/2 + 1/π.
    assert progress(steps, COSINE, 1000)[2] == pytest.approx(0.5 + 0.31831, abs=2e-3)


def test_a_trend_is_the_change_over_the_last_tenth() -> None:
    steps = list(range(0, 1001, 10))
    found = trend(steps, [100 - 0.05 * t for t in steps], CONSTANT, 1000)
    assert found is not None and found.first == 900 and found.last == 1000
    assert found.change == pytest.approx(-5 / 52.5, rel=1e-3) and found.error < 1e-9 and found.significant


def test_the_last_point_alone_is_no_trend() -> None:
    steps = list(range(0, 1001, 10))
    found = trend(steps, [1.0] * 100 + [0.7], CONSTANT, 1000)
    assert found is not None and not (found.significant and found.change < BARS.l0_falls)


def test_too_few_points_have_no_trend() -> None:
    assert trend([0, 10, 20, 30], [4.0, 3.0, 2.0, 1.0], CONSTANT, 30) is None
    assert trend([], [], CONSTANT, 30) is None


def test_deltas_that_nothing_holds_are_no_explosion() -> None:
    health, untrained = replace(HEALTHY, sites=sites(0.19, 5, 0, 2.9)), replace(SETTLED, deltas=[0.1, 2.9])
    assert names(health, untrained) == ["exploding deltas"]
    (found,) = diagnose(health, replace(untrained, faithful=False))
    assert found.name == "unfaithful sum" and "Add FaithfulnessLoss" in found.knob
    lost = replace(HEALTHY, sites=sites(0.19, 5, 0, 3.1))
    assert names(lost, replace(untrained, deltas=[0.1, 3.1], faithful=False)) == ["exploding deltas"]
