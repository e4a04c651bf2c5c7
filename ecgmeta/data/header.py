"""WFDB headers: what a record says of itself, every field checked before anything is read by it.

Header syntax: WFDB header(5), https://physionet.org/physiotools/wag/header-5.htm
"""

from __future__ import annotations

import codecs
import math
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ecgmeta.runtime.errors import InputError

DEFAULT_GAIN = 200.0  # adu/mV where a header gives none or 0
_LARGEST_HEADER = 1 << 24  # bytes; the headers of week-long recordings stay below a tenth of it
_LONGEST_NAME = 255  # of a file or a lead
_LEAST_GAIN = 1e-20  # adu a unit
# ASCII digits and few of them: int() would take "1_000" and other scripts' digits, and fails beyond 4300 of them.
_GAIN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\(([+-]?\d+)\))?(?:/(\S+))?$", re.ASCII)
_FORMAT = re.compile(r"(\d{1,4})(?:x(\d{1,9}))?(?::(\d{1,9}))?(?:\+(\d{1,12}))?$", re.ASCII)
_FREQUENCY = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)(?:/.*)?$", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,12}$", re.ASCII)
# FILE, FORMAT to ADC ZERO, INITIAL, CHECKSUM, BLOCK SIZE and NAME.
_USUAL = re.compile(r"(\S+) (\S+ \S+ \S+ \S+) (-?\d{1,9}) (\d{1,9}|-\d{1,8}) (\S+ \S[^\r\n]*)\n", re.ASCII)
# Control characters, and every blank that str.split knows beside the two that part the fields.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


class SignalSpec(NamedTuple):
    """One signal line of a header. `gain` is in adu per unit, `baseline` and `initial` in adu, `offset` in bytes."""

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
    initial: int = 0


@dataclass(frozen=True)
class Header:
    """A parsed header; `fs` in Hz, `n_samples` a signal (None where the header does not say).

    A multi-segment record has no signals of its own but `parts`: (record or "~" for a gap, samples) in order.
    """

    path: Path
    fs: float
    n_samples: int | None
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]
    segments: int = 1
    parts: tuple[tuple[str, int], ...] = ()
    n_signals: int = 0


def read_header(path: str | Path) -> Header:
    """Parse the header of a record.

    Args:
        path: the record, with or without ``.hea``.

    Raises:
        InputError: the file is missing or one of its lines cannot be read.
    """
    where = _header_path(path)
    text = _text(where)
    usual = _usual(text, where)
    return _parse(text, where) if usual is None else usual.header()


@dataclass(frozen=True, eq=False)
class Layout:
    """What the headers of a database have in common: their signals without file, initial value and checksum.

    `pattern` matches the signal lines of such a header; its groups are the file, and each signal's initial value and checksum.
    """

    signals: tuple[SignalSpec, ...]
    pattern: re.Pattern[str]


class Usual(NamedTuple):
    """A header as nearly all are: every field there, one blank between them, no comment, all signals in one file.

    Attributes:
        initials: the initial value of each signal, as it stands there.
        checksums: of each signal; 0 where there is none to compare with.
    """

    path: str
    fs: float
    n_samples: int
    layout: Layout
    file: str
    initials: list[str]
    checksums: list[int]

    def header(self) -> Header:
        """The same, field by field."""
        signals = tuple(
            [
                known._replace(file=self.file, initial=int(initial), checksum=checksum or None)
                for known, initial, checksum in zip(
                    self.layout.signals, self.initials, self.checksums, strict=True
                )
            ]
        )
        return Header(Path(self.path), self.fs, self.n_samples, signals, (), n_signals=len(signals))


def read_usual(path: str | Path) -> Usual | None:
    """The header in a fourth of the time of `read_header`, or None where it is not of the usual kind.

    Raises:
        InputError: the file is missing, or its first line cannot be read.
    """
    where = _header_path(path)
    return _usual(_text(where), where)


def _usual(text: str, where: str) -> Usual | None:
    line, _, rest = text.partition("\n")
    layout = _latest[0] if _latest else None
    found = layout.pattern.fullmatch(rest) if layout else None
    if found is None:
        layout = _find_layout(rest)
        found = layout.pattern.fullmatch(rest) if layout else None
    if layout is None or found is None:
        return None
    _latest[:] = [layout]
    file, *numbers = found.groups()
    # A blank or commented first line is no record line, and a signal's file cannot begin as a comment does.
    if _CONTROL.search(line + file) or line.strip()[:1] in ("", "#"):
        return None
    if not plain_name(file) or file.startswith("#"):
        return None
    n_signals, segments, fs, n_samples = _record_line(line, where)
    if segments is not None or 2 * n_signals != len(numbers) or not n_samples:
        return None
    checksums = [int(number) & 0xFFFF for number in numbers[1::2]]
    return Usual(where, fs, n_samples, layout, file, numbers[::2], checksums)


_latest: list[Layout] = []  # one at most: of the header before, which is nearly always that of the next


def _find_layout(lines: str) -> Layout | None:
    found = _USUAL.findall(lines)
    # Whatever the pattern leaves out makes the lengths differ: four blanks and a line end a signal.
    if not found or sum(map(len, chain.from_iterable(found))) + 5 * len(found) != len(lines):
        return None
    return _layout(tuple([(words[1], words[4]) for words in found]))


@lru_cache(maxsize=256)
def _layout(lines: tuple[tuple[str, str], ...]) -> Layout | None:
    """Of ("16 1000(0)/mV 16 0", "0 V6") and so on, checked once for all records that have it."""
    try:
        signals = [
            _signal_line(f"x {start} 0 0 {end}", "", number) for number, (start, end) in enumerate(lines)
        ]
    except InputError:  # said again, with the file's name
        return None
    if _CONTROL.search(" ".join(chain.from_iterable(lines))):
        return None
    numbers = r"(-?\d{1,9}) (\d{1,9}|-\d{1,8})"
    rows = [rf" {re.escape(start)} {numbers} {re.escape(end)}\n" for start, end in lines]
    return Layout(tuple(signals), re.compile(r"(\S+)" + r"\1".join(rows), re.ASCII))


def _parse(text: str, where: str) -> Header:
    """Any header.

    Raises:
        InputError: one of its lines cannot be read.
    """
    # Only these end a line in WFDB's own library; str.splitlines knows more.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    comments = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(where, "record line", "nothing", "NAME SIGNALS FREQUENCY SAMPLES")
    for number, line in enumerate(lines):
        if found := _CONTROL.search(line):
            field = f"signal line {number}" if number else "record line"
            raise InputError(where, field, f"the character {found[0]!r}", "text, parted by blanks")
    n_signals, segments, fs, n_samples = _record_line(lines[0], where)
    if segments is not None:
        parts = _segment_lines(lines[1:], segments, n_samples, where)
        return Header(Path(where), fs, n_samples, (), comments, segments, parts, n_signals)
    if len(lines) - 1 != n_signals:
        raise InputError(where, "signal lines", len(lines) - 1, f"{n_signals}, as the first line says")
    signals = tuple(_signal_line(line, where, number) for number, line in enumerate(lines[1:]))
    # The layout of a multi-segment record has no samples of its own.
    if n_samples == 0 and any(spec.fmt for spec in signals):
        raise InputError(where, "number of samples", 0, "at least 1")
    return Header(Path(where), fs, n_samples, signals, comments, n_signals=n_signals)


def plain_name(name: str) -> bool:
    """Whether `name` is that of a file beside the header."""
    return (
        name not in ("", ".", "..")
        and len(name) <= _LONGEST_NAME
        and not any(mark in name for mark in "/\\\0")
    )


def _header_path(path: str | Path) -> str:
    """A string, because a Path takes longer to make than a header to read."""
    where = os.fspath(path)
    if os.path.basename(where) in ("", ".", "..") or "\0" in where:
        raise InputError(repr(where), "record", "no name of a file", "a WFDB record")
    return where if where.endswith(".hea") else where + ".hea"


def _text(where: str) -> str:
    try:
        found, raw = read_regular(where, 0, _LARGEST_HEADER)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(where, "header", "no regular file", "a WFDB header")
        if found.st_size > _LARGEST_HEADER:
            raise InputError(where, "header", f"{found.st_size} bytes", f"at most {_LARGEST_HEADER}")
    except FileNotFoundError:
        raise InputError(where, "header", "no such file", "a WFDB header") from None
    except IsADirectoryError:
        raise InputError(where, "header", "no regular file", "a WFDB header") from None
    except OSError as error:
        raise InputError(where, "header", error.strerror, "a readable file") from None
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_regular(path: str, least: int, most: int) -> tuple[os.stat_result, bytes]:
    """What the system says of a file, and its bytes where it is a regular file of `least` to `most` bytes, else none.

    Four calls of the system where `open` makes nine; the size is looked at before memory is taken, and a pipe is not waited
    for. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        fits = stat.S_ISREG(found.st_mode) and least <= found.st_size <= most
        return found, os.read(descriptor, found.st_size) if fits else b""
    finally:
        os.close(descriptor)


def _record_line(line: str, where: str) -> tuple[int, int | None, float, int | None]:
    """The first line: (signals, segments or None for a record of its own, Hz, samples or None)."""
    parts = line.split()
    name, slash, count = parts[0].partition("/")
    try:
        n_signals, n_segments = _integer(parts[1]), _integer(count) if slash else None
        rate = _FREQUENCY.match(parts[2]) if len(parts) > 2 else None
        fs = float(rate[1]) if rate else 250.0 if len(parts) < 3 else math.nan
        n_samples = _integer(parts[3]) if len(parts) > 3 else None
    except (ValueError, IndexError):
        raise InputError(where, "record line", repr(line)[:200], "NAME SIGNALS FREQUENCY SAMPLES") from None
    if not name or n_signals < 1 or (n_segments is not None and n_segments < 1):
        raise InputError(where, "record line", repr(line)[:200], "a name and at least one signal")
    if not 1 <= fs <= 100_000:
        raise InputError(where, "sampling frequency", repr(parts[2])[:80], "1 to 100000 Hz")
    if n_samples is not None and n_samples < 0:
        raise InputError(where, "number of samples", n_samples, "at least 1")
    return n_signals, n_segments, fs, n_samples


def _segment_lines(
    lines: list[str], segments: int, n_samples: int | None, where: str
) -> tuple[tuple[str, int], ...]:
    """NAME SAMPLES, one line a segment."""
    if len(lines) != segments:
        raise InputError(where, "segment lines", len(lines), f"{segments}, as the first line says")
    parts: list[tuple[str, int]] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 2 or not _INTEGER.match(words[1]) or int(words[1]) < 0:
            raise InputError(where, f"segment line {number}", repr(line)[:200], "NAME SAMPLES")
        if not plain_name(words[0]):
            raise InputError(where, f"segment line {number}", repr(words[0])[:80], "a record beside this one")
        if words[1] == "0" and number > 1:
            raise InputError(where, f"segment line {number}", "0 samples", "at least 1")
        parts.append((words[0], int(words[1])))
    total = sum(samples for _, samples in parts)
    if total < 1 or n_samples not in (None, total):
        raise InputError(where, "number of samples", n_samples, f"{total}, the sum of the segments")
    return tuple(parts)


def _signal_line(line: str, where: str, number: int) -> SignalSpec:
    field = f"signal line {number + 1}"
    parts = line.split(None, 8)
    if len(parts) < 2:
        raise InputError(where, field, repr(line)[:200], "FILE FORMAT GAIN ...")
    fmt = _format(parts[1])
    if fmt is None:
        raise InputError(where, f"{field}, format", repr(parts[1])[:80], "a number such as 16, 212 or 16+24")
    gain = _gain(parts[2]) if len(parts) > 2 else (DEFAULT_GAIN, None, "mV")
    if gain is None:
        raise InputError(where, f"{field}, gain", repr(parts[2])[:80], "such as 1000/mV or 1000(0)/mV")
    try:
        numbers = [_integer(text) for text in parts[3:8]]
    except ValueError:
        raise InputError(where, field, repr(line)[:200], "integers in fields 4 to 8") from None
    for place, what in ((0, "resolution"), (4, "block size")):
        if len(numbers) > place and numbers[place] < 0:
            raise InputError(where, f"{field}, {what}", numbers[place], "0 or more")
    if not plain_name(parts[0]):
        raise InputError(where, f"{field}, file", repr(parts[0])[:80], "a plain file name beside the header")
    zero = numbers[1] if len(numbers) > 1 else 0
    initial = numbers[2] if len(numbers) > 2 else zero
    # A checksum of 0 is what writers that do not compute one leave there.
    checksum = numbers[3] & 0xFFFF if len(numbers) > 3 and numbers[3] else None
    name = parts[8].strip() if len(parts) > 8 else f"signal {number}"
    if len(name) > _LONGEST_NAME:
        raise InputError(where, f"{field}, name", f"{len(name)} characters", f"at most {_LONGEST_NAME}")
    baseline = zero if gain[1] is None else gain[1]
    for what, value in (("baseline", baseline), ("initial value", initial)):
        if abs(value) >= 2**31:
            raise InputError(where, f"{field}, {what}", value, "a 32-bit number")
    return SignalSpec(parts[0], *fmt, gain[0], baseline, gain[2], checksum, name, initial)


def _integer(text: str) -> int:
    if _INTEGER.match(text) is None:
        raise ValueError(text)
    return int(text)


@lru_cache(maxsize=4096)
def _gain(text: str) -> tuple[float, int | None, str] | None:
    """``1000.0(0)/mV`` → (gain, baseline or None, units); None where it cannot be read."""
    found = _GAIN.match(text)
    if found is None or len(text) > 60:
        return None
    # A gain below the least would make numbers that float32 cannot hold.
    if float(found[1]) != 0 and not _LEAST_GAIN <= float(found[1]) < 1e12:
        return None
    return float(found[1]) or DEFAULT_GAIN, int(found[2]) if found[2] else None, found[3] or "mV"


@lru_cache(maxsize=256)
def _format(text: str) -> tuple[int, int, int, int] | None:
    """``16x1+24`` → (format, samples per frame, skew, byte offset)."""
    found = _FORMAT.match(text)
    if found is None or (found[2] is not None and int(found[2]) == 0):
        return None
    return int(found[1]), int(found[2] or 1), int(found[3] or 0), int(found[4] or 0)
