"""The known ways in which a decomposition fails: each a check with a sentence, its evidence and the knob to turn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from vpd.evaluation.convergence import Trend
from vpd.evaluation.health import Health, SiteHealth

Evidence = dict[str, float | int | str]


@dataclass(frozen=True)
class Bars:
    """What the checks go by; each is a part of something that the run itself measures.

    Attributes:
        collapsed_kept: of what zero masks lose, the part that importances as masks must save.
        means_something: of what zero masks lose, the part that unmasked subcomponents must save to judge importances.
        dense: part of a run's subcomponents that may be important at a mean position.
        two_signed: part of the alive subcomponents that may be two-signed, where no mechanisms are known.
        l0_falls: change of L0 over the last tenth of the learning.
        recon_falls: the same of the reconstruction losses trained on.
        unfaithful: ``‖W − V U‖ / ‖W‖`` of a matrix.
        exploding: the same, of a matrix that is left over more than itself ...
        loose: in place of it where nothing trained on holds the sum to the weights, so that some of it always drifts.
        growth: ... and of the whole, how many times its least value.
        moved: way of persistent sources from where they began, in [0, 1].
        gain: loss with an adversary's sources over that with random ones.
        room: part of the subcomponents that may be alive.
    """

    collapsed_kept: float = 0.1
    means_something: float = 0.1
    dense: float = 0.3
    two_signed: float = 0.5
    l0_falls: float = -0.08
    recon_falls: float = -0.15
    unfaithful: float = 0.1
    exploding: float = 1.0
    loose: float = 3.0
    growth: float = 3.0
    moved: float = 0.02
    gain: float = 0.9
    room: float = 0.95


BARS = Bars()


@dataclass(frozen=True)
class Diagnosis:
    """A failure that was recognised.

    Attributes:
        name: of the failure, as docs/runs.md lists them.
        sentence: what is wrong.
        evidence: the numbers that say so.
        knob: what to change in the run file.
    """

    name: str
    sentence: str
    evidence: Evidence
    knob: str

    def as_record(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence} {self.knob}"


@dataclass(frozen=True)
class Course:
    """How a run came to where it is.

    Attributes:
        step: updates made.
        steps: that it is to make.
        l0: trend of L0 over the last part of the learning; None where there are too few evaluations.
        recon: the same of the reconstruction losses trained on, weighted by their coefficients.
        annealed: for each sparsity loss that anneals, (the value of p or γ now, the one it goes to).
        deltas: ``‖W − V U‖ / ‖W‖`` of all matrices together, by evaluation.
        minimality: key of the sparsity loss; the knob of several checks.
        faithful: whether FaithfulnessLoss is trained on, with a weight.
    """

    step: int
    steps: int
    l0: Trend | None = None
    recon: Trend | None = None
    annealed: Mapping[str, tuple[float, float]] | None = None
    deltas: Sequence[float] = ()
    minimality: str = "ImportanceMinimalityLoss"
    faithful: bool = True


def diagnose(health: Health, course: Course) -> list[Diagnosis]:
    """Every failure that the numbers show, the gravest first; none of a healthy run.

    Importances that are all 0 or all 1 say nothing of signs or of room, and where hardly anything is ablated there is
    nothing to attack: these are not judged then.
    """
    weights = _first(_exploding, _unfaithful, health=health, course=course)
    importances = _first(_collapsed, _dense, health=health, course=course)
    shapes = [] if weights or importances else _first(_no_room, _two_signed, health=health, course=course)
    attacked = not any(diagnosis.name == "too dense" for diagnosis in importances)
    adversary = _first(_dead_adversary, health=health, course=course) if attacked else []
    return [*weights, *importances, *shapes, *adversary, *_first(_under_trained, health=health, course=course)]


Check = Callable[[Health, Course], Diagnosis | None]


def _first(*checks: Check, health: Health, course: Course) -> list[Diagnosis]:
    """The first that applies: what follows it would follow from it."""
    found = (check(health, course) for check in checks)
    return next(([diagnosis] for diagnosis in found if diagnosis is not None), [])


def _exploding(health: Health, course: Course) -> Diagnosis | None:
    worst = max(health.sites, key=lambda site: _grave(site.delta))
    least = min(course.deltas, default=math.nan)
    now = course.deltas[-1] if course.deltas else math.nan
    finite, bar = math.isfinite(worst.delta), BARS.exploding if course.faithful else BARS.loose
    if finite and not (worst.delta > bar and now > BARS.growth * least):
        return None
    return Diagnosis(
        "exploding deltas",
        f"the weight delta of {worst.site} has {worst.delta:.3g} times the norm of its weights"
        + (f", and over all matrices it is {now / least:.3g} times what it was at its least." if least > 0 else "."),
        {"site": worst.site, "relative_delta": worst.delta, "now": now, "least": least},
        "Lower pd.components_optimizer.lr_schedule.start_val, or set its grad_clip_norm (0.01 is canonical).",
    )


def _grave(x: float) -> float:
    """For finding the largest: what is no number is the gravest."""
    return x if math.isfinite(x) else math.inf


def _unfaithful(health: Health, course: Course) -> Diagnosis | None:
    wrong = [site for site in health.sites if site.delta > BARS.unfaithful]
    if not wrong:
        return None
    worst = max(wrong, key=lambda site: site.delta)
    return Diagnosis(
        "unfaithful sum",
        f"in {len(wrong)} of {len(health.sites)} matrices the subcomponents don't add up to the weights: the delta of "
        f"{worst.site} has {worst.delta:.0%} of the norm of its weights, where {BARS.unfaithful:.0%} may be left.",
        {"matrices": len(wrong), "site": worst.site, "relative_delta": worst.delta},
        "Raise the coeff of FaithfulnessLoss, raise pd.faithfulness_warmup_steps, or train longer."
        if course.faithful
        else "Add FaithfulnessLoss to pd.loss_metrics, with a coeff: nothing else holds the sum to the weights.",
    )


def _collapsed(health: Health, course: Course) -> Diagnosis | None:
    recon = health.recon
    lost, saved = recon["zero"], recon["zero"] - recon["ci"]
    could_save = recon["zero"] - recon["unmasked"]
    if not (could_save > BARS.means_something * lost and saved < BARS.collapsed_kept * could_save):
        return None
    l0 = sum(site.l0 for site in health.sites)
    return Diagnosis(
        "collapsed importance",
        f"masks that are the importances lose as much as masks of 0 ({recon['ci']:.3g} and {lost:.3g}, where all "
        f"subcomponents unmasked lose {recon['unmasked']:.3g}): the {l0:.3g} that are important at a mean position do "
        "nothing of what the network does.",
        {"recon_ci": recon["ci"], "recon_zero": lost, "recon_unmasked": recon["unmasked"], "l0": l0},
        f"Lower the coeff of {course.minimality}, or start it from a larger p or γ; or train longer.",
    )


def _dense(health: Health, course: Course) -> Diagnosis | None:
    sites = [site for site in health.sites if not site.dense]
    C, l0 = sum(site.C for site in sites), sum(site.l0 for site in sites)
    if not sites or l0 <= BARS.dense * C:
        return None
    worst = max(sites, key=lambda site: site.l0 / site.C)
    return Diagnosis(
        "too dense",
        f"{l0:.3g} of {C} subcomponents are important at a mean position ({l0 / C:.0%}; in {worst.site} "
        f"{worst.l0:.3g} of {worst.C}): hardly anything is ablated anywhere.",
        {"l0": l0, "C": C, "site": worst.site, "site_l0": worst.l0, "site_C": worst.C},
        f"Raise the coeff of {course.minimality}, or anneal it to a smaller p or γ; or train longer.",
    )


def _two_signed(health: Health, course: Course) -> Diagnosis | None:
    sites = [site for site in health.sites if not site.dense]
    known = any(site.mechanisms is not None for site in sites)
    number, alive = sum(site.two_signed for site in sites), sum(site.alive for site in sites)
    if number == 0 or (not known and number <= BARS.two_signed * alive):
        return None
    worst = max(sites, key=lambda site: site.two_signed)
    return Diagnosis(
        "polysemantic by sign",
        f"{number} of {alive} alive subcomponents are important with both signs of their activation "
        f"({worst.two_signed} in {worst.site}): one of them carries two mechanisms that point opposite ways.",
        {"two_signed": number, "alive": alive, "site": worst.site, "site_two_signed": worst.two_signed},
        "Try another pd.seed or more C, start the adversary later (start_frac), or tie transposed sites "
        "(pd.tied_weights).",
    )


def _under_trained(health: Health, course: Course) -> Diagnosis | None:
    said: list[str] = []
    evidence: Evidence = {}
    for name, words, found, bar in (
        ("l0", "L0", course.l0, BARS.l0_falls),
        ("recon", "the reconstruction loss", course.recon, BARS.recon_falls),
    ):
        if found is not None and found.significant and found.change < bar:
            said.append(f"{words} still fell by {-found.change:.0%} from step {found.first} to {found.last}")
            evidence |= {f"{name}_change": found.change, f"{name}_error": found.error}
    if course.step < course.steps:
        for key, (now, final) in (course.annealed or {}).items():
            if not math.isclose(now, final, rel_tol=1e-3):
                said.append(f"{key} anneals still, at {now:.3g} on its way to {final:.3g}")
                evidence[f"{key}_now"], evidence[f"{key}_final"] = now, final
    if not said:
        return None
    return Diagnosis(
        "under-trained",
        f"after {course.step} of {course.steps} steps the run has not settled: {', and '.join(said)}.",
        evidence,
        "Raise pd.steps.",
    )


def _dead_adversary(health: Health, course: Course) -> Diagnosis | None:
    for key, one in health.adversaries.items():
        still = one.moved is not None and one.moved < BARS.moved
        gain = one.loss / one.random if one.random > 0 else math.nan
        if not still and not gain < BARS.gain:
            continue
        way = f"its sources are {one.moved:.2g} from where they began and reach" if still else "its sources reach"
        evidence: Evidence = {"term": key, "loss": one.loss, "random": one.random, "gain": gain}
        return Diagnosis(
            "dead adversary",
            f"{key} attacks nothing: {way} {one.loss:.3g}, where random ones reach {one.random:.3g}.",
            evidence | ({} if one.moved is None else {"moved": one.moved}),
            f"Raise the source learning rate of {key} (optimizer.lr_schedule.start_val, 0.01 is canonical), its "
            "n_warmup_steps, or a fresh adversary's step_size and n_steps.",
        )
    return None


def _no_room(health: Health, course: Course) -> Diagnosis | None:
    full = [site for site in health.sites if _is_full(site)]
    if not full:
        return None
    worst = max(full, key=lambda site: site.alive / site.C)
    needs = "" if worst.mechanisms is None else f" for {worst.mechanisms} mechanisms"
    return Diagnosis(
        "C too small",
        f"in {len(full)} of {len(health.sites)} matrices hardly a subcomponent is left over: {worst.alive} of the "
        f"{worst.C} of {worst.site} are alive{needs}, so that mechanisms may have to share one.",
        {"matrices": len(full), "site": worst.site, "alive": worst.alive, "C": worst.C},
        "Raise C of these sites in pd.decomposition_targets until a tenth of them stay dead.",
    )


def _is_full(site: SiteHealth) -> bool:
    """Whether there is no room; where the number of mechanisms is known, whether there are fewer than these."""
    if site.mechanisms is not None:
        return site.mechanisms > site.C
    return site.alive > BARS.room * site.C
