"""AUROC as a rank statistic, for many patient resamples at once. NumPy only.

With multiplicities w (how often each record was drawn), the area under the ROC curve is the weighted
Mann-Whitney statistic (Hanley & McNeil 1982; ties count one half):

    AUROC(w) = sum_{i pos} sum_{j neg} w_i w_j [s_i > s_j] + w_i w_j [s_i = s_j] / 2
               / (sum_{i pos} w_i · sum_{j neg} w_j)

The order of the scores does not depend on w, so one sort a label serves every resample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Seeds = Literal["fixed", "paired", "apart"]

_CHUNK_ELEMENTS = 2_000_000  # records × resamples held at once: 16 MB of float64 a temporary


@dataclass(frozen=True)
class Ranking:
    """The order of one label's scores, from which its AUROC under any multiplicities follows.

    Attributes:
        positives: indices of the positive records, (P,).
        negatives: indices of the negative records by ascending score, (M,).
        below: for each positive, how many negatives score strictly lower, (P,).
        not_above: for each positive, how many negatives score lower or the same, (P,).
    """

    positives: npt.NDArray[np.intp]
    negatives: npt.NDArray[np.intp]
    below: npt.NDArray[np.intp]
    not_above: npt.NDArray[np.intp]

    @classmethod
    def of(cls, score: npt.NDArray[np.floating], target: npt.NDArray[np.integer]) -> Ranking:
        """Rank scores (N,), free of NaN, against targets (N,) of 0 and 1."""
        positives, negatives = np.flatnonzero(target == 1), np.flatnonzero(target == 0)
        negatives = negatives[np.argsort(score[negatives], kind="stable")]
        ascending = score[negatives]
        below = np.searchsorted(ascending, score[positives], side="left")
        not_above = np.searchsorted(ascending, score[positives], side="right")
        return cls(positives, negatives, below, not_above)

    def auroc(self, weights: Floats) -> Floats:
        """AUROC of every column of weights (N, B), as (B,); NaN where a class has no weight left."""
        positive = weights[self.positives]
        # A leading row of zeros: `count[k]` is the weight of the k lowest negatives.
        count = np.zeros((len(self.negatives) + 1, weights.shape[1]))
        np.cumsum(weights[self.negatives], axis=0, out=count[1:])
        wins = np.einsum("pb,pb->b", positive, count[self.below] + count[self.not_above]) / 2
        pairs = positive.sum(axis=0) * count[-1]
        return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def label_auroc(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> Floats:
    """AUROC of each label, (C,), from scores and targets (N, C); NaN for a label with one class only."""
    ones = np.ones((len(scores), 1))
    columns = range(scores.shape[1])
    return np.array([Ranking.of(scores[:, c], targets[:, c]).auroc(ones)[0] for c in columns])


def macro(aurocs: Floats) -> Floats:
    """Mean over the last axis of the labels that are defined (not NaN); NaN only where none is.

    This is the one place where undefined labels are left out of a mean; callers count and report them.
    """
    defined = ~np.isnan(aurocs)
    count = defined.sum(axis=-1)
    total = np.where(defined, aurocs, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(count), np.nan), where=count > 0)


def patient_weights(groups: npt.NDArray[np.intp], n_boot: int, seed: int) -> Iterator[Floats]:
    """Multiplicity of each record in each patient resample, in blocks (N, b) that add up to n_boot columns.

    Args:
        groups: patient number of each record, 0 .. n_patients - 1, (N,). A resample draws n_patients patients
            with replacement, and all records of a patient move together.
        n_boot: number of resamples.
        seed: of the numpy Generator; the same seed and groups give the same resamples.
    """
    generator = np.random.default_rng(seed)
    patients = int(groups.max()) + 1
    block = max(1, _CHUNK_ELEMENTS // len(groups))
    for start in range(0, n_boot, block):
        width = min(block, n_boot - start)
        drawn = generator.integers(patients, size=(width, patients))
        cell = drawn * width + np.arange(width)[:, None]
        counts = np.bincount(cell.ravel(), minlength=patients * width).reshape(patients, width)
        yield counts.astype(np.float64)[groups]


def bootstrap_auroc(
    score_sets: Sequence[npt.NDArray[np.floating]],
    targets: npt.NDArray[np.integer],
    groups: npt.NDArray[np.intp],
    n_boot: int,
    seed: int,
) -> Floats:
    """AUROC of each score set and label on common patient resamples.

    Args:
        score_sets: S arrays (N, C), free of NaN, scored on the same records.
        targets: (N, C) of 0 and 1.
        groups: patient number of each record, (N,).
        n_boot: number of resamples B.
        seed: of the resampling.

    Returns:
        (S, B, C); NaN where the resample left a label with one class only.
    """
    labels = range(targets.shape[1])
    rankings = [[Ranking.of(scores[:, c], targets[:, c]) for c in labels] for scores in score_sets]
    blocks = [
        np.array([[ranking.auroc(weights) for ranking in row] for row in rankings]).transpose(0, 2, 1)
        for weights in patient_weights(groups, n_boot, seed)
    ]
    return np.concatenate(blocks, axis=1) if blocks else np.empty((len(score_sets), 0, targets.shape[1]))


def hierarchical_difference(a: Floats, b: Floats, seeds: Seeds, level: float, seed: int) -> Floats:
    """Replicates of mean(a) − mean(b) when patients and seeds are drawn anew, (B,).

    With d the difference of a seed (paired) or of each side (not paired), and S seeds drawn with replacement:

        delta_b = mean_s d_sb + c · (mean of the drawn d_sb − mean_s d_sb),    c = sqrt(S / (S − 1)) · t / z

    Resampling S seeds shows only (S − 1)/S of their variance (Rao & Wu, JASA 83, 1988: the square root), and a spread known
    from S seeds needs Student's quantile t of S − 1 degrees of freedom in place of the normal's z. A side with one seed, or
    one pair of seeds, has no spread that could be known: it is held fixed.

    Args:
        a, b: (S, B), a score of each seed on common patient resamples; both with S seeds where they are paired.
        seeds: "paired", where seed s of a and seed s of b share what the seed decides; "apart", where each side draws its own;
            "fixed": only the patients are drawn anew.
        level: of the interval that the replicates are for.
        seed: of the draws of seeds.
    """
    generator = np.random.default_rng([seed, 1])  # not the stream that drew the patients
    if seeds == "fixed":
        return a.mean(axis=0) - b.mean(axis=0)
    if seeds == "paired":
        return _over_seeds(a - b, level, generator)
    return _over_seeds(a, level, generator) - _over_seeds(b, level, generator)


def _over_seeds(values: Floats, level: float, generator: np.random.Generator) -> Floats:
    from scipy.stats import norm, t

    seeds, n_boot = values.shape
    mean = values.mean(axis=0)
    if seeds == 1:
        return mean
    drawn = generator.integers(seeds, size=(seeds, n_boot))
    tail = (1 + level) / 2
    scale = np.sqrt(seeds / (seeds - 1)) * t.ppf(tail, seeds - 1) / norm.ppf(tail)
    return mean + scale * (np.take_along_axis(values, drawn, axis=0).mean(axis=0) - mean)


def percentile_interval(values: Floats, level: float) -> tuple[float, float]:
    """Percentile interval (Efron & Tibshirani 1993, ch. 13) of the defined replicates (B,); NaN if there is none.

    The number of undefined replicates is the caller's to report.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
