"""The picture of a pretraining run: losses over training, and the lines of counting."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpd.evaluation.figures import BLUE, GREY, ORANGE, STYLE, VERMILLION
from vpd.pretrain.report import Losses

_COLOURS = {"unigram": GREY, "bigram": VERMILLION}


@STYLE
def loss_figure(found: Losses, lines: Mapping[str, float]) -> Figure:
    """Training and validation loss in nats a token.

    Args:
        found: over training.
        lines: what is drawn across, by name.
    """
    figure = Figure(figsize=(9, 4.4))
    ax = figure.subplots()
    if len(found.train):
        ax.plot(found.train_steps, found.train, color=ORANGE, linewidth=1.0, label="training batch")
    if len(found.validation):
        ax.plot(found.eval_steps, found.validation, color=BLUE, linewidth=2.2, marker="o", markersize=4,
                label="validation")  # fmt: skip
    for name, value in lines.items():
        ax.axhline(value, color=_COLOURS.get(name, GREY), linestyle="--", linewidth=1.3, label=f"{name} {value:.3f}")
    ax.set(xlabel="training step (updates)", ylabel="cross-entropy (nats a token)")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.grid()
    figure.legend(loc="outside lower center", ncols=4)
    return figure
