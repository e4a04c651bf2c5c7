"""One WFDB record, safely: header, signal file, physical units.

Format 16 (PTB-XL, LUDB, the challenge's ``.mat`` files) is read directly, several times faster than through wfdb and equal
to it; every other format, and every multi-segment record, goes through wfdb. Whatever is wrong with a record ends in one
`InputError` that names the file.

Header syntax: WFDB header(5), https://physionet.org/physiotools/wag/header-5.htm
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError

INVALID_16 = -32768  # the digital value format 16 reserves for "no sample"
DEFAULT_GAIN = 200.0  # adu/mV where a header gives none or 0
MICROVOLTS = 1000.0  # in a millivolt
_PER_MV = {"mv": 1.0, "uv": 1e3, "µv": 1e3, "v": 1e-3}  # how many of the unit make one millivolt
_GAIN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\(([+-]?\d+)\))?(?:/(\S+))?$")
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_FREQUENCY = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)(?:/.*)?$")


@dataclass(frozen=True)
class SignalSpec:
    """One signal line of a header. `gain` is in adu per unit, `baseline` in adu, `offset` in bytes."""

    file: str
    fmt: int
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    checksum: int | None
    name: str


@dataclass(frozen=True)
class Header:
    """A parsed header; `fs` in Hz, `n_samples` a signal (None where the header does not say)."""

    path: Path
    fs: float
    n_samples: int | None
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]
    segments: int = 1


@dataclass(frozen=True)
class Record:
    """One recording: `signal` (leads, samples) float32 mV, NaN where no sample is stored; `fs` in Hz.

    `stored` is that, or the same in whole microvolts as int16, which whoever does no arithmetic with them can pass on.
    """

    path: str
    stored: NDArray[np.float32] | NDArray[np.int16]
    fs: float
    leads: tuple[str, ...]

    @cached_property
    def signal(self) -> NDArray[np.float32]:
        return millivolts(self.stored)


def millivolts(stored: NDArray[np.float32] | NDArray[np.int16]) -> NDArray[np.float32]:
    """float32 as it is, int16 as whole microvolts."""
    if stored.dtype != np.int16:
        return np.asarray(stored, dtype=np.float32)
    signal = np.ascontiguousarray(stored, dtype=np.float32)
    signal /= np.float32(MICROVOLTS)
    return signal


@lru_cache(maxsize=4096)
def _gain(text: str) -> tuple[float, int | None, str] | None:
    """``1000.0(0)/mV`` → (gain, baseline or None, units); None where it cannot be read."""
    found = _GAIN.match(text)
    if found is None or len(text) > 60 or not 0 <= float(found[1]) < 1e12:
        return None
    return float(found[1]) or DEFAULT_GAIN, int(found[2]) if found[2] else None, found[3] or "mV"


@lru_cache(maxsize=256)
def _format(text: str) -> tuple[int, int, int, int] | None:
    """``16x1+24`` → (format, samples per frame, skew, byte offset)."""
    found = _FORMAT.match(text)
    if found is None:
        return None
    return int(found[1]), int(found[2] or 1), int(found[3] or 0), int(found[4] or 0)


def _signal_line(line: str, where: Path, number: int) -> SignalSpec:
    field = f"signal line {number + 1}"
    parts = line.split(None, 8)
    if len(parts) < 2:
        raise InputError(where, field, repr(line), "FILE FORMAT GAIN ...")
    fmt = _format(parts[1])
    if fmt is None:
        raise InputError(where, f"{field}, format", repr(parts[1]), "a number such as 16, 212 or 16+24")
    gain = _gain(parts[2]) if len(parts) > 2 else (DEFAULT_GAIN, None, "mV")
    if gain is None:
        raise InputError(where, f"{field}, gain", repr(parts[2]), "such as 1000/mV or 1000(0)/mV")
    try:
        numbers = [int(text) for text in parts[3:8]]
    except ValueError:
        raise InputError(where, field, repr(line), "integers in fields 4 to 8") from None
    if "/" in parts[0] or "\\" in parts[0]:
        raise InputError(where, f"{field}, file", repr(parts[0]), "a plain file name beside the header")
    zero = numbers[1] if len(numbers) > 1 else 0
    # A checksum of 0 is what writers that do not compute one leave there.
    checksum = numbers[3] & 0xFFFF if len(numbers) > 3 and numbers[3] else None
    name = parts[8].strip() if len(parts) > 8 else f"signal {number}"
    baseline = zero if gain[1] is None else gain[1]
    if abs(baseline) >= 2**31:
        raise InputError(where, f"{field}, baseline", baseline, "a 32-bit number")
    return SignalSpec(parts[0], *fmt, gain[0], baseline, gain[2], checksum, name)


def read_header(path: str | Path) -> Header:
    """Parse the header of a record.

    Args:
        path: the record, with or without ``.hea``.

    Raises:
        InputError: the file is missing or one of its lines cannot be read.
    """
    where = Path(path)
    if where.suffix != ".hea":
        where = where.with_name(where.name + ".hea")
    try:
        text = where.read_bytes().decode("latin-1")
    except FileNotFoundError:
        raise InputError(where, "header", "no such file", "a WFDB header") from None
    except OSError as error:
        raise InputError(where, "header", error.strerror, "a readable file") from None
    lines = [line.strip() for line in text.splitlines()]
    comments = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(where, "record line", "nothing", "NAME SIGNALS FREQUENCY SAMPLES")
    n_signals, segments, fs, n_samples = _record_line(lines[0], where)
    if segments > 1:
        return Header(where, fs, n_samples, (), comments, segments)
    if len(lines) - 1 != n_signals:
        raise InputError(where, "signal lines", len(lines) - 1, f"{n_signals}, as the first line says")
    signals = tuple(_signal_line(line, where, number) for number, line in enumerate(lines[1:]))
    return Header(where, fs, n_samples, signals, comments)


def _record_line(line: str, where: Path) -> tuple[int, int, float, int | None]:
    """The first line: (signals, segments, Hz, samples or None)."""
    parts = line.split()
    name, _, segments = parts[0].partition("/")
    try:
        n_signals, n_segments = int(parts[1]), int(segments or 1)
        rate = _FREQUENCY.match(parts[2]) if len(parts) > 2 else None
        fs = float(rate[1]) if rate else 250.0 if len(parts) < 3 else math.nan
        n_samples = int(parts[3]) if len(parts) > 3 else None
    except (ValueError, IndexError):
        raise InputError(where, "record line", repr(line), "NAME SIGNALS FREQUENCY SAMPLES") from None
    if not name or n_signals < 1 or n_segments < 1:
        raise InputError(where, "record line", repr(line), "a name and at least one signal")
    if not 1 <= fs <= 100_000:
        raise InputError(where, "sampling frequency", repr(parts[2]), "1 to 100000 Hz")
    if n_samples is not None and n_samples < 1:
        raise InputError(where, "number of samples", n_samples, "at least 1")
    return n_signals, n_segments, fs, n_samples


def read_record(
    path: str | Path,
    *,
    units_per_mv: float | None = None,
    checksum: bool = True,
    method: Literal["auto", "direct", "wfdb"] = "auto",
) -> Record:
    """Read a whole record in millivolts.

    Args:
        path: the record, with or without ``.hea``.
        units_per_mv: where given, the digital values are divided by it and the header's gains ignored (LUDB's are wrong).
        checksum: compare each signal with the checksum its header holds (a checksum of 0 or none is not compared).
        method: ``"direct"`` insists on the fast reader, ``"wfdb"`` on the library.

    Raises:
        InputError: missing, truncated or overlong files, unreadable fields, unknown units, a checksum that differs.
    """
    header = read_header(path)
    direct = header.segments == 1 and all(
        (spec.fmt, spec.per_frame, spec.skew) == (16, 1, 0) for spec in header.signals
    )
    if method == "direct" and not direct:
        formats = sorted({spec.fmt for spec in header.signals})
        raise InputError(header.path, "format", formats or "several segments", "16, one sample a frame")
    if units_per_mv is not None:
        fixed = (replace(s, gain=units_per_mv, baseline=0, units="mV") for s in header.signals)
        header = replace(header, signals=tuple(fixed))
    if direct and method != "wfdb":
        digital = _read_format16(header)
        return _physical(header, digital, digital == INVALID_16, checksum)
    return _read_wfdb(header, checksum)


def _read_format16(header: Header) -> NDArray[np.int16]:
    """Digital values (signals, samples) of a format-16 record, file by file."""
    rows: list[NDArray[np.int16]] = []
    specs = list(header.signals)
    while specs:
        group = [spec for spec in specs if spec.file == specs[0].file]
        if specs[: len(group)] != group:
            raise InputError(
                header.path, "signal lines", f"{group[0].file} in two places", "files in one run"
            )
        specs = specs[len(group) :]
        rows.append(_read_file(header, group[0].file, len(group), max(spec.offset for spec in group)))
    if len({row.shape[1] for row in rows}) > 1:
        raise InputError(
            header.path, "samples", [row.shape[1] for row in rows], "the same number in every file"
        )
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _read_file(header: Header, name: str, n_signals: int, offset: int) -> NDArray[np.int16]:
    path = header.path.with_name(name)
    try:
        size = path.stat().st_size
        expected = size - offset if header.n_samples is None else 2 * n_signals * header.n_samples
        if size - offset != expected or expected <= 0 or expected % (2 * n_signals):
            wanted = (
                f"{offset + expected}"
                if header.n_samples
                else f"a multiple of {2 * n_signals} after the header"
            )
            raise InputError(
                path, "size", f"{size} bytes", f"{wanted} bytes ({n_signals} signals of format 16)"
            )
        flat = np.fromfile(path, dtype="<i2", offset=offset)
    except FileNotFoundError:
        raise InputError(
            header.path, "signal file", f"{name}, which does not exist", "a file beside it"
        ) from None
    except OSError as error:
        raise InputError(path, "signal file", error.strerror, "a readable file") from None
    return flat.reshape(-1, n_signals).T


def _physical(
    header: Header, digital: NDArray[np.integer], invalid: NDArray[np.bool_], checksum: bool
) -> Record:
    """(digital − baseline) / gain in mV; the checksum is the sum of the digital values modulo 2**16."""
    if checksum:
        # Sums modulo 2**16 need no more than 16 bits, and int16 adds without a conversion.
        sums = (
            digital.sum(axis=1, dtype=np.int16 if digital.dtype == np.int16 else np.int64).astype(np.int64)
            & 0xFFFF
        )
        for spec, total in zip(header.signals, sums, strict=True):
            if spec.checksum is not None and total != spec.checksum:
                raise InputError(
                    header.path,
                    f"checksum of signal {spec.name}",
                    f"{total} in {spec.file}",
                    f"{spec.checksum} (the file has changed since it was written; checksum=False reads it anyway)",
                )
    gains = [spec.gain * _per_mv(header.path, spec.name, spec.units) for spec in header.signals]
    baselines = [spec.baseline for spec in header.signals]
    leads = tuple(spec.name for spec in header.signals)
    missing = bool(invalid.any())
    if digital.dtype == np.int16 and not missing and not any(baselines) and set(gains) == {MICROVOLTS}:
        stored = np.ascontiguousarray(digital, dtype=np.int16)
        return Record(str(header.path.with_suffix("")), stored, header.fs, leads)
    signal = _scale(digital, np.array(gains), np.array(baselines))
    if missing:
        signal[invalid] = np.nan
    return Record(str(header.path.with_suffix("")), signal, header.fs, leads)


def _scale(
    digital: NDArray[np.integer], gains: NDArray[np.float64], baselines: NDArray[np.integer]
) -> NDArray[np.float32]:
    """(digital − baseline) / gain, row by row, as wfdb has it in float64, rounded to float32."""
    # A quotient of two float32 rounds to the same float32 whether it is taken in float32 or float64, so the short way is
    # exact where both are float32 already.
    if digital.dtype.itemsize <= 2 and not baselines.any() and (gains.astype(np.float32) == gains).all():
        short = np.ascontiguousarray(digital, dtype=np.float32)
        short /= gains.astype(np.float32)[:, None]
        return short
    return ((digital - baselines[:, None]) / gains[:, None]).astype(np.float32)


def _per_mv(where: object, lead: str, units: str) -> float:
    """How many of `units` make a millivolt."""
    factor = _PER_MV.get(units.casefold().replace("\u03bc", "µ"))
    if factor is None:
        raise InputError(where, f"units of signal {lead}", repr(units), "mV, uV or V")
    return factor


def _read_wfdb(header: Header, checksum: bool) -> Record:
    """Any other format, through wfdb."""
    import wfdb

    name = str(header.path.with_suffix(""))
    try:
        # A single segment is read in digital values, so that gain and checksum are treated in one place.
        found: Any = wfdb.rdrecord(name, physical=header.segments > 1)
    except Exception as error:  # wfdb answers a broken file with whatever its parser hit first
        found_text = f"{type(error).__name__}: {error}"[:200]
        raise InputError(header.path, "record", found_text, "a record wfdb can read") from None
    if header.segments > 1:
        scale = [1 / _per_mv(header.path, n, u) for n, u in zip(found.sig_name, found.units, strict=True)]
        signal = np.ascontiguousarray((found.p_signal * np.array(scale)).T, dtype=np.float32)
        return Record(name, signal, float(found.fs), tuple(found.sig_name))
    digital = found.d_signal.T
    reserved = np.array([-(1 << (_bits(spec.fmt) - 1)) for spec in header.signals])[:, None]
    # wfdb averages the samples of a frame and shifts skewed signals: what it returns is not what was summed.
    as_stored = all(spec.per_frame == 1 and spec.skew == 0 for spec in header.signals)
    return _physical(header, digital, digital == reserved, checksum and as_stored)


def _bits(fmt: int) -> int:
    """Resolution of a WFDB storage format; its lowest value means "no sample"."""
    return {8: 8, 80: 8, 212: 12, 310: 10, 311: 10, 24: 24, 32: 32}.get(fmt, 16)
