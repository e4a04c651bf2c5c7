"""What scores, targets and patients must be before a metric sees them; bad ones raise InputError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ecgmeta.runtime.errors import InputError


def check_targets(targets: npt.ArrayLike, label_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Targets (N, C) as integers, refused unless every one is 0 or 1."""
    array = np.asarray(targets)
    if array.ndim != 2 or array.shape[1] != len(label_names) or not array.size:
        raise InputError("targets", "shape", array.shape, f"(records, {len(label_names)} labels), not empty")
    wrong = ~((array == 0) | (array == 1))
    if wrong.any():
        row, column = (int(k) for k in np.argwhere(wrong)[0])
        raise InputError("targets", f"[{row}].{label_names[column]}", array[row, column], "0 or 1")
    return array.astype(np.int64)


def check_scores(where: str, scores: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Scores as float64, refused unless of the given shape (N, C) and free of NaN; infinities keep their rank."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != shape:
        raise InputError(where, "shape", array.shape, f"{shape}, as the targets")
    if np.isnan(array).any():
        count = int(np.isnan(array).any(axis=1).sum())
        raise InputError(where, "values", f"NaN in {count} of {len(array)} records", "a number for each")
    return array


def check_score_sets(
    where: str, scores: npt.ArrayLike | Sequence[npt.ArrayLike], shape: tuple[int, ...]
) -> list[npt.NDArray[np.float64]]:
    """One array (N, C), or one a seed, as a list of arrays."""
    if isinstance(scores, np.ndarray) and scores.ndim == 2:
        return [check_scores(where, scores, shape)]
    sets: list[npt.ArrayLike] = list(scores) if isinstance(scores, Sequence | np.ndarray) else [scores]
    if not sets:
        raise InputError(where, "seeds", "none", "at least one array of scores")
    return [check_scores(f"{where}[{k}]", one, shape) for k, one in enumerate(sets)]


def number_patients(patients: Iterable[object] | None, n_records: int) -> npt.NDArray[np.intp]:
    """Number the patients 0, 1, ... in order of first appearance, (N,)."""
    if patients is None:
        return np.arange(n_records)
    identifiers = list(patients)
    if len(identifiers) != n_records:
        raise InputError("patients", "length", len(identifiers), f"{n_records}, one for each record")
    numbers: dict[object, int] = {}
    groups = np.empty(n_records, dtype=np.intp)
    for k, patient in enumerate(identifiers):
        if patient is None or patient != patient:
            raise InputError("patients", f"[{k}]", patient, "an identifier")
        groups[k] = numbers.setdefault(patient, len(numbers))
    return groups


def check_bootstrap(n_boot: int, level: float) -> None:
    """Refuse a negative number of resamples and a level outside (0, 1)."""
    if n_boot < 0:
        raise InputError("bootstrap", "n_boot", n_boot, "0 or more")
    if not 0 < level < 1:
        raise InputError("bootstrap", "level", level, "a number between 0 and 1")


def both_classes(targets: npt.NDArray[np.int64], names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which labels of (N, C) targets have both classes, (C,); refused where none has."""
    positives = targets.sum(axis=0)
    both = (positives > 0) & (positives < len(targets))
    if not both.any():
        counts = ", ".join(f"{name} {count}" for name, count in zip(names, positives, strict=True))
        found = f"one class only in every label (positives of {len(targets)}: {counts})"
        raise InputError("targets", "labels", found, "both classes in at least one label")
    return both
