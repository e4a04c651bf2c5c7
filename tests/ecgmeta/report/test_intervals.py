"""What is measured on a recording, against simulated truth, closed forms and the cardiologists of LUDB."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecgmeta.data import LUDB, SyntheticCohort
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.synthetic import Nuisances, Rhythm
from ecgmeta.report.intervals import QUANTITIES, STEADY_P, Measures, measure, read_levels, shift, sound

pytestmark = pytest.mark.slow  # measures simulated recordings, seconds each

FS = 250.0
ERROR = {quantity.key: quantity for quantity in QUANTITIES}
Signals = np.ndarray


@pytest.fixture(scope="module")
def hearts() -> SyntheticCohort:
    """Twelve clean hearts in sinus rhythm, without illness: 10 s at 250 Hz."""
    rhythm = Rhythm(fibrillation=0.0, ectopy=0.0)
    return SyntheticCohort(12, fs=FS, seed=5, severity=0.0, nuisances=Nuisances.none(), rhythm=rhythm)


@pytest.fixture(scope="module")
def originals(hearts: SyntheticCohort) -> list[Measures]:
    return measured(hearts.signals)


def measured(signals: Signals, fs: float = FS) -> list[Measures]:
    return [measure(x, fs, STANDARD_LEADS) for x in signals]


def column(rows: list[Measures], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows])


def test_the_rate_is_the_one_that_was_simulated(hearts: SyntheticCohort, originals: list[Measures]) -> None:
    np.testing.assert_allclose(column(originals, "heart_rate"), hearts.meta["heart_rate"], rtol=0.005)


def test_healthy_hearts_have_healthy_intervals(originals: list[Measures]) -> None:
    for key, low, high in (("pr", 110, 220), ("qrs", 80, 130), ("qt", 310, 460), ("axis", -60, 110)):
        values = column(originals, key)
        assert np.isfinite(values).all(), key
        assert low < np.median(values) < high, (key, values)
    qt, rate = column(originals, "qt"), column(originals, "heart_rate")
    np.testing.assert_allclose(column(originals, "qtc"), qt / np.cbrt(60 / rate))
    assert (column(originals, "p_scatter") <= STEADY_P).all()


def test_the_same_recording_measured_twice_does_not_shift(
    hearts: SyntheticCohort, originals: list[Measures]
) -> None:
    again = measured(hearts.signals[:2])
    for first, second in zip(originals, again, strict=False):
        assert set(shift(first, second).values()) == {0.0}


def test_time_stretched_by_a_tenth_is_found_as_that(
    originals: list[Measures], hearts: SyntheticCohort
) -> None:
    """The same samples, said to be further apart: every interval is 1.1 times as long, exactly."""
    slower = measured(hearts.signals, FS / 1.1)
    for key, factor, exact in (("heart_rate", 1 / 1.1, 0.002), ("pr", 1.1, 0.02), ("qt", 1.1, 0.02)):
        ratio = column(slower, key) / column(originals, key)
        assert np.median(ratio) == pytest.approx(factor, abs=exact), key
    assert np.median(column(slower, "qtc") / column(originals, "qtc")) == pytest.approx(
        1.1 ** (2 / 3), abs=0.02
    )
    # Activity is smoothed over a fixed time, so a QRS complex grows by a little less.
    assert 1.05 < np.median(column(slower, "qrs") / column(originals, "qrs")) < 1.11


def test_doubled_amplitude_doubles_st_and_nothing_else(
    hearts: SyntheticCohort, originals: list[Measures]
) -> None:
    for before, after in zip(originals[:4], measured(2 * hearts.signals[:4]), strict=True):
        for key, value in before.items():
            assert after[key] == pytest.approx(
                (2 if key.startswith("st_") else 1) * value, rel=0.01, abs=1e-3
            ), key


@pytest.mark.parametrize("degrees", [40.0, -75.0, 170.0])
def test_a_turned_heart_is_found_turned(
    hearts: SyntheticCohort, originals: list[Measures], degrees: float
) -> None:
    """The frontal plane rotated: I + i·2/√3·aVF times exp(iθ)."""
    x = hearts.signals[:4].astype(np.float64)
    plane = (x[:, 0] + 2j / math.sqrt(3) * x[:, 5]) * np.exp(1j * np.radians(degrees))
    one, foot = plane.real, plane.imag * math.sqrt(3) / 2
    two = foot + one / 2
    x[:, :6] = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, foot], axis=1)
    turned = measured(x)
    moved = np.array([shift(a, b)["axis"] for a, b in zip(originals, turned, strict=False)])
    np.testing.assert_allclose(moved, degrees, atol=4)


def test_levels_in_closed_form() -> None:
    """Boxes as complexes: area and ST are what was drawn, whatever the baseline."""
    x = np.full((12, 2000), 0.3)
    onsets = np.array([200, 700, 1200])
    for start in onsets:
        x[0, start : start + 40] += 1.0
        x[5, start : start + 40] += math.sqrt(3) / 2
        x[10, start + 40 : start + 200] += 0.12
    found = read_levels(x, 500.0, STANDARD_LEADS, onsets, onsets + 40)
    assert found["axis"] == pytest.approx(45.0, abs=0.5)
    assert found["st_V5"] == pytest.approx(0.12, abs=0.01)
    assert found["st_V4"] == pytest.approx(0.0, abs=1e-9)
    some = read_levels(x[[10, 0]], 500.0, ("V5", "I"), onsets, onsets + 40)
    assert "axis" not in some
    assert some["st_V5"] == found["st_V5"]


def test_the_axis_goes_the_shorter_way_round() -> None:
    empty = dict.fromkeys([*ERROR, "p_scatter"], 0.0)
    assert shift(empty | {"axis": 170.0}, empty | {"axis": -170.0})["axis"] == pytest.approx(20)
    assert shift(empty | {"axis": -170.0}, empty | {"axis": 170.0})["axis"] == pytest.approx(-20)


def test_no_pr_where_no_p_keeps_its_place() -> None:
    steady = {"pr": 160.0, "p_scatter": 3.0}
    assert sound(steady) == steady
    assert math.isnan(sound({"pr": 160.0, "p_scatter": 40.0})["pr"])
    assert math.isnan(sound({"pr": 160.0, "p_scatter": math.nan})["pr"])


@pytest.mark.parametrize("signal", [np.zeros((12, 2500)), np.zeros((12, 100)), np.ones((12, 2500))])
def test_what_cannot_be_read_is_nan(signal: Signals) -> None:
    values = measure(signal, FS, STANDARD_LEADS)
    assert set(values) == {*ERROR, "p_scatter"}
    assert all(math.isnan(value) for value in values.values())


def test_a_lead_that_is_flat_or_broken_is_not_used(
    hearts: SyntheticCohort, originals: list[Measures]
) -> None:
    x = hearts.signals[0].copy()
    x[8], x[9, 100] = 0.0, np.nan
    found = measure(x, FS, STANDARD_LEADS)
    assert math.isnan(found["st_V3"])
    assert math.isnan(found["st_V4"])
    for key, within in (("heart_rate", 0.5), ("pr", 15), ("qrs", 25), ("qt", 20), ("axis", 5)):
        assert found[key] == pytest.approx(originals[0][key], abs=within), key


def by_beat(waves: pd.DataFrame) -> dict[str, np.ndarray]:
    """The cardiologists' marks of all leads, beat by beat, s: the earliest tenth of QRS and P onsets, the latest tenth of QRS
    ends, the median T end; NaN where fewer than half of the leads have the wave."""
    of = {name: waves[waves["wave"] == name] for name in ("P", "QRS", "T")}
    fullest = of["QRS"]["lead"].value_counts().idxmax()
    peaks = of["QRS"]["peak"][of["QRS"]["lead"] == fullest].to_numpy()
    around = np.concatenate([[peaks[0] - 2], peaks, [peaks[-1] + 2]])
    rows = []
    for before, peak, after in zip(around, peaks, around[2:], strict=False):
        qrs = of["QRS"][(of["QRS"]["peak"] - peak).abs() < 0.12]
        p = of["P"][(of["P"]["peak"] < peak) & (of["P"]["peak"] > max(before + 0.15, peak - 0.4))]
        t = of["T"][(of["T"]["peak"] > peak) & (of["T"]["peak"] < min(after - 0.05, peak + 0.6))]
        p, t = p.groupby("lead").last(), t.groupby("lead").first()
        rows.append(
            (
                peak,
                qrs["onset"].quantile(0.1),
                qrs["offset"].quantile(0.9),
                p["onset"].quantile(0.1) if len(p) >= 6 else math.nan,
                t["offset"].median() if len(t) >= 6 else math.nan,
            )
        )
    return dict(zip(("peak", "onset", "end", "p", "t"), np.array(rows).T, strict=True))


def true_measures(data: LUDB, row: int) -> Measures:
    marks = by_beat(data.waves(data.meta["record"][row]))
    rr = float(np.diff(marks["peak"]).mean())
    onset, end = marks["onset"], marks["end"]

    def typical(seconds: np.ndarray, least: float) -> float:
        return 1000 * float(np.nanmedian(seconds)) if np.isfinite(seconds).mean() > least else math.nan

    qt = typical(marks["t"] - onset, 0.3)
    out = {"heart_rate": 60 / rr, "qrs": typical(end - onset, 0), "qt": qt, "qtc": qt / math.cbrt(rr)}
    out["pr"] = typical(onset - marks["p"], 0.5)
    signal = data.take([row])[0].astype(np.float64)
    return out | read_levels(signal, data.fs, data.leads, onset * data.fs, end * data.fs)


def test_measurements_are_as_exact_on_ludb_as_the_table_says(real_data: Path) -> None:
    """200 subjects, their cardiologists' marks: medians, middle 68 % and SD of the errors."""
    fine, coarse = LUDB(real_data / "ludb", fs=500), LUDB(real_data / "ludb", fs=100)
    errors: dict[str, list[float]] = {key: [] for key in ERROR}
    fewer = 0
    for row in range(len(fine)):
        found, truth = sound(measure(coarse.take([row])[0], 100, coarse.leads)), true_measures(fine, row)
        fewer += not math.isfinite(found["qrs"])
        moved = shift(dict.fromkeys(ERROR, math.nan) | truth, found)
        for key, value in moved.items():
            errors[key].append(value)
    assert fewer == 0
    for key, quantity in ERROR.items():
        there = np.array(errors[key])[np.isfinite(errors[key])]
        low, middle, high = np.percentile(there, [16, 50, 84])
        step = 0.002 if quantity.unit == "mV" else 0.1 * quantity.error + 0.1
        said = f"{key}: {len(there)} records, median {middle:.3f}, 68 % {(high - low) / 2:.3f}, SD {there.std():.3f}"
        print(said)
        assert len(there) >= 170, said
        assert abs(middle - quantity.bias) < step, said
        assert (high - low) / 2 < quantity.error + step, said
        assert there.std() < 1.1 * quantity.sd + step, said
