"""Figures of a comparison show the run that differs, and stand any number of runs."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from vpd.evaluation import comparison_figures as drawn
from vpd.evaluation import figures


def matrix(n: int, odd: int | None = None, low: float = 0.7) -> np.ndarray:
    """Every pair at 0.999, those with the odd run lower."""
    m = np.full((n, n), 0.999)
    if odd is not None:
        m[odd] = m[:, odd] = low
    np.fill_diagonal(m, np.nan)
    return m


def curves(n: int, odd: int | None = None) -> dict[tuple[int, int], np.ndarray]:
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    return {pair: np.array([1.0, 0.9, 0.0]) if odd in pair else np.ones(3) for pair in pairs}


def all_figures(n: int, n_sites: int) -> dict[str, Figure]:
    labels = [f"a-rather-long-name-of-a-run={i}" for i in range(n)]
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(1, 2, n), rng.uniform(1e-4, 1e-2, n)], axis=1)
    sites = [f"layers.{i}.mlp_in" for i in range(n_sites)]
    front = np.arange(n) == 0
    return {
        "agreement": drawn.agreement({s: matrix(n, 1) for s in sites}, labels),
        "similarity_curves": drawn.similarity_curves({s: curves(n, 1) for s in sites}, labels),
        "pareto": drawn.pareto(points, front, labels, "L0", "recon"),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n", "n_sites"), [(2, 1), (6, 3), (30, 2), (3, 14)])
def test_figures_draw_with_labels(n: int, n_sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PIXELS_PER_INCH", 50)
    every = all_figures(n, n_sites)
    assert set(every) == set(drawn.CAPTIONS)
    for name, figure in every.items():
        assert figure.get_suptitle().startswith(drawn.CAPTIONS[name]["title"][:20])
        for ax in figure.axes:
            assert ax.get_label() == "<colorbar>" or (ax.has_data() and ax.get_xlabel() and ax.get_ylabel())
        assert imread(io.BytesIO(figures.png(figure))).shape[1] <= 450


def brightness(figure: Figure) -> np.ndarray:
    """Of every cell of the first heat map as it is drawn, row by row; the empty diagonal NaN."""
    image = figure.axes[0].images[0]
    values = image.get_array()
    assert values is not None
    colours = image.to_rgba(values)[..., :3].mean(axis=-1)
    return np.where(np.ma.getmaskarray(values), np.nan, colours)


@pytest.mark.parametrize("low", [0.95, 0.7, 0.0, -0.3])
def test_a_run_that_differs_is_a_dark_row_and_column(low: float) -> None:
    n, odd = 6, 4
    cells = brightness(drawn.agreement({"linear1": matrix(n, odd, low)}, list("abcdef")))
    others = [i for i in range(n) if i != odd]
    ordinary = cells[np.ix_(others, others)]
    assert np.nanmax(cells[odd]) < np.nanmin(ordinary) - 0.1
    assert np.nanmax(cells[:, odd]) < np.nanmin(ordinary) - 0.1


def test_training_noise_is_not_drawn_as_a_difference() -> None:
    cells = brightness(drawn.agreement({"linear1": matrix(3, 0, 0.991)}, list("abc")))
    assert np.nanmax(cells) - np.nanmin(cells) < 0.01


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.000"), (0.9999999, "1.000"), (0.9996, "0.999"), (0.5, "0.500"), (-0.25, "-0.250")]
)
def test_digits_round_down(value: float, text: str) -> None:
    assert drawn.digits(value) == text


def test_the_odd_run_stands_out_in_the_curves() -> None:
    figure = drawn.similarity_curves({"linear1": curves(4, 2)}, ["a", "b", "c", "d"])
    (ax,) = figure.axes
    highlighted = [line for line in ax.lines if line.get_color() == figures.VERMILLION]
    assert len(highlighted) == 3
    assert any("pairs with c" in text.get_text() for legend in figure.legends for text in legend.get_texts())


def test_of_two_runs_none_is_odd() -> None:
    (ax,) = drawn.similarity_curves({"linear1": curves(2, 1)}, ["a", "b"]).axes
    assert not [line for line in ax.lines if line.get_color() == figures.VERMILLION]


def test_every_point_is_named_and_the_front_marked() -> None:
    labels = ["a", "b", "c"]
    points = np.array([[1.0, 3.0], [1.0, 1.0], [2.0, 0.1]])
    (ax,) = drawn.pareto(points, np.array([False, True, True]), labels, "L0", "recon").axes
    assert {text.get_text() for text in ax.texts} == set(labels)
    marked = next(line for line in ax.lines if line.get_label() == "on the front")
    assert sorted(np.asarray(marked.get_xdata()).tolist()) == [1.0, 2.0]
