"""HDF5 files (the extra ``hdf5``): opening them with one-line errors, and a store that reads batches from one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.store import Rows
from ecgmeta.runtime.errors import InputError


def open_hdf5(path: Path) -> Any:
    """An open, read-only `h5py.File`.

    Raises:
        InputError: h5py is not installed; no such file, or not an HDF5 file.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(path, "h5py", "not installed", "pip install 'ecgmeta[hdf5]'") from None
    if not path.is_file():
        raise InputError(path, "file", "no such file", "an HDF5 file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(path, "file", str(error)[:200], "an HDF5 file") from None


def find_dataset(file: Any, name: str | None, path: Path) -> Any:
    """The dataset `name` of an open file; None means its only one with three axes.

    Raises:
        InputError: no such dataset, or None where there are several or none.
    """
    import h5py

    found: dict[str, Any] = {}
    file.visititems(lambda key, item: found.update({key: item}) if isinstance(item, h5py.Dataset) else None)
    if name is None:
        able = [key for key, item in found.items() if item.ndim == 3]
        if len(able) != 1:
            listed = ", ".join(able) or "none"
            raise InputError(path, "datasets with three axes", listed, "one, or dataset='...'")
        name = able[0]
    if name.strip("/") not in found:
        raise InputError(path, "dataset", repr(name), f"one of {', '.join(found) or 'none'}")
    return found[name.strip("/")]


class HDF5Store:
    """A dataset (N, leads, samples) of floating mV in an HDF5 file; only the rows asked for are read.

    The file is opened anew in every process: a handle is neither pickled nor shared with a forked worker.

    Args:
        path: the file.
        dataset: the name of the dataset in it.

    Raises:
        InputError: see `open_hdf5` and `find_dataset`.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self.path, self.dataset = path, dataset
        self._opened: tuple[int, Any] | None = None
        array = self.array
        self.shape: tuple[int, int, int] = tuple(array.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return HDF5Store, (self.path, self.dataset)

    @property
    def array(self) -> Any:
        """The `h5py.Dataset`, opened in this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), find_dataset(open_hdf5(self.path), self.dataset, self.path)
        return self._opened[1]

    def take(self, rows: Rows) -> NDArray[np.float32]:
        # h5py takes increasing rows without repetition only.
        unique, back = np.unique(rows, return_inverse=True)
        if not unique.size:
            return np.empty((0, *self.shape[1:]), dtype=np.float32)
        return np.ascontiguousarray(np.asarray(self.array[unique], dtype=np.float32)[back])

    def all(self) -> NDArray[np.float32]:
        return np.asarray(self.array[()], dtype=np.float32)
