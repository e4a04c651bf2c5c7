"""Intervals over seeds. Arms that share a seed share data and initial weights, so their difference is taken seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ecgmeta.runtime.page.charts import Estimate
from examples.studies.study import Result

LEVEL = 0.95


def by_seed(results: Sequence[Result], number: str, arm: str, setting: str) -> dict[int, float]:
    """A number of each seed of one arm and setting; failed cells and what is not finite are left out (and count as missing)."""
    cells = [r for r in results if r.task.arm == arm and r.task.setting == setting]
    return {r.task.seed: r.numbers[number] for r in cells if math.isfinite(r.numbers.get(number, math.nan))}


def mean(values: Sequence[float] | NDArray[np.float64] | Mapping[int, float]) -> Estimate:
    """Mean and Student's interval ``m ± t·s/√n``; no interval from one value, NaN from none."""
    x = np.asarray(list(values.values()) if isinstance(values, Mapping) else values, dtype=np.float64)
    if len(x) < 2:
        return Estimate(float(x[0]) if len(x) else math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> NDArray[np.float64]:
    """``a − b`` of each seed that both have."""
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Mean of a − b over common seeds, with the interval of the paired t-test."""
    return mean(differences(a, b))


def bootstrap(values: Sequence[float] | NDArray[np.float64], seed: int = 0, draws: int = 10_000) -> Estimate:
    """Mean and BCa interval (Efron, 1987): the second route beside :func:`mean`, where values are far from normal."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0:
        return mean(x)
    found: Any = stats.bootstrap((x,), np.mean, confidence_level=LEVEL, n_resamples=draws, rng=seed)
    return Estimate(float(x.mean()), *map(float, found.confidence_interval))


def power(sd: float, effect: float, seeds: int) -> float:
    """Chance that a two-sided paired t-test at 5 % finds a true mean difference ``effect`` whose SD over seeds is ``sd``."""
    shift, nu = effect / sd * math.sqrt(seeds), seeds - 1
    limit = stats.t.ppf((1 + LEVEL) / 2, nu)
    return float(stats.nct.sf(limit, nu, shift) + stats.nct.cdf(-limit, nu, shift))


def seeds_needed(sd: float, effect: float, chance: float = 0.8, most: int = 10_000) -> int:
    """Fewest seeds with that power; ``most`` where even they have less."""
    return next((n for n in range(2, most) if power(sd, effect, n) >= chance), most)
