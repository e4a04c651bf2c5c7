"""Charts of a report: intervals of every arm, lines over training, distributions before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.report.content import Curve, Estimate, Histogram
from ecgmeta.report.figures import DASHES, FAINT, PALETTE, clean, legend_name, style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6  # inches: two charts beside each other on a page
CHANCE = 0.5  # AUROC of a coin
ROW = 0.27  # inches a row of the forest plot
NAME = 32  # characters of an arm that fit beside it


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


Points = Sequence[tuple[int, Estimate]]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def sweep_figure(panels: Mapping[str, Mapping[str, Points]], arms: Sequence[str], y_label: str) -> Figure:
    """A panel for each protocol: a line an arm against the number of labels (logarithmic), its 95 % interval as a band.

    Args:
        panels: heading -> arm -> [(labels, estimate)] by ascending labels; what was not scored is a gap.
        arms: every arm, so that each has one colour in all panels.
        y_label: what is estimated.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(2 * WIDTH, 3.3), layout="constrained")
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        handles: dict[str, Artist] = {}
        for axes, (heading, series) in zip(every, panels.items(), strict=True):
            for arm, points in series.items():
                handles[arm] = _sweep_line(axes, points, arms.index(arm))
            sizes = sorted({labels for points in series.values() for labels, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.set_xticks([], minor=True)
            axes.grid(axis="y")
            axes.set_title(clean(heading), fontsize=9, loc="left")
            axes.set_xlabel("labelled recordings")
        every[0].set_ylabel(clean(y_label))
        for axes in every:
            if axes.get_ylim()[0] < CHANCE < axes.get_ylim()[1]:
                axes.axhline(CHANCE, color=FAINT, ls="--", lw=1)
        names = [legend_name(arm) for arm in handles]
        figure.legend(list(handles.values()), names, loc="outside upper left", ncols=6, fontsize=8)
    return figure


def _sweep_line(axes: Axes, points: Points, place: int) -> Artist:
    x = np.array([labels for labels, _ in points], dtype=np.float64)
    y, low, high = (np.array([getattr(e, end) for _, e in points]) for end in ("value", "low", "high"))
    colour = PALETTE[place % len(PALETTE)]
    axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    (line,) = axes.plot(
        x, y, color=colour, ls=DASHES[place % len(DASHES)], marker=MARKERS[place % len(MARKERS)], ms=4
    )
    return line


def line_figure(curve: Curve) -> Figure:
    """Lines over training, told apart by colour and dash; gaps where a value is not finite."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with style():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
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
        if curve.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.grid(axis="y")
        axes.set(xlabel=clean(curve.x_label), ylabel=clean(curve.y_label))
        _legend(axes, handles, list(curve.series))
    return figure


def histogram_figure(histogram: Histogram) -> Figure:
    """Shares of each series over the same bins, as steps; the first one is filled."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
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
    axes.legend(
        handles, shown, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, fontsize=8, borderaxespad=0.2
    )


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
