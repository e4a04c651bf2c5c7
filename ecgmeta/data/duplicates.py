"""The same recording under two names: find examples that share their signal, and keep them on one side of a split.

Databases contain one another (PTB-XL is in the challenge set, at another rate), and some hold a recording twice. Two
examples are duplicates where the slopes of their low-passed signals agree in most leads. Rate, filter, gain and offset do
not matter; both must start at the same instant (a cut from elsewhere in a longer record is not recognised).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.dataset import ECGDataset, concat
from ecgmeta.runtime.errors import InputError

_SLOPE_HZ = 25.0  # low enough for the anti-aliasing filters of 100 Hz versions to agree
_COARSE_SECONDS = 5.0
_COARSE_NUMBERS = 64
_BLOCK = 1024


def find_duplicates(data: ECGDataset, *, threshold: float = 0.95) -> list[list[int]]:
    """Groups of positions that hold the same signal, each sorted, in the order of their first members.

    A random projection of the first 5 s to 64 numbers picks candidates, all pairs by matrix products; those are then
    compared lead by lead over the samples valid in both.

    Args:
        data: any dataset.
        threshold: the least median over leads of the correlation of low-passed slopes that counts as the same signal.
    """
    return matching_groups(dataset_fingerprints(data), lambda i, j: similarity(data, i, j), threshold)


def matching_groups(
    prints: NDArray[np.float32], similar: Callable[[int, int], float], threshold: float = 0.95
) -> list[list[int]]:
    """Groups of positions whose prints are close and whose signals agree; see `find_duplicates`.

    Args:
        prints: (N, 64) from `fingerprints`.
        similar: the correlation of two positions, asked for candidates only.
        threshold: the least that counts as the same signal.
    """
    if not 0 < threshold <= 1:
        raise InputError("duplicates", "threshold", threshold, "a correlation above 0, up to 1")
    parent = np.arange(len(prints))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in _candidates(prints, threshold):
        first, second = sorted((root(i), root(j)))
        if first != second and similar(i, j) >= threshold:
            parent[second] = first
    roots = np.array([root(i) for i in range(len(prints))], dtype=np.int64)
    sizes = np.bincount(roots, minlength=len(prints))
    return [np.flatnonzero(roots == first).tolist() for first in np.flatnonzero(sizes > 1)]


def group_duplicates(data: ECGDataset, groups: Sequence[Sequence[int]] | None = None) -> ECGDataset:
    """`data` with one patient for all records of a group, so that every split keeps them together.

    All other records of the patients concerned follow: the patients are merged under the first of their names. The name
    each record had stays in ``meta.patient_before``.

    Args:
        data: any dataset.
        groups: from `find_duplicates`; None finds them.
    """
    names: dict[str, str] = {}

    def root(name: str) -> str:
        while names.get(name, name) != name:
            name = names[name]
        return name

    before = data.meta["patient"]
    for group in find_duplicates(data) if groups is None else groups:
        roots = sorted({root(before.iloc[i]) for i in group})
        names |= dict.fromkeys(roots, roots[0])
    out = data.subset(slice(None))
    out.meta = out.meta.assign(patient=before.map(root), patient_before=before)
    return out


def signal_overlap(a: ECGDataset, b: ECGDataset, *, threshold: float = 0.95) -> list[tuple[int, int]]:
    """Pairs (position in `a`, position in `b`) that hold the same signal: was the test set in the pre-training?"""
    groups = find_duplicates(concat([a, b], labels="drop"), threshold=threshold)
    n = len(a)
    return [(i, j - n) for group in groups for i in group if i < n for j in group if j >= n]


def similarity(data: ECGDataset, i: int, j: int) -> float:
    """Median over leads of the correlation of the slopes of two examples, over the samples valid in both.

    A lead that is flat in one of them has correlation 0; where fewer than 2 s are shared the answer is 0.
    """
    valid = int(data.meta["valid_samples"].iloc[[i, j]].min())
    if valid < 2 * data.fs:
        return 0.0
    return pair_similarity(data.take([i, j])[:, :, :valid], data.fs)


def pair_similarity(pair: NDArray[np.float32], fs: float) -> float:
    """The same of (2, leads, samples) that are valid in both, at least two steps of 1/25 s long."""
    slopes = _slopes(pair, fs)
    return float(np.median((slopes[0] * slopes[1]).sum(axis=1)))


def _slopes(signals: NDArray[np.float32], fs: float) -> NDArray[np.float32]:
    """Differences of means over 1/25 s: (N, leads, steps), each lead of norm 1 (or 0 where it is flat).

    The difference takes away wander and offset, the mean what the filters of two versions disagree about.
    """
    width = max(1, round(fs / _SLOPE_HZ))
    n, leads, samples = signals.shape
    steps = samples // width
    means = signals[:, :, : steps * width].reshape(n, leads, steps, width).mean(axis=3)
    slopes = np.diff(means, axis=2)
    norms = np.sqrt((slopes**2).sum(axis=2, keepdims=True))
    return slopes / np.where(norms > 1e-6, norms, np.inf)


def dataset_fingerprints(data: ECGDataset, numbers: int = _COARSE_NUMBERS) -> NDArray[np.float32]:
    """(N, numbers) `fingerprints` of a dataset, a block at a time."""
    out = np.zeros((len(data), numbers), dtype=np.float32)
    for start in range(0, len(data), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(data)))
        out[rows] = fingerprints(data.take(rows), data.fs, numbers)
    return out


def fingerprints(
    signals: NDArray[np.float32], fs: float, numbers: int = _COARSE_NUMBERS
) -> NDArray[np.float32]:
    """Projections of the first 5 s of all leads, scaled so that squared distances are 2 − 2·(mean correlation), on average.

    Args:
        signals: (N, leads, samples); prints compare only where leads, samples and rate are the same.
        fs: Hz.
        numbers: of a print; a squared distance errs by a share of about sqrt(2 / numbers) of itself.

    Returns:
        (N, numbers).
    """
    end = min(signals.shape[2], max(2, round(_COARSE_SECONDS * fs)))
    slopes = _slopes(signals[:, :, :end], fs).reshape(len(signals), -1)
    return slopes @ _projection(slopes.shape[1], signals.shape[1], numbers)


@lru_cache(maxsize=4)
def _projection(inputs: int, leads: int, numbers: int) -> NDArray[np.float32]:
    # Fixed: candidates must not depend on a seed, and any projection will do.
    normal = np.random.default_rng(0).standard_normal((inputs, numbers))
    return (normal / np.sqrt(numbers * leads)).astype(np.float32)


def _candidates(prints: NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs i < j whose prints are close. The limit is generous: half of the leads may differ, and the projection errs."""
    norms = (prints**2).sum(axis=1)
    limit = 0.6 + 2 * (1 - threshold)
    for start in range(0, len(prints), _BLOCK):
        block = slice(start, start + _BLOCK)
        distance = norms[block, None] + norms[None, start:] - 2 * prints[block] @ prints[start:].T
        for i, j in zip(*np.nonzero(distance < limit), strict=True):
            if i < j:
                yield start + int(i), start + int(j)
