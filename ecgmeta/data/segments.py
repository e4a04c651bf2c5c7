"""Multi-segment WFDB records: one recording whose samples lie in several records beside it.

Segments are joined lead by lead *by name*, and every one of them is read (sizes, units, checksums) as a record of its own.
A first segment of length 0 is the layout of a record whose segments need not hold every lead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.header import Header, read_header
from ecgmeta.runtime.errors import InputError

if TYPE_CHECKING:
    from ecgmeta.data.records import Record

GAP = "~"
# Gaps and repeated segments can promise any length from a few bytes, so the files' sizes are no limit here.
_LARGEST = 1 << 28  # samples of all leads, 1 GiB


def join_segments(
    header: Header, read: Callable[[str], Record]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The whole recording: (leads, samples) mV with NaN where a segment lacks a lead or there is a gap; the leads.

    Args:
        header: of a multi-segment record.
        read: reads the segment of a name.

    Raises:
        InputError: a segment that cannot be read, is itself multi-segment, or does not fit: its rate, length or leads.
    """
    variable = header.parts[0][1] == 0
    parts = header.parts[1:] if variable else header.parts
    if not variable and any(name == GAP for name, _ in parts):
        raise InputError(header.path, "segments", "a gap", "a layout segment of length 0 first")
    total = sum(samples for _, samples in parts)
    if total * header.n_signals > _LARGEST:
        size = f"{header.n_signals} signals of {total} samples"
        raise InputError(header.path, "size", size, f"at most {_LARGEST} samples in all; read its segments")
    first = next((name for name, _ in header.parts if name != GAP), None)
    if first is None:
        raise InputError(header.path, "segments", "gaps only", "at least one segment")
    leads = tuple(spec.name for spec in _segment(header, first).signals)
    if len(leads) != header.n_signals or len(set(leads)) != len(leads):
        raise InputError(header.path, f"leads of segment {first}", leads, f"{header.n_signals} different")
    pieces = [None if name == GAP else _piece(header, name, samples, read) for name, samples in parts]
    signal = np.full((len(leads), total), np.nan, dtype=np.float32)
    start = 0
    for (name, samples), piece in zip(parts, pieces, strict=True):
        if piece is not None:
            rows = _rows(header, name, piece.leads, leads, variable)
            signal[rows, start : start + samples] = piece.signal
        start += samples
    return signal, leads


def _segment(header: Header, name: str) -> Header:
    found = read_header(header.path.with_name(name + ".hea"))
    if found.parts:
        raise InputError(header.path, f"segment {name}", "a record with segments", "one without")
    if found.fs != header.fs:
        raise InputError(header.path, f"rate of segment {name}", found.fs, f"{header.fs:g} Hz")
    return found


def _piece(header: Header, name: str, samples: int, read: Callable[[str], Record]) -> Record:
    """One segment, of the length that the first header gives it."""
    said = _segment(header, name).n_samples
    if said not in (None, samples):  # before it is read: a wrong length may be a long one
        raise InputError(header.path, f"segment {name}", f"{said} samples", f"{samples}")
    piece = read(name)
    if piece.signal.shape[1] != samples:
        raise InputError(header.path, f"segment {name}", f"{piece.signal.shape[1]} samples", f"{samples}")
    return piece


def _rows(
    header: Header, name: str, found: tuple[str, ...], leads: tuple[str, ...], variable: bool
) -> list[int]:
    """Where the leads of a segment stand in the whole."""
    fits = set(found) <= set(leads) if variable else found == leads
    if not fits or len(set(found)) != len(found):
        wanted = "some of " if variable else ""
        raise InputError(header.path, f"leads of segment {name}", ", ".join(found), wanted + ", ".join(leads))
    return [leads.index(lead) for lead in found]
