"""Were the limb electrodes exchanged? The limb-lead identities cannot say: they hold for any electrodes. The waves can hint.

- arms exchanged: lead I is turned over (and II and III change places). V6 looks the same way as lead I, and is not.
- right arm and left leg exchanged: II is turned over, I is −III, and aVR, which looks away from V6, is aVF, which does not.
- an electrode on the right leg: one of I, II, III is the potential between two legs, almost nothing.

Over 306 real records (LUDB, challenge) the correlation of V6 with I stays above −0.70, with aVR below 0.13, and the
smallest of I, II, III above 24 % of the median limb lead. An exchange of left arm and left leg passes for another axis
and is not found. Exchanged by calculation in 100 LUDB records, the arms are found in 78, right arm and left leg in 65; of the
records as they are none is suspected. Dextrocardia and large lateral infarcts look like exchanged arms: a suspicion only.

Batchvarov, Malik, Camm, Incorrect electrode cable connection during electrocardiographic recording, Europace 9, 2007.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ecgmeta.data.leads import STANDARD_LEADS

_HZ = 50.0  # low enough to be quick, high enough for the QRS complex
_SECONDS = 10.0
_WANDER = 1.0  # s: a running median over this long holds no QRS complex
_AGAINST, _ALONG, _NOTHING = -0.75, 0.5, 0.1


def suspicion(signal: NDArray[np.floating], fs: float) -> tuple[str, tuple[str, ...], float] | None:
    """What the first 10 s make one suspect, the leads that show it, and how strongly (0 to 1); None for nothing.

    Args:
        signal: (12, samples) mV in the standard order, finite, none of the leads flat.
        fs: its rate, Hz; at least 50.
    """
    if fs < _HZ or signal.shape[1] < 2 * fs:
        return None
    waves = _waves(signal[:, : round(_SECONDS * fs)], fs)
    ranges = np.percentile(waves[:6], 99.5, axis=1) - np.percentile(waves[:6], 0.5, axis=1)
    smallest = int(np.argmin(ranges[:3]))
    share = float(ranges[smallest] / max(np.median(ranges), 1e-9))
    name = STANDARD_LEADS[smallest]
    if share < _NOTHING:
        said = f"lead {name} has {100 * share:.2g} % of the usual limb lead: an electrode on the right leg?"
        return said, (name,), 1 - share
    one, two, right = (_correlation(waves[i], waves[11]) for i in (0, 1, 3))
    if not (one < _AGAINST or (right > _ALONG and two < -_ALONG)):
        return None
    # Put right either way, which heart looks more like one?
    arms = _likeness(-waves[0], waves[2], waves[11])
    if arms >= _likeness(-waves[2], -waves[1], waves[11]):
        return f"lead I goes against V6 (correlation {one:+.2f}): arms exchanged?", ("I", "V6"), -one
    said = f"aVR goes with V6 ({right:+.2f}), II against it ({two:+.2f}): right arm and left leg exchanged?"
    return said, ("II", "aVR"), right


def _likeness(one: NDArray[np.float64], two: NDArray[np.float64], six: NDArray[np.float64]) -> float:
    """How much I and II look like V6, and aVR = −(I + II)/2 like its opposite."""
    return sum(_correlation(wave, six) for wave in (one, two, one + two))


def _waves(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """The leads at about 50 Hz, a running median (the wander) taken off in steps of a tenth of a second."""
    width = round(fs / _HZ)
    count = signal.shape[1] // width
    slow = signal[:, : count * width].astype(np.float64).reshape(len(signal), count, width).mean(axis=2)
    half, step = round(_WANDER * _HZ / 2), round(_HZ / 10)
    # All whole windows by one call, and those that an end cuts off one by one.
    whole = np.median(sliding_window_view(slow, 2 * half + 1, axis=1)[:, ::step], axis=2)
    first, last = half, half + step * (whole.shape[1] - 1)
    ends = {
        c: np.median(slow[:, max(0, c - half) : c + half + 1], axis=1)
        for c in range(0, count, step)
        if not first <= c <= last
    }
    before, after = ([wave for c, wave in ends.items() if (c < first) == early] for early in (True, False))
    wander = np.column_stack([*before, whole, *after])
    return slow - np.repeat(wander, step, axis=1)[:, :count]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else 0.0
