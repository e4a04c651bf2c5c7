"""Train from your own array, or from a memory map on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.store import ArrayStore, map_npy
from ecgmeta.runtime.errors import InputError


class ArrayDataset(ECGDataset):
    """An array of recordings as a dataset.

    Args:
        signals: (N, leads, samples) floating mV; or the path of a ``.npy`` file, which is memory-mapped, not read.
        labels: (N, labels) or (N,) of 0 and 1; None for none.
        fs: rate, Hz.
        leads: names; None means the standard twelve (I, II, III, aVR, aVL, aVF, V1-V6), and the array must have twelve.
        label_names: None means ``label_0``, ``label_1``, ...
        meta: one row an example; see `dataset.standard_meta`.

    Raises:
        InputError: not three axes, more leads than samples (axes swapped), integers (units unknown), NaN or infinite
            values (not searched for in a memory map), labels that do not fit.

    Example:
        >>> data = ArrayDataset(np.zeros((8, 12, 1000), dtype=np.float32), np.eye(8, 2), fs=100)
        >>> x, y = data[[0, 3]]
        >>> tuple(x.shape), tuple(y.shape)
        ((2, 12, 1000), (2, 2))
    """

    def __init__(
        self,
        signals: NDArray[np.floating] | str | Path,
        labels: NDArray[Any] | None = None,
        *,
        fs: float,
        leads: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        meta: pd.DataFrame | None = None,
    ) -> None:
        where = "array" if isinstance(signals, np.ndarray) else str(signals)
        store = ArrayStore(signals) if isinstance(signals, np.ndarray) else _open(Path(signals))
        _check(store.array, where, leads)
        if not 0 < fs < 1e6:
            raise InputError(where, "fs", fs, "a rate in Hz")
        if labels is not None:
            labels = np.asarray(labels)
            labels = labels[:, None] if labels.ndim == 1 else labels
            if label_names is None:
                label_names = [f"label_{i}" for i in range(labels.shape[-1])]
        super().__init__(
            store,
            labels,
            fs=fs,
            leads=STANDARD_LEADS if leads is None else leads,
            label_names=label_names or (),
            meta=meta,
            source="array",
        )


def _open(path: Path) -> ArrayStore:
    try:
        store = map_npy(path)
    except FileNotFoundError:
        raise InputError(path, "array", "no such file", "a .npy file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, "array", str(error)[:200], "a .npy file") from None
    if not isinstance(store.array, np.ndarray):
        raise InputError(path, "array", type(store.array).__name__, "a .npy file with one array")
    return store


def _check(array: NDArray[Any], where: str, leads: Sequence[str] | None) -> None:
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
    # Searching a memory map would read all of it from disk.
    if not isinstance(array, np.memmap):
        bad = ~np.isfinite(array).all(axis=(1, 2))
        if bad.any():
            raise InputError(where, f"signals[{int(np.flatnonzero(bad)[0])}]", "NaN or infinity", "finite mV")
