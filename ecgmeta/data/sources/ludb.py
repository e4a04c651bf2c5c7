"""Lobachevsky University Database 1.0.1: 200 subjects, 12 leads, 10 s at 500 Hz, diagnoses in ``ludb.csv``.

Kalyakulina et al., IEEE Access 8, 2020, doi 10.1109/ACCESS.2020.3029211.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.labels import LUDB_DIAGNOSES, LUDB_LABELS, ludb_diagnoses, multi_hot
from ecgmeta.data.leads import canonical, match_leads
from ecgmeta.data.load import Fail, LoadOptions, RecordSource, SourceDataset
from ecgmeta.data.records import Record, read_header, read_record
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
        return read_record(os.path.join(self.root, row.path), units_per_mv=UNITS_PER_MV)

    def notes(self) -> list[str]:
        return [
            "ludb: the gains in the headers scale every lead to a range of 1; they are ignored, and the digital values "
            f"taken as {UNITS_PER_MV:g} a mV, with which III = II - I holds"
        ]

    def labels(self, index: pd.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if self.label_set == "none":
            return super().labels(index)
        return multi_hot(index["codes"], LUDB_LABELS), LUDB_LABELS


WAVES = {"p": "P", "N": "QRS", "t": "T"}  # by the symbol of their peak


def read_delineation(root: str | Path, record: str | int, lead: str | None = None) -> pd.DataFrame:
    """The waves that the cardiologists marked in one record.

    Args:
        root: the folder with ``ludb.csv`` and ``data/``.
        record: its ID.
        lead: a lead in any case; None for all twelve.

    Returns:
        one row a wave, in the order of leads and time: lead, wave ("P", "QRS" or "T"), onset, peak, offset, in s from the
        start of the record. A wave is a marked peak. In 134 of 58,423 waves of the published files a boundary is not
        marked, or stands on the wrong side of the peak: that one is NaN. Spans without a peak are not waves; a wave
        marked several times (record 116, V1 and V2) stands several times.

    Raises:
        InputError: no such record or lead, a file that wfdb cannot read, a mark that is no wave.
    """
    header = read_header(Path(root, "data", str(record)))
    names = [spec.name for spec in header.signals]
    places = range(len(names)) if lead is None else [match_leads(names, [lead], header.path)[0]]
    rows: list[tuple[str, str, float, float, float]] = []
    for place in places:
        if place is None:
            raise InputError(header.path, "lead", repr(lead), ", ".join(names))
        rows += _lead_waves(header.path, names[place], header.fs)
    return pd.DataFrame(rows, columns=["lead", "wave", "onset", "peak", "offset"])


def _lead_waves(header: Path, name: str, fs: float) -> list[tuple[str, str, float, float, float]]:
    """The waves of the annotator ``.<name>``: an onset ``(``, a peak, an offset ``)``; either bracket may be missing."""
    import wfdb

    file = header.with_suffix(f".{name}")
    if not file.is_file():
        raise InputError(file, "annotations", "no such file", f"the delineation of lead {canonical(name)}")
    try:
        found = wfdb.rdann(str(header.with_suffix("")), name)
    except Exception as error:  # wfdb answers a broken file with whatever its parser hit first
        text = f"{type(error).__name__}: {error}"[:200]
        raise InputError(file, "annotations", text, "an annotation file wfdb can read") from None
    marks = [(symbol, float(at) / fs) for symbol, at in zip(found.symbol, found.sample, strict=True)]
    rows = []
    for number, (symbol, at) in enumerate(marks):
        if symbol in "()":
            continue
        if symbol not in WAVES:
            raise InputError(file, f"annotation at {at:g} s", repr(symbol), "( ) " + " ".join(WAVES))
        before = marks[number - 1] if number else ("", math.nan)
        after = marks[number + 1] if number + 1 < len(marks) else ("", math.nan)
        onset = before[1] if before[0] == "(" else math.nan
        offset = after[1] if after[0] == ")" else math.nan
        rows.append((canonical(name), WAVES[symbol], onset, at, offset))
    return rows


class LUDB(SourceDataset):
    """LUDB as a dataset; its broken gains are put right (see `UNITS_PER_MV`, and ``.notes``).

    Args:
        root: the folder with ``ludb.csv`` and ``data/``.
        fs: rate of the result, Hz.
        labels: ``"diagnoses"``: the columns of ``ludb.csv`` in `labels.LUDB_LABELS`' order; ``"none"``.
        options: `LoadOptions`; ``min_positives=20`` keeps the diagnoses with enough records to learn from.

    A patient is a record (200 subjects). Age ">89" is given as 90. `waves` gives the delineation of a record.

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
        self.root = Path(root)

    def waves(self, record: str | int, lead: str | None = None) -> pd.DataFrame:
        """P, QRS and T waves of a record by its ID (``meta.record``); see `read_delineation`."""
        return read_delineation(self.root, record, lead)
