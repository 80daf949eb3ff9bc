"""Where in a sequence the subcomponents of an induction transformer are important, and which belong to induction."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vpd.evaluation.figures import GREY, STYLE, VERMILLION, caption, shown_sites, titled

CAPTIONS = {
    "induction_plot": caption(
        "What repeated tokens need",
        "few subcomponents stand out on repeated tokens, in the second layer; without them induction is gone.",
    ),
}


@STYLE
def induction_plot(
    l0: Mapping[str, Float[np.ndarray, " _T"]], contrast: Mapping[str, Float[np.ndarray, " _C"]], threshold: float
) -> Figure:
    """A heat map of important subcomponents by site and position, and beside it every subcomponent's contrast.

    Args:
        l0: mean number of important subcomponents by position, per site.
        contrast: mean CI at induction positions less that elsewhere, per site.
        threshold: from which contrast on a subcomponent is taken to belong to induction.
    """
    sites = shown_sites(l0)
    figure = Figure(figsize=(9, 0.35 * len(sites) + 2.2))
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.stack([l0[site] for site in sites])
    image = left.imshow(rows, aspect="auto", cmap="viridis", vmin=0.0, interpolation="nearest")
    left.set_yticks(range(len(sites)), sites)
    left.set_xlabel("position in the sequence")
    left.set_title("important subcomponents")
    figure.colorbar(image, ax=left, label="mean number a position")
    for row, site in enumerate(sites):
        values = contrast[site]
        taken = values >= threshold
        for where, colour, size in ((~taken, GREY, 14), (taken, VERMILLION, 26)):
            right.scatter(values[where], np.full(where.sum(), row), s=size, color=colour, alpha=0.8, linewidths=0)
    right.axvline(threshold, color=VERMILLION, linewidth=1, linestyle="--")
    right.annotate(
        "induction →", (threshold, 1.0), (4, -12), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=VERMILLION,
    )  # fmt: skip
    right.set_xlabel("mean CI on repeated tokens − elsewhere")
    right.set_title("contrast of each subcomponent")
    right.grid(axis="x")
    return titled(figure, CAPTIONS["induction_plot"]["title"], sites, l0)
