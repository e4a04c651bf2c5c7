"""From a record to fixed-length windows: leads by name, gaps, filters, one rate, one length, refusals with a reason.

`Preprocess` is a plain, serialisable description; the same object gives the same windows from the same record, always. It
travels with an encoder (``encoder.preprocess``), so whoever loads one can treat new recordings alike::

    encoder = load_encoder("runs/meta/encoder")
    data = LUDB("ludb/", **encoder.preprocess)                              # a folder of recordings, or
    features = encoder(Preprocess.of(encoder).tensor(signal, fs, leads))    # one recording, as it comes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.leads import LIMB_COEFFICIENTS, STANDARD_LEADS, canonical, match_leads
from ecgmeta.data.records import Record, millivolts
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.resampling import resample

if TYPE_CHECKING:
    from torch import Tensor

# Of the Butterworth filters, which run forwards and backwards: twice the slope, and no shift of any wave.
_ORDER = 3
_NOTCH_Q = 30.0  # 50 Hz ± 0.8 Hz
_SETTLED = 3.0  # periods of its corner after which the end of a record is out of the high-pass's memory


@dataclass(frozen=True)
class Window:
    """`signal` (leads, samples) float32 mV; `valid` samples are recorded, the rest padded with zeros.

    `stored` is that, or the same in whole microvolts as int16 (see `Record`).
    """

    stored: NDArray[np.float32] | NDArray[np.int16]
    number: int
    valid: int
    bad_leads: tuple[str, ...]

    @property
    def signal(self) -> NDArray[np.float32]:
        return millivolts(self.stored)


class Prepared(Protocol):
    """What an encoder says of the recordings that it reads."""

    fs: float
    lead_names: tuple[str, ...] | None
    preprocess: dict[str, Any]


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
        highpass, lowpass: corners, Hz, of zero-phase Butterworth filters (−6 dB there), at the record's own rate; 0 is none. A
            low-pass above what the record's rate can hold has nothing to do.
        notch: mains frequency, Hz, taken out by a zero-phase notch; 0 is none. Where the record's rate cannot hold it there is
            nothing to take out.
        derive: a record without III, aVR, aVL or aVF gets it from its I and II.
    """

    fs: float = 100.0
    duration: float = 10.0
    leads: tuple[str, ...] | None = None
    windows: Literal["first", "all"] = "first"
    short: Literal["pad", "drop", "raise"] = "pad"
    bad_leads: Literal["error", "zero"] = "error"
    max_gap: float = 0.1
    highpass: float = 0.0
    lowpass: float = 0.0
    notch: float = 0.0
    derive: bool = False

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
        for field in ("highpass", "lowpass", "notch"):
            if not 0 <= getattr(self, field) < 1e6:
                raise InputError("preprocess", field, getattr(self, field), "Hz, or 0 for none")
        if max(self.highpass, self.lowpass) >= self.fs / 2:
            found = f"{self.highpass:g} and {self.lowpass:g} Hz"
            raise InputError(
                "preprocess", "highpass, lowpass", found, f"below {self.fs / 2:g} Hz, half of fs"
            )
        if self.lowpass and self.highpass >= self.lowpass:
            raise InputError("preprocess", "highpass", f"{self.highpass:g} Hz", f"below {self.lowpass:g} Hz")
        if not self.lead_names or len(set(self.lead_names)) != len(self.lead_names):
            raise InputError("preprocess", "leads", self.leads, "different names, at least one")

    @property
    def samples(self) -> int:
        """Samples in a window."""
        return round(self.duration * self.fs)

    @cached_property
    def lead_names(self) -> tuple[str, ...]:
        """The leads of the result, in standard spelling."""
        return STANDARD_LEADS if self.leads is None else tuple(canonical(name) for name in self.leads)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description for `from_dict`; also the keywords of every source, ``LUDB(root, **d)``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """What `to_dict` gave, after a trip through JSON.

        Raises:
            InputError: an unknown setting, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise InputError("preprocess", name, "an unknown setting", f"some of {', '.join(known)}")
        leads = settings.get("leads")
        return cls(**{**settings, "leads": None if leads is None else tuple(leads)})

    @classmethod
    def of(cls, encoder: Prepared) -> Preprocess:
        """What an encoder wants done to recordings: its ``preprocess``, or its rate and leads where it says no more.

        Raises:
            InputError: an unknown setting, or a value out of range.
        """
        said = {"fs": encoder.fs, "leads": encoder.lead_names}
        return cls.from_dict({**said, **encoder.preprocess})

    def tensor(
        self, signal: NDArray[np.floating], fs: float, leads: Sequence[str], name: str = "array"
    ) -> Tensor:
        """:meth:`array` as a tensor, ready for an encoder."""
        import torch

        return torch.from_numpy(self.array(signal, fs, leads, name))

    def array(
        self, signal: NDArray[np.floating], fs: float, leads: Sequence[str], name: str = "array"
    ) -> NDArray[np.float32]:
        """One recording that is already in memory, as (windows, leads, samples) float32 mV.

        Args:
            signal: (leads, samples), mV.
            fs: its rate, Hz.
            leads: the name of each lead.
            name: of the recording, for errors.

        Raises:
            InputError: shapes that do not fit, or the first window that is refused.
        """
        if signal.ndim != 2 or len(signal) != len(leads) or not signal.size:
            raise InputError(name, "signal", f"shape {signal.shape}", f"({len(leads)} leads, samples)")
        if not 0 < fs < 1e6:
            raise InputError(name, "fs", fs, "a rate in Hz")
        windows = []
        for window in self.apply(Record(name, np.asarray(signal, dtype=np.float32), float(fs), tuple(leads))):
            if isinstance(window, InputError):
                raise window
            windows.append(window.signal)
        return np.stack(windows)

    def apply(self, record: Record) -> Iterator[Window | InputError]:
        """The windows of a record, in order; an `InputError` stands in the place of a window that is refused.

        Args:
            record: (leads, samples) mV at its own rate; not changed.
        """
        ready = self._ready(record)
        if ready is not None:
            yield from ready
            return
        raw = self._select(record)
        if self.windows == "first":  # and more, so that the ends of the filters see real samples
            reach = max(1.0, _SETTLED / self.highpass if self.highpass else 0.0)
            raw = raw[:, : int(np.ceil((self.duration + reach) * record.fs))]
        # What is never filled stays marked, and becomes a bad lead in the windows that hold it.
        clean, gaps = fill_gaps(raw, int(self.max_gap * record.fs))
        signal = resample(self.filter(clean, record.fs), record.fs, self.fs)
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

    def _ready(self, record: Record) -> list[Window] | None:
        """Windows of whole microvolts, cut and otherwise as stored; None where anything is to be done or refused.

        The same as the long way gives, in a tenth of its time: a database at the wanted rate is copied, not computed.
        """
        touched = record.fs != self.fs or self.highpass or self.lowpass or self.notch
        count = record.stored.shape[1] // self.samples
        if touched or record.stored.dtype != np.int16 or not count:
            return None
        places = match_leads(record.leads, self.lead_names, record.path)
        if None in places:
            return None
        stored = record.stored
        if places != list(range(len(stored))):
            stored = stored[np.array(places)]
        windows = []
        for number in range(count if self.windows == "all" else 1):
            piece = stored[:, number * self.samples : (number + 1) * self.samples]
            ends_meet = piece[:, 0] == piece[:, -1]  # as in few leads, and all that are flat
            if ends_meet.any() and (piece == piece[:, :1]).all(axis=1).any():
                return None
            windows.append(Window(piece, number, self.samples, ()))
        return windows

    def filter(self, signal: NDArray[np.float32], fs: float) -> NDArray[np.float32]:
        """High-pass, notch and low-pass as set, zero-phase; the argument itself where none is.

        Args:
            signal: (leads, samples), finite.
            fs: its rate, Hz.
        """
        sections = _sections(self.highpass, self.lowpass, self.notch, fs)
        if not len(sections):
            return signal
        from scipy.signal import sosfiltfilt

        # scipy's own padding is a few samples; a slow high-pass needs its memory's length, reflected about the end point.
        wanted = int(fs * _SETTLED / self.highpass) if self.highpass else int(fs)
        padding = min(wanted, signal.shape[1] - 1)
        return np.asarray(sosfiltfilt(sections, signal, axis=1, padlen=padding), dtype=np.float32)

    def _select(self, record: Record) -> NDArray[np.float32]:
        """The wanted leads in order, a missing one as NaN throughout."""
        raw = np.full((len(self.lead_names), record.signal.shape[1]), np.nan, dtype=np.float32)
        places = match_leads(record.leads, self.lead_names, record.path)
        limb = match_leads(record.leads, ("I", "II"), record.path) if self.derive else [None, None]
        for row, place in enumerate(places):
            if place is not None:
                raw[row] = record.signal[place]
            elif self.lead_names[row] in LIMB_COEFFICIENTS and None not in limb:
                one, two = (record.signal[p] for p in limb if p is not None)
                a, b = LIMB_COEFFICIENTS[self.lead_names[row]]
                raw[row] = np.float32(a) * one + np.float32(b) * two
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


@lru_cache(maxsize=64)
def _sections(highpass: float, lowpass: float, notch: float, fs: float) -> NDArray[np.float64]:
    """Second-order sections of all filters that a rate of ``fs`` can hold; (0, 6) for none."""
    from scipy.signal import butter, iirnotch, tf2sos

    parts: list[NDArray[np.float64]] = [np.zeros((0, 6))]
    if 0 < highpass < fs / 2:
        parts.append(butter(_ORDER, highpass, "highpass", fs=fs, output="sos"))
    if 0 < notch < fs / 2:
        parts.append(tf2sos(*iirnotch(notch, _NOTCH_Q, fs)))
    if 0 < lowpass < fs / 2:
        parts.append(butter(_ORDER, lowpass, "lowpass", fs=fs, output="sos"))
    return np.concatenate(parts)
