"""Which labelled records a cell of a sweep trains on: nested subsets by patient, each split to train and to validate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import derive

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset

TRAIN_SHARE = 0.8  # of a subset's records; the rest validates


def labelled_rows(pool: ECGDataset, n: int, seed: int, draw: int = 0) -> NDArray[np.int64]:
    """Rows of ``pool``: ``n`` labelled recordings, whole patients but for the last; nested in n for one (seed, draw).

    Raises:
        InputError: ``n`` is not between 1 and the size of the pool.
    """
    from ecgmeta.data.splits import labelled_subset

    return labelled_subset(pool.meta, pool.labels, n, _derive(seed, "labelled subset", draw))


def train_validation(
    pool: ECGDataset, rows: NDArray[np.int64], seed: int, draw: int = 0
) -> tuple[ECGDataset, ECGDataset]:
    """``rows`` of ``pool`` as 80 % to train and 20 % to validate on, by patient."""
    from ecgmeta.data.splits import metaft_split

    chosen = pool.subset(rows)
    train, validation = metaft_split(
        chosen.meta, chosen.labels, TRAIN_SHARE, _derive(seed, "MetaFT split", draw)
    )
    return chosen.subset(train), chosen.subset(validation)


def _derive(seed: int, what: str, draw: int) -> int:
    return derive(seed, what, draw) if draw else derive(seed, what)


def check_subsets(
    where: str,
    pool: ECGDataset,
    test: ECGDataset,
    sizes: Sequence[int],
    seed: int,
    draws: Sequence[int] = (0,),
) -> None:
    """What would make a cell meaningless is said before the first is trained.

    Args:
        where: what the pool is called in messages.

    Raises:
        InputError: no labels, other labels or a patient of the pool in the test set, fewer labelled recordings than asked
            for, a label with one class only among those trained on, or test records with one class only in each label.
    """
    from ecgmeta.data.splits import overlap

    if not pool.label_names:
        raise InputError(where, "labels", "none", "labelled recordings (data.labels, data.min_positives)")
    if test.label_names != pool.label_names:
        raise InputError("test recordings", "label_names", list(test.label_names), list(pool.label_names))
    shared = overlap(pool.meta, test.meta)
    if shared:
        raise InputError(
            "test recordings", "patients", f"{shared[0]} and {len(shared) - 1} more to train on", "others"
        )
    for n in sizes:
        if n > len(pool):
            raise InputError(
                "configuration", "finetune.labels", n, f"at most {len(pool)}, the labelled recordings"
            )
        for draw in draws:
            train, _ = train_validation(pool, labelled_rows(pool, n, seed, draw), seed, draw)
            _check_classes(where, train)
    if (test.labels == test.labels[:1]).all():
        raise InputError(where, "labels of the test recordings", "one class only in each", "both classes")


def _check_classes(where: str, train: ECGDataset) -> None:
    for name, positives in zip(train.label_names, train.labels.sum(axis=0), strict=True):
        if positives in (0, len(train)):
            found = f"one class only ({positives:.0f} positives of {len(train)} to train on)"
            raise InputError(where, f"label {name}", found, "both; data.min_positives leaves rare labels out")
