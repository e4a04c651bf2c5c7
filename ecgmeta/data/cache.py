"""Decoded, resampled signals on disk, so that a source is read once.

An entry is a folder ``<source>-<key>``: ``signals.npy`` (N, leads, samples), int16, ``units.npy`` (N, leads), stored units a
millivolt (0.5 µV is the largest error int16 may cost; where a recording exceeds 32.767 mV the whole file is float32
instead), ``index.json``, ``windows.json`` and ``info.json`` with size and digest of every file. The key is a hash of the
source's files (path, size, time), its settings, the preprocessing and the format. An entry is written in a temporary folder
and renamed: a killed build leaves no entry, of two writers the first wins and both are right. An entry that does not match
its digests is rebuilt, with a warning. Many records are read by several processes where that is safe (`share`); what is
written does not depend on it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.load import Loader, Reading, Row
from ecgmeta.data.preprocess import Window
from ecgmeta.data.records import MICROVOLTS
from ecgmeta.data.store import ScaledStore, SignalStore, map_npy
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.processes import MOST_PIECES, processors, share

FORMAT = 1  # raise it when what is stored, or how a record is treated, changes
LARGEST_MV = 32.767  # at this peak the step of int16 is 1 µV
_ABANDONED_S = 24 * 3600.0
_DIGEST_BLOCK, _DIGEST_BLOCKS = 1 << 20, 64
_BUFFER = 1 << 20  # bytes: a write of many records costs half of many writes
_PARTS = ("signals.npy", "units.npy", "index.json", "windows.json")

# A fork takes as long as 200 records; more than eight processes would wait for the one file.
_LEAST_RECORDS, _MOST_PROCESSES = 500, 8
_BLOCK = 64  # records a process reads at a time
_INT16: np.dtype[Any] = np.dtype("<i2")

Written = tuple[NDArray[np.float32], np.dtype[Any]]  # units a millivolt of each window and lead, type stored
Entry = tuple[SignalStore, pd.DataFrame, pd.DataFrame, list[str]]


@contextmanager
def _others_uncollected() -> Iterator[None]:
    """Within it the garbage collector leaves alone what was there before: the small objects of many records would make it
    look through everything that is imported, which takes as long as a thousand records."""
    mine = not gc.get_freeze_count()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


@_others_uncollected()
def open_or_build(loader: Loader) -> Entry:
    """The entry for this source and these settings, built if it is not there or broken.

    Returns:
        signals, index, windows and skipped, as `Loader.load`.

    Raises:
        InputError: the cache folder cannot be written; whatever reading the records raises.
    """
    if loader.cache is None:
        raise InputError("cache", "folder", "none", "a folder")
    entry = loader.cache / f"{loader.source.name}-{key(loader)}"
    found = _open_or_remove(entry)
    if found is not None:
        return found
    temporary = loader.cache / f".building-{entry.name}-{os.getpid()}-{uuid4().hex[:8]}"
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                loader.cache, "cache folder", error.strerror, "a folder that can be written"
            ) from None
        _remove_abandoned(loader.cache)
        if not _build(loader, temporary):
            raise InputError(loader.source.root, "records", "none to use", f"records of {loader.source.name}")
        try:
            temporary.rename(entry)
            return _open(entry, whole=True)
        except OSError:  # another writer was first
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _open(entry)


def key(loader: Loader) -> str:
    """20 hexadecimal digits that change with anything that could change the entry."""
    what = {
        "format": FORMAT,
        "source": f"{type(loader.source).__module__}.{type(loader.source).__qualname__}",
        "settings": loader.source.settings(),
        "preprocess": loader.how.to_dict(),
        "on_error": loader.on_error,
        "files": sorted(loader.source.files()),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _build(loader: Loader, folder: Path) -> bool:
    """Write an entry to `folder`; False where there is no window to store."""
    skipped: list[str] = []
    index = loader.index(skipped)
    reading = Reading(loader, list(index.itertuples(index=False)), skipped)
    how = loader.how
    path, shape = folder / "signals.npy", (len(how.lead_names), how.samples)
    units, dtype = _write_shared(path, reading, shape) or write_signals(path, reading, shape)
    np.save(folder / "units.npy", units)
    _write_table(folder / "index.json", index)
    _write_table(folder / "windows.json", reading.table())
    parts = {name: [(folder / name).stat().st_size, _digest(folder / name)] for name in _PARTS}
    info = {
        "format": FORMAT,
        "dtype": dtype.name,
        "preprocess": how.to_dict(),
        "skipped": skipped,
        "parts": parts,
    }
    (folder / "info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    return bool(len(units))


def _write_shared(path: Path, reading: Reading, shape: tuple[int, int]) -> Written | None:
    """`write_signals` by several processes, each of which writes a block of records at a time to its place in the file: the
    same bytes, and the same notes in `reading`. None, and nothing noted, where there are too few records, a record may give
    several windows, or anything is met that is not for int16."""
    loader, records = reading.loader, reading.records
    processes = min(processors(), _MOST_PROCESSES, len(records) // _LEAST_RECORDS)
    if processes < 2 or not loader.source.forks or loader.how.windows != "first":
        return None
    length = max(_BLOCK, -(-len(records) // MOST_PIECES))
    size, header = 2 * shape[0] * shape[1], _npy_header(_INT16, (0, *shape))
    quiet = replace(loader, progress=None)

    def block(number: int) -> tuple[list[Row], list[str], NDArray[np.float32]]:
        first = number * length
        part = Reading(quiet, records[first : first + length], [], first)
        with path.open("r+b", buffering=_BUFFER) as file:
            file.seek(len(header) + size * first)
            units, dtype = _append(file, part, shape)
        if dtype != _INT16:
            raise ValueError("all records are to become float32")
        return part.rows, part.skipped, units

    path.write_bytes(header)
    blocks = share(
        block, -(-len(records) // length), processes, lambda number: reading.report(number * length)
    )
    if blocks is None:
        return None
    with path.open("r+b") as file:
        for number, (rows, skipped, _) in enumerate(blocks):
            if len(reading.rows) != number * length:  # records before it were left out
                file.seek(len(header) + size * number * length)
                stored = file.read(size * len(rows))
                file.seek(len(header) + size * len(reading.rows))
                file.write(stored)
            reading.rows += rows
            reading.skipped += skipped
        file.truncate(len(header) + size * len(reading.rows))
        file.seek(0)
        file.write(_npy_header(_INT16, (len(reading.rows), *shape)))
    reading.report(len(records))
    return np.concatenate([units for *_, units in blocks]), _INT16


def write_signals(path: Path, windows: Iterable[Window], shape: tuple[int, int]) -> Written:
    """Write windows one by one, so that memory holds only one.

    Returns the (N, leads) units a millivolt, and the type stored: int16, or float32 where int16 would lose too much.

    Whole microvolts (as PTB-XL and the challenge store them) get 1000 units a millivolt and come back to the bit; anything
    else uses the full range of int16.
    """
    with path.open("w+b", buffering=_BUFFER) as file:
        start = file.write(_npy_header(_INT16, (0, *shape)))
        units, dtype = _append(file, windows, shape)
        file.seek(0)
        if file.write(_npy_header(dtype, (len(units), *shape))) != start:
            raise RuntimeError("the .npy header changed its length")
    return units, dtype


def _append(file: BinaryIO, windows: Iterable[Window], shape: tuple[int, int]) -> Written:
    """Write windows from where `file` stands."""
    units: list[NDArray[np.float32]] = []
    microvolts = np.full(shape[0], MICROVOLTS, dtype=np.float32)
    dtype, start = _INT16, file.tell()
    for window in windows:
        if dtype.kind == "i" and window.stored.dtype == np.int16:
            file.write(np.ascontiguousarray(window.stored, dtype=dtype).data)
            units.append(microvolts)
            continue
        signal = window.signal
        if dtype.kind == "i" and np.abs(signal).max() > LARGEST_MV:
            _widen(file, start, units, shape)
            dtype = np.dtype("<f4")
        scale = _units(signal) if dtype.kind == "i" else np.ones(shape[0], dtype=np.float32)
        values = np.rint(signal * scale[:, None]) if dtype.kind == "i" else signal
        file.write(np.ascontiguousarray(values, dtype=dtype).tobytes())
        units.append(scale)
    return np.array(units, dtype=np.float32).reshape(len(units), shape[0]), dtype


def _units(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stored units a millivolt for each lead."""
    peaks = np.abs(signal).max(axis=1)
    microvolts = signal * np.float32(1000)
    whole = (np.abs(microvolts - np.rint(microvolts)).max(axis=1) < 5e-3) & (peaks <= LARGEST_MV)
    return np.where(whole | (peaks == 0), 1000, 32767 / np.maximum(peaks, 1e-9)).astype(np.float32)


def _widen(file: BinaryIO, start: int, units: list[NDArray[np.float32]], shape: tuple[int, int]) -> None:
    """Turn what has been written so far from int16 into float32 millivolts, in place, last record first; `file` is left
    at its end."""
    size = shape[0] * shape[1]
    for number in range(len(units) - 1, -1, -1):
        file.seek(start + 2 * size * number)
        stored = np.frombuffer(file.read(2 * size), dtype="<i2").reshape(shape)
        values = (stored / units[number][:, None]).astype("<f4")
        file.seek(start + 4 * size * number)
        file.write(values.tobytes())
        units[number] = np.ones(shape[0], dtype=np.float32)
    file.seek(start + 4 * size * len(units))


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """An .npy header; NumPy leaves room for the first axis to grow, so its length does not depend on N."""
    out = BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


def _open_or_remove(entry: Path) -> Entry | None:
    if not entry.exists():
        return None
    try:
        return _open(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{entry}: broken cache entry is rebuilt ({error})", stacklevel=2)
        broken = entry.with_name(f".broken-{entry.name}-{uuid4().hex[:8]}")
        try:
            entry.rename(broken)
        except OSError:  # another process has just moved it
            return None
        shutil.rmtree(broken, ignore_errors=True)
        return None


def _open(entry: Path, whole: bool = False) -> Entry:
    """Raises OSError, ValueError, KeyError or TypeError where the entry is not whole, as it is known to be where this process
    has just built it."""
    info = json.loads((entry / "info.json").read_text(encoding="utf-8"))
    if info["format"] != FORMAT:
        raise ValueError(f"format {info['format']}, expected {FORMAT}")
    for name in () if whole else _PARTS:
        size, digest = info["parts"][name]
        if (entry / name).stat().st_size != size or _digest(entry / name) != digest:
            raise ValueError(f"{name} has changed")
    store: SignalStore = map_npy(entry / "signals.npy")
    if info["dtype"] == "int16":
        store = ScaledStore(entry / "signals.npy", np.load(entry / "units.npy", allow_pickle=False))
    return (
        store,
        _read_table(entry / "index.json"),
        _read_table(entry / "windows.json"),
        list(info["skipped"]),
    )


def _digest(path: Path) -> int:
    """CRC-32 of a file; of 64 evenly spaced mebibytes where it is larger than that."""
    size, crc = path.stat().st_size, 0
    blocks = min(_DIGEST_BLOCKS, -(-size // _DIGEST_BLOCK))
    last = max(0, size - _DIGEST_BLOCK)
    with path.open("rb") as file:
        for number in range(blocks):
            file.seek(round(last * number / max(1, blocks - 1)))
            crc = zlib.crc32(file.read(_DIGEST_BLOCK), crc)
    return crc


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """A DataFrame as JSON that comes back with its types; tuples (codes) as lists."""
    columns = {
        str(name): {
            "dtype": str(column.dtype),
            "values": column.astype(object).where(column.notna(), None).tolist(),
        }
        for name, column in table.items()
    }
    path.write_text(json.dumps(columns, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot stand in the index of a cached source")


def _read_table(path: Path) -> pd.DataFrame:
    columns = json.loads(path.read_text(encoding="utf-8"))
    out = {}
    for name, column in columns.items():
        values = [tuple(value) if isinstance(value, list) else value for value in column["values"]]
        if column["dtype"] == "object":
            values = [np.nan if value is None else value for value in values]
        out[name] = pd.Series(values, dtype=column["dtype"])
    return pd.DataFrame(out)


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed builds left behind; younger than a day it may still be at work."""
    for pattern in (".building-*", ".broken-*"):
        for left in folder.glob(pattern):
            try:
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
            except OSError:
                continue
