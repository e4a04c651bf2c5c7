"""Checks of one record: each fault is found where it was planted, and nowhere else, and nothing on a sound record."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgmeta.data import SyntheticCohort
from ecgmeta.data.auditing import rhythm
from ecgmeta.data.auditing.electrodes import suspicion
from ecgmeta.data.auditing.findings import CHECKS, Finding, by_check
from ecgmeta.data.auditing.limb import LIMB_LEADS, judge
from ecgmeta.data.auditing.signals import (
    clipped_seconds,
    flat_leads,
    gaps,
    inspect,
    limb_verdict,
    still_seconds,
    typical_range,
)
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.synthetic import Nuisances
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # measures simulated recordings, seconds each

FS = 250.0
Signal = NDArray[np.float32]
Fault = Callable[[Signal], Signal]


@pytest.fixture(scope="module")
def cohort() -> Signal:
    """(64, 12, samples) sound records, rounded to a microvolt as a recorder does."""
    x = SyntheticCohort(64, fs=FS, seed=11).signals
    return (np.rint(x * 1000) / 1000).astype(np.float32)


def found(signal: Signal, leads: tuple[str, ...] = STANDARD_LEADS) -> dict[str, tuple[str, ...]]:
    """Check -> leads concerned."""
    return {f.check: f.leads for f in inspect(signal, FS, leads, "R")}


def row(lead: str) -> int:
    return STANDARD_LEADS.index(lead)


def test_nothing_is_found_on_sound_records(cohort: Signal) -> None:
    for number, signal in enumerate(cohort):
        serious = {check for check in found(signal) if check != "amplitude"}
        assert not serious, (number, serious)


@pytest.mark.parametrize("seed", [0, 1])
def test_nuisances_alone_are_no_errors(seed: int) -> None:
    data = SyntheticCohort(64, seed=seed)
    for signal in data.signals:
        assert not [f for f in inspect(signal, data.fs, data.leads, "R") if f.severity == "error"]


def put(lead: str, change: Callable[[Signal], Signal]) -> Fault:
    def fault(signal: Signal) -> Signal:
        out = signal.copy()
        out[row(lead)] = change(out[row(lead)])
        return out

    return fault


def swap(a: str, b: str) -> Fault:
    def fault(signal: Signal) -> Signal:
        out = signal.copy()
        out[[row(a), row(b)]] = signal[[row(b), row(a)]]
        return out

    return fault


def pause(start: float, stop: float, value: float) -> Callable[[Signal], Signal]:
    def change(lead: Signal) -> Signal:
        out = lead.copy()
        out[round(start * FS) : round(stop * FS)] = value
        return out

    return change


FAULTS: dict[str, tuple[Fault, str, tuple[str, ...]]] = {
    "flat": (put("V3", np.zeros_like), "flat", ("V3",)),
    "nearly flat": (put("V3", lambda x: 1e-4 * x), "flat", ("V3",)),
    "NaN throughout": (put("V2", lambda x: x * np.nan), "flat", ("V2",)),
    "a gap": (put("V2", pause(2, 2.5, np.nan)), "gaps", ("V2",)),
    "a short gap": (put("V2", pause(2, 2.02, np.nan)), "short_gaps", ("V2",)),
    "a still stretch": (put("V1", pause(4, 6, 0.1)), "flat_stretch", ("V1",)),
    "padding": (lambda x: x * (np.arange(x.shape[1]) < 1900).astype(x.dtype), "flat_stretch", STANDARD_LEADS),
    "clipped": (
        put("V4", lambda x: np.clip(x, *(np.median(x) + 0.5 * np.ptp(x) * np.array([-0.4, 0.4])))),
        "clipped",
        ("V4",),
    ),
    "microvolts": (lambda x: x * np.float32(1000), "units", ()),
    "volts": (lambda x: x / np.float32(1000), "units", ()),
    "one lead in microvolts": (put("V5", lambda x: x * np.float32(1000)), "units", ("V5",)),
    "aVF and aVL": (swap("aVF", "aVL"), "lead_order", ("aVL", "aVF")),
    "I and II": (swap("I", "II"), "lead_order", ("I", "II")),
    "I and aVR": (swap("I", "aVR"), "lead_order", ("I", "aVR")),
    "aVR upside down": (put("aVR", np.negative), "inverted", ("aVR",)),
    "a gain of its own": (put("aVF", lambda x: 1.7 * x), "gain", LIMB_LEADS),
    "a lead of another moment": (put("aVF", lambda x: np.roll(x, 700)), "limb_identity", LIMB_LEADS),
    "an impulse in one limb lead": (put("III", pause(3, 3.01, 2.0)), "limb_identity", LIMB_LEADS),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_where_it_is(cohort: Signal, name: str) -> None:
    fault, check, leads = FAULTS[name]
    for number in range(0, 64, 4):
        answer = found(fault(cohort[number]).astype(np.float32))
        answer.pop("amplitude", None)
        assert answer == {check: leads}, number


def test_the_text_says_which_name_holds_what(cohort: Signal) -> None:
    (finding,) = inspect(swap("aVF", "aVL")(cohort[0]), FS, STANDARD_LEADS, "R7")
    assert finding.records == ("R7",)
    assert finding.text.startswith("aVL holds aVF, aVF holds aVL")
    (finding,) = inspect(put("aVR", np.negative)(cohort[0]), FS, STANDARD_LEADS, "R")
    assert finding.text.startswith("aVR holds −aVR")


def test_every_permutation_of_the_limb_leads_is_undone(cohort: Signal) -> None:
    limb = cohort[5][:6]
    rng = np.random.default_rng(0)
    orders = [order for order in permutations(range(6)) if order != tuple(range(6))]
    for number in rng.choice(len(orders), 60, replace=False):
        order = list(orders[number])
        verdict = judge(limb[order])
        assert verdict.kind == "order", order
        # The name at place k now stands over the signal of name order[k].
        expected = {LIMB_LEADS[k]: LIMB_LEADS[o] for k, o in enumerate(order) if k != o}
        assert dict(verdict.truth) == expected


def test_gains_are_measured(cohort: Signal) -> None:
    gains = np.array([1.0, 1.4, 0.7, 1.2, 0.9, 2.0])
    for signal in cohort[::8]:
        verdict = judge((signal[:6] * gains[:, None]).astype(np.float32))
        assert verdict.kind == "gain"
        np.testing.assert_allclose(verdict.gains, gains / np.median(gains), rtol=0.02)


def test_a_heart_along_one_line_explains_nothing() -> None:
    one = np.sin(np.arange(1000) / 20)
    limb = np.outer([1.0, 1, 3, -1, 0.5, 0.5], one)  # III should be 0: many names and gains would do
    assert judge(limb).kind == "unexplained"


def test_limb_leads_that_are_absent_or_flat_are_not_judged(cohort: Signal) -> None:
    assert limb_verdict(cohort[0][1:], STANDARD_LEADS[1:], FS) is None
    assert limb_verdict(put("aVL", np.zeros_like)(cohort[0]), STANDARD_LEADS, FS) is None
    assert limb_verdict(cohort[0][:, :100], STANDARD_LEADS, FS) is None
    verdict = limb_verdict(cohort[0], STANDARD_LEADS, FS)
    assert verdict is not None
    assert verdict.kind == "sound"


def reversed_electrodes(signal: Signal, right: str, left: str, foot: str) -> Signal:
    """The twelve leads where the cables of the right arm, left arm and foot lie on the named places instead."""
    one, two = signal[0], signal[1]
    places = {"R": np.zeros_like(one), "L": one, "F": two}
    r, a, f = places[right], places[left], places[foot]
    centre = (r + a + f) / 3
    limb = [a - r, f - r, f - a, 1.5 * (r - centre), 1.5 * (a - centre), 1.5 * (f - centre)]
    return np.concatenate([np.stack(limb), signal[6:]]).astype(np.float32)


def test_exchanged_electrodes_keep_the_identities_and_are_suspected() -> None:
    quiet = SyntheticCohort(64, fs=FS, seed=3, nuisances=Nuisances.none())
    caught = {"arms": 0, "right arm and left leg": 0}
    for signal in quiet.signals:
        assert suspicion(signal, FS) is None
        np.testing.assert_allclose(reversed_electrodes(signal, "R", "L", "F"), signal, atol=1e-4)
        for words, cables in (("arms", "LRF"), ("right arm and left leg", "FLR")):
            exchanged = reversed_electrodes(signal, *cables)
            assert judge(exchanged[:6]).kind == "sound"
            said = suspicion(exchanged, FS)
            caught[words] += said is not None and said[0].endswith(f"{words} exchanged?")
    assert caught["arms"] > 32
    assert caught["right arm and left leg"] > 16


def test_an_electrode_on_the_right_leg(cohort: Signal) -> None:
    signal = cohort[0].copy()
    signal[1] *= 0.02  # both ends of lead II on the legs
    signal[2], signal[3] = signal[1] - signal[0], -(signal[0] + signal[1]) / 2
    signal[4], signal[5] = signal[0] - signal[1] / 2, signal[1] - signal[0] / 2
    said = suspicion(signal, FS)
    assert said is not None
    assert said[1] == ("II",)


def test_names_missing_double_and_in_another_order(cohort: Signal) -> None:
    signal = cohort[0]
    assert found(signal[:8], STANDARD_LEADS[:8])["missing_lead"] == ("V3", "V4", "V5", "V6")
    double = (*STANDARD_LEADS[:11], "V5")
    assert found(signal, double)["lead_names"] == ("V5",)
    order = [0, 1, 2, 3, 5, 4, *range(6, 12)]  # MIMIC-IV-ECG stores aVF before aVL
    answer = found(signal[order], tuple(STANDARD_LEADS[i] for i in order))
    assert set(answer) == {"lead_order_in_file"}
    assert not found(signal, tuple(name.upper() for name in STANDARD_LEADS))


def test_numbers_of_the_checks() -> None:
    t = np.arange(2500) / FS
    x = np.stack([np.sin(2 * np.pi * t), 0.5 * np.sin(2 * np.pi * t)]).astype(np.float32)
    np.testing.assert_allclose(typical_range(x, FS), [2, 1], rtol=1e-3)
    spoiled = x.copy()
    spoiled[0, 10] = 500
    np.testing.assert_allclose(typical_range(spoiled, FS), [2, 1], rtol=1e-3)
    x[1, 100:150], x[1, 300:307] = np.nan, np.nan
    assert gaps(x).tolist() == [0, 50]
    x[0, 1000:1500] = 0.25
    np.testing.assert_allclose(still_seconds(x, FS), [2.0, 0.0], atol=2 / FS)
    assert not flat_leads(x, FS).any()
    clipped = np.clip(np.sin(2 * np.pi * t), -1, 0.8)[None]
    share = 0.5 - np.arcsin(0.8) / np.pi
    np.testing.assert_allclose(clipped_seconds(clipped, FS), [10 * share], rtol=0.05)


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(InputError, match="check: found 'nonsense'"):
        Finding("nonsense", (), "")
    assert all(check.severity in ("error", "warning", "note") for check in CHECKS.values())


def test_findings_are_ordered_by_severity_then_weight() -> None:
    some = [
        Finding("quality", ("a",), ""),
        Finding("flat", ("b",), "", weight=1),
        Finding("flat", ("c",), "", weight=2),
    ]
    groups = by_check([*some, Finding("units", ("d",), "")])
    assert list(groups) == ["units", "flat", "quality"]
    assert [f.records[0] for f in groups["flat"]] == ["c", "b"]


def test_heart_rate_and_quality() -> None:
    data = SyntheticCohort(8, fs=FS, seed=2, nuisances=Nuisances.none())
    regular = data.meta["rhythm"].eq("sinus") & data.meta["ectopy"].eq(0)
    for number in np.flatnonzero(regular):
        measured = rhythm.measure(data.signals[number], FS, data.leads)
        assert isinstance(measured, rhythm.Rhythm)
        assert measured.lead == "II"
        assert abs(measured.heart_rate / data.meta["heart_rate"][number] - 1) < 0.06
        assert not rhythm.findings(measured, "R")
    dead = data.signals[0].copy()
    dead[1] = 0
    other = rhythm.measure(dead, FS, data.leads)
    assert isinstance(other, rhythm.Rhythm)
    assert other.lead == "I"


def test_what_has_no_rhythm_has_a_reason() -> None:
    leads = STANDARD_LEADS
    assert rhythm.measure(np.zeros((12, 2500), np.float32), FS, leads) == "no lead with a signal"
    short = rhythm.measure(np.random.default_rng(0).standard_normal((12, 300)).astype(np.float32), FS, leads)
    assert short == "1.2 s, too short"
    (finding,) = rhythm.findings(short, "R")
    assert (finding.check, finding.records, finding.text) == ("not_measured", ("R",), short)
    (finding,) = rhythm.findings(rhythm.Rhythm("II", 300.0, 50, "Excellent"), "R")
    assert finding.check == "heart_rate"
    (slow, poor) = rhythm.findings(rhythm.Rhythm("II", float("nan"), 1, "Unacceptable"), "R")
    assert (slow.check, poor.check) == ("heart_rate", "quality")


def test_neurokit_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import neurokit2

    def broken(*_: object, **__: object) -> None:
        raise IndexError("inside")

    monkeypatch.setattr(neurokit2, "ecg_peaks", broken)
    noise = np.random.default_rng(0).standard_normal((12, 2500)).astype(np.float32)
    assert rhythm.measure(noise, FS, STANDARD_LEADS) == "IndexError: inside"


def test_the_sample_is_even_and_stated() -> None:
    assert rhythm.sample(10, None).tolist() == list(range(10))
    assert rhythm.sample(10, 20).tolist() == list(range(10))
    assert rhythm.sample(10, 0).tolist() == []
    assert rhythm.sample(101, 5).tolist() == [0, 25, 50, 75, 100]
