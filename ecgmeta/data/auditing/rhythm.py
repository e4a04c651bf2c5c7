"""Heart rate and signal quality of a recording, through neurokit2: cleaned lead, R peaks, the quality index of Zhao & Zhang.

neurokit2 takes 5 s to import and some 30 ms a recording, so an audit measures an evenly spaced sample of a large tree and says
so. Whatever it raises becomes a reason: one lead it cannot read stops nothing.

Zhao, Zhang, SQI quality evaluation mechanism of single-lead ECG signal based on simple heuristic fusion and fuzzy
comprehensive evaluation, Frontiers in Physiology 9:727, 2018.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.auditing.findings import Finding
from ecgmeta.data.auditing.signals import flat_leads
from ecgmeta.data.leads import canonical
from ecgmeta.data.preprocess import fill_gaps

PREFERRED = ("II", "I", "V5", "V2", "MLII")  # the first of these with a signal is measured
USUAL_RATE = (30.0, 220.0)  # beats a minute
SECONDS = 60.0  # of a longer recording, its first minute
_SHORTEST = 3.0  # s: neurokit2's windows need about as much


@dataclass(frozen=True)
class Rhythm:
    """What was measured on `lead`; `heart_rate` in beats a minute, NaN where fewer than two beats were found."""

    lead: str
    heart_rate: float
    beats: int
    quality: str


def measure(signal: NDArray[np.floating], fs: float, leads: Sequence[str]) -> Rhythm | str:
    """Heart rate and quality of the first minute, or the reason why there is none.

    Args:
        signal: (leads, samples) mV at the recording's own rate.
        fs: Hz.
        leads: the name of each lead.
    """
    names = [canonical(name) for name in leads]
    alive = ~flat_leads(signal, fs)
    usable = [name for name in (*PREFERRED, *names) if name in names and alive[names.index(name)]]
    if not usable:
        return "no lead with a signal"
    row = signal[[names.index(usable[0])], : round(SECONDS * fs)]
    if row.shape[1] < _SHORTEST * fs:
        return f"{row.shape[1] / fs:.3g} s, too short"
    trace, _ = fill_gaps(row.astype(np.float32), row.shape[1])
    import neurokit2

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            clean = neurokit2.ecg_clean(trace[0].astype(np.float64), sampling_rate=round(fs))
            _, found = neurokit2.ecg_peaks(clean, sampling_rate=round(fs))
            peaks = np.asarray(found["ECG_R_Peaks"], dtype=np.float64)
            quality = neurokit2.ecg_quality(
                clean, rpeaks=peaks.astype(int), sampling_rate=round(fs), method="zhao2018"
            )
    except (
        Exception
    ) as error:  # neurokit2 answers a signal it does not expect with whatever its parts hit first
        return f"{type(error).__name__}: {error}"[:160]
    rate = 60 * fs / float(np.median(np.diff(peaks))) if len(peaks) > 1 else float("nan")
    return Rhythm(usable[0], rate, len(peaks), str(quality))


def findings(rhythm: Rhythm | str, where: str) -> list[Finding]:
    """What is unusual about a measurement."""
    if isinstance(rhythm, str):
        return [Finding("not_measured", (where,), rhythm)]
    out = []
    if not USUAL_RATE[0] <= rhythm.heart_rate <= USUAL_RATE[1]:  # NaN too
        many = f"{rhythm.beats} beats found in {rhythm.lead}"
        said = many if np.isnan(rhythm.heart_rate) else f"{rhythm.heart_rate:.0f} beats a minute ({many})"
        out.append(
            Finding("heart_rate", (where,), said, (rhythm.lead,), float(np.nan_to_num(rhythm.heart_rate)))
        )
    if rhythm.quality == "Unacceptable":
        out.append(Finding("quality", (where,), f"{rhythm.lead} unacceptable", (rhythm.lead,)))
    return out


def sample(count: int, limit: int | None) -> NDArray[np.int64]:
    """Evenly spaced positions, at most `limit` of `count`; all of them where it is None."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, limit).round().astype(np.int64)) if limit else np.arange(0)
