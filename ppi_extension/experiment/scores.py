"""AUROC of every task, and what a seed's difference between two arms is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LEVEL = 0.95


def task_auroc(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """(T,) AUROC of each task over its labelled examples; NaN where they are of one class only.

    Args:
        logits: (n, T).
        labels: (n, T) 1 positive, 0 negative, below 0 unlabelled.
    """
    from scipy.stats import rankdata

    chances = logits.detach().cpu().double().sigmoid()  # in single precision large logits would tie
    positive, negative = (labels.cpu() == 1).numpy(), (labels.cpu() == 0).numpy()
    # Mann and Whitney's U, all tasks at once; unlabelled examples rank above all others, where they change no rank.
    ranks = rankdata(np.where(positive | negative, chances.numpy(), 2.0), axis=0)
    p, n = positive.sum(axis=0), negative.sum(axis=0)
    pairs = np.where(p * n > 0, p * n, np.nan)
    found: NDArray[np.float64] = ((ranks * positive).sum(axis=0) - p * (p + 1) / 2) / pairs
    return found


def mean_of_tasks(aurocs: NDArray[np.float64]) -> float:
    """The mean over the tasks that could be scored; NaN where none could.

    The one place where tasks are left out of a mean: reports name them.
    """
    defined = aurocs[~np.isnan(aurocs)]
    return float(defined.mean()) if len(defined) else math.nan


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; NaN ends where one seed cannot tell."""

    value: float
    low: float
    high: float
    n: int


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean over seeds with Student's interval, ``mean ± t · SD / √n`` of n − 1 degrees of freedom.

    Of differences within seeds it is the paired interval: what both arms share (the initial weights, the split by gene, the
    order of batches) cancels.
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half = float(t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)
