"""One WFDB record, safely: header, signal file, physical units.

Signal files are read directly, format 16 (PTB-XL, LUDB, the challenge's ``.mat`` files) in a single step; compressed ones
(FLAC) go through wfdb, and ``method="wfdb"`` reads anything that way for comparison. Whatever is wrong with a record ends in
one `InputError` that names the file.

Where this differs from wfdb, on purpose:

1. a signal file must have the size that its header promises, and stored checksums must match;
2. a frame of several samples is their mean, cut to whole adu as wfdb's library in C and wfdb do, but "no sample" where one of
   them is missing (wfdb averages the code for it);
3. each signal may have its own skew (wfdb fails where two differ, and leaves zeros at the end of frames of several samples);
4. format 8 starts from the ADC zero where no initial value is given, as header(5) says (wfdb: from 0);
5. segments are joined by the names of their leads (wfdb takes the order of the first one for all).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.formats import (
    COMPRESSED,
    Frames,
    file_frames,
    groups,
    read_frames,
    reserved,
    same_length,
    signal_path,
)
from ecgmeta.data.header import (
    DEFAULT_GAIN,
    Header,
    Layout,
    SignalSpec,
    read_header,
    read_regular,
    read_usual,
)
from ecgmeta.data.segments import join_segments
from ecgmeta.runtime.errors import InputError

__all__ = ["DEFAULT_GAIN", "INVALID_16", "Header", "Record", "SignalSpec", "read_header", "read_record"]

INVALID_16 = -32768  # the digital value format 16 reserves for "no sample"
MICROVOLTS = 1000.0  # in a millivolt
_PER_MV = {"mv": 1.0, "uv": 1e3, "µv": 1e3, "v": 1e-3}  # how many of the unit make one millivolt


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
    record = None if method == "wfdb" else _read_microvolts(path, units_per_mv, checksum)
    return record or _read_any(path, units_per_mv, checksum, method)


def _read_microvolts(path: str | Path, units_per_mv: float | None, checksum: bool) -> Record | None:
    """A sound record in whole microvolts, one file of format 16, as the large databases have them; None for any other, which
    the long way reads, or refuses with the reason."""
    usual = read_usual(path)
    if usual is None:
        return None
    leads = _leads_in_microvolts(usual.layout, units_per_mv)
    if leads is None:
        return None
    file_path = os.path.join(os.path.dirname(usual.path), usual.file)
    size = 2 * len(leads) * usual.n_samples
    try:
        raw = read_regular(file_path, size, size)[1]
    except OSError:
        return None
    if len(raw) != size:
        return None
    flat = np.frombuffer(raw, dtype="<i2")
    if np.minimum.reduce(flat) == INVALID_16:
        return None
    digital = np.ascontiguousarray(flat.reshape(-1, len(leads)).T)
    if checksum:
        totals = np.add.reduce(digital.view(np.uint16), axis=1, dtype=np.uint16).tolist()
        if totals != usual.checksums:  # all at once, then one by one: 0 is no checksum
            pairs = zip(totals, usual.checksums, strict=True)
            if any(expected not in (0, total) for total, expected in pairs):
                return None
    return Record(usual.path.removesuffix(".hea"), digital, usual.fs, leads)


@lru_cache(maxsize=64)
def _leads_in_microvolts(layout: Layout, units_per_mv: float | None) -> tuple[str, ...] | None:
    """The leads, where every one is format 16 from the first byte on and 1 adu is 1 µV."""
    for spec in layout.signals:
        factor = _PER_MV.get(_unit(spec.units))
        scale = units_per_mv if units_per_mv is not None else factor and spec.gain * factor
        baseline = 0 if units_per_mv is not None else spec.baseline
        if spec[1:5] != (16, 1, 0, 0) or scale != MICROVOLTS or baseline:
            return None
    return tuple(spec.name for spec in layout.signals)


def _read_any(
    path: str | Path, units_per_mv: float | None, checksum: bool, method: Literal["auto", "direct", "wfdb"]
) -> Record:
    """Any record that can be read."""
    header = read_header(path)
    if header.parts:
        signal, leads = join_segments(
            header,
            lambda name: read_record(
                header.path.with_name(name + ".hea"),
                units_per_mv=units_per_mv,
                checksum=checksum,
                method=method,
            ),
        )
        return Record(str(header.path.with_suffix("")), signal, header.fs, leads)
    compressed = sorted({spec.fmt for spec in header.signals} & set(COMPRESSED))
    if method == "direct" and compressed:
        raise InputError(header.path, "format", compressed, "one that is not compressed")
    if units_per_mv is not None:
        fixed = (s._replace(gain=units_per_mv, baseline=0, units="mV") for s in header.signals)
        header = replace(header, signals=tuple(fixed))
    if method == "wfdb" or compressed:
        return _from_frames(header, _wfdb_frames(header), checksum)
    if all((spec.fmt, spec.per_frame, spec.skew) == (16, 1, 0) for spec in header.signals):
        digital = _read_format16(header)
        invalid = digital == INVALID_16
        return _physical(header, digital, invalid, checksum)
    return _from_frames(header, read_frames(header), checksum)


def _read_format16(header: Header) -> NDArray[np.int16]:
    """Digital values (signals, samples) of a format-16 record, file by file."""
    rows: list[NDArray[np.int16]] = []
    for group in groups(header):
        count, first = file_frames(header, group) * len(group), group[0]
        path = signal_path(header, first.file)
        try:
            with open(path, "rb") as file:
                file.seek(first.offset)
                raw = file.read(2 * count)
        except OSError as error:
            raise InputError(path, "signal file", error.strerror or error, "a readable file") from None
        if len(raw) != 2 * count:
            raise InputError(path, "size", f"{len(raw)} bytes", f"{2 * count} bytes")
        flat = np.frombuffer(raw, dtype="<i2")
        rows.append(flat.reshape(-1, len(group)).T)
    same_length(header, [row.shape[1] for row in rows])
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _from_frames(header: Header, frames: list[Frames], checksum: bool) -> Record:
    """Undo the skew, average the samples of each frame, and to millivolts."""
    rows, missing = [], []
    for spec, stored in zip(header.signals, frames, strict=True):
        if checksum:
            _compare_checksum(header, spec, int(stored.sum(dtype=np.int64)))
        if spec.skew >= len(stored):
            raise InputError(
                header.path, f"skew of signal {spec.name}", spec.skew, f"less than {len(stored)}"
            )
        code = reserved(spec.fmt)
        absent = np.zeros(len(stored), bool) if code is None else (stored == code).any(axis=1)
        # A skew of s says that the first s stored frames are older than the record: the last s were never stored.
        row, lost = np.zeros(len(stored), np.int64), np.ones(len(stored), bool)
        kept = len(stored) - spec.skew
        mean = (
            stored[:, 0]
            if spec.per_frame == 1
            else np.trunc(stored.sum(axis=1, dtype=np.int64) / spec.per_frame)
        )
        row[:kept], lost[:kept] = mean[spec.skew :], absent[spec.skew :]
        rows.append(row)
        missing.append(lost)
    return _physical(header, np.stack(rows), np.stack(missing), checksum=False)


def _physical(
    header: Header, digital: NDArray[np.integer], invalid: NDArray[np.bool_], checksum: bool
) -> Record:
    """(digital − baseline) / gain in mV; the checksum is the sum of the digital values modulo 2**16."""
    digital = np.ascontiguousarray(digital)  # lead by lead: everything below runs along time
    if checksum:
        # Sums modulo 2**16 need no more than 16 bits, and int16 adds without a conversion.
        totals = digital.sum(axis=1, dtype=np.int16).tolist()
        for spec, total in zip(header.signals, totals, strict=True):
            _compare_checksum(header, spec, total)
    gains = [spec.gain * _per_mv(header.path, spec.name, spec.units) for spec in header.signals]
    baselines = [spec.baseline for spec in header.signals]
    leads = tuple(spec.name for spec in header.signals)
    signal = _scale(digital, np.array(gains), np.array(baselines))
    if invalid.any():
        signal[invalid] = np.nan
    return Record(str(header.path.with_suffix("")), signal, header.fs, leads)


def _compare_checksum(header: Header, spec: SignalSpec, total: int) -> None:
    if spec.checksum is not None and total & 0xFFFF != spec.checksum:
        raise InputError(
            header.path,
            f"checksum of signal {spec.name}",
            f"{total & 0xFFFF} in {spec.file}",
            f"{spec.checksum} (the file has changed since it was written; checksum=False reads it anyway)",
        )


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
    factor = _PER_MV.get(_unit(units))
    if factor is None:
        raise InputError(where, f"units of signal {lead}", repr(units), "mV, uV or V")
    return factor


def _unit(units: str) -> str:
    """One spelling of each: a micro sign may be a Greek letter."""
    return units.casefold().replace("\u03bc", "µ")


def _wfdb_frames(header: Header) -> list[Frames]:
    """The digital values as stored, by wfdb; sizes are checked before it is asked."""
    import wfdb

    frames = [
        _flac_frames(header, g) if g[0].fmt in COMPRESSED else file_frames(header, g) for g in groups(header)
    ]
    same_length(header, frames)
    name = str(header.path.with_suffix(""))
    try:
        # Frames of one sample are asked for in one array: wfdb cannot give format 61 as stored frames.
        alone = all(spec.per_frame == 1 for spec in header.signals)
        found: Any = wfdb.rdrecord(name, physical=False, smooth_frames=alone, ignore_skew=True)
        signals = found.d_signal.T if alone else found.e_d_signal
        stored = [
            np.asarray(part).reshape(frames[0], spec.per_frame)
            for part, spec in zip(signals, header.signals, strict=True)
        ]
    except Exception as error:  # wfdb answers a broken file with whatever its parser hit first
        found_text = f"{type(error).__name__}: {error}"[:200]
        raise InputError(header.path, "record", found_text, "a record wfdb can read") from None
    return stored


def _flac_frames(header: Header, group: list[SignalSpec]) -> int:
    """The frames that a FLAC file says it holds."""
    import soundfile

    first, path = group[0], header.path.with_name(group[0].file)
    try:
        found = soundfile.info(str(path))
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        raise InputError(path, "signal file", str(error)[:200], "a FLAC file") from None
    samples = int(found.frames) - first.offset
    frames = samples // first.per_frame if header.n_samples is None else header.n_samples
    if samples < 1 or samples != frames * first.per_frame:
        raise InputError(
            path, "size", f"{found.frames} samples", f"{first.offset + frames * first.per_frame}"
        )
    return frames
