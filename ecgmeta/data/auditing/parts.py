"""What an audit walks over: the sources found below a folder, or a dataset, as rows that are read one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.auditing.findings import Finding
from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.load import RecordSource, folders
from ecgmeta.data.records import Record, read_header, read_record
from ecgmeta.runtime.errors import InputError

KINDS = ("auto", "wfdb", "ptbxl", "ludb", "code15")
# A folder with one of these is read by its own source.
MARKS = {"ptbxl_database.csv": "ptbxl", "ludb.csv": "ludb", "exams.csv": "code15"}


@dataclass(eq=False)
class Part:
    """Recordings that belong together: one source below a folder, or one dataset.

    Attributes:
        name: what the audit calls it.
        index: one row a recording: name (as in findings), record, patient, source, and where known fold, age, sex.
        read: the whole recording of a row, by position; raises InputError.
        same: recordings with equal values are one recording in several versions, so no duplicates of each other.
        labels: (recordings, labels) of 0 and 1, or None where they cannot be read or another part has them.
        label_names: their names.
        findings: what was wrong before any recording was read.
        version: True for a second version of another part's recordings: labels and folds are counted there.
        by_header: the same as `read`, by a source that knows better than its headers: as any other reader takes it.
    """

    name: str
    index: pd.DataFrame
    read: Callable[[int], Record]
    same: list[str]
    labels: NDArray[np.float32] | None = None
    label_names: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    version: bool = False
    by_header: Callable[[int], Record] | None = None

    def __len__(self) -> int:
        return len(self.index)


def of_dataset(data: ECGDataset) -> Part:
    """A dataset as it is: its rate, its leads, its windows."""
    index = data.meta.copy()
    window = index["window"].astype(str)
    index["name"] = index["record"].where(index["window"] == 0, index["record"] + ", window " + window)
    index["name"] = _different(index["name"])
    valid = index["valid_samples"].to_numpy()

    def read(row: int) -> Record:
        signal = data.take([row])[0][:, : valid[row]]
        return Record(str(index["name"].iloc[row]), signal, data.fs, data.leads)

    name = ", ".join(dict.fromkeys(index["source"]))
    failures = [Finding("unreadable", (), line) for line in data.skipped]
    return Part(name, index, read, list(index["name"]), data.labels, data.label_names, failures)


def below(root: Path, kind: str, fs: float | None) -> list[Part]:
    """The parts of a folder.

    Args:
        root: the folder.
        kind: ``"auto"`` gives PTB-XL, LUDB and CODE-15% folders anywhere below to their own sources and every other header to
            the plain WFDB reader; the other kinds insist on one source at `root`.
        fs: PTB-XL: the version to read, 100 or 500 Hz; None reads both where both are there.

    Raises:
        InputError: no such folder, an unknown kind, no recordings.
    """
    if kind not in KINDS:
        raise InputError("audit", "kind", repr(kind), ", ".join(KINDS))
    if not root.is_dir():
        raise InputError(root, "folder", "no such folder", "a folder of recordings")
    special = _special(root) if kind == "auto" else {root: kind} if kind != "wfdb" else {}
    parts = [part for folder, of in special.items() for part in _sources(root, folder, of, fs)]
    if kind == "wfdb" or (kind == "auto" and root not in special):
        parts += _wfdb(root, [folder for folder in special if folder != root])
    for part in parts:
        part.findings += [] if part.version else _twice(part)
    if not any(len(part) or part.findings for part in parts):
        raise InputError(
            root, "recordings", "none", f"recordings of {'a known kind' if kind == 'auto' else kind}"
        )
    return parts


def _special(root: Path) -> dict[Path, str]:
    """Folders with a source of their own, none inside another."""
    found: dict[Path, str] = {}
    for name, names in folders(root):
        folder, kinds = Path(name), [kind for mark, kind in MARKS.items() if mark in names]
        if kinds and not any(above in found for above in folder.parents):
            found[folder] = kinds[-1]
    return found


def _sources(root: Path, folder: Path, kind: str, fs: float | None) -> list[Part]:
    from ecgmeta.data.sources.code15 import CODE15Source
    from ecgmeta.data.sources.ludb import LUDBSource
    from ecgmeta.data.sources.ptbxl import PTBXLSource

    where = "" if folder == root else f"{folder.relative_to(root)}/"
    if kind == "ludb":
        part = _of_source(LUDBSource(folder), f"{where}LUDB", where, ())
        part.by_header = lambda row: read_record(folder / str(part.index["path"].iloc[row]))
        return [part]
    if kind == "code15":
        return [_of_source(CODE15Source(folder), f"{where}CODE-15%", where, ())]
    rates = [fs] if fs is not None else [rate for rate in (100, 500) if (folder / f"records{rate}").is_dir()]
    out = []
    for number, rate in enumerate(rates or [100]):
        source, name = PTBXLSource(folder, rate), f"{where}PTB-XL, {100 if rate <= 100 else 500} Hz files"
        part = _of_source(source, name, where, (), version=number > 0)
        if "ecg_id" in part.index:
            part.same = [f"{folder}/{number}" for number in part.index["ecg_id"]]
        out.append(part)
    return out


def _wfdb(root: Path, apart: list[Path]) -> list[Part]:
    from ecgmeta.data.sources.wfdb_folder import WFDBSource

    part = _of_source(WFDBSource(root), "WFDB", "", [f"{folder.relative_to(root)}/" for folder in apart])
    return [part] if len(part) or part.findings else []


def _of_source(
    source: RecordSource, name: str, where: str, apart: list[str] | tuple[str, ...], version: bool = False
) -> Part:
    """A source as a part; what lies below a folder of `apart` is left to others."""
    findings: list[Finding] = []

    def fail(error: InputError) -> None:
        path = os.path.relpath(str(error.where).partition(",")[0], source.root)
        if not path.startswith(tuple(apart)):
            findings.append(of_error(error, _named(error, source.root, where)))

    index = source.index(fail).reset_index(drop=True)
    if apart:
        index = index[~index["path"].str.startswith(tuple(apart))].reset_index(drop=True)
    index["name"] = where + index["path"].astype(str)
    rows = list(index.itertuples(index=False))
    part = Part(name, index, lambda row: source.read(rows[row]), list(index["name"]), version=version)
    part.findings = findings
    if not version:
        try:
            part.labels, part.label_names = source.labels(index)
        except InputError as error:
            findings.append(Finding("labels", (), str(error)))
        findings += _orphans(source, where, apart)
    return part


def of_error(error: InputError, name: str) -> Finding:
    """The finding that a refusal to read amounts to."""
    check = "unreadable"
    if error.field == "size":
        check = "truncated"
    elif error.field.startswith("checksum"):
        check = "checksum"
    elif error.field.startswith("units"):
        check = "units"
    elif error.field in ("scp_codes", "age") or str(error.where).partition(",")[0].endswith(".csv"):
        check = "labels"
    return Finding(check, (name,), f"{error.field}: found {error.found}, expected {error.expected}")


def _twice(part: Part) -> list[Finding]:
    """Second rows of one record: no duplicate signals, for which versions of a recording are not looked at."""
    again = pd.DataFrame({"name": part.index["name"], "same": part.same}).duplicated()
    return [Finding("row_twice", (str(name),), "a second row for it") for name in part.index["name"][again]]


def _named(error: InputError, root: Path, where: str) -> str:
    """A record that has no row, by its file."""
    file, comma, rest = str(error.where).partition(",")
    return where + os.path.relpath(file, root).removesuffix(".hea") + comma + rest


def _orphans(source: RecordSource, where: str, apart: list[str] | tuple[str, ...]) -> list[Finding]:
    """Signal files that no header beside them names."""
    paths = [path for path, _, _ in source.files() if not path.startswith(tuple(apart))]
    headers = {path.removesuffix(".hea") for path in paths if path.endswith(".hea")}
    lone = [p for p in paths if p.endswith((".dat", ".mat")) and os.path.splitext(p)[0] not in headers]
    named: set[str] = set()
    for folder in {os.path.dirname(path) for path in lone}:
        # A header may name a file that is not called like it; only folders with a stray file are read for that.
        for header in sorted(h for h in headers if os.path.dirname(h) == folder):
            try:
                named |= {
                    os.path.join(folder, spec.file) for spec in read_header(source.root / header).signals
                }
            except InputError:  # reported where the records are indexed
                continue
    lone = sorted(set(lone) - named)
    return [Finding("orphan", (where + path,), "no header beside it names this file") for path in lone]


def _different(names: pd.Series[Any]) -> pd.Series[Any]:
    """Names made different by a number where one stands twice."""
    again = names.groupby(names).cumcount()
    return names.where(again == 0, names + " (" + (again + 1).astype(str) + ")")
