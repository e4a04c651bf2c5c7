"""PTB-XL as published: ``ptbxl_database.csv``, ``scp_statements.csv``, ``records100/``, ``records500/``.

Wagner et al., PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7:154, 2020.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.labels import PTBXL_SETS, PtbxlSet, parse_scp_codes, ptbxl_labels
from ecgmeta.data.load import Fail, LoadOptions, RecordSource, SourceDataset
from ecgmeta.data.records import Record, read_record
from ecgmeta.data.tables import as_age, as_sex, read_table, whole_numbers
from ecgmeta.runtime.errors import InputError

LabelPolicy = Literal["benchmark", "paper"]
_NEEDED = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
# Free-text columns of the table: a record has the problem where anything is written.
QUALITY = (
    *("static_noise", "burst_noise", "baseline_drift", "electrodes_problems"),
    *("pacemaker", "extra_beats"),
)
# Columns that get a standard name; every other column of the table is kept as it is.
_RENAMED = {"patient_id": "patient", "strat_fold": "fold"}


class PTBXLSource(RecordSource):
    """Reads the folder that holds ``ptbxl_database.csv``; see `PTBXL` for the arguments."""

    name = "ptbxl"
    forks = True

    def __init__(
        self,
        root: str | Path,
        fs: float = 100.0,
        labels: PtbxlSet | Literal["none"] = "superdiagnostic",
        folds: Iterable[int] | int | None = None,
        label_policy: LabelPolicy = "benchmark",
        exclude: Iterable[str] = (),
        validated: bool = False,
    ) -> None:
        super().__init__(root)
        self.exclude, self.validated = (exclude,) if isinstance(exclude, str) else tuple(exclude), validated
        for column in self.exclude:
            if column not in QUALITY:
                raise InputError(self.name, "exclude", repr(column), ", ".join(QUALITY))
        if labels not in (*PTBXL_SETS, "none"):
            raise InputError(self.name, "labels", repr(labels), ", ".join((*PTBXL_SETS, "none")))
        if label_policy not in ("benchmark", "paper"):
            raise InputError(self.name, "label_policy", repr(label_policy), "benchmark or paper")
        self.folds = None if folds is None else (folds,) if isinstance(folds, int) else tuple(folds)
        if self.folds is not None and not (self.folds and set(self.folds) <= set(range(1, 11))):
            raise InputError(self.name, "folds", self.folds, "some of 1 to 10")
        self.label_set, self.label_policy = labels, label_policy
        # The published 100 Hz signals where they suffice, else the 500 Hz ones.
        self.low_rate = fs <= 100

    def index(self, fail: Fail) -> pd.DataFrame:
        file = self.root / "ptbxl_database.csv"
        table = read_table(
            file, (*_NEEDED, *self.exclude, *(["validated_by_human"] if self.validated else []))
        )
        path = table["filename_lr" if self.low_rate else "filename_hr"].astype(str)
        index = table.rename(columns=_RENAMED).drop(columns=["scp_codes", "filename_lr", "filename_hr"])
        index["record"] = path.str.rsplit("/", n=1).str[-1]
        index["path"], index["source"] = path, self.name
        index["fold"] = whole_numbers(table, "strat_fold", file)
        patient = whole_numbers(table, "patient_id", file)
        unknown = "ptbxl/record-" + table["ecg_id"].astype(str)
        index["patient"] = ("ptbxl/" + patient.astype(str)).where(patient.notna(), unknown)
        index["sex"] = table["sex"].map(as_sex)
        rows: list[int] = []
        codes: list[tuple[str, ...]] = []
        ages: list[float] = []
        for row, (number, age, text) in enumerate(
            zip(table["ecg_id"], table["age"], table["scp_codes"], strict=True)
        ):
            where = f"{file}, ecg_id {number}"
            try:
                parsed, years = parse_scp_codes(str(text), where), as_age(age, where)
            except InputError as error:
                fail(error)
                continue
            rows.append(row)
            codes.append(parsed)
            ages.append(years)
        return index.iloc[rows].assign(
            age=ages, codes=pd.Series(codes, index=index.index[rows], dtype=object)
        )

    def read(self, row: Any) -> Record:
        return read_record(os.path.join(self.root, row.path))

    def labels(self, index: pd.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if self.label_set == "none":
            return super().labels(index)
        file = self.root / "scp_statements.csv"
        needed = ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
        statements = read_table(file, needed)
        statements = statements.set_index(statements.columns[0])
        return ptbxl_labels(list(index["codes"]), statements, self.label_set, self.root)

    def keep(self, index: pd.DataFrame, labels: NDArray[np.float32]) -> NDArray[np.bool_]:
        kept = np.ones(len(index), dtype=bool)
        if self.folds is not None:
            kept &= index["fold"].isin(self.folds).to_numpy()
        for column in self.exclude:
            text = index[column].fillna("").astype(str).str.strip()
            kept &= (text == "").to_numpy()
        if self.validated:
            kept &= (index["validated_by_human"].astype(str).str.casefold() == "true").to_numpy()
        if self.label_policy == "benchmark" and self.label_set != "none":
            kept &= labels.any(axis=1)
        return kept

    def settings(self) -> dict[str, Any]:
        return {"low_rate": self.low_rate}

    def files(self) -> Iterator[tuple[str, int, int]]:
        other = "records500" if self.low_rate else "records100"
        return (entry for entry in super().files() if not entry[0].startswith(other))


class PTBXL(SourceDataset):
    """PTB-XL as a dataset, every column of its table in ``.meta``.

    Args:
        root: the folder with ``ptbxl_database.csv``.
        fs: rate of the result, Hz. Up to 100 the published 100 Hz files are read, above it the 500 Hz files; any other
            rate is resampled from those.
        labels: ``"superdiagnostic"`` (NORM, MI, STTC, CD, HYP), ``"subdiagnostic"``, ``"diagnostic"``, ``"form"``,
            ``"rhythm"``, ``"all"`` (these alphabetically), ``"none"``.
        folds: keep these of the official stratified folds 1 to 10 (1-8 train, 9 validate, 10 test); None keeps all.
        label_policy: ``"benchmark"`` leaves out records without any label of the set, ``"paper"`` keeps them with all
            zeros. Both count a statement of likelihood 0 (= not said) as present.
        exclude: leave out records for which one of these columns says anything: `QUALITY`, such as
            ``("static_noise", "burst_noise")``.
        validated: leave out records that no human has validated (column ``validated_by_human``).
        options: `LoadOptions`.

    A patient is ``ptbxl/<patient_id>``; age 300 (= over 89) is given as 90.

    Raises:
        InputError: see `SourceDataset`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fs: float = 100.0,
        labels: PtbxlSet | Literal["none"] = "superdiagnostic",
        folds: Iterable[int] | int | None = None,
        label_policy: LabelPolicy = "benchmark",
        exclude: Iterable[str] = (),
        validated: bool = False,
        **options: Unpack[LoadOptions],
    ) -> None:
        source = PTBXLSource(root, fs, labels, folds, label_policy, exclude, validated)
        super().__init__(source, fs, **options)
