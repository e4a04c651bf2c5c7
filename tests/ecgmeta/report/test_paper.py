"""12-lead paper: its scale is measured from the drawing, not from the constants that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgmeta.report import plot_ecg
from ecgmeta.report.paper import Layout, paper_notes
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.figures import svg

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FS = 100.0


def flat(seconds: float = 10.0, leads: int = 12, fs: float = FS) -> NDArray[np.float32]:
    return np.zeros((leads, round(seconds * fs)), dtype=np.float32)


def traces(figure: Figure, gid: str) -> list[NDArray[np.float64]]:
    """The lines of that name, (points, 2), in mm from the lower left corner of the sheet of paper it is printed on."""
    inch = figure.dpi_scale_trans
    lines = [line for line in figure.axes[0].lines if line.get_gid() == gid]
    return [(line.get_transform() - inch).transform(line.get_xydata()) * 25.4 for line in lines]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


@pytest.mark.parametrize("layout", ["3x4", "6x2", "12x1"])
def test_a_second_is_25_mm_and_a_millivolt_10_mm(layout: Layout) -> None:
    signals = flat()
    signals[6, 600] = 1.0  # V1 at 6 s: inside its window in every layout
    (v1,) = traces(plot_ecg(signals, FS, LEADS, layout=layout), "lead-V1")
    assert np.ptp(v1[:, 1]) == pytest.approx(10.0, abs=1e-6)
    np.testing.assert_allclose(np.diff(v1[:, 0]), 0.25, atol=1e-6)  # a sample at 100 Hz
    # The last window ends with the recording's last sample, the others with the first one of their neighbour.
    assert len(v1) == {"3x4": 251, "6x2": 500, "12x1": 1000}[layout]


def test_pulse_is_5_mm_by_10_mm_on_every_row() -> None:
    pulses = traces(plot_ecg(flat(), FS, LEADS), "pulse")
    assert len(pulses) == 4
    for pulse in pulses:
        top = pulse[pulse[:, 1] > pulse[:, 1].max() - 1e-6]
        assert np.ptp(top[:, 0]) == pytest.approx(5.0, abs=1e-6)
        assert np.ptp(pulse[:, 1]) == pytest.approx(10.0, abs=1e-6)


@pytest.mark.parametrize("step", [1.0, 5.0])
def test_grid_lines_are_a_square_apart(step: float) -> None:
    figure = plot_ecg(flat(), FS, LEADS)
    grid = next(c for c in figure.axes[0].collections if c.get_gid() == f"grid-{step:g}mm")
    to_mm = figure.axes[0].transData - figure.dpi_scale_trans
    ends = [to_mm.transform(np.asarray(part)) * 25.4 for part in cast(LineCollection, grid).get_segments()]
    for axis in (0, 1):
        places = np.sort(
            [end[0, axis] for end in ends if end[0, axis] == pytest.approx(end[1, axis], abs=1e-6)]
        )
        assert places.size > 20
        np.testing.assert_allclose(np.diff(places), step, atol=1e-6)


def test_three_by_four_puts_time_and_leads_in_their_usual_places() -> None:
    signals = np.tile(np.arange(1000, dtype=np.float32) / 1000, (12, 1))  # the value tells the time
    figure = plot_ecg(signals, FS, LEADS)
    first, second, rhythm = (
        traces(figure, "lead-I")[0],
        traces(figure, "lead-aVR")[0],
        traces(figure, "lead-II")[1],
    )
    assert second[0] == pytest.approx(first[-1], abs=1e-6)  # neighbours meet
    assert np.ptp(first[:, 1]) == pytest.approx(2.5, abs=1e-6)
    assert np.ptp(rhythm[:, 0]) == pytest.approx(249.75, abs=1e-3)
    assert rhythm[:, 1].max() < traces(figure, "lead-III")[0][:, 1].min()


def test_names_are_matched_without_case_and_order() -> None:
    signals = flat()
    signals[0] = 0.5
    shuffled = ("AVF", "ii", "III", "AVR", "aVL", "i", "v1", "V2", "V3", "V4", "V5", "V6")
    figure = plot_ecg(signals, FS, shuffled)
    assert {"aVF", "II", "V1"} <= set(words(figure))
    zero, raised = traces(figure, "lead-III")[0], traces(figure, "lead-aVF")[0]
    assert raised[0, 1] - zero[0, 1] == pytest.approx(5.0, abs=1e-6)


def test_overlay_is_a_second_line_of_another_colour_with_a_legend() -> None:
    figure = plot_ecg(flat(), FS, LEADS, overlay=flat() + 0.3, names=("original", "_warped"))
    under, over = traces(figure, "lead-V5")
    assert over[0, 1] - under[0, 1] == pytest.approx(3.0, abs=1e-4)
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_gid() == "lead-V5"]
    assert colours[0] != colours[1]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().strip("\u200b") for text in legend.get_texts()] == ["original", "_warped"]


def test_clipping_stays_on_the_strip_and_is_said() -> None:
    signals = flat()
    signals[8, 600:610] = -7.25
    figure = plot_ecg(signals, FS, LEADS)
    assert any("CLIPPED" in text and "V3 −7.25 mV" in " ".join(text.split()) for text in words(figure))
    assert traces(figure, "lead-V3")[0][:, 1].min() >= traces(figure, "lead-II")[1][:, 1].max()
    assert len(traces(figure, "clipped")) == 1
    assert not any("CLIPPED" in note for note in paper_notes(flat() + 1.4, FS, LEADS))


@pytest.mark.parametrize("peak", [2.4, -2.4])
def test_a_tall_signal_gets_a_taller_strip_rather_than_being_cut(peak: float) -> None:
    signals = flat()
    signals[8, 600] = peak
    (v3,) = traces(plot_ecg(signals, FS, LEADS), "lead-V3")
    assert np.ptp(v3[:, 1]) == pytest.approx(24.0, abs=1e-4)


def test_a_sheet_of_tall_signals_still_fits_on_a4() -> None:
    figure = plot_ecg(flat() + 9.0, FS, LEADS, overlay=flat() - 9.0, title="tall")
    assert figure.get_figwidth() * 25.4 <= 297 - 16
    assert figure.get_figheight() * 25.4 <= 210 - 16


def test_gaps_break_the_line_and_are_said() -> None:
    signals = flat()
    signals[8, 600:640] = np.nan
    signals[9, 900] = np.inf
    figure = plot_ecg(signals, FS, LEADS)
    assert int(np.isnan(traces(figure, "lead-V3")[0][:, 1]).sum()) == 40
    notes = "; ".join(paper_notes(signals, FS, LEADS))
    assert "V3 0.40 s" in notes
    assert "V4 0.01 s" in notes


def test_missing_leads_are_named_and_single_leads_drawn_full_length() -> None:
    assert paper_notes(flat(leads=11), FS, LEADS[:-1])[-1] == "not recorded: V6"
    assert paper_notes(flat(leads=8), FS, LEADS[:8])[-1] == "not recorded: V3, V4, V5, V6"
    assert "V6 –" in words(plot_ecg(flat(leads=11), FS, LEADS[:-1]))
    (holter,) = traces(plot_ecg(flat(leads=1, fs=360), 360, ("MLII",)), "lead-MLII")
    assert np.ptp(holter[:, 0]) == pytest.approx(250 - 25 / 360, abs=1e-6)


def test_long_and_short_recordings() -> None:
    assert "first 10 s of 30 s" in paper_notes(flat(30), FS, LEADS)
    assert "first 5 s of 30 s" in paper_notes(flat(30), FS, LEADS, duration=5)
    assert "2.5 s" in paper_notes(flat(2.5), FS, LEADS)
    (lead,) = traces(plot_ecg(flat(2), FS, LEADS), "lead-V1")
    assert np.ptp(lead[:, 0]) == pytest.approx(12.5, abs=1e-6)


def test_same_recording_same_picture_and_no_mathematics_in_names() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(12, 1000))
    title = r"$\frac{<script>&"
    first, second = (svg(plot_ecg(signals, FS, LEADS, title=title)) for _ in range(2))
    assert first == second
    assert r"$\frac{&lt;script&gt;&amp;" in first


BAD: list[tuple[str, dict[str, Any]]] = [
    ("signals: found shape (12,)", {"signals": np.zeros(12)}),
    ("signals: found shape (1000, 12)", {"signals": np.zeros((1000, 12))}),
    ("overlay: found shape (12, 999)", {"overlay": np.zeros((12, 999))}),
    ("fs: found 0", {"fs": 0}),
    ("duration: found -1", {"duration": -1}),
    ("layout: found '4x3'", {"layout": "4x3"}),
    ("leads: found I, I", {"leads": ("I",) * 12}),
]


@pytest.mark.parametrize(("message", "change"), BAD)
def test_bad_input_says_what_is_wrong(message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"signals": flat(), "fs": FS, "leads": LEADS} | change
    with pytest.raises(InputError) as caught:
        plot_ecg(**arguments)
    assert message in str(caught.value)


def test_real_recording(real_data: Path) -> None:
    import wfdb

    record = wfdb.rdrecord(str(real_data / "ptbxl_fixture/records100/00000/00001_lr"))
    signals = record.p_signal.T
    figure = plot_ecg(signals, record.fs, record.sig_name)
    rhythm = traces(figure, "lead-II")[1]
    lead = signals[[name.upper() for name in record.sig_name].index("II")]
    assert np.ptp(rhythm[:, 1]) == pytest.approx(10 * np.ptp(lead), rel=1e-5)
    assert paper_notes(signals, record.fs, record.sig_name) == ["25 mm/s, 10 mm/mV", "100 Hz", "10 s"]
