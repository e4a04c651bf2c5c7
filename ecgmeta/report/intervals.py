"""What a cardiologist reads off a recording, through neurokit2: rate, PR, QRS, QT, ST level and frontal axis.

R peaks and the peaks of P and T are neurokit2's (its delineation ``"prominence"``; ``"dwt"`` and ``"cwt"`` give normal hearts a
QRS of 133 to 214 ms). Bounds are read so that they follow a wave that is stretched, and as one reads twelve leads together:

- QRS: where the joint activity of all leads leaves its floor and reaches it again, as neurokit2 delineates that activity (the
  prominence of a single lead ends a complex at its q or s);
- P onset and T end: where the tangent at the steepest slope meets the baseline (Lepeschkin and Surawicz, Circulation 6, 1952;
  neurokit2's own feet stay within a window of fixed length, and show a QT that is 10 % longer as 7 % longer).

How exact that is was measured on LUDB (200 subjects) against its cardiologists' marks: :attr:`Quantity.error`.

Makowski et al., NeuroKit2, Behavior Research Methods 53, 2021; Kalyakulina et al., LUDB, IEEE Access 8, 2020.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.leads import STANDARD_LEADS, lead_terms, match_leads
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.resampling import resample

Signal = NDArray[np.float64]
Measures = dict[str, float]

HZ = 500.0
P_LEADS = ("I", "II", "V4", "V5", "V6")  # where P is upright in sinus rhythm
ST_DELAY = 0.060  # s after J: at J itself a late QRS end would pass for ST
STEADY_P = 12.0  # ms that P may wander before R; f waves wander by more (LUDB: 95 % of sinus rhythms below 8)
_ACTIVITY_SD = 0.014  # s: bridges the notches of a QRS complex
_COMPLEX_SD = 0.020  # s: makes one hump of a QRS complex
_SMALL = 0.3  # of the usual complex's activity
_FLOOR = 0.08  # of the activity's peak
_QRS_WINDOW = 320.0  # ms about its peak in which neurokit2 looks for the ends of a QRS complex
_P_REACH, _T_REACH = 0.120, 0.250  # s from the peak in which P begins and T ends
_LATEST_T = 0.85  # of RR
_SMOOTH = 0.010  # s, SD: slopes are taken of smoothed leads
_ISOELECTRIC = 0.016  # s before the QRS onset: the PR baseline
_UNDIRECTED = 0.1  # net over absolute QRS area below which there is no axis
_FEWEST = 3  # beats
_SHORTEST = 3.0  # s: neurokit2's windows need about as much


class _Unreadable(Exception):
    """neurokit2 could not read the recording."""


@dataclass(frozen=True)
class Quantity:
    """Something measured, and how exactly: the errors are (measured − LUDB's cardiologists), at 100 Hz, in `unit`.

    Attributes:
        key: its key in what :func:`measure` returns.
        name: as said on a page.
        unit: of its values.
        bias: median error.
        error: half the width of the middle 68 % of errors: their SD, but for the few records in which another wave is taken.
        sd: SD of all errors, those records among them.
        digits: decimals worth showing.
    """

    key: str
    name: str
    unit: str
    bias: float
    error: float
    sd: float
    digits: int = 0

    @property
    def noise(self) -> float:
        """What a shift between two measurements must exceed to be more than their errors explain: ``1.96·√2·error``
        (Bland and Altman's repeatability coefficient; an upper bound, for the errors of one heart are much alike)."""
        return 1.96 * math.sqrt(2) * self.error


# Measured by the slow test of this module; of the ST levels the worst lead counts for all.
QUANTITIES = (
    Quantity("heart_rate", "Heart rate", "beats/min", 0.0, 0.34, 0.74, 1),
    Quantity("pr", "PR interval", "ms", -5.0, 5.7, 13.1),
    Quantity("qrs", "QRS duration", "ms", -0.2, 10.0, 13.5),
    Quantity("qt", "QT interval", "ms", -8.5, 7.6, 13.2),
    Quantity("qtc", "QTc (Fridericia)", "ms", -8.5, 7.7, 13.9),
    Quantity("axis", "Frontal QRS axis", "°", 0.1, 1.1, 4.0),
    *(Quantity(f"st_{lead}", f"ST level, {lead}", "mV", 0.0, 0.01, 0.075, 3) for lead in STANDARD_LEADS),
)


def measure(signal: NDArray[np.floating], fs: float, leads: Sequence[str]) -> Measures:
    """Every quantity of one recording; NaN where it cannot be measured.

    - ``heart_rate``: 60 over the mean RR interval, beats/min.
    - ``qrs``: from the earliest to the latest activity of any lead, ms.
    - ``pr``: P onset (the earliest tenth of `P_LEADS`) to QRS onset, ms; ``p_scatter``: how far P wanders before R from beat to
      beat (median absolute deviation), ms, above `STEADY_P` where there is no P wave to speak of.
    - ``qt``: QRS onset to T end (median over the leads), ms; ``qtc = qt / RR^(1/3)`` with RR in s.
    - ``axis``: of the net QRS area in the frontal plane, ``atan2(2 aVF/√3, I)``, degrees.
    - ``st_<lead>``: 60 ms after J, against the PR baseline, mV.

    Intervals are medians over beats.

    Args:
        signal: (leads, samples), mV; leads that are flat or not finite are not used.
        fs: Hz.
        leads: the name of each lead.

    Raises:
        InputError: another number of leads than of names.
    """
    if signal.ndim != 2 or len(signal) != len(leads):
        raise InputError("measure", "signal", f"shape {signal.shape}", f"({len(leads)} leads, samples)")
    values = dict.fromkeys([quantity.key for quantity in QUANTITIES] + ["p_scatter"], math.nan)
    alive = np.ptp(signal, axis=1) > 0  # NaN too is not
    if not alive.any() or signal.shape[1] < _SHORTEST * fs:
        return values
    x = resample(signal[alive].astype(np.float32), fs, HZ).astype(np.float64)
    try:
        return values | _measure(x, [lead for lead, use in zip(leads, alive, strict=True) if use])
    except _Unreadable:
        return values


def sound(measures: Measures) -> Measures:
    """The measures of an original recording, without a PR where no P wave keeps its place before R."""
    return measures if measures["p_scatter"] <= STEADY_P else measures | {"pr": math.nan}


def shift(before: Measures, after: Measures) -> Measures:
    """``after − before`` of every quantity, the axis by the shorter way round (−180 to 180)."""
    out = {quantity.key: after[quantity.key] - before[quantity.key] for quantity in QUANTITIES}
    out["axis"] = (out["axis"] + 180) % 360 - 180
    return out


def printed(measures: Measures) -> Measures:
    """Rounded to what a report shows: 200.3 ms is read as 200, and no more than that."""
    digits = {quantity.key: quantity.digits for quantity in QUANTITIES}
    return {key: round(value, digits.get(key, 0)) for key, value in measures.items()}


def _measure(x: Signal, leads: Sequence[str]) -> Measures:
    beats = _beats(x)
    if len(beats) < _FEWEST:
        return {}
    rr = float(np.diff(beats).mean()) / HZ
    onset, end = _qrs(x, beats)
    out = {"heart_rate": 60 / rr}
    if not math.isfinite(onset + end):
        return out
    out["qrs"] = _ms(end - onset)
    marks = [_p_and_t(lead, beats, onset) for lead in x]
    chosen = [place for place in match_leads(leads, P_LEADS, "measure") if place is not None]
    of_p = [marks[place] for place in chosen] or marks
    p_onset = _quantile([_typical(mark["p_onset"]) for mark in of_p], 0.1)
    ends = [_typical(mark["t_end"]) for mark in marks]
    t_end = _quantile([at for at in ends if at < _LATEST_T * rr * HZ], 0.5)  # later is the next beat's P
    wander = [_typical(np.abs(mark["p_peak"] - _typical(mark["p_peak"]))) for mark in of_p]
    out["p_scatter"] = _ms(_quantile(wander, 0.5))
    out["pr"], out["qt"] = _ms(onset - p_onset), _ms(t_end - onset)
    out["qtc"] = out["qt"] / math.cbrt(rr)
    return out | read_levels(x, HZ, leads, beats + onset, beats + end)


def read_levels(
    x: Signal, fs: float, leads: Sequence[str], onsets: NDArray[np.floating], ends: NDArray[np.floating]
) -> Measures:
    """``axis`` and ``st_<lead>`` given where every QRS complex begins and ends.

    Args:
        x: (leads, samples), mV.
        fs: Hz.
        leads: the name of each lead.
        onsets, ends: (beats,) in samples.
    """
    areas, sizes, levels = [], [], []
    quiet, delay, half = round(_ISOELECTRIC * fs), round(ST_DELAY * fs), round(0.010 * fs)
    for start, stop in zip(np.rint(onsets).astype(int), np.rint(ends).astype(int), strict=True):
        if start < quiet or stop + delay + half >= x.shape[1]:
            continue
        complexes = x[:, start : stop + 1] - x[:, start - quiet : start + 1].mean(axis=1, keepdims=True)
        areas.append(complexes.sum(axis=1))
        sizes.append(np.abs(complexes).sum(axis=1))
        after = x[:, stop + delay - half : stop + delay + half + 1].mean(axis=1)
        levels.append(after - x[:, start - quiet : start + 1].mean(axis=1))
    if not areas:
        return {}
    st = np.median(levels, axis=0)
    places = match_leads(leads, STANDARD_LEADS, "measure")
    out = {
        f"st_{lead}": float(st[p]) for lead, p in zip(STANDARD_LEADS, places, strict=True) if p is not None
    }
    try:
        terms = lead_terms(leads, ("I", "aVF"), "measure", derive=True)
    except InputError:
        return out
    area = np.median(areas, axis=0)
    one, foot = (sum(factor * area[place] for place, factor in parts) for parts in terms)
    size = sum(float(np.median(sizes, axis=0)[parts[0][0]]) for parts in terms)
    foot *= 2 / math.sqrt(3)
    if math.hypot(one, foot) > _UNDIRECTED * size:
        out["axis"] = math.degrees(math.atan2(foot, one))
    return out


def _beats(x: Signal) -> NDArray[np.int64]:
    """The QRS complexes, in samples: neurokit2's peaks of the joint activity of all leads between 5 and 25 Hz.

    Squared, T waves and wander seldom pass for one; those that do are smaller than a third of the usual complex. On LUDB the
    rate is right to 2 beats/min in 97 % of recordings (one lead, or the leads' size instead of their slope: 94 %, and a T wave
    steepened by an augmentation is counted in every third).
    """
    from scipy.ndimage import gaussian_filter1d

    activity = gaussian_filter1d(_rms(np.gradient(_band(x), axis=1)), _COMPLEX_SD * HZ)
    found = np.asarray(_ask("ecg_peaks", activity**2)[1]["ECG_R_Peaks"], dtype=np.int64)
    return found[activity[found] > _SMALL * np.median(activity[found])] if found.size else found


def _qrs(x: Signal, beats: NDArray[np.int64]) -> tuple[float, float]:
    """Median QRS onset and end, in samples from R."""
    from scipy.ndimage import gaussian_filter1d

    activity = gaussian_filter1d(_rms(np.gradient(_low(x), axis=1)), _ACTIVITY_SD * HZ)
    near = round(0.080 * HZ)
    tops = np.array([max(0, b - near) + int(np.argmax(activity[max(0, b - near) : b + near])) for b in beats])
    rest = np.percentile(activity, 20)
    floor = rest + _FLOOR * (np.median(activity[tops]) - rest)
    # On a flat floor the foot of a peak is the floor's nearest point.
    waves = _delineate(np.maximum(activity, floor), tops, max_r_basepoint_interval=_QRS_WINDOW)
    return _typical(waves["ECG_R_Onsets"] - beats), _typical(waves["ECG_R_Offsets"] - beats)


def _p_and_t(lead: Signal, beats: NDArray[np.int64], onset: float) -> dict[str, Signal]:
    """p_peak, p_onset and t_end of one lead: (beats,) samples from R, NaN where there is none."""
    from scipy.ndimage import gaussian_filter1d

    clean = np.asarray(_ask("ecg_clean", lead), dtype=np.float64)
    waves = _delineate(clean, beats)
    smooth = gaussian_filter1d(clean, _SMOOTH * HZ)
    p, t = waves["ECG_P_Peaks"], waves["ECG_T_Peaks"]
    p_onset = np.array([_foot(smooth, at, -round(_P_REACH * HZ)) for at in p])
    quiet = smooth[np.clip(np.rint(beats + onset), 0, len(lead) - 1).astype(int)]
    reach = round(_T_REACH * HZ)
    t_end = np.array([_foot(smooth - level, at, reach) for at, level in zip(t, quiet, strict=True)])
    return {"p_peak": p - beats, "p_onset": p_onset - beats, "t_end": t_end - beats}


def _foot(trace: Signal, peak: float, reach: int) -> float:
    """Where the tangent at the steepest slope beside a peak meets the level at which its side ends, in samples.

    A side ends at the first turn below half height: slopes beyond are another wave's.

    Args:
        trace: (samples,), the baseline at 0; a T below it points down, a P always up.
        peak: its sample, or NaN.
        reach: samples looked at, negative for those before the peak.
    """
    if math.isnan(peak) or not 0 <= peak + reach < len(trace):
        return math.nan
    away = trace[int(peak) : int(peak) + reach : 1 if reach > 0 else -1]
    away = away * (np.sign(away[0]) if reach > 0 else 1.0)
    slope = np.gradient(away)
    half = int(np.argmax(away <= (away[0] + away.min()) / 2))
    turns = np.flatnonzero(slope[half:] >= 0)
    end = half + int(turns[0]) if turns.size else len(away) - 1
    steepest = int(np.argmin(slope[: end + 1]))
    if not slope[steepest] < 0:
        return math.nan
    distance = steepest - (away[steepest] - away[: end + 1].min()) / slope[steepest]
    return peak + math.copysign(float(distance), reach)


def _delineate(trace: Signal, beats: NDArray[np.int64], **reach: float) -> dict[str, Signal]:
    """neurokit2's waves as samples, one a beat, NaN where it found none."""
    found = _ask("ecg_delineate", trace, beats, method="prominence", **reach)[1]
    # It drops marks on sample 0 from its lists; only the first beat can have one.
    return {
        name: np.concatenate([np.full(len(beats) - len(at), np.nan), np.asarray(at, dtype=np.float64)])
        for name, at in found.items()
    }


def _ask(function: str, *arguments: Any, **settings: Any) -> Any:
    """Call neurokit2; whatever its parts hit first in a signal that it does not expect becomes :class:`_Unreadable`."""
    import neurokit2

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return getattr(neurokit2, function)(*arguments, sampling_rate=int(HZ), **settings)
    except Exception as error:
        raise _Unreadable(f"{function}: {error}") from error


def _band(x: Signal) -> Signal:
    """5 to 25 Hz: QRS complexes, little else."""
    from scipy.signal import butter, sosfiltfilt

    return np.asarray(sosfiltfilt(butter(2, (5.0, 25.0), "band", fs=HZ, output="sos"), x, axis=1))


def _low(x: Signal) -> Signal:
    """Below 40 Hz: no mains, little muscle."""
    from scipy.signal import butter, sosfiltfilt

    return np.asarray(sosfiltfilt(butter(2, 40.0, "low", fs=HZ, output="sos"), x, axis=1))


def _rms(x: Signal) -> Signal:
    return np.asarray(np.sqrt(np.square(x).mean(axis=0)))


def _typical(values: Signal) -> float:
    """The median of those that are there."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if there.size else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    there = [value for value in values if math.isfinite(value)]
    return float(np.quantile(there, share)) if there else math.nan


def _ms(samples: float) -> float:
    return 1000 * float(samples) / HZ
