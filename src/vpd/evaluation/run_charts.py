"""The charts of a run's report: losses, sparsity, cross-entropy over training, and the alive spectrum."""

from collections.abc import Mapping, Sequence

import numpy as np

from vpd.evaluation.charts import Chart, Choice, Line, Values, drawable, is_wide
from vpd.evaluation.spectrum import Spectrum

STEP = "training step"
CAPTIONS = {
    "losses": "Good: faithfulness and reconstruction end low, and importance minimality has settled.",
    "l0": "Good: falls from C to about the mean number of active mechanisms, and stays there.",
    "cross-entropy": "Good: all but the random, shuffled and zero masks come down to the line of the target.",
    "spectrum": "Good: a cliff between alive and dead subcomponents, with as many alive as there are mechanisms.",
}


def loss_chart(steps: Values, losses: Mapping[str, Values]) -> Chart | None:
    """Training loss by term, the total first; None where no value is above 0."""
    ordered = {name: losses[name] for name in sorted(losses, key=lambda name: name != "total")}
    lines = drawable(ordered, steps, positive=True)
    absent = ", ".join(name for name in ordered if name not in {line.name for line in lines})
    note = f" Nothing to draw for {absent}." if absent else ""
    return _one("losses", "Training loss by term", "loss", lines, log=True, note=note)


def l0_chart(steps: Values, l0: Mapping[str, Values]) -> Chart | None:
    """Important subcomponents a position over training, by site or group; None where there is nothing."""
    lines = drawable(l0, steps)
    return _one("l0", "Subcomponents in use per position (L0)", "subcomponents", lines, log=is_wide(lines))


def cross_entropy_chart(steps: Values, ce: Mapping[str, Values]) -> Chart | None:
    """Cross-entropy by masking over training; None where there is nothing."""
    lines = drawable(ce, steps)
    return _one("cross-entropy", "Cross-entropy under each masking", "nats a token", lines, log=is_wide(lines))


def _one(name: str, title: str, y: str, lines: Sequence[Line], log: bool, note: str = "") -> Chart | None:
    if not lines:
        return None
    return Chart(f"chart-{name}", title, CAPTIONS[name] + note, STEP, y, [Choice(name, lines, log)])


def spectrum_chart(spectrum: Spectrum) -> Chart:
    """Mean importance by rank, a matrix at a time; zeros lie below a logarithmic scale and are not drawn."""
    choices = [
        Choice(
            f"{site}: {ranked.alive:,} of {ranked.C:,} alive",
            [Line(site, np.array(ranked.ranks, float), np.array(ranked.values))],
            log=True,
            marks={f"alive above {spectrum.cut:g}": spectrum.cut},
        )
        for site, ranked in spectrum.sites.items()
    ]
    title = "Mean causal importance per subcomponent"
    return Chart("chart-spectrum", title, CAPTIONS["spectrum"], "rank", "mean lower CI", choices, choose="Matrix")
