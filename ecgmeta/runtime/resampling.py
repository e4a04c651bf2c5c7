"""From one sampling rate to another, the same way for everything that is sampled: records and what is mixed into them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError

_LARGEST_RATIO = 1000  # of two rates
# A small denominator keeps the filter short. Nearly equal rates (499.97 and 500 Hz) need the larger one: at 1/1 the end of
# 10 s would be off by 0.6 ms.
_DENOMINATORS = (1000, 100_000)
_RATE_ERROR = 1e-6


def resample(signal: NDArray[np.float32], fs_in: float, fs_out: float) -> NDArray[np.float32]:
    """Polyphase resampling to ``ceil(samples * fs_out / fs_in)`` samples with an anti-aliasing filter.

    The line through the first and the last sample is taken off before filtering and put back after it, so that an offset
    makes no transient at the ends.

    Args:
        signal: (channels, samples), finite.
        fs_in: its rate, Hz.
        fs_out: the rate wanted, Hz.
    """
    if fs_in == fs_out:
        return signal
    from scipy.signal import resample_poly

    if not 1 / _LARGEST_RATIO <= fs_out / fs_in <= _LARGEST_RATIO:
        raise InputError(
            "resample", "rates", f"{fs_in:g} Hz to {fs_out:g} Hz", "a ratio between 1/1000 and 1000"
        )
    ratios = (Fraction(fs_out / fs_in).limit_denominator(largest) for largest in _DENOMINATORS)
    ratio = next(r for r in ratios if abs(float(r) * fs_in / fs_out - 1) <= _RATE_ERROR)
    if signal.shape[1] < 2:
        return np.repeat(signal, max(1, round(float(ratio))), axis=1)
    out = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    return np.asarray(out, dtype=np.float32)
