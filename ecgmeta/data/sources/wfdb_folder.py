"""Any tree of WFDB records, with the demographics and SNOMED-CT codes of PhysioNet/CinC challenge headers where they stand."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.labels import multi_hot, snomed_labels
from ecgmeta.data.load import Fail, LoadOptions, RecordSource, SourceDataset, header_paths
from ecgmeta.data.records import Header, Record, read_header, read_record
from ecgmeta.data.tables import as_age, as_sex
from ecgmeta.runtime.errors import InputError

_COMMENT = re.compile(r"<?(age|sex|dx|reason for admission)>?\s*:\s*(.*)", re.IGNORECASE)
_PTB_PATIENT = re.compile(r"patient\d+$")  # the PTB Diagnostic ECG Database: a folder a patient
WFDBLabels = Literal["scored", "all", "none"]


class WFDBSource(RecordSource):
    """Reads every header below `root`, in the order of the sorted paths."""

    name = "wfdb"
    forks = True
    suffixes = (*RecordSource.suffixes, ".xyz")  # PTB's Frank leads have a file of their own

    def __init__(self, root: str | Path, labels: WFDBLabels = "scored", checksum: bool = True) -> None:
        super().__init__(root)
        if labels not in ("scored", "all", "none"):
            raise InputError(self.name, "labels", repr(labels), "scored, all or none")
        self.label_set, self.checksum = labels, checksum

    def index(self, fail: Fail) -> pd.DataFrame:
        rows: dict[str, dict[str, Any]] = {}
        segments: set[str] = set()
        errors: dict[str, InputError] = {}
        for path in header_paths(self.root):
            try:
                header = read_header(self.root / path)
                segments |= {os.path.join(os.path.dirname(path), name) for name, _ in header.parts}
                rows[path] = self._row(path, header)
            except InputError as error:
                errors[path] = error
        # A segment is no record of its own; where it is broken, reading the whole says so.
        for path, reason in errors.items():
            if path not in segments:
                fail(reason)
        kept = [row for path, row in rows.items() if path not in segments]
        columns = ["record", "path", "patient", "source", "age", "sex", "codes", "reason_for_admission"]
        return pd.DataFrame(kept, columns=columns)

    def _row(self, path: str, header: Header) -> dict[str, Any]:
        said: dict[str, str] = {}
        for comment in header.comments:
            if found := _COMMENT.match(comment):
                key, value = found[1].casefold(), found[2].strip()
                if said.setdefault(key, value) != value:
                    raise InputError(header.path, key, f"{said[key]!r} and {value!r}", "one line of it")
        name, folder = os.path.basename(path), header.path.absolute().parent
        patient = name
        if _PTB_PATIENT.match(folder.name):
            patient, folder = folder.name, folder.parent
        return {
            "record": name,
            "path": path,
            "patient": patient,
            "source": folder.name,
            "age": as_age(said.get("age", ""), header.path),
            "sex": as_sex(said.get("sex", "")),
            "codes": tuple(code.strip() for code in said.get("dx", "").split(",") if code.strip()),
            "reason_for_admission": said.get("reason for admission", ""),
        }

    def read(self, row: Any) -> Record:
        return read_record(os.path.join(self.root, row.path), checksum=self.checksum)

    def labels(self, index: pd.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if self.label_set == "scored":
            return snomed_labels(index["codes"])
        if self.label_set == "none":
            return super().labels(index)
        names = tuple(sorted({code for codes in index["codes"] for code in codes}))
        return multi_hot(index["codes"], names), names

    def settings(self) -> dict[str, Any]:
        return {
            "checksum": self.checksum,
            "index": 4,  # raised when the index changes: it stands in the cache
        }


class WFDBFolder(SourceDataset):
    """A tree of WFDB records (``.hea`` with ``.mat`` or ``.dat``) as a dataset.

    Args:
        root: the folder; every ``.hea`` below it is a record, but for the segments of another one.
        fs: rate of the result, Hz.
        labels: ``"scored"``: the 26 scored diagnoses of the 2021 challenge from the ``Dx`` lines (`snomed.csv`'s order,
            equivalent codes as one); ``"all"``: every code of the tree, sorted; ``"none"``.
        checksum: refuse a record whose samples do not add up to the checksum in its header.
        options: `LoadOptions`.

    The headers name no patient, so a patient is a record *name*: the same record in two folders is one patient, two
    recordings of one person are not recognised (see `duplicates.group_duplicates`); only PTB's folders ``patient001``,
    ``patient002``, ... do name the patient. ``meta.source`` is the name of the folder a record lies in (PTB: of the folder
    of patients), ``meta.reason_for_admission`` what PTB's headers say.

    A record needs the leads asked for: single-lead records of the 2017 challenge load with ``leads=("ECG",)``.

    Raises:
        InputError: see `SourceDataset`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fs: float = 100.0,
        labels: WFDBLabels = "scored",
        checksum: bool = True,
        **options: Unpack[LoadOptions],
    ) -> None:
        if (Path(root) / "ludb.csv").is_file():
            warnings.warn(
                f"{root}: LUDB's headers hold wrong gains, so these records are not in mV; ecgmeta.data.LUDB reads them in mV",
                stacklevel=2,
            )
        super().__init__(WFDBSource(root, labels, checksum), fs, **options)
