"""The chart of AUROC against label counts: what is drawn is what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from ecgmeta.report import Estimate, ReportContent, ResultRow, ResultsTable, render
from ecgmeta.report.curves import sweep_figure
from ecgmeta.runtime.page.figures import svg

FULL = {
    "meta": [(100, Estimate(0.7, 0.65, 0.74)), (500, Estimate(0.8, 0.78, 0.83))],
    "none": [(100, Estimate(0.6, 0.5, 0.7)), (500, Estimate(math.nan))],
}
LINEAR = {"none": [(100, Estimate(0.5, 0.4, 0.6)), (500, Estimate(0.55, 0.5, 0.6))]}


@pytest.fixture(scope="module")
def panels() -> list[Axes]:
    figure = sweep_figure({"Full": FULL, "Linear": LINEAR}, ["meta", "none"], "AUROC")
    assert "meta" in svg(figure)
    return figure.axes


def test_lines_and_bands_are_the_estimates_and_their_intervals(panels: list[Axes]) -> None:
    line, other = panels[0].lines[:2]
    np.testing.assert_allclose(np.asarray(line.get_xydata()), np.array([[100, 0.7], [500, 0.8]]))
    np.testing.assert_allclose(np.asarray(other.get_ydata(), dtype=float), np.array([0.6, math.nan]))
    band = next(c for c in panels[0].collections if isinstance(c, PolyCollection))
    corners = band.get_paths()[0].vertices
    assert {(100, 0.65), (100, 0.74), (500, 0.78), (500, 0.83)} <= {(x, y) for x, y in np.asarray(corners)}


def test_one_point_alone_has_its_interval_too() -> None:
    (axes,) = sweep_figure({"Full": {"meta": [(100, Estimate(0.7, 0.6, 0.8))]}}, ["meta"], "AUROC").axes
    (bar,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    np.testing.assert_allclose(np.asarray(bar.get_segments()[0]), [[100, 0.6], [100, 0.8]])


def test_axes_name_the_label_counts_and_an_arm_keeps_its_colour(panels: list[Axes]) -> None:
    for axes in panels:
        assert axes.get_xscale() == "log"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "500"]
    assert panels[0].lines[1].get_color() == panels[1].lines[0].get_color()
    assert panels[0].lines[0].get_color() != panels[0].lines[1].get_color()
    assert panels[0].get_ylim() == panels[1].get_ylim()


def _page(*labels: int) -> str:
    rows = [ResultRow("<meta>", "full", n, 1, Estimate(0.7, 0.6, 0.8)) for n in labels]
    return render(ReportContent("t", results=ResultsTable(rows, notes=["saw <20>"])))


def test_the_page_shows_it_where_there_is_something_to_compare() -> None:
    assert "AUROC against labelled recordings" in _page(100, 500)
    assert "AUROC against labelled recordings" not in _page(100)
    assert "saw &lt;20&gt;" in _page(100)
    assert "<meta>" not in _page(100, 500)
