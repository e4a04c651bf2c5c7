"""CODE-15%: 345,779 exams of 233,770 patients of the Telehealth Network of Minas Gerais, in 18 HDF5 files.

Ribeiro et al., Automatic diagnosis of the 12-lead ECG using a deep neural network, Nature Communications 11:1760, 2020. The
layout is that of the data's own page, https://zenodo.org/records/4916206: ``exams.csv``; ``exams_part{i}.hdf5`` with
``exam_id`` (N,) and ``tracings`` (N, 4096, 12), 400 Hz, leads DI, DII, DIII, AVR, AVL, AVF, V1-V6; exams of 10 s (4000 samples)
and 7 s (2800) with zeros before and after them. In the published files the last row is empty, with an exam_id of 0.

The unit is not settled. The data's page names none. The authors' code (github.com/antonior92/automatic-ecg-diagnosis, README)
says "at the scale 1e-4V: so if the signal is in V it should be multiplied by 1000", which contradicts itself: times 1000 is mV;
"just make sure your ECG is scaled as millivolts" is its author's answer (issue 3 there). Users who compared the files with
other databases find them about twice as large (github.com/antonior92/ecg-age-prediction, issues 1 and 5). So the stored numbers
are taken as mV by default, ``units_per_mv=2`` is how to halve them, and a gross error (V or µV taken for mV) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.hdf5 import find_dataset, open_hdf5
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.load import Fail, Labels, LoadOptions, RecordSource, SourceDataset
from ecgmeta.data.records import Record
from ecgmeta.data.tables import as_age, read_table
from ecgmeta.runtime.errors import InputError

FS = 400.0
ABNORMALITIES = ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")  # in the order of the authors' model
Code15Set = Literal["abnormalities", "all", "none"]
_SETS: dict[str, tuple[str, ...]] = {
    "abnormalities": ABNORMALITIES,
    "all": (*ABNORMALITIES, "normal_ecg"),
    "none": (),
}
_NEEDED = ("exam_id", "age", "is_male", "patient_id", "trace_file", *ABNORMALITIES, "normal_ecg")
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
PLAUSIBLE_MV = (0.15, 8.0)  # of the median over exams of `typical_peak_to_peak`; PTB-XL's is 1


class CODE15Source(RecordSource):
    """Reads the folder that holds ``exams.csv``; see `CODE15` for the arguments."""

    name = "code15"
    suffixes = (".hdf5", ".csv")

    def __init__(
        self,
        root: str | Path,
        labels: Code15Set = "abnormalities",
        parts: Iterable[int] | None = None,
        units_per_mv: float = 1.0,
    ) -> None:
        super().__init__(root)
        if labels not in _SETS:
            raise InputError(self.name, "labels", repr(labels), ", ".join(_SETS))
        if not 0 < units_per_mv < 1e7:
            raise InputError(self.name, "units_per_mv", units_per_mv, "a positive number")
        self.label_set, self.units_per_mv = labels, float(units_per_mv)
        self.parts = None if parts is None else tuple(sorted(set(parts)))
        self._open: tuple[str, Any, Any] | None = (
            None  # (file name, file, tracings): exams are read file by file
        )

    def index(self, fail: Fail) -> pd.DataFrame:
        table = read_table(self.root / "exams.csv", _NEEDED)
        files = self._files(table)
        table = table[table["trace_file"].isin(files)]
        frames = []
        for file in files:
            try:
                frames.append(self._part(file, table[table["trace_file"] == file], fail))
            except InputError as error:
                fail(error)
        out = pd.concat(frames, ignore_index=True) if frames else table.iloc[:0].assign(record="", path="")
        return out.drop(columns=["patient_id", "is_male", "trace_file"])

    def _files(self, table: pd.DataFrame) -> list[str]:
        """The HDF5 files to read, by number: those wanted, or those of the table that are there."""
        if self.parts is not None:
            return [f"exams_part{part}.hdf5" for part in self.parts]
        named = sorted({str(name) for name in table["trace_file"]}, key=lambda name: (len(name), name))
        there = [name for name in named if (self.root / name).is_file()]
        if not there:
            raise InputError(self.root, "trace_file", f"none of {len(named)} files", ", ".join(named)[:200])
        return there

    def _part(self, file: str, table: pd.DataFrame, fail: Fail) -> pd.DataFrame:
        """The rows of one file, in its order."""
        path = self.root / file
        with open_hdf5(path) as opened:
            ids = find_dataset(opened, "exam_id", path)[()]
            shape = find_dataset(opened, "tracings", path).shape
        if ids.ndim != 1 or len(shape) != 3 or shape[0] != len(ids) or shape[2] != len(STANDARD_LEADS):
            found = f"exam_id {ids.shape}, tracings {shape}"
            raise InputError(path, "shapes", found, "(N,) and (N, samples, 12)")
        place = {int(number): row for row, number in enumerate(ids) if number}
        rows: list[dict[str, Any]] = []
        for cells in table.to_dict("records"):
            where = f"{self.root / 'exams.csv'}, exam_id {cells['exam_id']}"
            try:
                if int(cells["exam_id"]) not in place:
                    raise InputError(
                        where, "trace_file", f"{file}, which lacks that exam", "the file that has it"
                    )
                rows.append(self._row(cells, place[int(cells["exam_id"])], where))
            except InputError as error:
                fail(error)
        rows.sort(key=lambda row: row["position"])
        return pd.DataFrame(rows, columns=[*table.columns, *(c for c in _ADDED if c not in table.columns)])

    def _row(self, cells: dict[Any, Any], position: int, where: str) -> dict[str, Any]:
        said = {name: _truth(cells[name], name, where) for name in (*_SETS["all"], "is_male")}
        record = str(cells["exam_id"])
        return cells | {
            "record": record,
            "path": f"{cells['trace_file']}/{record}",
            "position": position,
            "patient": f"{self.name}/{cells['patient_id']}",
            "source": self.name,
            "age": as_age(cells["age"], where),
            "sex": "male" if said["is_male"] else "female",
            "normal_ecg": said["normal_ecg"],
            **{name: said[name] for name in ABNORMALITIES},
            "codes": tuple(name for name in _SETS["all"] if said[name]),
        }

    def read(self, row: Any) -> Record:
        file, record = row.path.split("/", 1)
        where = f"{self.root / file}, exam_id {record}"
        if self._open is None or self._open[0] != file:
            if self._open is not None:
                self._open[1].close()
            opened = open_hdf5(self.root / file)
            self._open = file, opened, find_dataset(opened, "tracings", self.root / file)
        try:
            tracing = np.asarray(self._open[2][int(row.position)], dtype=np.float32).T
        except OSError as error:
            raise InputError(where, "tracings", str(error)[:200], "a tracing HDF5 can read") from None
        recorded = np.flatnonzero((tracing != 0).any(axis=0))  # NaN is not 0
        if not recorded.size:
            raise InputError(where, "tracings", "zeros throughout", "an exam")
        signal = tracing[:, recorded[0] : recorded[-1] + 1] / np.float32(self.units_per_mv)
        return Record(where, signal, FS, STANDARD_LEADS)

    def labels(self, index: pd.DataFrame) -> Labels:
        names = _SETS[self.label_set]
        return index[list(names)].to_numpy(dtype=np.float32).reshape(len(index), len(names)), names

    def settings(self) -> dict[str, Any]:
        return {"parts": self.parts, "units_per_mv": self.units_per_mv}

    def notes(self) -> list[str]:
        return [
            f"{self.name}: the unit of the published files is not settled; one mV is taken to be {self.units_per_mv:g} "
            "of what they hold"
        ]


_ADDED = ("record", "path", "position", "patient", "source", "sex", "codes")


def _truth(value: object, column: str, where: str) -> bool:
    found = _TRUTH.get(str(value).strip().casefold())
    if found is None:
        raise InputError(where, column, repr(value), "True or False")
    return found


def typical_peak_to_peak(data: ECGDataset, exams: int = 200) -> float:
    """mV: the median, over evenly spaced exams, their leads and their whole seconds, of a second's range.

    A second holds a beat or so and little of a wandering baseline.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, min(exams, len(data))).astype(int))
    second = max(2, min(round(data.fs), data.samples))
    ranges = []
    for signal, valid in zip(data.take(rows), data.meta["valid_samples"].to_numpy()[rows], strict=True):
        whole = max(1, min(valid, data.samples) // second)
        pieces = signal[:, : whole * second].reshape(len(signal), whole, -1)
        ranges.append(np.median(np.ptp(pieces, axis=2)))
    return float(np.median(ranges))


class CODE15(SourceDataset):
    """CODE-15% as a dataset, every column of ``exams.csv`` in ``.meta``; needs the extra ``hdf5``.

    Args:
        root: the folder with ``exams.csv`` and as many of the unpacked ``exams_part{i}.hdf5`` as are wanted.
        fs: rate of the result, Hz; the files have 400.
        labels: ``"abnormalities"`` (1dAVb, RBBB, LBBB, SB, AF, ST), ``"all"`` (those and normal_ecg), ``"none"``.
        parts: numbers of the HDF5 files to read; None reads those that are there.
        units_per_mv: stored numbers a millivolt; the unit is not settled, see the head of this module.
        options: `LoadOptions`.

    The zeros before and after an exam are taken off; an exam of 7 s is then padded as ``short`` says. A patient is
    ``code15/<patient_id>``.

    Raises:
        InputError: h5py is missing; amplitudes that are not those of an ECG in mV (`PLAUSIBLE_MV`); an exam that its
            file lacks; see `SourceDataset`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fs: float = 100.0,
        labels: Code15Set = "abnormalities",
        parts: Iterable[int] | None = None,
        units_per_mv: float = 1.0,
        **options: Unpack[LoadOptions],
    ) -> None:
        super().__init__(CODE15Source(root, labels, parts, units_per_mv), fs, **options)
        found, (low, high) = typical_peak_to_peak(self), PLAUSIBLE_MV
        if not low <= found <= high:
            expected = f"{low:g} to {high:g} mV; units_per_mv={units_per_mv:g} is wrong for these files"
            raise InputError(root, "typical range within a second", f"{found:.3g} mV", expected)
