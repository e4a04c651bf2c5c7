"""Windows: rates, lengths, gaps, bad leads."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgmeta.data import ArrayDataset
from ecgmeta.data.leads import STANDARD_LEADS, canonical, limb_errors
from ecgmeta.data.load import preprocessed
from ecgmeta.data.preprocess import Preprocess, Window, fill_gaps
from ecgmeta.data.records import Record, millivolts
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.resampling import resample


def sines(fs: float, seconds: float, offset: float = 0.0) -> Record:
    """Twelve leads of sines at 1 to 12 Hz, 1 mV, on an offset."""
    t = np.arange(round(fs * seconds)) / fs
    x = np.sin(2 * np.pi * np.arange(1, 13)[:, None] * t) + offset
    return Record("r", x.astype(np.float32), fs, STANDARD_LEADS)


def windows(how: Preprocess, record: Record) -> list[Window]:
    found = list(how.apply(record))
    assert all(isinstance(window, Window) for window in found)
    return [window for window in found if isinstance(window, Window)]


def refusal(how: Preprocess, record: Record) -> str:
    found = next(iter(how.apply(record)))
    assert isinstance(found, InputError)
    return str(found)


@pytest.mark.parametrize("fs", [100, 250, 257, 360, 400, 500, 1000])
def test_resampling_keeps_a_sine_and_makes_no_transient_at_an_offset(fs: float) -> None:
    (window,) = windows(Preprocess(fs=100), sines(fs, 10.0, offset=3.0))
    expected = sines(100, 10.0, offset=3.0).signal
    assert window.signal.shape == (12, 1000)
    assert window.valid == 1000
    # A wrong rate by 0.1 % would be off by 0.7 mV at the end of the 12 Hz lead; edges see a sine cut off.
    np.testing.assert_allclose(window.signal[:, 30:-30], expected[:, 30:-30], atol=0.02)
    assert np.abs(window.signal - expected).max() < 0.35


def test_a_constant_slope_is_resampled_exactly() -> None:
    ramp = np.linspace(-3, 5, 5000, dtype=np.float32)[None]
    np.testing.assert_allclose(resample(ramp, 500, 100)[0], ramp[0, ::5], atol=1e-4)


RATES = st.sampled_from([100.0, 125.0, 250.0, 257.0, 360.0, 400.0, 499.97, 500.0, 1000.0])


@given(fs=RATES, other=RATES, seconds=st.floats(3, 6), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_what_lies_below_both_half_rates_survives_there_and_back(
    fs: float, other: float, seconds: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hz, phase = rng.uniform(0.2, 0.35 * min(fs, other), (4, 1)), rng.uniform(0, 2 * np.pi, (4, 1))

    def wave(rate: float, samples: int) -> Any:
        return np.sin(2 * np.pi * hz * np.arange(samples) / rate + phase).astype(np.float32)

    here = wave(fs, round(fs * seconds))
    there = resample(here, fs, other)
    assert abs(there.shape[1] - here.shape[1] * other / fs) < 1.01
    inner = slice(round(other / 2), -round(other / 2))  # the ends see a sine cut off
    np.testing.assert_allclose(there[:, inner], wave(other, there.shape[1])[:, inner], atol=0.01)
    back, inner = resample(there, other, fs), slice(round(fs / 2), -round(fs / 2))
    np.testing.assert_allclose(back[:, : here.shape[1]][:, inner], here[:, inner], atol=0.01)


def test_rates_too_far_apart_are_refused() -> None:
    for rates in ((1000.0, 0.5), (0.5, 1000.0)):
        with pytest.raises(InputError, match="rates"):
            resample(np.zeros((1, 50), dtype=np.float32), *rates)


@given(seed=st.integers(0, 9999), longest=st.integers(0, 12), share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_gaps_are_filled_between_their_neighbours_or_marked(seed: int, longest: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.standard_normal((3, 60)).astype(np.float32)
    gap = np.repeat(rng.random((3, 12)) < share, 5, axis=1) ^ (rng.random((3, 60)) < 0.05)
    holed = np.where(gap, rng.choice([np.nan, np.inf], (3, 60)), whole).astype(np.float32)
    filled, marked = fill_gaps(holed, longest)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~gap], whole[~gap])
    assert not marked[~gap].any()
    assert (filled[marked] == 0).all()
    for row in range(3):
        good = np.flatnonzero(~gap[row])
        for at in np.flatnonzero(gap[row]):
            before, after = good[good < at], good[good > at]
            ends = ([before[-1]] if before.size else []) + ([after[0]] if after.size else [])
            run = (after[0] if after.size else 60) - (before[-1] if before.size else -1) - 1
            assert marked[row, at] == (run > longest or not ends)
            if not marked[row, at]:
                sides = whole[row, ends]
                assert sides.min() - 1e-6 <= filled[row, at] <= sides.max() + 1e-6


@given(
    fs=st.sampled_from([100.0, 125.0, 257.0, 360.0, 499.97, 1000.0]),
    seconds=st.floats(1, 25),
    all_=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_length_gives_windows_of_exactly_one_length(fs: float, seconds: float, all_: bool) -> None:
    how = Preprocess(fs=100, duration=5.0, windows="all" if all_ else "first")
    found = windows(how, sines(fs, seconds))
    assert {window.signal.shape for window in found} == {(12, 500)}
    assert len(found) == (max(1, int(seconds / 5.0 + 0.002)) if all_ else 1)
    valid = found[0].valid
    assert abs(valid - min(500, seconds * 100)) <= 2
    assert not found[0].signal[:, valid:].any()
    if len(found) > 1:
        assert all(window.valid == 500 for window in found)


def test_the_second_window_starts_where_the_first_ends() -> None:
    record = sines(500, 20.0)
    first, second = windows(Preprocess(fs=100, windows="all"), record)
    np.testing.assert_allclose(
        np.concatenate([first.signal, second.signal], axis=1), resample(record.signal, 500, 100), atol=1e-6
    )


def test_a_short_record_is_padded_or_refused() -> None:
    record = sines(100, 4.0)
    (padded,) = windows(Preprocess(), record)
    assert padded.valid == 400
    assert not padded.signal[:, 400:].any()
    for how in (Preprocess(short="drop"), Preprocess(short="raise")):
        message = refusal(how, record)
        assert message == "r: length: found 4 s, expected at least 10 s"


def test_leads_come_by_name_whatever_case_and_order() -> None:
    record = sines(100, 10.0)
    order = np.random.default_rng(0).permutation(12)
    shuffled = Record("r", record.signal[order], 100.0, tuple(STANDARD_LEADS[i].upper() for i in order))
    (window,) = windows(Preprocess(), shuffled)
    np.testing.assert_array_equal(window.signal, record.signal)
    (two,) = windows(Preprocess(leads=("v2", "AVF")), shuffled)
    np.testing.assert_array_equal(two.signal, record.signal[[7, 5]])
    assert canonical(" AVr ") == "aVR"


@pytest.mark.parametrize("kind", ["flat", "nan", "gap", "missing", "infinite"])
def test_a_bad_lead_is_refused_by_name_or_zeroed_and_listed(kind: str) -> None:
    record = sines(100, 10.0)
    signal, leads = record.signal.copy(), list(STANDARD_LEADS)
    expected = {
        "flat": "the constant 0.25 mV (flat)",
        "nan": "no sample (NaN throughout)",
        "gap": "30 missing samples (NaN)",
        "missing": "only I, II",
        "infinite": "no sample",
    }[kind]
    if kind == "missing":
        leads[7] = "X"
    else:
        signal[7, slice(100, 130) if kind == "gap" else slice(None)] = {"flat": 0.25, "infinite": np.inf}.get(
            kind, np.nan
        )
    bad = Record("r", signal, 100.0, tuple(leads))
    message = refusal(Preprocess(), bad)
    assert message.startswith(f"r: lead V2: found {expected}")
    (window,) = windows(Preprocess(bad_leads="zero"), bad)
    assert window.bad_leads == ("V2",)
    assert not window.signal[7].any()
    np.testing.assert_array_equal(np.delete(window.signal, 7, 0), np.delete(record.signal, 7, 0))


def test_a_record_without_one_good_lead_is_always_refused() -> None:
    record = Record("r", np.zeros((12, 1000), dtype=np.float32), 100.0, STANDARD_LEADS)
    assert "flat" in refusal(Preprocess(bad_leads="zero"), record)


def test_two_signals_of_one_name_are_an_error() -> None:
    record = Record("r", np.zeros((2, 1000), dtype=np.float32), 100.0, ("I", "i"))
    with pytest.raises(InputError, match="2 signals of that name"):
        list(Preprocess(leads=("I",)).apply(record))


def test_short_gaps_are_interpolated_and_long_ones_marked() -> None:
    signal = np.tile(np.arange(100, dtype=np.float32), (2, 1))
    holed = signal.copy()
    holed[0, 10:14] = np.nan
    holed[0, :3] = np.nan
    holed[1, 50:60] = np.nan
    filled, marked = fill_gaps(holed, 4)
    np.testing.assert_allclose(filled[0, 3:], signal[0, 3:])
    np.testing.assert_array_equal(filled[0, :3], 3)
    assert marked[1, 50:60].all()
    assert marked.sum() == 10
    assert np.isnan(holed[0, 10])


def test_settings_out_of_range_name_themselves() -> None:
    bad: list[tuple[str, Any]] = [
        ("fs", 0),
        ("duration", float("nan")),
        ("windows", "some"),
        ("short", "cut"),
        ("bad_leads", "keep"),
        ("leads", ()),
        ("leads", ("I", "i")),
        ("max_gap", -1),
        ("highpass", -1),
        ("lowpass", 50.0),
        ("notch", float("inf")),
    ]
    for field, value in bad:
        with pytest.raises(InputError, match=field):
            Preprocess(**{field: value})


def test_description_gives_the_same_object_back() -> None:
    how = Preprocess(fs=250, leads=("I", "V5"), bad_leads="zero", highpass=0.5, lowpass=40, notch=50)
    assert Preprocess(**how.to_dict()) == how
    assert Preprocess.from_dict(json.loads(json.dumps(how.to_dict()))) == how
    with pytest.raises(InputError, match="resample: found an unknown setting"):
        Preprocess.from_dict({"resample": 100})
    with pytest.raises(InputError, match="highpass"):
        Preprocess(highpass=30, lowpass=20)


def amplitudes(x: np.ndarray, fs: float, hz: float) -> np.ndarray:
    """(leads,) complex amplitude of a whole number of periods."""
    t = np.arange(x.shape[-1]) / fs
    return np.asarray(2 * (x * np.exp(-2j * np.pi * hz * t)).mean(axis=-1))


def test_filters_pass_stop_and_halve_where_they_should_without_a_shift() -> None:
    fs, seconds = 500.0, 30.0
    t = np.arange(round(fs * seconds)) / fs
    tones = {"wander": 0.1, "corner": 0.5, "wave": 8.0, "mains": 50.0, "muscle": 100.0}
    x = sum(np.cos(2 * np.pi * hz * t) for hz in tones.values()) + 0.7
    record = Record("r", np.tile(x, (12, 1)).astype(np.float32), fs, STANDARD_LEADS)
    how = Preprocess(fs=fs, duration=10, windows="all", highpass=0.5, lowpass=70, notch=50)
    middle = windows(how, record)[1].signal
    found = {name: amplitudes(middle, fs, hz) for name, hz in tones.items()}
    np.testing.assert_allclose(found["wave"], 1, atol=0.01)  # complex: neither size nor phase has changed
    np.testing.assert_allclose(found["corner"], 0.5, atol=0.01)
    # A Butterworth filter of order 3, twice, on the bilinear transform's frequency axis.
    slope = (np.tan(np.pi * tones["muscle"] / fs) / np.tan(np.pi * 70 / fs)) ** 6
    np.testing.assert_allclose(found["muscle"], 1 / (1 + slope), atol=0.001)
    for name in ("wander", "mains"):
        assert np.abs(found[name]).max() < 0.02, name
    assert np.abs(middle.mean(axis=1)).max() < 0.005


def test_a_filter_in_one_window_is_that_of_the_whole_record() -> None:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.standard_normal((12, 15_000)), axis=1) / 50
    record = Record("r", x.astype(np.float32), 500.0, STANDARD_LEADS)
    how = Preprocess(fs=100, highpass=0.5, lowpass=40)
    first = windows(how, record)[0].signal
    whole = windows(replace(how, windows="all"), record)[0].signal
    assert np.abs(first - whole).max() < 0.01 * whole.std()


def test_a_notch_and_a_low_pass_that_the_rate_cannot_hold_have_nothing_to_do() -> None:
    record = sines(80, 12)
    plain, filtered = Preprocess(fs=400), Preprocess(fs=400, lowpass=60, notch=50)
    np.testing.assert_array_equal(windows(plain, record)[0].signal, windows(filtered, record)[0].signal)


def test_an_array_in_memory_is_treated_like_a_record() -> None:
    how, record = Preprocess(fs=100, duration=4, windows="all", highpass=0.5), sines(250, 12)
    x = how.array(record.signal, record.fs, record.leads)
    assert x.shape == (3, 12, 400)
    np.testing.assert_array_equal(x, np.stack([w.signal for w in windows(how, record)]))
    data = preprocessed(ArrayDataset(record.signal[None], np.ones((1, 1)), fs=250), how)
    np.testing.assert_array_equal(data.signals, x)
    assert data.meta["window"].tolist() == [0, 1, 2]
    assert data.meta["original_fs"].tolist() == [250] * 3
    assert data.fs == 100
    assert data.labels.tolist() == [[1], [1], [1]]
    with pytest.raises(InputError, match="mine: signal: found shape"):
        how.array(record.signal.T, record.fs, record.leads, "mine")
    flat = np.zeros((2, 12, 2500), dtype=np.float32)
    flat[1] = record.signal[:, :2500]
    with pytest.raises(InputError, match="array/0: lead I: found the constant 0 mV"):
        preprocessed(ArrayDataset(flat, fs=250), how)
    skipped = preprocessed(ArrayDataset(flat, fs=250), how, on_error="skip")
    assert skipped.meta["record"].tolist() == ["1", "1"]
    assert len(skipped.skipped) == 2


def test_limb_errors_find_a_swap() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 3, 200))
    x = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=1)
    leads = STANDARD_LEADS[:6]
    np.testing.assert_allclose(limb_errors(x, leads), 0, atol=1e-12)
    assert (limb_errors(x[:, [0, 1, 2, 3, 5, 4]], leads)[:, 2:] > 0.1).all()
    with pytest.raises(InputError, match="leads"):
        limb_errors(x[:, :3], leads[:3])


@pytest.mark.parametrize("leads", [None, ("V6", "i", "aVF")])
@pytest.mark.parametrize("kind", ["first", "all"])
@pytest.mark.parametrize("fault", ["none", "flat", "flat in the second window", "short", "missing lead"])
def test_whole_microvolts_are_passed_on_as_what_the_long_way_computes(
    leads: tuple[str, ...] | None, kind: Any, fault: str
) -> None:
    digital = np.random.default_rng(1).integers(-9999, 9999, (12, 2100), dtype=np.int16)
    if fault == "flat":
        digital[-1] = 7
    elif fault != "none":
        digital[0, 1000:2000] = -3
    names = (*STANDARD_LEADS[:-1], "V9" if fault == "missing lead" else "V6")
    digital = digital[:, :900] if fault == "short" else digital
    for bad in ("zero", "error"):
        how = Preprocess(fs=100, leads=leads, windows=kind, bad_leads=bad)
        short, long = (
            list(how.apply(Record("r", stored, 100.0, names))) for stored in (digital, millivolts(digital))
        )
        assert [str(w) for w in short if isinstance(w, InputError)] == [
            str(w) for w in long if isinstance(w, InputError)
        ]
        assert [(w.number, w.valid, w.bad_leads) for w in short if isinstance(w, Window)] == [
            (w.number, w.valid, w.bad_leads) for w in long if isinstance(w, Window)
        ]
        for a, b in zip(short, long, strict=True):
            if isinstance(a, Window) and isinstance(b, Window):
                assert a.signal.dtype == np.float32
                np.testing.assert_array_equal(a.signal, b.signal)
    if fault == "none":
        assert all(isinstance(w, Window) and w.stored.dtype == np.int16 for w in short)
