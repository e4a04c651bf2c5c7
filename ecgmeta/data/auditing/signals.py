"""What a single signal can have: pure functions on (leads, samples) millivolts at the rate of the recording.

A check answers with numbers, lead by lead; `inspect` turns those of one record into findings. Only samples count, no heart
beat is looked for here (see `rhythm`). Cost: about a millisecond a record of 12 × 10 s at 500 Hz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.auditing.electrodes import suspicion
from ecgmeta.data.auditing.findings import Finding
from ecgmeta.data.auditing.limb import LIMB_LEADS, LimbVerdict, judge
from ecgmeta.data.leads import STANDARD_LEADS, canonical

MICROVOLTS = 20.0  # mV: no heart reaches a typical range of this
VOLTS = 0.02  # mV: nor does one stay below this in most leads
USUAL = (0.1, 6.0)  # mV: typical range of a recording, median over leads; outside is worth a look
APART = 50.0  # times the others: no lead of the same heart is
NEARLY_FLAT = 0.005  # of the median lead: less than any projection of a heart leaves
STRETCH = 1.0  # s without any change that are no heart's
MAX_GAP = 0.1  # s: what loading interpolates unless told otherwise
_PLATEAU = 0.05  # s at one extreme value, in runs that no rounding makes
_RUN = 0.008  # s: the shortest run of a plateau
_PEAK = 0.3  # of the range: nearer to the middle of the lead an extreme is no peak, but a baseline in coarse steps
_SPAN = 2.0  # s: holds a beat down to a rate of 30


def gaps(signal: NDArray[np.floating]) -> NDArray[np.int64]:
    """(leads,) longest run of samples that are not finite."""
    return np.array([_longest(~np.isfinite(row)) for row in signal])


def typical_range(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """(leads,) mV: median over spans of 2 s of the peak-to-peak range; no single artefact moves it. NaN without a sample."""
    width = min(signal.shape[1], max(2, round(_SPAN * fs)))
    spans = signal[:, : signal.shape[1] // width * width].reshape(len(signal), -1, width).astype(np.float64)
    finite = np.isfinite(spans)
    high = np.where(finite, spans, -np.inf).max(axis=2)
    low = np.where(finite, spans, np.inf).min(axis=2)
    ranges = high - low  # −inf where a span has no sample
    if (ranges >= 0).all():  # one call: a median row by row costs more than all the rest
        return np.median(ranges, axis=1)
    return np.array([np.median(row[row >= 0]) if (row >= 0).any() else np.nan for row in ranges])


def flat_leads(signal: NDArray[np.floating], fs: float) -> NDArray[np.bool_]:
    """(leads,) True where a lead has no sample, is constant, or has less than 0.5 % of the range of the median lead."""
    ranges = typical_range(signal, fs)
    with np.errstate(invalid="ignore"):
        whole = np.nan_to_num(np.fmax.reduce(signal, axis=1) - np.fmin.reduce(signal, axis=1))
    alive = ranges[np.isfinite(ranges) & (ranges > 0)]
    limit = NEARLY_FLAT * float(np.median(alive)) if alive.size else 0.0
    return (whole == 0) | ~np.isfinite(ranges) | ((ranges < limit) & (whole < 10 * limit))


def still_seconds(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """(leads,) s: the longest time without a change."""
    still = np.diff(signal, axis=1) == 0
    return np.array([(_longest(row) + 1) / fs if row.any() else 0.0 for row in still])


def clipped_seconds(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """(leads,) s at the lead's own largest or smallest value, in runs that rounding cannot make (8 ms and 3 samples or more).

    The value must be a peak, a good way from the median. Stretches of a second and more do not count: there the signal is
    not clipped but absent.
    """
    shortest, longest = max(3, int(np.ceil(_RUN * fs))), STRETCH * fs
    out = np.zeros(len(signal))
    highs, lows = np.fmax.reduce(signal, axis=1), np.fmin.reduce(signal, axis=1)
    for row, (lead, high, low) in enumerate(zip(signal, highs, lows, strict=True)):
        if not high > low:  # also where no sample is finite
            continue
        for extreme in (high, low):
            at = lead == extreme
            # The cheap question first: the median takes most of the time.
            if at.sum() < shortest or abs(extreme - np.nanmedian(lead)) < _PEAK * (high - low):
                continue
            lengths = _runs(at)
            out[row] += lengths[(lengths >= shortest) & (lengths < longest)].sum() / fs
    return out


def limb_verdict(signal: NDArray[np.floating], leads: Sequence[str], fs: float) -> LimbVerdict | None:
    """The verdict of the limb-lead identities; None where a limb lead is absent, double or flat, or under 1 s is whole."""
    names = [canonical(name) for name in leads]
    if any(names.count(name) != 1 for name in LIMB_LEADS):
        return None
    limb = signal[[names.index(name) for name in LIMB_LEADS]]
    limb = limb[:, np.isfinite(limb).all(axis=0)]
    if limb.shape[1] < fs or flat_leads(limb, fs).any():
        return None
    return judge(limb)


def inspect(
    signal: NDArray[np.floating], fs: float, leads: Sequence[str], where: str, *, electrodes: bool = True
) -> list[Finding]:
    """Everything that the samples of one record say against it.

    Args:
        signal: (leads, samples) mV, NaN where nothing is stored.
        fs: its rate, Hz.
        leads: the name of each lead.
        where: what the findings call the record.
        electrodes: also look for exchanged electrodes, which takes as long as all the rest and is never an error.
    """
    names = [canonical(name) for name in leads]
    out = _names(names, where)
    flat = flat_leads(signal, fs)
    out += _gaps(signal, fs, names, where) + _flat(signal, flat, fs, names, where)
    out += _clipped(signal, flat, fs, names, where) + _amplitude(signal, flat, fs, names, where)
    if any(f.check == "lead_names" for f in out):
        return out
    verdict = limb_verdict(signal, names, fs)
    if verdict is not None:
        out += _limb(verdict, where)
        # A suspicion about electrodes presumes that the names are right.
        sound = electrodes and verdict.kind in ("sound", "local")
        if sound and set(STANDARD_LEADS) <= set(names) and not flat.any():
            rows = [names.index(name) for name in STANDARD_LEADS]
            suspected = suspicion(np.nan_to_num(signal[rows]), fs)
            if suspected is not None:
                out.append(Finding("electrodes", (where,), *suspected))
    return out


def _names(names: list[str], where: str) -> list[Finding]:
    out = []
    double = tuple(sorted({name for name in names if names.count(name) > 1}))
    if double:
        out.append(
            Finding("lead_names", (where,), f"{', '.join(double)} more than once", double, len(double))
        )
    missing = tuple(name for name in STANDARD_LEADS if name not in names)
    if missing:
        said = f"{', '.join(missing)} absent; it has {', '.join(names)}"
        out.append(Finding("missing_lead", (where,), said, missing, len(missing)))
    known = [name for name in STANDARD_LEADS if name in names]
    if [name for name in names if name in known] != known and not double:
        out.append(Finding("lead_order_in_file", (where,), ", ".join(names)))
    return out


def _gaps(signal: NDArray[np.floating], fs: float, names: list[str], where: str) -> list[Finding]:
    longest = gaps(signal)
    out = []
    absent = longest == signal.shape[1]
    for check, chosen in (
        ("gaps", (longest > MAX_GAP * fs) & ~absent),
        ("short_gaps", (longest > 0) & (longest <= MAX_GAP * fs)),
    ):
        if chosen.any():
            lost = 1 - np.isfinite(signal[chosen]).mean(axis=1)
            said = f"longest {longest[chosen].max() / fs:.3g} s; up to {_percent(lost.max())} of a lead"
            out.append(_of(check, names, chosen, where, said, float(lost.sum())))
    return out


def _flat(
    signal: NDArray[np.floating], flat: NDArray[np.bool_], fs: float, names: list[str], where: str
) -> list[Finding]:
    out = []
    if flat.any():
        said = "; ".join(
            _how_flat(name, row) for name, row in zip(_chosen(names, flat), signal[flat], strict=True)
        )
        out.append(_of("flat", names, flat, where, said, float(flat.sum())))
    still = np.where(flat, 0.0, still_seconds(signal, fs))
    chosen = still >= STRETCH
    if chosen.any():
        said = f"no change for {still.max():.3g} of {signal.shape[1] / fs:.4g} s"
        out.append(_of("flat_stretch", names, chosen, where, said, float(still.sum() * fs / signal.shape[1])))
    return out


def _how_flat(name: str, row: NDArray[np.floating]) -> str:
    finite = row[np.isfinite(row)]
    if not finite.size:
        return f"{name} without a sample (NaN throughout)"
    spread = float(np.ptp(finite))
    return f"{name} constant at {finite[0]:g} mV" if spread == 0 else f"{name} within {spread:.3g} mV"


def _clipped(
    signal: NDArray[np.floating], flat: NDArray[np.bool_], fs: float, names: list[str], where: str
) -> list[Finding]:
    seconds = np.where(flat, 0.0, clipped_seconds(signal, fs))
    chosen = seconds >= _PLATEAU
    if not chosen.any():
        return []
    worst = int(np.argmax(seconds))
    low, high = np.fmin.reduce(signal[worst]), np.fmax.reduce(signal[worst])
    said = f"{names[worst]} at its limits ({low:.3g} to {high:.3g} mV) for {seconds[worst]:.2g} s"
    return [_of("clipped", names, chosen, where, said, float(seconds.sum()))]


def _amplitude(
    signal: NDArray[np.floating], flat: NDArray[np.bool_], fs: float, names: list[str], where: str
) -> list[Finding]:
    """Units by size: of the whole record, else of single leads."""
    ranges = typical_range(signal, fs)
    alive = ~flat & (ranges > 0)
    if not alive.any():
        return []
    middle = float(np.median(ranges[alive]))
    said = f"a typical range of {middle:.3g} mV"
    if middle > MICROVOLTS:
        return [Finding("units", (where,), f"{said}: microvolts read as millivolts?", (), np.log10(middle))]
    if middle < VOLTS:
        return [
            Finding(
                "units", (where,), f"{said}: volts, or millivolts divided by 1000?", (), -np.log10(middle)
            )
        ]
    odd = alive & ((ranges > APART * middle) | (ranges * APART < middle))
    if odd.any() and alive.sum() > 2:
        single = ", ".join(f"{names[row]} {ranges[row]:.3g} mV" for row in np.flatnonzero(odd))
        return [
            _of("units", names, odd, where, f"{single}, the other leads {middle:.3g} mV", float(odd.sum()))
        ]
    if not USUAL[0] <= middle <= USUAL[1]:
        return [Finding("amplitude", (where,), said, (), abs(float(np.log(middle))))]
    return []


def _limb(verdict: LimbVerdict, where: str) -> list[Finding]:
    size = f"the limb leads miss their identities by {_percent(verdict.residual)}, at most {verdict.largest:.3g} mV"
    changed = tuple(name for name, _ in verdict.truth)
    holds = ", ".join(f"{name} holds {true}" for name, true in verdict.truth)
    if verdict.kind == "order":
        return [Finding("lead_order", (where,), f"{holds} ({size})", changed, verdict.residual)]
    if verdict.kind == "inverted":
        check = "inverted" if all(true == f"−{name}" for name, true in verdict.truth) else "lead_order"
        return [Finding(check, (where,), f"{holds} ({size})", changed, verdict.residual)]
    if verdict.kind == "gain":
        said = ", ".join(f"{name} ×{g:.2f}" for name, g in zip(LIMB_LEADS, verdict.gains, strict=True))
        return [
            Finding("gain", (where,), f"{size}; they hold with gains {said}", LIMB_LEADS, verdict.residual)
        ]
    if verdict.kind == "local":
        return [Finding("limb_identity", (where,), f"{size}: at moments only", LIMB_LEADS, verdict.residual)]
    if verdict.kind == "unexplained":
        said = f"{size}; no other names, signs or gains explain it"
        return [Finding("limb_identity", (where,), said, LIMB_LEADS, verdict.residual)]
    return []


def _of(
    check: str, names: list[str], chosen: NDArray[np.bool_], where: str, said: str, weight: float
) -> Finding:
    return Finding(check, (where,), said, tuple(_chosen(names, chosen)), weight)


def _chosen(names: list[str], mask: NDArray[np.bool_]) -> list[str]:
    return [name for name, yes in zip(names, mask, strict=True) if yes]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges[1::2] - edges[::2]


def _longest(mask: NDArray[np.bool_]) -> int:
    return int(_runs(mask).max()) if mask.any() else 0
