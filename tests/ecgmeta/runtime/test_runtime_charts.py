"""Charts whose legends are long."""

from __future__ import annotations

import warnings

import pytest
from matplotlib.figure import Figure

from ecgmeta.runtime.page.charts import Curve, Histogram, histogram_figure, line_figure
from ecgmeta.runtime.page.figures import svg


def _figure(kind: str, names: list[str]) -> Figure:
    if kind == "line":
        return line_figure(Curve("title", "x", "y", {name: ([0, 1], [0, k]) for k, name in enumerate(names)}))
    return histogram_figure(
        Histogram("title", "x", [0, 1, 2], {name: [1, k] for k, name in enumerate(names)})
    )


@pytest.mark.parametrize("kind", ["line", "histogram"])
@pytest.mark.parametrize(("length", "count"), [(4, 16), (17, 7), (32, 7), (45, 4)])
def test_a_long_legend_leaves_the_axes_their_place(kind: str, length: int, count: int) -> None:
    names = [f"{k} {'regulation of mitotic metaphase plate congression'}"[:length] for k in range(count)]
    figure = _figure(kind, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "axes sizes collapsed to zero"
        svg(figure)
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().width < figure.bbox.width
    assert axes.get_window_extent().height > 0.3 * figure.bbox.height
    assert axes.get_window_extent().width > 0.7 * figure.bbox.width
