"""12-lead ECGs on standard paper: 25 mm/s, 10 mm/mV, 1 mm and 5 mm lines, true to scale when printed at 100 %.

The whole sheet is one axes whose unit is the millimetre, so the scale holds by construction.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.figures import INK, MM_PER_INCH, PALETTE, clean, legend_name, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layout = Literal["3x4", "6x2", "12x1"]
Signal = NDArray[np.floating[Any]]

MM_PER_SECOND = 25.0
MM_PER_MV = 10.0
GRIDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "3x4": (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6")),
    "6x2": tuple(
        zip(("I", "II", "III", "aVR", "aVL", "aVF"), ("V1", "V2", "V3", "V4", "V5", "V6"), strict=True)
    ),
}
STANDARD = {name.lower(): name for row in GRIDS["6x2"] for name in row}
RHYTHM = "II"
USUAL_LENGTH = 10.0  # s shown unless told: what fits on a sheet
PULSE_ZONE = 15.0  # mm left of the traces, for the calibration pulse
DRAW_HZ = 250.0  # enough for 25 mm/s on paper: a step of 0.1 mm
MARGIN = 5.0  # mm around the paper
LEAST, MOST = (15.0, 10.0), 25.0  # mm a strip reaches above and below its baseline
TALLEST = 155.0  # mm of a 3x4 or 6x2 sheet: with its words, what A4 lying on its side holds
MINOR, MAJOR, PAPER = "#f7d3d6", "#eda9ae", "#fffafa"


@dataclass(frozen=True)
class _Strip:
    """Lead `name` (row `index` of the signals, None where it was not recorded) from `start` to `stop`, in s."""

    name: str
    index: int | None
    start: float
    stop: float


@dataclass(frozen=True)
class _Sheet:
    """The traces, what goes where, and how far (up, down), in mm, every row of strips reaches."""

    traces: tuple[Signal, ...]
    fs: float
    rows: list[list[_Strip]]
    reach: list[tuple[float, float]]
    shown: float

    @property
    def width(self) -> float:
        """mm, whole large squares."""
        return PULSE_ZONE + 5.0 * math.ceil(max(self.shown * MM_PER_SECOND, 60.0) / 5.0 - 1e-9)

    @property
    def height(self) -> float:
        return sum(up + down for up, down in self.reach)


def plot_ecg(
    signals: Signal,
    fs: float,
    leads: Sequence[str],
    *,
    overlay: Signal | None = None,
    title: str | None = None,
    duration: float | None = None,
    layout: Layout = "3x4",
    names: tuple[str, str] = ("original", "augmented"),
) -> Figure:
    """Draw one recording on ECG paper.

    ``"3x4"`` gives every lead a quarter of the time (2.5 s of 10 s), in the usual places, and a rhythm strip of
    lead II; ``"6x2"`` half of it; ``"12x1"`` the full length, one lead a row. A standard lead that was not
    recorded leaves its place empty and is named; recordings of three leads or fewer, or with other lead names,
    are drawn full length. A strip grows with its signal up to 2.5 mV either way; what lies beyond is drawn at the
    edge with a mark, and the line under the paper says which lead and how far it reaches.

    Args:
        signals: (leads, samples), mV; NaN is drawn as a gap and named under the paper.
        fs: samples per second.
        leads: one name a row, in any order, matched without regard to case.
        overlay: (leads, samples), mV: a second signal over the first, in another colour, with a legend.
        title: above the paper.
        duration: seconds shown, from the start; the whole recording up to 10 s if None.
        layout: see above.
        names: what the legend calls the signal and its overlay.

    Returns:
        A figure of its own (no pyplot state), sized in true millimetres.

    Raises:
        InputError: shapes, names, rate or duration that do not fit.
    """
    from matplotlib.figure import Figure

    sheet = _sheet(signals, fs, leads, overlay, duration, layout)
    lines = textwrap.wrap("  ·  ".join(_notes(sheet)), max(30, int(sheet.width / 1.45)))
    head = 10.0 if title or overlay is not None else MARGIN
    foot = MARGIN + 3.4 * len(lines)
    full = (sheet.width + 2 * MARGIN, sheet.height + head + foot)
    with style():
        figure = Figure(figsize=(full[0] / MM_PER_INCH, full[1] / MM_PER_INCH))
        box = (MARGIN / full[0], foot / full[1], sheet.width / full[0], sheet.height / full[1])
        axes = figure.add_axes(box, xlim=(0, sheet.width), ylim=(0, sheet.height))
        axes.set_axis_off()
        _draw_grid(axes, sheet)
        _draw_rows(axes, sheet)
        if title:
            top = 1 - (head - 3.2) / full[1]
            figure.text(box[0], top, clean(title), fontsize=10, fontweight="bold", va="bottom")
        if overlay is not None:
            _draw_legend(axes, sheet, names)
        text = "\n".join(lines)
        figure.text(
            box[0], (foot - 1.5) / full[1], text, fontsize=7, va="top", linespacing=1.3, color="#4a5561"
        )
    return figure


def paper_notes(
    signals: Signal,
    fs: float,
    leads: Sequence[str],
    *,
    overlay: Signal | None = None,
    duration: float | None = None,
    layout: Layout = "3x4",
) -> list[str]:
    """What `plot_ecg` writes under the paper: scale, rate, length, clipped leads, gaps, leads not recorded."""
    return _notes(_sheet(signals, fs, leads, overlay, duration, layout))


def thinned(signals: Signal, fs: float) -> tuple[Signal, float]:
    """The first 10 s at about `DRAW_HZ`, by means over a few samples, and that rate."""
    signals = signals[:, : round(USUAL_LENGTH * fs)]
    width = max(1, int(fs // DRAW_HZ))
    count = signals.shape[1] // width
    return signals[:, : count * width].reshape(len(signals), count, width).mean(axis=2), fs / width


def _sheet(
    signals: Signal,
    fs: float,
    leads: Sequence[str],
    overlay: Signal | None,
    duration: float | None,
    layout: str,
) -> _Sheet:
    names = [STANDARD.get(clean(lead).lower(), clean(lead)) for lead in leads]
    traces: tuple[Signal, ...] = (
        (np.asarray(signals),) if overlay is None else (np.asarray(signals), np.asarray(overlay))
    )
    _check(traces, fs, names, duration, layout)
    recorded = traces[0].shape[1] / fs
    shown = min(recorded, USUAL_LENGTH if duration is None else duration)
    rows = _plan(names, shown, layout)
    # Infinite values are gaps too, and nothing beyond the shown window may set a strip's height.
    traces = tuple(np.where(np.isfinite(trace), trace, np.nan) for trace in traces)
    needs = [_needs(row, traces, fs) for row in rows]
    reach = _reach(needs, TALLEST if len(rows[0]) > 1 else math.inf)
    return _Sheet(traces, fs, rows, reach, shown)


def _check(
    traces: tuple[Signal, ...], fs: float, names: list[str], duration: float | None, layout: str
) -> None:
    where, shape = "plot_ecg", traces[0].shape
    if len(shape) != 2 or shape[0] != len(names) or 0 in shape:
        raise InputError(where, "signals", f"shape {shape}", f"({len(names)} leads, samples), not empty")
    if len({name.lower() for name in names}) != len(names):
        raise InputError(where, "leads", ", ".join(names), "every lead once")
    if traces[-1].shape != shape:
        raise InputError(where, "overlay", f"shape {traces[-1].shape}", f"that of the signals, {shape}")
    if not (math.isfinite(fs) and fs > 0):
        raise InputError(where, "fs", fs, "a positive rate in Hz")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise InputError(where, "duration", duration, "a positive number of seconds")
    if layout not in (*GRIDS, "12x1"):
        raise InputError(where, "layout", repr(layout), "'3x4', '6x2' or '12x1'")


def _plan(names: list[str], shown: float, layout: str) -> list[list[_Strip]]:
    places = {name: index for index, name in enumerate(names)}
    odd = any(name.lower() not in STANDARD for name in names)
    if layout == "12x1" or odd or len(names) <= 3:
        return [[_Strip(name, index, 0.0, shown)] for name, index in places.items()]
    step = shown / len(GRIDS[layout][0])
    rows = [
        [_Strip(name, places.get(name), k * step, (k + 1) * step) for k, name in enumerate(row)]
        for row in GRIDS[layout]
    ]
    if layout == "3x4" and RHYTHM in places:
        rows.append([_Strip(RHYTHM, places[RHYTHM], 0.0, shown)])
    return rows


def _samples(strip: _Strip, fs: float, length: int) -> NDArray[np.int64]:
    """Indices of the samples of a strip, the one at its end included so that neighbours meet."""
    first, last = math.ceil(strip.start * fs - 1e-6), math.floor(strip.stop * fs + 1e-6)
    return np.arange(first, min(last + 1, length))


def _needs(row: list[_Strip], traces: tuple[Signal, ...], fs: float) -> list[float]:
    """mm that the traces of a row need above and below the baseline, in whole large squares."""
    high = low = 0.0
    for strip in row:
        for trace in traces if strip.index is not None else ():
            values = trace[strip.index, _samples(strip, fs, trace.shape[1])] * MM_PER_MV
            if np.isfinite(values).any():
                high, low = max(high, float(np.nanmax(values))), min(low, float(np.nanmin(values)))
    return [5.0 * math.ceil(min(mm, MOST) / 5.0 - 1e-9) for mm in (high, -low)]


def _reach(needs: list[list[float]], tallest: float) -> list[tuple[float, float]]:
    """mm above and below every baseline: the least, then a large square at a time where most is missing."""
    reach = [list(LEAST) for _ in needs]
    sides = [(row, side) for row in range(len(needs)) for side in (0, 1)]
    while sum(map(sum, reach)) + 5.0 <= tallest:
        row, side = max(sides, key=lambda s: needs[s[0]][s[1]] - reach[s[0]][s[1]])
        if needs[row][side] <= reach[row][side]:
            break
        reach[row][side] += 5.0
    return [(up, down) for up, down in reach]


def _notes(sheet: _Sheet) -> list[str]:
    recorded = sheet.traces[0].shape[1] / sheet.fs
    length = f"{recorded:.4g} s"
    if sheet.shown < recorded - 1e-9:
        length = f"first {sheet.shown:.4g} s of {length}"
    notes = [f"{MM_PER_SECOND:g} mm/s, {MM_PER_MV:g} mm/mV", f"{sheet.fs:.4g} Hz", length]
    clipped: dict[str, float] = {}
    gaps: dict[str, float] = {}
    strips = [(strip, band) for row, band in zip(sheet.rows, sheet.reach, strict=True) for strip in row]
    for strip, (up, down) in strips:
        for trace in sheet.traces if strip.index is not None else ():
            values = trace[strip.index, _samples(strip, sheet.fs, trace.shape[1])]
            beyond = values[(values * MM_PER_MV > up + 1e-6) | (values * MM_PER_MV < -down - 1e-6)]
            if beyond.size:
                worst = float(beyond[np.argmax(np.abs(beyond))])
                clipped[strip.name] = max(clipped.get(strip.name, 0.0), worst, key=abs)
            lost = int(np.isnan(values).sum()) / sheet.fs
            if lost:
                gaps[strip.name] = max(gaps.get(strip.name, 0.0), lost)
    lacking = {strip.name for strip, _ in strips if strip.index is None}
    missing = [lead for lead in STANDARD.values() if lead in lacking]
    if clipped:
        reached = ", ".join(f"{lead} {_signed(peak)} mV" for lead, peak in clipped.items())
        notes.append(f"CLIPPED at the edge of the strip, true peak: {reached}")
    if gaps:
        notes.append("gaps without signal: " + ", ".join(f"{k} {v:.2f} s" for k, v in gaps.items()))
    if missing:
        notes.append("not recorded: " + ", ".join(missing))
    return notes


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _draw_grid(axes: Axes, sheet: _Sheet) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    width, height = sheet.width, sheet.height
    axes.add_patch(Rectangle((0, 0), width, height, facecolor=PAPER, edgecolor="none", zorder=0))
    for step, colour, line in ((1.0, MINOR, 0.3), (5.0, MAJOR, 0.6)):
        across = [[(x, 0.0), (x, height)] for x in np.arange(0.0, width + step / 2, step)]
        down = [[(0.0, y), (width, y)] for y in np.arange(0.0, height + step / 2, step)]
        lines = LineCollection(across + down, colors=colour, linewidths=line, zorder=step / 5, clip_on=False)
        lines.set_gid(f"grid-{step:g}mm")
        axes.add_collection(lines, autolim=False)


def _draw_rows(axes: Axes, sheet: _Sheet) -> None:
    top = sheet.height
    colours = (INK,) if len(sheet.traces) == 1 else ("#111111", PALETTE[1])
    for row, (up, down) in zip(sheet.rows, sheet.reach, strict=True):
        zero = top - up
        axes.plot(
            [3, 5, 5, 10, 10, 12],
            [zero, zero, zero + 10, zero + 10, zero, zero],
            color=INK,
            lw=0.8,
            gid="pulse",
        )
        for number, strip in enumerate(row):
            left = PULSE_ZONE + strip.start * MM_PER_SECOND
            name = (
                strip.name if strip.index is not None else f"{strip.name} –"
            )  # said in full under the paper
            back = {"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.4}
            axes.text(left + 1, top - 1, name, fontsize=8, fontweight="bold", va="top", zorder=5, bbox=back)
            if number:
                axes.plot([left, left], [zero - 2.5, zero + 2.5], color=INK, lw=0.8, zorder=4)
            if strip.index is None:
                continue
            for trace, colour in zip(sheet.traces, colours, strict=True):
                _draw_trace(axes, strip, trace[strip.index], sheet.fs, (zero, up, down), colour)
        top -= up + down


def _draw_trace(
    axes: Axes, strip: _Strip, trace: Signal, fs: float, band: tuple[float, float, float], colour: str
) -> None:
    zero, up, down = band
    where = _samples(strip, fs, trace.size)
    x = PULSE_ZONE + where / fs * MM_PER_SECOND
    height = trace[where] * MM_PER_MV
    y = zero + np.clip(height, -down, up)
    axes.plot(x, y, color=colour, lw=0.75, zorder=3, solid_joinstyle="round", gid=f"lead-{strip.name}")
    for beyond, marker, edge in (
        (height > up + 1e-5, "^", zero + up - 1),
        (height < -down - 1e-5, "v", zero - down + 1),
    ):
        # One mark a run: a marker on every clipped sample would hide the trace.
        starts = np.flatnonzero(beyond & ~np.r_[False, beyond[:-1]])
        if starts.size:
            axes.plot(
                x[starts], np.full(starts.size, edge), marker, color=colour, ms=3, zorder=4, gid="clipped"
            )


def _draw_legend(axes: Axes, sheet: _Sheet, names: tuple[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, lw=1.5) for colour in ("#111111", PALETTE[1])]
    axes.legend(
        handles,
        [legend_name(name) for name in names],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        fontsize=8,
        borderaxespad=0.2,
        handlelength=1.6,
    )
