"""Figures have the panels, labels and legends a reader needs, whatever the size of the decomposition."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from vpd.evaluation import figures

EDGES = np.linspace(0, 1, 11)


def decomposition(n_sites: int = 2, n_features: int = 5, C: int = 20, seed: int = 0):
    """V and U, order, live and CI of solved sites whose live subcomponents are scattered."""
    rng = np.random.default_rng(seed)
    components, order, live, ci = {}, {}, {}, {}
    for i in range(n_sites):
        site = f"layers.{i}.mlp_in"
        chosen = rng.permutation(C)[:n_features]
        components[site] = (rng.normal(size=(n_features, C)), rng.normal(size=(C, 2)))
        live[site] = np.isin(np.arange(C), chosen)
        order[site] = np.concatenate([chosen, np.flatnonzero(~live[site])])
        ci[site] = np.zeros((n_features, C))
        ci[site][np.arange(n_features), chosen] = 1.0
    return components, order, live, ci


def all_figures(n_sites: int, n_features: int = 5, C: int = 20) -> dict[str, Figure]:
    components, order, live, ci = decomposition(n_sites, n_features, C)
    rng = np.random.default_rng(1)
    spectra = {site: np.where(alive, rng.uniform(0.01, 0.1, C), 0.0) for site, alive in live.items()}
    directions = {site: (rng.normal(size=(5, 2)), rng.normal(size=(4, 2))) for site in live}
    return {
        "uv_plot": figures.uv_plot(components, order, live),
        "direction_plot": figures.direction_plot(directions),
        "permuted_ci_plot": figures.permuted_ci_plot(ci, order),
        "ci_histogram": figures.ci_histogram({s: rng.integers(0, 9, 10) for s in live}, EDGES),
        "activation_density": figures.activation_density(spectra, 0.1),
        "ci_mean_spectrum": figures.ci_mean_spectrum(spectra),
    }


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_captions_name_every_figure():
    assert set(figures.CAPTIONS) == set(all_figures(1))
    assert all(words["title"] and words["caption"] for words in figures.CAPTIONS.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n_sites", "C"), [(1, 20), (3, 20), (13, 40)])
def test_figures_draw_with_labels_and_no_empty_panel(n_sites: int, C: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "PIXELS_PER_INCH", 50)  # the layout is what takes part here, not the sharpness
    for name, figure in all_figures(n_sites, C=C).items():
        assert figure.get_suptitle().startswith(figures.CAPTIONS[name]["title"][:20])
        for ax in panels(figure):
            assert ax.has_data()
            assert ax.get_xlabel() and ax.get_ylabel()
        assert imread(io.BytesIO(figures.png(figure))).shape[1] <= 450


@pytest.mark.parametrize("name", ["uv_plot", "permuted_ci_plot"])
def test_heat_maps_have_a_colour_bar_and_say_which_are_live(name: str):
    figure = all_figures(2)[name]
    assert [ax.get_label() for ax in figure.axes].count("<colorbar>") == 1
    assert any("live" in label for label in legend_labels(figure))


def test_uv_plot_puts_live_first_and_clips_the_dead():
    components, _, live, _ = decomposition(1, C=200)
    figure = figures.uv_plot(components, None, live)
    site, (v, _) = next(iter(components.items()))
    image = np.asarray(panels(figure)[0].images[0].get_array())
    assert image.shape == (5, 10)
    np.testing.assert_array_equal(image[:, :5], v[:, live[site]])
    assert "10 of 200" in panels(figure)[0].get_xlabel()


def test_uv_plot_colours_are_centred_and_shared():
    components, order, live, _ = decomposition(2)
    limits = {image.get_clim() for ax in panels(figures.uv_plot(components, order, live)) for image in ax.images}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high


def test_permuted_ci_is_a_diagonal_when_solved():
    *_, order, _, ci = decomposition(1)
    image = np.asarray(panels(figures.permuted_ci_plot(ci, order))[0].images[0].get_array())
    np.testing.assert_array_equal(image[:, :5], np.eye(5))


def test_a_vocabulary_shows_its_strongest_rows():
    v = np.zeros((1000, 3))
    v[777, 1] = 4.0
    figure = figures.uv_plot({"embed": (v, np.ones((3, 2)))})
    assert np.asarray(panels(figure)[0].images[0].get_array()).max() == 4.0
    assert "of 1000" in panels(figure)[0].get_ylabel()


@pytest.mark.parametrize("name", ["uv_plot", "ci_histogram", "ci_mean_spectrum"])
def test_more_sites_than_fit_are_named(name: str):
    assert "first 12 of 15 sites" in all_figures(15)[name].get_suptitle()


def test_direction_plot_numbers_features_and_stands_an_empty_decomposition():
    figure = figures.direction_plot({"linear1": (np.eye(2), np.zeros((0, 2)))})
    (ax,) = panels(figure)
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert "0 live" in ax.get_title()
    assert legend_labels(figure) == ["target feature (numbered)", "live subcomponent"]


def test_histogram_shows_a_single_count():
    figure = figures.ci_histogram({"linear1": np.array([0, 1, 100])}, np.linspace(0, 1, 4))
    (ax,) = panels(figure)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1


def test_density_counts_what_fires_and_stands_all_zero():
    figure = figures.activation_density({"a": np.array([0.05, 0.0]), "b": np.zeros(2)}, 0.1)
    assert [ax.get_title() for ax in panels(figure)] == ["a: 1 of 2 fire", "b: 0 of 2 fire"]


def test_spectrum_draws_the_cut_on_both_scales():
    figure = figures.ci_mean_spectrum({"a": np.array([0.05, 1e-7, 0.0])})
    log, linear = panels(figure)
    assert (log.get_yscale(), linear.get_yscale()) == ("log", "linear")
    assert "1 of 3 alive" in log.get_title()
    assert "cut at 1e-06" in legend_labels(figure)


@pytest.mark.parametrize("n_sites", [1, 5])
def test_heat_maps_stand_a_decomposition_without_live_subcomponents(n_sites: int):
    """Drawn as ever: a warning of the layout is an error here."""
    components, order, live, ci = decomposition(n_sites)
    dead = {site: np.zeros_like(alive) for site, alive in live.items()}
    for figure in (
        figures.uv_plot(components, order, dead),
        figures.permuted_ci_plot({site: 0 * x for site, x in ci.items()}, order),
    ):
        assert len(figures.png(figure)) > 1000
