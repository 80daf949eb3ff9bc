"""Charts of the pages: what is drawn of long lines, gaps, and names that would end a script."""

import json

import numpy as np
import pytest

from vpd.evaluation.charts import Chart, Choice, Line, charts_data, drawable, is_wide, thinned
from vpd.evaluation.run_charts import l0_chart, loss_chart, spectrum_chart
from vpd.evaluation.spectrum import MAX_RANKS, Spectrum, spectrum_record


def test_a_long_line_keeps_its_spikes_and_its_ends() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 100_000)
    values[77_777], values[31] = 50.0, 0.01
    values[:5] = np.nan
    at = thinned(values)
    assert len(at) <= 502 and {0, 99_999, 77_777, 31} <= set(at.tolist())
    assert (np.diff(at) > 0).all()


def test_short_lines_and_gaps_stay() -> None:
    assert thinned(np.ones(500)).tolist() == list(range(500))
    gap = np.concatenate([np.ones(5000), np.full(5000, np.nan), np.ones(5000)])
    assert np.isnan(gap[thinned(gap)]).sum() > 50


def test_data_can_not_end_the_script() -> None:
    name = "</script><script>alert(1)</script>"
    line = Line(name, np.array([0.0, 1.0]), np.array([1.23456789e-7, np.nan]))
    data = charts_data([Chart("a", name, "", "x", "y", [Choice(name, [line])])])
    assert "<" not in data
    (read,) = json.loads(data)["a"]["choices"][0]["lines"]
    assert read == {"name": name, "x": [0, 1], "y": [1.2346e-07, None]}


def test_only_what_can_be_drawn_is_there() -> None:
    steps = np.arange(3.0)
    series = {"total": np.array([1.0, 0.0, 1e-3]), "never": np.full(3, np.nan), "late": np.array([np.nan, np.inf, 2.0])}
    chart = loss_chart(steps, {"late": series["late"], **series})
    assert chart is not None and chart.choices[0].log
    assert [line.name for line in chart.choices[0].lines] == ["total", "late"]
    assert "Nothing to draw for never." in chart.caption
    np.testing.assert_array_equal(chart.choices[0].lines[0].y, [1.0, np.nan, 1e-3])
    assert loss_chart(steps, {"total": np.zeros(3)}) is None
    assert l0_chart(steps, {}) is None
    assert drawable({"zero": np.zeros(3)}, steps) and not is_wide(drawable({"zero": np.zeros(3)}, steps))


@pytest.mark.parametrize(("C", "alive"), [(20, 5), (4096, 100), (4096, 0), (4096, 4096)])
def test_a_spectrum_keeps_its_cut(C: int, alive: int) -> None:
    values = np.where(np.arange(C) < alive, np.geomspace(1, 1e-4, C), 0.0)
    shuffled = np.random.default_rng(0).permutation(values)
    spectrum = Spectrum.model_validate(spectrum_record({"a": shuffled}, 1e-6))
    ranked = spectrum.sites["a"]
    assert (ranked.C, ranked.alive) == (C, alive) and len(ranked.ranks) <= max(MAX_RANKS, 20)
    assert ranked.ranks[0] == 1 and ranked.ranks[-1] == C
    np.testing.assert_allclose(ranked.values, values[np.array(ranked.ranks) - 1], rtol=1e-3)
    assert {alive, alive + 1} & set(range(1, C + 1)) <= set(ranked.ranks)
    assert spectrum_chart(spectrum).choices[0].name == f"a: {alive:,} of {C:,} alive"
