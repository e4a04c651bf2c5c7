"""Splits that never put one patient on two sides.

Every function takes ``data.meta`` (one row an example, with a column `patient`) and answers with sorted arrays of row
positions for ``data.subset``. Where labels are given, patients are distributed by iterative stratification, rarest label
first (Sechidis, Tsoumakas, Vlahavas, ECML 2011), so that each side has its share of every label, and at least one patient
with it where that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError

Rows = NDArray[np.int64]
Seed = int | np.random.Generator


def official_folds(
    meta: pd.DataFrame,
    train: Iterable[int] = range(1, 9),
    val: Iterable[int] = (9,),
    test: Iterable[int] = (10,),
) -> tuple[Rows, Rows, Rows]:
    """Rows of the folds for training, validation and test.

    Raises:
        InputError: a record without a fold, a fold named twice, a part without records, a patient in two parts.
    """
    _, _ = _patients(meta)
    folds = meta["fold"] if "fold" in meta else pd.Series([pd.NA] * len(meta), dtype="Int64")
    if folds.isna().any():
        raise InputError(
            "splits", "fold", f"none for {int(folds.isna().sum())} of {len(meta)} records", "a fold for each"
        )
    wanted = {"train": set(train), "val": set(val), "test": set(test)}
    named = [fold for part in wanted.values() for fold in part]
    if len(named) != len(set(named)):
        raise InputError("splits", "folds", wanted, "no fold in two parts")
    parts = [np.flatnonzero(folds.isin(chosen)) for chosen in wanted.values()]
    for (name, chosen), rows in zip(wanted.items(), parts, strict=True):
        if chosen and not rows.size:
            raise InputError("splits", name, f"no record in folds {sorted(chosen)}", "at least one")
    check_disjoint(meta, parts)
    return parts[0], parts[1], parts[2]


def patient_split(
    meta: pd.DataFrame, fractions: Sequence[float], seed: Seed, labels: NDArray[np.floating] | None = None
) -> list[Rows]:
    """Parts of about the given fractions of the records, whole patients each.

    Args:
        meta: one row an example.
        fractions: positive, adding up to 1.
        seed: an int or a generator (which is advanced).
        labels: (len(meta), labels) of 0 and 1, to stratify by.

    Raises:
        InputError: bad fractions; fewer patients than parts.
    """
    shares = np.asarray(fractions, dtype=float)
    if shares.ndim != 1 or not shares.size or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError("splits", "fractions", list(fractions), "positive numbers that add up to 1")
    owner, n_patients = _patients(meta)
    if n_patients < len(shares):
        raise InputError("splits", "patients", n_patients, f"at least {len(shares)}, one for each part")
    part = _stratify(
        _per_patient(owner, n_patients, _labels(meta, labels)), shares, np.random.default_rng(seed)
    )
    return [np.flatnonzero(part[owner] == number) for number in range(len(shares))]


def patient_kfold(
    meta: pd.DataFrame, k: int, seed: Seed, labels: NDArray[np.floating] | None = None
) -> list[tuple[Rows, Rows]]:
    """k pairs (the others, this fold): every record is in exactly one fold."""
    if k < 2:
        raise InputError("splits", "k", k, "at least 2 folds")
    folds = patient_split(meta, [1 / k] * k, seed, labels)
    return [(np.setdiff1d(np.arange(len(meta)), fold), fold) for fold in folds]


def metaft_split(
    meta: pd.DataFrame, labels: NDArray[np.floating], fraction: float = 0.8, seed: Seed = 0
) -> tuple[Rows, Rows]:
    """The labelled records for the φ step: `fraction` to fine-tune on, the rest to validate; each label on both sides
    where two patients have it and the other labels allow it (METHOD.md: 80/20)."""
    train, val = patient_split(meta, [fraction, 1 - fraction], seed, labels)
    return train, val


def labelled_subset(meta: pd.DataFrame, labels: NDArray[np.floating], n: int, seed: Seed) -> Rows:
    """Exactly `n` records with the label shares of all, nested: with one int seed the 100 are inside the 250.

    Patients are queued whole: first those that bring labels not yet seen, so that every label is there as early as
    possible, then always one with the label furthest behind its share. The last patient may be cut. Records without any
    label count as a label of their own.

    Args:
        meta: one row an example.
        labels: (len(meta), labels) of 0 and 1.
        n: how many.
        seed: an int or a generator (which is advanced).

    Raises:
        InputError: `n` is not between 1 and the number of records.
    """
    if not 1 <= n <= len(meta):
        raise InputError("splits", "n", n, f"1 to {len(meta)} records")
    owner, n_patients = _patients(meta)
    rows_of = _rows_of(owner, n_patients)
    table = np.asarray(_labels(meta, labels), dtype=np.int64)
    table = np.column_stack([table, ~table.any(axis=1)]).astype(np.int64)
    counts = _per_patient(owner, n_patients, table)[:, 1:]
    order = np.random.default_rng(seed).permutation(n_patients)
    chosen: list[int] = []
    for patient in _queue(counts, order):
        chosen += rows_of[patient].tolist()
        if len(chosen) >= n:
            break
    return np.sort(np.array(chosen[:n], dtype=np.int64))


def overlap(meta_a: pd.DataFrame, meta_b: pd.DataFrame) -> list[str]:
    """The patients that stand in both, sorted. See `duplicates.signal_overlap` for the same *signal* in both."""
    return sorted(set(meta_a["patient"]) & set(meta_b["patient"]))


def shared_patients(meta: pd.DataFrame, parts: Sequence[Rows]) -> dict[Any, list[int]]:
    """The patients with records in more than one of the parts, and in which, in the order of their appearance."""
    seen: dict[Any, list[int]] = {}
    for number, rows in enumerate(parts):
        for patient in meta["patient"].iloc[rows].unique():
            seen.setdefault(patient, []).append(number)
    return {patient: numbers for patient, numbers in seen.items() if len(numbers) > 1}


def check_disjoint(meta: pd.DataFrame, parts: Sequence[Rows]) -> None:
    """Raise InputError where a patient has records in two of the parts."""
    for patient, numbers in shared_patients(meta, parts).items():
        found = f"in parts {numbers[0]} and {numbers[1]}"
        raise InputError("splits", f"patient {patient}", found, "one part")


def _patients(meta: pd.DataFrame) -> tuple[Rows, int]:
    """For every row the number of its patient (in order of first appearance), and how many there are."""
    if "patient" not in meta or meta["patient"].isna().any():
        raise InputError(
            "splits", "meta.patient", "missing values or no such column", "a patient for each record"
        )
    owner, names = pd.factorize(meta["patient"])
    return owner.astype(np.int64), len(names)


def _labels(meta: pd.DataFrame, labels: NDArray[np.floating] | None) -> NDArray[np.floating]:
    if labels is None:
        return np.zeros((len(meta), 0))
    if labels.ndim != 2 or len(labels) != len(meta):
        raise InputError("splits", "labels", f"shape {labels.shape}", f"({len(meta)}, labels)")
    if not np.isin(labels, (0, 1)).all():
        raise InputError("splits", "labels", "values other than 0 and 1", "0 and 1")
    return labels


def _rows_of(owner: Rows, n_patients: int) -> list[Rows]:
    """The rows of every patient, ascending."""
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=n_patients))
    return np.split(order, ends[:-1])


def _per_patient(owner: Rows, n_patients: int, labels: NDArray[Any]) -> NDArray[np.float64]:
    """(patients, 1 + labels): the number of records, and of records with each label."""
    out = np.zeros((n_patients, 1 + labels.shape[1]))
    np.add.at(out, owner, np.column_stack([np.ones(len(owner)), labels]))
    return out


def _stratify(counts: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator) -> Rows:
    """The part of every patient. Column 0 of `counts` is the number of records, treated as the most common label."""
    part = np.full(len(counts), -1)
    desired = shares[:, None] * counts.sum(
        axis=0
    )  # what each part still wants, of records and of every label
    have = np.zeros((len(shares), counts.shape[1]), dtype=np.int64)  # patients with the label
    order = rng.permutation(len(counts))
    by_rarity = np.argsort((counts > 0).sum(axis=0)[1:], kind="stable") + 1
    for label in (*by_rarity, 0):
        waiting = [patient for patient in order if part[patient] < 0 and counts[patient, label] > 0]
        # The patients with most records first: the small ones then even the parts out.
        waiting.sort(key=lambda patient: -counts[patient, 0])
        for position, patient in enumerate(waiting):
            lacking = np.flatnonzero(have[:, label] == 0)
            left = len(waiting) - position
            allowed = lacking if len(lacking) > 0 and left <= len(lacking) else np.arange(len(shares))
            # Most wanted for this label, then for records as such.
            best = max(allowed, key=lambda p: (round(desired[p, label], 9), desired[p, 0]))
            part[patient] = best
            desired[best] -= counts[patient]
            have[best] += counts[patient] > 0
    _repair(part, counts > 0, have)
    return part


def _repair(part: Rows, has: NDArray[np.bool_], have: NDArray[np.int64]) -> None:
    """Move single patients to parts that lack one of their labels, where that takes no label away from another part."""
    for label in np.argsort(has.sum(axis=0), kind="stable"):
        for lacking in np.flatnonzero(have[:, label] == 0):
            for patient in np.flatnonzero(has[:, label]):
                origin = part[patient]
                if (have[origin][has[patient]] > 1).all():
                    part[patient] = lacking
                    have[origin] -= has[patient]
                    have[lacking] += has[patient]
                    break


def _queue(counts: NDArray[np.float64], order: Rows) -> Iterable[int]:
    """Patients in the order in which `labelled_subset` takes them. `counts`: (patients, labels) records with a label."""
    present = np.flatnonzero(counts.any(axis=0))
    has = counts[order][:, present] > 0
    used = np.zeros(len(order), dtype=bool)
    unseen = np.ones(len(present), dtype=bool)
    taken = np.zeros(len(present))
    while unseen.any():
        gains = (has & unseen).sum(axis=1)
        place = int(np.argmax(np.where(used, -1, gains)))
        unseen &= ~has[place]
        used[place] = True
        taken += counts[order[place]][present]
        yield int(order[place])
    share = counts[:, present].sum(axis=0) / counts.sum()
    queues = [iter(np.flatnonzero(column)) for column in has.T]
    open_labels = np.ones(len(present), dtype=bool)
    while not used.all():
        behind = np.where(open_labels, share * taken.sum() - taken, -np.inf)
        label = int(np.argmax(behind))
        place = next((int(place) for place in queues[label] if not used[place]), -1)
        if place < 0:
            open_labels[label] = False
            continue
        used[place] = True
        taken += counts[order[place]][present]
        yield int(order[place])
