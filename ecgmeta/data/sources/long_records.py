"""Long records with annotations, cut into windows: MIT-BIH and every other WFDB tree with ``.atr`` files.

Moody & Mark, The impact of the MIT-BIH Arrhythmia Database, IEEE Eng Med Biol 20(3), 2001. Beat classes: ANSI/AAMI EC57.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from ecgmeta.data.labels import multi_hot
from ecgmeta.data.leads import canonical
from ecgmeta.data.load import Fail, Labels, LoadOptions, RecordSource, SourceDataset, header_paths
from ecgmeta.data.records import Record, read_header, read_record
from ecgmeta.data.tables import as_age, as_sex
from ecgmeta.runtime.errors import InputError

LongLabels = Literal["beats", "rhythm", "none"]
# AAMI class → the annotation symbols of PhysioNet it stands for. `?` is a beat that the annotator did not classify.
AAMI: dict[str, str] = {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"}
_CLASS = {symbol: name for name, symbols in AAMI.items() for symbol in symbols}
# The rhythm annotations of the MIT-BIH Arrhythmia Database, then those of other PhysioNet databases.
RHYTHMS: tuple[str, ...] = (
    *("AB", "AFIB", "AFL", "B", "BII", "IVR", "N", "NOD", "P", "PREX", "SBR", "SVTA", "T", "VFL", "VT"),
    *("AF", "ASYS", "BI", "HGEA", "J", "NOISE", "NSR", "PM", "SAB", "VER", "VF", "VFIB", "MISSB"),
)
_NOISE_STRESS = re.compile(r"(\d{3})e_?\d+$")  # 118e06: record 118 with noise at 6 dB
_MITBIH_PERSON = re.compile(r"(-?\d+)\s+([MF])\b")


class LongRecordsSource(RecordSource):
    """Reads every header below `root` that has an annotation file, in the order of the sorted paths."""

    name = "long_records"

    def __init__(
        self,
        root: str | Path,
        labels: LongLabels = "beats",
        annotator: str = "atr",
        checksum: bool = True,
    ) -> None:
        super().__init__(root)
        if labels not in ("beats", "rhythm", "none"):
            raise InputError(self.name, "labels", repr(labels), "beats, rhythm or none")
        if not re.fullmatch(r"\w+", annotator):
            raise InputError(self.name, "annotator", repr(annotator), "the ending of a file, such as atr")
        self.label_set, self.annotator, self.checksum = labels, annotator, checksum
        self.suffixes = (*super().suffixes, f".{annotator}")

    def paths(self) -> list[str]:
        """Every record, relative to the root and without suffix, sorted."""
        return header_paths(self.root)

    def first_leads(self) -> tuple[str, ...]:
        """The leads of the first record.

        Raises:
            InputError: no record, or a first one whose header cannot be read.
        """
        paths = self.paths()
        if not paths:
            raise InputError(self.root, "records", "none to use", f"records of {self.name}")
        header = read_header(self.root / paths[0])
        return tuple(spec.name for spec in header.signals) or read_record(self.root / paths[0]).leads

    def index(self, fail: Fail) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for path in self.paths():
            name = os.path.basename(path)
            try:
                header = read_header(self.root / path)
                age, sex = self.person(header.comments, header.path)
                codes = () if self.label_set == "none" else read_annotations(self.root / path, self.annotator)
            except InputError as error:
                fail(error)
                continue
            source = header.path.parent.name or self.root.resolve().name
            row = {"record": name, "path": path, "patient": self.subject(name), "source": source}
            rows.append(row | {"age": age, "sex": sex, "codes": codes})
        return pd.DataFrame(rows, columns=["record", "path", "patient", "source", "age", "sex", "codes"])

    def subject(self, record: str) -> str:
        """The patient of a record: by default the record."""
        return record

    def person(self, comments: tuple[str, ...], where: Path) -> tuple[float, str]:
        """Age (years or NaN) and sex as a header says them: by default unknown."""
        return float("nan"), "unknown"

    def read(self, row: Any) -> Record:
        return read_record(os.path.join(self.root, row.path), checksum=self.checksum)

    def window_labels(self, index: pd.DataFrame, windows: pd.DataFrame, length: float) -> Labels | None:
        if self.label_set == "none":
            return None
        names = tuple(AAMI) if self.label_set == "beats" else RHYTHMS
        found: list[set[str]] = [set() for _ in range(len(windows))]
        for _, group in windows.groupby("row"):
            row, rate = int(group["row"].iloc[0]), float(group["original_fs"].iloc[0])
            place = {int(number): int(at) for number, at in zip(group["window"], group.index, strict=True)}
            spans = annotation_spans(index["codes"].iloc[row], rate, self.label_set == "beats")
            last = max(place)
            for start, end, label in spans:
                if label not in names:
                    where = self.root / index["path"].iloc[row]
                    raise InputError(where, f"rhythm at {start:g} s", repr(label), ", ".join(names))
                for number in _windows_of(start, end, length, last):
                    if number in place:
                        found[place[number]].add(label)
        return multi_hot(found, names), names

    def settings(self) -> dict[str, Any]:
        # Without labels no annotation is read, and a record without any is not refused.
        return {"checksum": self.checksum, "annotator": "" if self.label_set == "none" else self.annotator}


def _windows_of(start: float, end: float, length: float, last: int) -> range:
    """The windows up to `last` that the span from `start` to `end` (s, end excluded) touches; a beat is a point."""
    first = int(start // length)
    if end <= start:
        return range(first, min(first, last) + 1)
    return range(first, last + 1 if np.isinf(end) else min(last + 1, int(np.ceil(end / length))))


def read_annotations(path: Path, annotator: str) -> tuple[str, ...]:
    """The beats and rhythm changes of a record as ``"<sample> <symbol> <note>"``, in the order of time.

    Args:
        path: the record, without suffix.
        annotator: the ending of the annotation file.

    Raises:
        InputError: no such file, or one that wfdb cannot read.
    """
    import wfdb

    file = path.with_name(f"{path.name}.{annotator}")
    if not file.is_file():
        raise InputError(file, "annotations", "no such file", f"a .{annotator} file beside the header")
    try:
        found = wfdb.rdann(str(path), annotator)
    except Exception as error:  # wfdb answers a broken file with whatever its parser hit first
        text = f"{type(error).__name__}: {error}"[:200]
        raise InputError(file, "annotations", text, "an annotation file wfdb can read") from None
    marks = zip(found.sample, found.symbol, found.aux_note, strict=True)
    kept = [(int(at), symbol, note.strip("\x00 ")) for at, symbol, note in marks]
    return tuple(
        f"{at} {symbol} {note}".strip()
        for at, symbol, note in sorted(kept, key=lambda mark: mark[0])
        if symbol in _CLASS or (symbol == "+" and note.startswith("("))
    )


def annotation_spans(codes: tuple[str, ...], fs: float, beats: bool) -> list[tuple[float, float, str]]:
    """(start, end, label) in s: AAMI classes of beats, which are points, or rhythms, each until the next one begins.

    Args:
        codes: see `read_annotations`.
        fs: rate of the record, Hz.
        beats: beats rather than rhythms.
    """
    marks = [(int(at) / fs, symbol, note) for at, symbol, note in ((c + "  ").split(" ", 2) for c in codes)]
    if beats:
        return [(at, at, _CLASS[symbol]) for at, symbol, _ in marks if symbol in _CLASS]
    changes = [(at, note.strip()[1:]) for at, symbol, note in marks if symbol == "+"]
    ends = [at for at, _ in changes[1:]] + [float("inf")]
    return [(at, end, rhythm) for (at, rhythm), end in zip(changes, ends, strict=True)]


class LongRecords(SourceDataset):
    """A tree of long WFDB records with annotations, cut into windows end to end.

    Args:
        root: the folder; every ``.hea`` below it is a record.
        fs: rate of the result, Hz.
        labels: ``"beats"``: the AAMI classes N, S, V, F, Q of which a beat lies in the window (see `AAMI`); ``"rhythm"``:
            the rhythms in force in any part of the window (`RHYTHMS`; a rhythm is in force from its annotation to the
            next); ``"none"``.
        annotator: the ending of the annotation files.
        checksum: refuse a record whose samples do not add up to the checksum in its header.
        options: `LoadOptions`; here ``windows="all"`` and, as ``leads``, those of the first record are the defaults.
            ``min_positives=1`` leaves out labels that no window has.

    A patient is a record. ``meta.start`` is the beginning of the window in its record, s.

    Raises:
        InputError: a record without annotations (unless ``labels="none"``), a rhythm that is not in `RHYTHMS`; see
            `SourceDataset`.
    """

    source_type: type[LongRecordsSource] = LongRecordsSource

    def __init__(
        self,
        root: str | Path,
        *,
        fs: float = 100.0,
        labels: LongLabels = "beats",
        annotator: str = "atr",
        checksum: bool = True,
        **options: Unpack[LoadOptions],
    ) -> None:
        source = self.source_type(root, labels, annotator, checksum)
        if options.get("leads") is None:
            options["leads"] = tuple(canonical(name) for name in source.first_leads())
        options.setdefault("windows", "all")
        super().__init__(source, fs, **options)
        self.meta["start"] = self.meta["window"] * (self.preprocess.samples / self.preprocess.fs)


class MITBIHSource(LongRecordsSource):
    """`LongRecordsSource` that knows the subjects of the MIT-BIH databases, and the age and sex in their headers."""

    name = "mitbih"

    def subject(self, record: str) -> str:
        base = _NOISE_STRESS.match(record)
        number = base[1] if base else record
        return f"mitbih/{'201' if number == '202' else number}"

    def person(self, comments: tuple[str, ...], where: Path) -> tuple[float, str]:
        for comment in comments:
            said = _MITBIH_PERSON.match(comment)
            if said:
                return as_age("" if said[1].startswith("-") else said[1], where), as_sex(said[2])
        return super().person(comments, where)


class MITBIH(LongRecords):
    """`LongRecords` for the MIT-BIH Arrhythmia Database and the Noise Stress Test made from it.

    A patient is a subject: records 201 and 202 are one, and ``118e06`` is record 118 with noise. The usual leads are
    ``MLII`` and ``V1`` or another chest lead: give ``leads=("MLII",)`` with ``on_error="skip"`` for the records that have it.
    """

    source_type = MITBIHSource
