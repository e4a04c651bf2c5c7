"""Lobachevsky University Database 1.0.1: 200 subjects, 12 leads, 10 s at 500 Hz, diagnoses in ``ludb.csv``.

Kalyakulina et al., IEEE Access 8, 2020, doi 10.1109/ACCESS.2020.3029211.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.labels import LUDB_DIAGNOSES, LUDB_LABELS, ludb_diagnoses, multi_hot
from ecgmeta.data.load import Fail, LoadOptions, RecordSource, SourceDataset
from ecgmeta.data.records import Record, read_record
from ecgmeta.data.tables import as_age, as_sex, read_table
from ecgmeta.runtime.errors import InputError

# Every stored gain was chosen so that its lead spans 1.0; the digital values are in microvolts (III = II - I then holds
# to the last digit), so they are divided by this and the header's gains ignored.
UNITS_PER_MV = 1000.0


class LUDBSource(RecordSource):
    """Reads the folder that holds ``ludb.csv`` and ``data/``."""

    name = "ludb"

    def __init__(self, root: str | Path, labels: Literal["diagnoses", "none"] = "diagnoses") -> None:
        super().__init__(root)
        if labels not in ("diagnoses", "none"):
            raise InputError(self.name, "labels", repr(labels), "diagnoses or none")
        self.label_set = labels

    def index(self, fail: Fail) -> pd.DataFrame:
        file = self.root / "ludb.csv"
        table = read_table(file, required=("ID", "Sex", "Age", *LUDB_DIAGNOSES))
        rows: list[dict[str, Any]] = []
        for cells in table.to_dict("records"):
            record = str(cells["ID"]).strip()
            where = f"{file}, ID {record}"
            try:
                codes = [c for column in LUDB_DIAGNOSES for c in ludb_diagnoses(cells[column], column, where)]
                age = as_age(cells["Age"], where)
            except InputError as error:
                fail(error)
                continue
            row = {
                "record": record,
                "path": f"data/{record}",
                "patient": f"ludb/{record}",
                "source": self.name,
            }
            rows.append(row | {"age": age, "sex": as_sex(cells["Sex"]), "codes": tuple(codes)})
        return pd.DataFrame(rows, columns=["record", "path", "patient", "source", "age", "sex", "codes"])

    def read(self, row: Any) -> Record:
        return read_record(self.root / row.path, units_per_mv=UNITS_PER_MV)

    def labels(self, index: pd.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if self.label_set == "none":
            return super().labels(index)
        return multi_hot(index["codes"], LUDB_LABELS), LUDB_LABELS


class LUDB(SourceDataset):
    """LUDB as a dataset; its broken gains are put right (see `UNITS_PER_MV`).

    Args:
        root: the folder with ``ludb.csv`` and ``data/``.
        fs: rate of the result, Hz.
        labels: ``"diagnoses"``: the columns of ``ludb.csv`` in `labels.LUDB_LABELS`' order; ``"none"``.
        options: `LoadOptions`; ``min_positives=20`` keeps the diagnoses with enough records to learn from.

    A patient is a record (200 subjects). Age ">89" is given as 90. Wave delineations are not read here.

    Raises:
        InputError: see `SourceDataset`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fs: float = 100.0,
        labels: Literal["diagnoses", "none"] = "diagnoses",
        **options: Unpack[LoadOptions],
    ) -> None:
        super().__init__(LUDBSource(root, labels), fs, **options)
