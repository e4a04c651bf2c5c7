"""Where the samples of a dataset lie: an array, a compressed memory map, some rows or leads of one, or several of them.

A store has a shape (N, leads, samples) and answers ``take(rows)`` with float32 millivolts by one gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Terms = tuple[tuple[int, float], ...]  # a lead as a sum of (position, coefficient)


class SignalStore(Protocol):
    """What a dataset needs of its samples."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, leads, samples)."""

    def take(self, rows: Rows) -> NDArray[np.float32]:
        """A new C-contiguous (len(rows), leads, samples) array in mV."""

    def all(self) -> NDArray[np.float32]:
        """Everything: the array itself where it is float32 already, else a decoded copy."""


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    return array.shape[0], array.shape[1], array.shape[2]


class ArrayStore:
    """An array or memory map of floating numbers, in mV. A mapped ``.npy`` file is reopened, not copied, when pickled."""

    def __init__(self, array: NDArray[np.floating], path: Path | None = None) -> None:
        self.array, self.path = array, path

    def __reduce__(self) -> tuple[Any, ...]:
        return (ArrayStore, (self.array,)) if self.path is None else (map_npy, (self.path,))

    @property
    def shape(self) -> tuple[int, int, int]:
        return _shape(self.array)

    def take(self, rows: Rows) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.array[rows], dtype=np.float32)

    def all(self) -> NDArray[np.float32]:
        return np.asanyarray(self.array, dtype=np.float32)


def map_npy(path: Path) -> ArrayStore:
    """A memory-mapped ``.npy`` file of floating numbers. Raises OSError or ValueError where it is not one."""
    return ArrayStore(np.load(path, mmap_mode="r", allow_pickle=False), path)


class ScaledStore:
    """An int16 ``.npy`` memory map with one divisor a record and lead: mV = stored / units.

    Args:
        path: the ``.npy`` file, (N, leads, samples) int16.
        units: (N, leads) float32, stored units a millivolt.
    """

    def __init__(self, path: Path, units: NDArray[np.float32]) -> None:
        self.path, self.units = path, units
        first = units.flat[0] if units.size else np.float32(1)
        # One number for all, as where whole microvolts are stored, is divided by faster.
        self._one = first if (units == first).all() else None
        self.array: NDArray[np.int16] = np.load(path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ScaledStore, (self.path, self.units)

    @property
    def shape(self) -> tuple[int, int, int]:
        return _shape(self.array)

    def take(self, rows: Rows) -> NDArray[np.float32]:
        out = np.asarray(self.array[rows], dtype=np.float32)
        out /= self.units[rows][:, :, None] if self._one is None else self._one
        return out

    def all(self) -> NDArray[np.float32]:
        return self.take(np.arange(self.shape[0]))


class ViewStore:
    """Some rows of another store, in a given order."""

    def __init__(self, base: SignalStore, rows: Rows) -> None:
        # A view of a view is one view: a chain of subsets costs one gather.
        self.base: SignalStore = base.base if isinstance(base, ViewStore) else base
        self.rows: Rows = base.rows[rows] if isinstance(base, ViewStore) else rows

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.rows), *self.base.shape[1:])

    def take(self, rows: Rows) -> NDArray[np.float32]:
        return self.base.take(self.rows[rows])

    def all(self) -> NDArray[np.float32]:
        return self.base.take(self.rows)


class LeadStore:
    """Leads of another store, chosen or mixed while they are read.

    Args:
        base: where the samples lie.
        terms: for each lead of the result its (position in `base`, coefficient) pairs: ``((0, 1.0),)`` is a copy.
    """

    def __init__(self, base: SignalStore, terms: Sequence[Terms]) -> None:
        self.base, self.terms = base, tuple(terms)

    @property
    def shape(self) -> tuple[int, int, int]:
        n, _, samples = self.base.shape
        return n, len(self.terms), samples

    def take(self, rows: Rows) -> NDArray[np.float32]:
        return self._mix(self.base.take(rows))

    def all(self) -> NDArray[np.float32]:
        return self._mix(self.base.all())

    def _mix(self, signals: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty((len(signals), *self.shape[1:]), dtype=np.float32)
        for lead, terms in enumerate(self.terms):
            place, factor = terms[0]
            if terms == ((place, 1.0),):
                out[:, lead] = signals[:, place]
                continue
            np.multiply(signals[:, place], np.float32(factor), out=out[:, lead])
            for place, factor in terms[1:]:
                out[:, lead] += np.float32(factor) * signals[:, place]
        return out


class JoinedStore:
    """Several stores end to end; nothing is copied until it is asked for."""

    def __init__(self, parts: Sequence[SignalStore]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([part.shape[0] for part in self.parts])

    @property
    def shape(self) -> tuple[int, int, int]:
        return (int(self.ends[-1]), *self.parts[0].shape[1:])

    def take(self, rows: Rows) -> NDArray[np.float32]:
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
        owner = np.searchsorted(self.ends, rows, side="right")
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(owner == number)
            if mine.size:
                out[mine] = part.take(rows[mine] - (self.ends[number] - part.shape[0]))
        return out

    def all(self) -> NDArray[np.float32]:
        return np.concatenate([part.all() for part in self.parts])
