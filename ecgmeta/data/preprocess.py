"""From a record to fixed-length windows: leads by name, gaps, one rate, one length, refusals with a reason.

`Preprocess` is a plain, serialisable description; the same object gives the same windows from the same record, always.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.leads import STANDARD_LEADS, canonical, match_leads
from ecgmeta.data.records import Record
from ecgmeta.runtime.errors import InputError

_LARGEST_RATIO = 1000  # of two rates
# A small denominator keeps the filter short. Nearly equal rates (499.97 and 500 Hz) need the larger one: at 1/1 the end of
# 10 s would be off by 0.6 ms.
_DENOMINATORS = (1000, 100_000)
_RATE_ERROR = 1e-6


@dataclass(frozen=True)
class Window:
    """`signal` (leads, samples) float32 mV; `valid` samples are recorded, the rest padded with zeros."""

    signal: NDArray[np.float32]
    number: int
    valid: int
    bad_leads: tuple[str, ...]


@dataclass(frozen=True)
class Preprocess:
    """What is done to every record.

    Args:
        fs: rate of the result, Hz (polyphase resampling).
        duration: length of a window, s; the result has exactly ``round(duration * fs)`` samples.
        leads: names in the order wanted; None means the standard twelve.
        windows: ``"first"`` cuts one window from the start, ``"all"`` as many whole windows as fit, end to end (what is
            left over at the end is not used).
        short: a record shorter than one window is padded with zeros at its end (``"pad"``; `Window.valid` says how much
            is real), refused (``"raise"``), or left out with a note (``"drop"``).
        bad_leads: a lead that is missing, constant, or without samples for longer than `max_gap` makes the window
            refused (``"error"``) or becomes zeros and is listed in `Window.bad_leads` (``"zero"``). A window in which
            every lead is bad is refused either way.
        max_gap: runs of missing samples (NaN) up to this long, s, are interpolated linearly.
    """

    fs: float = 100.0
    duration: float = 10.0
    leads: tuple[str, ...] | None = None
    windows: Literal["first", "all"] = "first"
    short: Literal["pad", "drop", "raise"] = "pad"
    bad_leads: Literal["error", "zero"] = "error"
    max_gap: float = 0.1

    def __post_init__(self) -> None:
        choices = {
            "windows": ("first", "all"),
            "short": ("pad", "drop", "raise"),
            "bad_leads": ("error", "zero"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise InputError("preprocess", field, repr(getattr(self, field)), " or ".join(allowed))
        for field in ("fs", "duration"):
            if not 0 < getattr(self, field) < 1e6:
                raise InputError("preprocess", field, getattr(self, field), "a positive number")
        if self.samples < 2:
            raise InputError("preprocess", "duration * fs", self.duration * self.fs, "at least 2 samples")
        if not 0 <= self.max_gap < 1e6:
            raise InputError("preprocess", "max_gap", self.max_gap, "zero or more seconds")
        if not self.lead_names or len(set(self.lead_names)) != len(self.lead_names):
            raise InputError("preprocess", "leads", self.leads, "different names, at least one")

    @property
    def samples(self) -> int:
        """Samples in a window."""
        return round(self.duration * self.fs)

    @property
    def lead_names(self) -> tuple[str, ...]:
        """The leads of the result, in standard spelling."""
        return STANDARD_LEADS if self.leads is None else tuple(canonical(name) for name in self.leads)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``Preprocess(**d)`` gives it back (leads as a tuple)."""
        return asdict(self)

    def apply(self, record: Record) -> Iterator[Window | InputError]:
        """The windows of a record, in order; an `InputError` stands in the place of a window that is refused.

        Args:
            record: (leads, samples) mV at its own rate; not changed.
        """
        raw = self._select(record)
        if (
            self.windows == "first"
        ):  # a second more than the window, so that the end of the filter sees real samples
            raw = raw[:, : int(np.ceil((self.duration + 1) * record.fs))]
        # What is never filled stays marked, and becomes a bad lead in the windows that hold it.
        clean, gaps = fill_gaps(raw, int(self.max_gap * record.fs))
        signal = resample(clean, record.fs, self.fs)
        length = signal.shape[1]
        if length < self.samples and self.short != "pad":
            found = f"{raw.shape[1] / record.fs:g} s"
            yield InputError(record.path, "length", found, f"at least {self.duration:g} s")
            return
        count = max(1, length // self.samples) if self.windows == "all" else 1
        for number in range(count):
            start = number * self.samples
            first, last = (round(s * record.fs / self.fs) for s in (start, start + self.samples))
            piece = signal[:, start : start + self.samples]
            yield self._window(record, number, piece, clean[:, first:last], gaps[:, first:last])

    def _select(self, record: Record) -> NDArray[np.float32]:
        """The wanted leads in order, a missing one as NaN throughout."""
        raw = np.full((len(self.lead_names), record.signal.shape[1]), np.nan, dtype=np.float32)
        places = match_leads(record.leads, self.lead_names, record.path)
        for row, place in enumerate(places):
            if place is not None:
                raw[row] = record.signal[place]
        return raw

    def _window(
        self,
        record: Record,
        number: int,
        piece: NDArray[np.float32],
        clean: NDArray[np.float32],
        gaps: NDArray[np.bool_],
    ) -> Window | InputError:
        bad = gaps.any(axis=1) | (clean.max(axis=1) == clean.min(axis=1))
        if bad.any() and (self.bad_leads == "error" or bad.all()):
            return self._refusal(record, number, int(np.flatnonzero(bad)[0]), clean, gaps)
        signal = np.zeros((len(self.lead_names), self.samples), dtype=np.float32)
        signal[:, : piece.shape[1]] = piece
        signal[bad] = 0
        names = tuple(name for name, is_bad in zip(self.lead_names, bad, strict=True) if is_bad)
        return Window(signal, number, piece.shape[1], names)

    def _refusal(
        self, record: Record, number: int, row: int, clean: NDArray[np.float32], gaps: NDArray[np.bool_]
    ) -> InputError:
        lead = self.lead_names[row]
        field = f"lead {lead}" + (f", window {number}" if number else "")
        if canonical(lead).casefold() not in {canonical(name).casefold() for name in record.leads}:
            return InputError(record.path, field, f"only {', '.join(record.leads)}", "a signal of that name")
        if gaps[row].all():
            return InputError(record.path, field, "no sample (NaN throughout)", "a signal")
        if gaps[row].any():
            found = f"{int(gaps[row].sum())} missing samples (NaN)"
            return InputError(record.path, field, found, f"gaps of at most {self.max_gap:g} s")
        return InputError(record.path, field, f"the constant {clean[row, 0]:g} mV (flat)", "a signal")


def fill_gaps(signal: NDArray[np.float32], longest: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Interpolate short runs of non-finite samples lead by lead.

    Args:
        signal: (leads, samples) mV.
        longest: runs of up to this many samples are interpolated (ends: the nearest value is held); longer ones become 0.

    Returns:
        the signal without a NaN (the argument itself where nothing was missing) and (leads, samples) True where a run
        was too long.
    """
    missing = ~np.isfinite(signal)
    if not missing.any():
        return signal, missing
    filled, too_long = signal.copy(), np.zeros_like(missing)
    for row in np.flatnonzero(missing.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.concatenate(([False], missing[row], [False])).astype(np.int8)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            too_long[row, start:end] = end - start > longest or missing[row].all()
        good = np.flatnonzero(~missing[row])
        gap = np.flatnonzero(missing[row])
        filled[row, gap] = np.interp(gap, good, signal[row, good]) if good.size else 0
        filled[row, too_long[row]] = 0
    return filled, too_long


def resample(signal: NDArray[np.float32], fs_in: float, fs_out: float) -> NDArray[np.float32]:
    """Polyphase resampling to ``ceil(samples * fs_out / fs_in)`` samples with an anti-aliasing filter.

    The line through the first and the last sample is taken off before filtering and put back after it, so that an offset
    makes no transient at the ends.

    Args:
        signal: (leads, samples), finite.
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
