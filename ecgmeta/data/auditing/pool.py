"""What can only be seen over many recordings: duplicates, patients on two sides of a split, labels, distributions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.auditing.findings import Finding
from ecgmeta.data.auditing.parts import Part
from ecgmeta.data.duplicates import fingerprints, matching_groups, pair_similarity
from ecgmeta.data.preprocess import Preprocess, Window
from ecgmeta.data.records import Record
from ecgmeta.data.splits import shared_patients
from ecgmeta.runtime.errors import InputError

# The official folds of PTB-XL, which the built-in cohort has too.
SIDES: dict[str, tuple[int, ...]] = {"train": tuple(range(1, 9)), "validation": (9,), "test": (10,)}
RARE = 20  # recordings with a label; below, neither a fine-tuning nor an AUROC says much
# Recordings of any rate and lead set become comparable as the first 10 s of the standard twelve at 100 Hz.
COMMON = Preprocess(fs=100.0, duration=10.0, bad_leads="zero", max_gap=1e5)
_SHORTEST = 2.0  # s that two recordings must share to be compared
_FEW_LEADS = 3  # with fewer in common, agreement in the median of twelve means nothing


class Prints:
    """Fingerprints of all recordings, 256 bytes each; the signals themselves are read again for the candidates."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []
        self._rows: list[NDArray[np.float32]] = []

    def add(self, place: tuple[int, int], record: Record) -> None:
        """Note a recording (its part and row), if it has enough to be compared."""
        window = comparable(record)
        if window is not None:
            self.places.append(place)
            self._rows.append(fingerprints(window.signal[None], COMMON.fs)[0])

    def groups(self, parts: Sequence[Part]) -> list[list[tuple[int, int]]]:
        """Places of recordings with the same signal."""
        if not self._rows:
            return []

        @lru_cache(maxsize=64)
        def window(number: int) -> Window | None:
            part, row = self.places[number]
            return comparable(parts[part].read(row))

        def similar(i: int, j: int) -> float:
            a, b = window(i), window(j)
            if a is None or b is None:
                return 0.0
            # Leads that only one of them has cannot agree.
            shared = [
                k for k, name in enumerate(COMMON.lead_names) if name not in (*a.bad_leads, *b.bad_leads)
            ]
            valid = min(a.valid, b.valid)
            if len(shared) < _FEW_LEADS or valid < _SHORTEST * COMMON.fs:
                return 0.0
            return pair_similarity(np.stack([w.signal[shared, :valid] for w in (a, b)]), COMMON.fs)

        groups = matching_groups(np.stack(self._rows), similar)
        return [[self.places[number] for number in group] for group in groups]


def comparable(record: Record) -> Window | None:
    """The recording as `COMMON` has it; None where too little of it is there."""
    try:
        window = next(iter(COMMON.apply(record)), None)
    except InputError:
        return None
    if not isinstance(window, Window) or window.valid < _SHORTEST * COMMON.fs:
        return None
    return window if len(COMMON.lead_names) - len(window.bad_leads) >= _FEW_LEADS else None


def duplicates(groups: Iterable[list[tuple[int, int]]], parts: Sequence[Part]) -> list[Finding]:
    """The groups as findings; versions of one recording are none."""
    out = []
    for group in groups:
        rows = [(parts[part], row) for part, row in group]
        if len({part.same[row] for part, row in rows}) < 2:
            continue
        names = tuple(str(part.index["name"].iloc[row]) for part, row in rows)
        sides = {s for part, row in rows if (s := side(_value(part, "fold", row)))}
        patients = {str(_value(part, "patient", row)) for part, row in rows}
        if len(sides) > 1:
            out.append(
                Finding(
                    "duplicate_split", names, f"in {' and '.join(s for s in SIDES if s in sides)}", (), 1.0
                )
            )
        elif len(patients) == 1:
            out.append(Finding("repeated", names, f"patient {patients.pop()}"))
        else:
            out.append(
                Finding("duplicate", names, f"as patients {', '.join(sorted(patients))}", (), len(names))
            )
    return out


def side(fold: Any) -> str:
    """The side of the official split that a fold lies on; "" for none."""
    if fold is None or pd.isna(fold):
        return ""
    return next((name for name, folds in SIDES.items() if fold in folds), "")


def split_findings(part: Part) -> list[Finding]:
    """Patients on two sides of the official folds, and labels that one side lacks."""
    if part.version or "fold" not in part.index or part.index["fold"].isna().all():
        return []
    rows = [np.flatnonzero(part.index["fold"].isin(folds)) for folds in SIDES.values()]
    out = []
    for patient, numbers in shared_patients(part.index, rows).items():
        mine = part.index["name"][part.index["patient"] == patient]
        said = f"patient {patient} in {' and '.join(list(SIDES)[n] for n in numbers)}"
        out.append(Finding("patient_split", tuple(mine), said, (), len(mine)))
    if part.labels is None or not part.label_names:
        return out
    for name, column in zip(part.label_names, part.labels.T, strict=True):
        lacking = [s for s, r in zip(SIDES, rows, strict=True) if r.size and not column[r].any()]
        if lacking and column.any():
            said = (
                f"{part.name}: {name} ({int(column.sum())} recordings) is absent from {' and '.join(lacking)}"
            )
            out.append(Finding("label_split", (), said, (), float(column.sum())))
    return out


def label_findings(part: Part) -> list[Finding]:
    """Rare labels, and recordings without any."""
    if part.labels is None or not part.label_names or not len(part):
        return []
    counts = part.labels.sum(axis=0).astype(int)
    out = []
    rare = [f"{n} ({c})" for n, c in zip(part.label_names, counts, strict=True) if 0 < c < RARE]
    if rare:
        out.append(Finding("rare_label", (), f"{part.name}: under {RARE} recordings: {', '.join(rare)}"))
    bare = int((~part.labels.any(axis=1)).sum())
    if bare:
        out.append(Finding("unlabelled", (), f"{part.name}: {bare:,} of {len(part):,} recordings"))
    return out


def labels_summary(part: Part) -> dict[str, Any]:
    """Counts of the labels present, and how often two stand together: ``together[i][j]`` in the order of ``counts``."""
    if part.labels is None or not part.label_names:
        return {"counts": {}, "together": [], "unlabelled": 0}
    counts = part.labels.sum(axis=0).astype(int)
    present = np.flatnonzero(counts)
    chosen = part.labels[:, present]
    return {
        "counts": {part.label_names[i]: int(counts[i]) for i in present},
        "together": (chosen.T @ chosen).astype(int).tolist(),
        "absent": [name for name, count in zip(part.label_names, counts, strict=True) if not count],
        "unlabelled": int((~part.labels.any(axis=1)).sum()),
    }


def people_summary(part: Part) -> dict[str, Any]:
    """Patients, sexes, ages and folds."""
    index = part.index
    ages = index["age"].dropna() if "age" in index else pd.Series(dtype=float)
    folds = index["fold"].dropna().astype(int) if "fold" in index else pd.Series(dtype=int)
    return {
        "patients": int(index["patient"].nunique()) if "patient" in index else 0,
        "sex": _counts(index["sex"]) if "sex" in index else {},
        "age": numbers(ages.to_numpy(dtype=float)),
        "folds": {str(fold): int(count) for fold, count in sorted(Counter(folds).items())},
    }


def numbers(values: NDArray[np.floating] | Sequence[float]) -> dict[str, float]:
    """Count, least, quartiles and largest; empty for no values."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if not x.size:
        return {}
    low, first, middle, third, high = (float(round(q, 4)) for q in np.percentile(x, [0, 25, 50, 75, 100]))
    return {"count": int(x.size), "min": low, "q1": first, "median": middle, "q3": third, "max": high}


def mixed_findings(name: str, rates: dict[str, int], lengths: Counter[float]) -> list[Finding]:
    """Several rates or lengths in one part."""
    out = []
    if len(rates) > 1:
        said = ", ".join(f"{rate} Hz ({count:,})" for rate, count in rates.items())
        out.append(Finding("rates", (), f"{name}: {said}"))
    if len(lengths) > 1:
        usual, count = lengths.most_common(1)[0]
        said = f"{min(lengths):g} to {max(lengths):g} s; {count:,} of {lengths.total():,} have {usual:g} s"
        out.append(Finding("lengths", (), f"{name}: {said}"))
    return out


def _value(part: Part, column: str, row: int) -> Any:
    return part.index[column].iloc[row] if column in part.index else None


def _counts(values: pd.Series[Any]) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().items()}


def pairs_together(
    counts: dict[str, int], together: list[list[int]], most: int = 12
) -> list[tuple[str, str, int]]:
    """The pairs of labels that stand together most often."""
    names = list(counts)
    pairs = [(names[i], names[j], together[i][j]) for i, j in combinations(range(len(names)), 2)]
    return sorted((p for p in pairs if p[2]), key=lambda p: -p[2])[:most]
