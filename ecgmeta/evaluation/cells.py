"""Cells of a label sweep and their files: one file a cell, written aside and renamed, so each resumes alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_atomic


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run: what was trained on how many labels, from which seed."""

    label_set: str
    arm: str
    protocol: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.label_set}-{self.labels}-{self.arm}-{self.protocol}-{self.seed}"

    def file(self, folder: Path) -> Path:
        """Where its result stands."""
        return folder / f"{self.name}.npz"


@dataclass(frozen=True)
class CellResult:
    """What a finished cell says of the test recordings.

    Attributes:
        cell: which.
        logits, targets: (records, labels).
        patients, records: of each test recording, (records,).
        label_names: of the columns.
        info: for JSON: ``settings`` and ``inputs`` (what the numbers follow from), ``chosen`` and ``history`` (by the
            validation set alone), ``seconds``, ``scorings``: how often the test set was scored under this cell's name,
            more than 1 where it was trained again with other settings.
    """

    cell: Cell
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    patients: NDArray[np.str_]
    records: NDArray[np.str_]
    label_names: tuple[str, ...]
    info: dict[str, Any]


_ARRAYS = ("logits", "targets", "patients", "records")


def write_cell(folder: Path, result: CellResult) -> None:
    """Write the file of a cell, whole or not at all."""
    said = {"cell": asdict(result.cell), "label_names": list(result.label_names), **result.info}
    text = np.frombuffer(json.dumps(said, allow_nan=False).encode(), dtype=np.uint8)
    arrays: dict[str, Any] = {name: getattr(result, name) for name in _ARRAYS}
    write_atomic(result.cell.file(folder), lambda file: np.savez_compressed(file, info=text, **arrays))


def read_info(file: Path) -> dict[str, Any]:
    """What a cell's file says beside its arrays, which are not read.

    Raises:
        InputError: it is no whole file of a cell.
    """
    return _read(file, ())[0]


def read_cell(file: Path) -> CellResult:
    """The result in a cell's file.

    Raises:
        InputError: it is no whole file of a cell.
    """
    info, arrays = _read(file, _ARRAYS)
    try:
        cell, names = Cell(**info.pop("cell")), tuple(info.pop("label_names"))
    except (KeyError, TypeError) as error:
        raise _broken(file, error) from error
    return CellResult(cell, **arrays, label_names=names, info=info)


def read_cells(folder: Path, settings: Mapping[str, Any] | None = None) -> list[CellResult]:
    """Every finished cell in a folder, those of other settings left out where ``settings`` are given."""
    files = sorted(folder.glob("*.npz"))
    return [read_cell(f) for f in files if settings is None or read_info(f).get("settings") == settings]


def _read(file: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return json.loads(arrays["info"].tobytes()), {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception) -> InputError:
    return InputError(file, "cell", error, "a file written by a label sweep; delete it to repeat the cell")
