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


@pytest.mark.parametrize(("values", "scale"), [([20.0, 30.0], "linear"), ([0.0, 3.0, 3000.0], "log")])
def test_an_axis_of_values_has_numbers_on_it(values: list[float], scale: str) -> None:
    figure = line_figure(
        Curve("title", "step", "norm", {"meta": (range(1, len(values) + 1), values)}, log_y=True)
    )
    svg(figure)
    axes = figure.axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    shown = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert any(label.get_text() for label in shown)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
