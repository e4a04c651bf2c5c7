"""Train from your own array: in memory, a ``.npy`` memory map, an HDF5 dataset or a Parquet table; labels as array or table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.hdf5 import HDF5Store, find_dataset, open_hdf5
from ecgmeta.data.leads import STANDARD_LEADS, lead_tuple
from ecgmeta.data.sources.parquet import read_parquet
from ecgmeta.data.store import ArrayStore, map_npy
from ecgmeta.data.tables import read_table
from ecgmeta.runtime.errors import InputError

HDF5 = (".h5", ".hdf5", ".hdf")
PARQUET = (".parquet", ".pq")


class ArrayDataset(ECGDataset):
    """An array of recordings as a dataset.

    Args:
        signals: (N, leads, samples) floating mV; or a path:

            - ``.npy``: memory-mapped, not read;
            - ``.h5``, ``.hdf5``: the rows asked for are read (extra ``hdf5``); ``"file.h5::name"`` or `dataset` names the
              dataset, needed only where the file has several with three axes;
            - ``.parquet``: one row a recording, one column a lead, each cell a list of samples (extra ``parquet``); the
              leads are the columns of lists, the other columns are there for `labels` and `meta`.
        labels: (N, labels) or (N,) of 0 and 1; a DataFrame or Series, or the path of a csv file, whose columns are the
            labels; for Parquet also the names of its label columns. None for none. Rows go by position, not by index.
        fs: rate, Hz.
        leads: names; None means the standard twelve (I, II, III, aVR, aVL, aVF, V1-V6), and the array must have twelve.
            For Parquet: the columns to take, None for all.
        label_names: None means the columns of the table, or ``label_0``, ``label_1``, ...; given with a table, its columns
            to take.
        meta: one row an example as a DataFrame or the path of a csv file (see `dataset.standard_meta`); or the names of
            those columns of the `labels` table (Parquet: of the file) that are no labels, such as
            ``["patient", "fold", "age"]``.
        dataset: the name of the dataset in an HDF5 file.

    Raises:
        InputError: not three axes, more leads than samples (axes swapped), integers (units unknown), NaN or infinite
            values (not searched for in a memory map or an HDF5 file), labels that do not fit, a missing extra.

    Example:
        >>> data = ArrayDataset(np.zeros((8, 12, 1000), dtype=np.float32), np.eye(8, 2), fs=100)
        >>> x, y = data[[0, 3]]
        >>> tuple(x.shape), tuple(y.shape)
        ((2, 12, 1000), (2, 2))
    """

    def __init__(
        self,
        signals: NDArray[np.floating] | str | Path,
        labels: NDArray[Any] | pd.DataFrame | pd.Series[Any] | Sequence[str] | str | Path | None = None,
        *,
        fs: float,
        leads: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        meta: pd.DataFrame | Sequence[str] | str | Path | None = None,
        dataset: str | None = None,
    ) -> None:
        if not isinstance(signals, np.ndarray | str | Path):
            found = f"a {type(signals).__name__}"
            raise InputError("array", "signals", found, "a NumPy array (x.numpy() of a tensor) or a path")
        where = "array" if isinstance(signals, np.ndarray) else str(signals)
        leads = None if leads is None else lead_tuple(leads, where)
        path = None if isinstance(signals, np.ndarray) else Path(signals)
        if path is not None and path.suffix.casefold() in PARQUET:
            array, leads, table = read_parquet(path, leads)
            store: ArrayStore | HDF5Store = ArrayStore(array)
            labels, meta = _from_columns(table, labels, meta, where)
        else:
            store = ArrayStore(signals) if isinstance(signals, np.ndarray) else _open(str(signals), dataset)
        _check(store.array, where, leads)
        if isinstance(fs, str) or not 0 < fs < 1e6:
            raise InputError(where, "fs", repr(fs), "a rate in Hz")
        values, names, others = _labels(labels, label_names, meta, where)
        super().__init__(
            store,
            values,
            fs=fs,
            leads=STANDARD_LEADS if leads is None else leads,
            label_names=names,
            meta=others,
            source="array",
        )


def _open(text: str, dataset: str | None) -> ArrayStore | HDF5Store:
    """The store of a file; an HDF5 dataset may stand behind ``::``."""
    name, _, inner = text.partition("::")
    path = Path(name)
    if path.suffix.casefold() in HDF5:
        with open_hdf5(path) as file:
            found = find_dataset(file, inner or dataset, path)
            name, axes = found.name, found.ndim
            if axes != 3:
                raise InputError(path, f"dataset {name}", f"shape {found.shape}", "(N, leads, samples)")
        return HDF5Store(path, name)
    if inner or dataset:
        raise InputError(path, "dataset", repr(inner or dataset), f"an HDF5 file ({', '.join(HDF5)})")
    try:
        store = map_npy(path)
    except FileNotFoundError:
        raise InputError(path, "array", "no such file", "a .npy, .h5 or .parquet file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, "array", str(error)[:200], "a .npy, .h5 or .parquet file") from None
    if not isinstance(store.array, np.ndarray):
        raise InputError(path, "array", type(store.array).__name__, "a .npy file with one array")
    return store


def _from_columns(table: pd.DataFrame, labels: Any, meta: Any, where: str) -> tuple[Any, Any]:
    """Where `labels` and `meta` name columns of a Parquet file, those columns; without any `meta`, all that are left."""
    wanted = list(labels) if isinstance(labels, list | tuple) else []
    if _names(meta):  # of the table of labels, where there is one
        rest = [] if isinstance(labels, pd.DataFrame | str | Path) else list(meta)
    else:
        rest = [name for name in table if name not in wanted] if meta is None else []
    missing = [name for name in [*wanted, *rest] if name not in table]
    if missing:
        raise InputError(where, "columns", ", ".join(map(str, table)), ", ".join(missing))
    return (table[wanted] if wanted else labels), (table[rest] if rest else meta)


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _labels(
    labels: Any, names: Sequence[str] | None, meta: Any, where: str
) -> tuple[NDArray[Any] | None, tuple[str, ...], pd.DataFrame | None]:
    """Labels as a matrix, their names, and the metadata, from whichever form they were given in."""
    if isinstance(labels, str | Path):
        where, labels = str(labels), read_table(Path(labels), ())
    if isinstance(meta, str | Path):
        meta = read_table(Path(meta), ())
    if _names(meta):
        if not isinstance(labels, pd.DataFrame) or set(meta) - set(labels):
            there = ", ".join(map(str, labels)) if isinstance(labels, pd.DataFrame) else "no table of labels"
            raise InputError(where, "meta", there, f"a table with the columns {', '.join(meta)}")
        meta, labels = labels[list(meta)], labels.drop(columns=list(meta))
    if isinstance(labels, pd.Series):
        labels = labels.to_frame(labels.name or "label_0")
    if isinstance(labels, pd.DataFrame):
        return (*_label_columns(labels, names, where), meta)
    if labels is None:
        return None, tuple(names or ()), meta
    values = np.asarray(labels)
    values = values[:, None] if values.ndim == 1 else values
    return values, tuple(names or (f"label_{i}" for i in range(values.shape[-1]))), meta


def _label_columns(
    table: pd.DataFrame, names: Sequence[str] | None, where: str
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    chosen = [str(name) for name in table] if names is None else list(names)
    table = table.set_axis([str(name) for name in table], axis=1)
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        raise InputError(where, "columns", f"{', '.join(twice)} more than once", "different names")
    missing = [name for name in chosen if name not in table]
    if missing:
        raise InputError(where, "columns", ", ".join(map(str, table)), ", ".join(missing))
    for name in chosen:
        found = table[name]
        odd = found[~found.isin([0, 1])]
        if len(odd):
            hint = f"0 and 1 in row {odd.index[0]}, or meta=[{name!r}, ...] if it is no label"
            raise InputError(where, f"label {name}", repr(odd.tolist()[0]), hint)
    return table[chosen].to_numpy(dtype=np.float32).reshape(len(table), len(chosen)), tuple(chosen)


def _check(array: Any, where: str, leads: Sequence[str] | None) -> None:
    expected = "(N, leads, samples)"
    if array.ndim != 3 or not array.size:
        raise InputError(where, "signals", f"shape {array.shape}", expected)
    if array.shape[1] > array.shape[2]:
        raise InputError(
            where, "signals", f"shape {array.shape}", f"{expected}; are leads and samples swapped?"
        )
    if array.dtype.kind != "f":
        raise InputError(where, "signals", f"type {array.dtype}", "floating numbers in mV")
    if leads is None and array.shape[1] != len(STANDARD_LEADS):
        raise InputError(where, "signals", f"{array.shape[1]} leads", "leads=(...), or the standard twelve")
    # Searching a memory map or a file would read all of it from disk.
    if isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        bad = ~np.isfinite(array).all(axis=(1, 2))
        if bad.any():
            raise InputError(where, f"signals[{int(np.flatnonzero(bad)[0])}]", "NaN or infinity", "finite mV")
