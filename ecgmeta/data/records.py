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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.formats import COMPRESSED, Frames, file_frames, groups, read_frames, reserved, same_length
from ecgmeta.data.header import DEFAULT_GAIN, Header, SignalSpec, read_header
from ecgmeta.data.segments import join_segments
from ecgmeta.runtime.errors import InputError

__all__ = ["DEFAULT_GAIN", "INVALID_16", "Header", "Record", "SignalSpec", "read_header", "read_record"]

INVALID_16 = -32768  # the digital value format 16 reserves for "no sample"
_PER_MV = {"mv": 1.0, "uv": 1e3, "µv": 1e3, "v": 1e-3}  # how many of the unit make one millivolt


@dataclass(frozen=True)
class Record:
    """One recording: `signal` (leads, samples) float32 mV, NaN where no sample is stored; `fs` in Hz."""

    path: str
    signal: NDArray[np.float32]
    fs: float
    leads: tuple[str, ...]


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
        fixed = (replace(s, gain=units_per_mv, baseline=0, units="mV") for s in header.signals)
        header = replace(header, signals=tuple(fixed))
    if method == "wfdb" or compressed:
        return _from_frames(header, _wfdb_frames(header), checksum)
    if all((spec.fmt, spec.per_frame, spec.skew) == (16, 1, 0) for spec in header.signals):
        digital = _read_format16(header)
        return _physical(header, digital, digital == INVALID_16, checksum)
    return _from_frames(header, read_frames(header), checksum)


def _read_format16(header: Header) -> NDArray[np.int16]:
    """Digital values (signals, samples) of a format-16 record, file by file."""
    rows: list[NDArray[np.int16]] = []
    for group in groups(header):
        count, first = file_frames(header, group) * len(group), group[0]
        path = header.path.with_name(first.file)
        try:
            flat = np.fromfile(path, dtype="<i2", count=count, offset=first.offset)
        except OSError as error:
            raise InputError(path, "signal file", error.strerror or error, "a readable file") from None
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
    if checksum:
        # Sums modulo 2**16 need no more than 16 bits, and int16 adds without a conversion.
        for spec, total in zip(header.signals, digital.sum(axis=1, dtype=np.int16), strict=True):
            _compare_checksum(header, spec, int(total))
    gains = [spec.gain * _per_mv(header.path, spec.name, spec.units) for spec in header.signals]
    signal = _scale(digital, np.array(gains), np.array([spec.baseline for spec in header.signals]))
    if invalid.any():
        signal[invalid] = np.nan
    leads = tuple(spec.name for spec in header.signals)
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
    factor = _PER_MV.get(units.casefold().replace("\u03bc", "µ"))
    if factor is None:
        raise InputError(where, f"units of signal {lead}", repr(units), "mV, uV or V")
    return factor


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
