"""The chart of a label sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.runtime.page.charts import CHANCE, WIDTH, Estimate
from ecgmeta.runtime.page.figures import DASHES, FAINT, PALETTE, clean, legend_name, style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    if len(points) == 1:  # a band of one point has no width
        axes.vlines(x, low, high, color=colour, alpha=0.4, lw=1)
    (line,) = axes.plot(
        x, y, color=colour, ls=DASHES[place % len(DASHES)], marker=MARKERS[place % len(MARKERS)], ms=4
    )
    return line
