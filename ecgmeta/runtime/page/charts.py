"""Charts of a page: intervals of every arm, lines over training, distributions before and after."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.figures import DASHES, FAINT, PALETTE, clean, legend_name, style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6  # inches: two charts beside each other on a page
CHANCE = 0.5  # AUROC of a coin
ROW = 0.27  # inches a row of the forest plot
NAME = 32  # characters of an arm that fit beside it
LEGEND_WIDTH = 64  # characters of a legend's line, with 5 a name for its stroke and margin
LEGEND_ROW = 0.17  # inches


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; ``nan`` where there is none.

    ``value`` usually lies between ``low`` and ``high``, but need not: a bootstrap may miss it.

    Raises:
        InputError: ``low > high``.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError("report", "interval", f"low {self.low} above high {self.high}", "low <= high")


@dataclass(frozen=True)
class Curve:
    """Lines over training: ``series[name] = (x, y)``; a non-finite y is a gap, and the caption says so."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False  # where the values span a power of ten
    caption: str = ""

    def __post_init__(self) -> None:
        for name, (x, y) in self.series.items():
            if len(x) != len(y):
                where = f"curve {self.title}"
                raise InputError(where, f"series {name}", f"{len(x)} x and {len(y)} y", "as many of each")


@dataclass(frozen=True)
class Histogram:
    """Binned distributions over shared bin edges, e.g. displacement in ms; ``series[name]`` holds counts per bin."""

    title: str
    x_label: str
    edges: Sequence[float]
    series: Mapping[str, Sequence[float]]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, counts in self.series.items():
            if len(counts) != len(self.edges) - 1:
                where = f"histogram {self.title}"
                raise InputError(
                    where, f"counts of {name}", len(counts), f"{len(self.edges) - 1} (one per bin)"
                )


def forest_figure(groups: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]], x_label: str) -> Figure:
    """One row an arm: its estimate (square) and 95 % interval (line), under the heading of its group.

    Args:
        groups: (heading, [(arm, estimate)]); rows that were not scored say so.
        x_label: what is estimated.
    """
    from matplotlib.figure import Figure

    lines = [line for heading, rows in groups for line in ((heading, None), *rows)]
    height = ROW * len(lines) + 0.75
    with style():
        figure = Figure(figsize=(2 * WIDTH, height))
        box = (0.24, 0.55 / height, 0.54, 1 - 0.65 / height)
        axes = figure.add_axes(box)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlim=_span([e for _, e in lines if e is not None]), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        low, high = axes.get_xlim()
        if low < CHANCE < high:
            axes.axvline(CHANCE, color=FAINT, ls="--", lw=1)
            x_label = f"{x_label}; dashed: chance"
        for y, (text, estimate) in enumerate(lines):
            _forest_row(axes, y, clean(text), estimate)
        axes.set_xlabel(clean(x_label))
    return figure


def _forest_row(axes: Axes, y: int, text: str, estimate: Estimate | None) -> None:
    across = axes.get_yaxis_transform()
    if estimate is None:
        axes.text(-0.42, y, text, transform=across, va="center", fontweight="bold")
        return
    # The table beside the picture has the whole name.
    axes.text(-0.40, y, text if len(text) <= NAME else text[: NAME - 1] + "…", transform=across, va="center")
    if math.isnan(estimate.value):
        axes.text(1.03, y, "not scored", transform=across, va="center", color="#5b6670")
        return
    axes.plot([estimate.low, estimate.high], [y, y], color=PALETTE[0], lw=2, solid_capstyle="butt")
    axes.plot([estimate.value], [y], "s", color=PALETTE[0], ms=6)
    axes.text(1.03, y, interval(estimate), transform=across, va="center")


def _span(estimates: Sequence[Estimate]) -> tuple[float, float]:
    ends = np.array([[e.value, e.low, e.high] for e in estimates]).ravel()
    ends = ends[np.isfinite(ends)]
    if not ends.size:
        return 0.0, 1.0
    pad = max(0.01, 0.05 * float(np.ptp(ends)))
    return float(ends.min()) - pad, float(ends.max()) + pad


def line_figure(curve: Curve) -> Figure:
    """Lines over training, told apart by colour and dash; gaps where a value is not finite."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with style():
        figure = Figure(figsize=(WIDTH, 2.9 + _legend_excess(curve.series)), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for k, (x, y) in enumerate(curve.series.values()):
            values = np.asarray(y, dtype=np.float64)
            values = np.where(np.isfinite(values) & ((values > 0) | (not curve.log_y)), values, np.nan)
            marker = "o" if np.isfinite(values).sum() == 1 else None  # a line through one point is invisible
            colour, dash = PALETTE[k % len(PALETTE)], DASHES[k % len(DASHES)]
            handles += axes.plot(
                np.asarray(x, dtype=np.float64), values, marker=marker, color=colour, ls=dash
            )
        if curve.log_y and _decades(curve) >= 1:  # within less, a logarithmic axis may have no number at all
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        if all(float(value).is_integer() for x, _ in curve.series.values() for value in x):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # steps have no halves
        axes.grid(axis="y")
        axes.set(xlabel=clean(curve.x_label), ylabel=clean(curve.y_label))
        _legend(axes, handles, list(curve.series))
    return figure


def _decades(curve: Curve) -> float:
    """Powers of ten between the smallest and the largest positive value."""
    values = [value for _, y in curve.series.values() for value in y if 0 < value < math.inf]
    return math.log10(max(values) / min(values)) if values else 0.0


def histogram_figure(histogram: Histogram) -> Figure:
    """Shares of each series over the same bins, as steps; the first one is filled."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDTH, 2.7 + _legend_excess(histogram.series)), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for k, counts in enumerate(histogram.series.values()):
            values = np.asarray(counts, dtype=np.float64)
            total = values.sum()
            shares = 100 * values / total if total > 0 else values
            colour, dash = PALETTE[k % len(PALETTE)], DASHES[k % len(DASHES)]
            if k == 0:
                axes.stairs(shares, histogram.edges, fill=True, color=colour, alpha=0.18)
            handles.append(axes.stairs(shares, histogram.edges, color=colour, ls=dash, lw=1.5))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set(xlabel=clean(histogram.x_label), ylabel="share (%)")
        axes.set_ylim(bottom=0)
        _legend(axes, handles, list(histogram.series))
    return figure


def _legend(axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    if len(names) < 2:
        return
    shown = [legend_name(name) for name in names]
    columns = _legend_columns(names)
    axes.legend(
        handles,
        shown,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        fontsize=8,
        borderaxespad=0.2,
    )


def _legend_columns(names: Collection[str]) -> int:
    """Most of 3 whose names fit the figure's width: a wider legend would leave the axes none."""
    longest = max(map(len, names), default=0)
    return min(3, max(1, LEGEND_WIDTH // (longest + 5)))


def _legend_excess(names: Collection[str]) -> float:
    """Inches that a figure needs for the lines of its legend beyond the first three."""
    lines = -(-len(names) // _legend_columns(names))
    return LEGEND_ROW * max(0, lines - 3)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """``0.842 (0.801–0.879)``; without an interval the number alone; "not scored" where there is none."""
    if math.isnan(estimate.value):
        return "not scored"
    text = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return text
    return f"{text} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def change(estimate: Estimate, digits: int = 3) -> str:
    """``+0.031 (−0.004 to +0.058)``: signs always shown, and no dash beside a minus."""

    def signed(value: float) -> str:
        return f"{value:+.{digits}f}".replace("-", "−")

    if math.isnan(estimate.value):
        return "not scored"
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return signed(estimate.value)
    return f"{signed(estimate.value)} ({signed(estimate.low)} to {signed(estimate.high)})"
