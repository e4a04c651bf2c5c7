"""The signal files of WFDB: how large each must be, and its bytes as digital values.

The size is checked before anything is read: a file that is too short or too long for its header is refused, and no header
can ask for more memory than its files are large. Storage formats: WFDB signal(5),
https://physionet.org/physiotools/wag/signal-5.htm
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.header import Header, SignalSpec
from ecgmeta.runtime.errors import InputError

Frames = NDArray[np.integer[Any]]  # (frames, samples per frame) of one signal

BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10}
COMPRESSED = {508: 8, 516: 16, 524: 24}  # FLAC, read through wfdb
# Samples and bytes of a block, and the bytes that 0, 1, ... samples of an unfinished one take (310's second sample lies in
# the second pair of bytes); every other format stores whole bytes a sample.
_BLOCKS = {212: (2, 3), 310: (3, 4), 311: (3, 4)}
_TAILS = {212: (0, 2), 310: (0, 2, 4), 311: (0, 2, 3)}


def reserved(fmt: int) -> int | None:
    """The lowest digital value, which means "no sample"; format 8, which stores differences, has none."""
    return None if fmt == 8 else -(1 << ((BITS | COMPRESSED)[fmt] - 1))


def groups(header: Header) -> list[list[SignalSpec]]:
    """The signals file by file, in the order of the header.

    Raises:
        InputError: a format that is not known; a file in two places; two formats or byte offsets in one file.
    """
    first = header.signals[0]
    if first.fmt in BITS and all(spec[:5] == first[:5] for spec in header.signals):  # as nearly always
        return [list(header.signals)]
    found: list[list[SignalSpec]] = []
    for spec in header.signals:
        if spec.fmt not in BITS and spec.fmt not in COMPRESSED:
            known = ", ".join(str(fmt) for fmt in sorted(BITS | COMPRESSED))
            raise InputError(header.path, f"format of signal {spec.name}", spec.fmt, f"one of {known}")
        if found and found[-1][0].file == spec.file:
            found[-1].append(spec)
        else:
            found.append([spec])
    if len({group[0].file for group in found}) != len(found):
        names = ", ".join(group[0].file for group in found)
        raise InputError(header.path, "signal lines", names[:200], "the signals of a file in one run")
    for group in found:
        for field in ("fmt", "offset"):
            values = sorted({getattr(spec, field) for spec in group})
            if len(values) > 1:
                what = "format" if field == "fmt" else "byte offset"
                raise InputError(header.path, f"{what} of {group[0].file}", values, "the same in every line")
    return found


def read_frames(header: Header) -> list[Frames]:
    """The digital values as stored, one array a signal (skew not undone, frames not averaged).

    Raises:
        InputError: see `groups` and `file_frames`; files of different lengths.
    """
    out: list[Frames] = []
    for group in groups(header):
        frames = file_frames(header, group)
        first = group[0]
        count = frames * sum(spec.per_frame for spec in group)
        raw = _bytes(header, first.file, first.offset, stored_bytes(first.fmt, count))
        out += _split(decode(raw, first.fmt, count).reshape(frames, -1), group)
    same_length(header, [len(part) for part in out])
    return out


def same_length(header: Header, lengths: Sequence[int]) -> None:
    """Raise InputError where the files of a record hold different numbers of frames."""
    if len(set(lengths)) > 1:
        raise InputError(header.path, "samples", sorted(set(lengths)), "the same number in every file")


def file_frames(header: Header, group: Sequence[SignalSpec]) -> int:
    """How many frames the file of `group` holds.

    Raises:
        InputError: it is missing, no regular file, or not as large as the header says.
    """
    first, path = group[0], signal_path(header, group[0].file)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(
            header.path, "signal file", f"{first.file}, which does not exist", "a file beside it"
        ) from None
    except OSError as error:
        raise InputError(path, "signal file", error.strerror, "a readable file") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(path, "signal file", "no regular file", "a file")
    wide = sum(spec.per_frame for spec in group)
    size = found.st_size - first.offset
    frames = _samples_in(first.fmt, size) // wide if header.n_samples is None else header.n_samples
    least = stored_bytes(first.fmt, frames * wide)
    # The last block of a packed format may be written whole.
    block = _BLOCKS.get(first.fmt, (1, 1))[1]
    if frames < 1 or not least <= size <= -(-least // block) * block:
        wanted = f"{first.offset + least} bytes" if header.n_samples else "whole frames after the preamble"
        signals = f"{len(group)} signals of format {first.fmt}"
        raise InputError(path, "size", f"{found.st_size} bytes", f"{wanted} ({signals})")
    return frames


def signal_path(header: Header, name: str) -> str:
    """A file beside the header."""
    return os.path.join(os.path.dirname(header.path), name)


def stored_bytes(fmt: int, count: int) -> int:
    """The bytes that `count` samples take at least."""
    samples, length = _BLOCKS.get(fmt, (1, BITS[fmt] // 8))
    return length * (count // samples) + _TAILS.get(fmt, (0,))[count % samples]


def _samples_in(fmt: int, size: int) -> int:
    samples, length = _BLOCKS.get(fmt, (1, BITS[fmt] // 8))
    whole, rest = divmod(max(size, 0), length)
    return samples * whole + sum(tail <= rest for tail in _TAILS.get(fmt, (0,))[1:])


def _bytes(header: Header, name: str, offset: int, count: int) -> NDArray[np.uint8]:
    path = signal_path(header, name)
    try:
        raw = np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
    except OSError as error:
        raise InputError(path, "signal file", error.strerror or error, "a readable file") from None
    if raw.size != count:
        raise InputError(path, "size", f"{offset + raw.size} bytes", f"{offset + count} bytes")
    return raw


def _split(flat: Frames, group: Sequence[SignalSpec]) -> list[Frames]:
    """(frames, samples of all signals) to one (frames, per_frame) array a signal."""
    ends = np.cumsum([spec.per_frame for spec in group])
    parts = np.split(flat, ends[:-1], axis=1)
    if group[0].fmt != 8:
        return parts
    return [
        (np.cumsum(part.reshape(-1), dtype=np.int64) + spec.initial).reshape(part.shape)
        for part, spec in zip(parts, group, strict=True)
    ]


def decode(raw: NDArray[np.uint8], fmt: int, count: int) -> Frames:
    """`count` samples from their bytes; for format 8 the differences.

    Args:
        raw: ``stored_bytes(fmt, count)`` bytes.
        fmt: a key of `BITS`.
        count: number of samples.
    """
    plain = {8: "<i1", 16: "<i2", 32: "<i4", 61: ">i2"}
    if fmt in plain:
        return raw.view(plain[fmt]).astype(np.dtype(plain[fmt]).newbyteorder("="), copy=False)
    if fmt == 80:
        return raw.astype(np.int16) - np.int16(128)
    if fmt == 160:
        return (raw.view("<u2") ^ np.uint16(0x8000)).view("<i2")
    if fmt == 24:
        low, middle, high = (raw[start::3].astype(np.int32) for start in range(3))
        return _signed(low | middle << 8 | high << 16, 24)
    samples, length = _BLOCKS[fmt]
    blocks = np.zeros((-(-count // samples), length), dtype=np.uint8)
    blocks.reshape(-1)[: raw.size] = raw
    b = blocks.astype(np.int32).T
    if fmt == 212:
        parts = [b[0] | (b[1] & 0x0F) << 8, b[2] | (b[1] & 0xF0) << 4]
    elif fmt == 310:
        parts = [b[0] >> 1 | (b[1] & 7) << 7, b[2] >> 1 | (b[3] & 7) << 7, b[1] >> 3 | (b[3] >> 3) << 5]
    else:  # 311: three times ten bits from the lowest up, the two highest unused
        word = b[0] | b[1] << 8 | b[2] << 16 | (b[3] & 0x3F) << 24
        parts = [word & 0x3FF, word >> 10 & 0x3FF, word >> 20]
    return _signed(np.stack(parts, axis=1).reshape(-1)[:count], BITS[fmt])


def _signed(value: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Two's complement of `bits` bits."""
    half = np.int32(1 << (bits - 1))
    return (value ^ half) - half
