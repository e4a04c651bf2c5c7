"""Intervals over patients and seeds: closed forms, and coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import norm, t

from ecgmeta.evaluation import paired_difference
from ecgmeta.evaluation.bootstrap import Seeds, hierarchical_difference
from ecgmeta.runtime.errors import InputError

B = 40_000


def _still(values: list[float]) -> npt.NDArray[np.float64]:
    """Scores of seeds that no resample of patients moves."""
    return np.repeat(np.array(values)[:, None], B, axis=1)


def _variance(values: list[float]) -> float:
    """Of the mean of S seeds, as S seeds can tell it, in Student's width."""
    factor = t.ppf(0.975, len(values) - 1) / norm.ppf(0.975)
    return float(np.var(values, ddof=1) / len(values) * factor**2)


def test_the_spread_over_seeds_is_that_of_the_mean_of_the_seeds() -> None:
    a, b = [0.70, 0.80, 0.76, 0.71], [0.60, 0.66, 0.61]
    apart = hierarchical_difference(_still(a), _still(b), "apart", 0.95, 0)
    assert apart.mean() == pytest.approx(np.mean(a) - np.mean(b), abs=1e-3)
    assert apart.var() == pytest.approx(_variance(a) + _variance(b), rel=0.03)


def test_paired_seeds_leave_only_the_spread_of_their_differences() -> None:
    b = [0.60, 0.80, 0.55, 0.72]
    a = [value + gain for value, gain in zip(b, [0.05, 0.04, 0.06, 0.05], strict=True)]
    paired = hierarchical_difference(_still(a), _still(b), "paired", 0.95, 0)
    assert paired.var() == pytest.approx(_variance([0.05, 0.04, 0.06, 0.05]), rel=0.03)
    assert paired.var() < hierarchical_difference(_still(a), _still(b), "apart", 0.95, 0).var() / 50


def test_one_seed_keeps_the_spread_over_patients_alone() -> None:
    moving = np.random.default_rng(0).normal(0.7, 0.02, (2, 500))
    assert np.array_equal(
        hierarchical_difference(moving[:1], moving[1:], "paired", 0.95, 0), moving[0] - moving[1]
    )


def test_a_difference_says_what_was_resampled_and_is_wider_over_seeds() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((300, 2)) < 0.4).astype(int)
    a = [y * strength + rng.normal(size=y.shape) for strength in (0.4, 1.0, 1.6)]
    b = [y * strength + rng.normal(size=y.shape) for strength in (0.3, 0.9, 1.2)]
    names = ("A", "B")
    fixed = paired_difference(a, b, y, names, n_boot=400)
    apart = paired_difference(a, b, y, names, resample_seeds="apart", n_boot=400)
    assert (fixed.resampled, apart.resampled) == ("patients", "patients and seeds")
    assert apart.delta == fixed.delta
    assert np.ptp(apart.interval) > 2 * np.ptp(fixed.interval)
    single = paired_difference(a[:1], b[:1], y, names, resample_seeds="paired", n_boot=400)
    assert single.resampled == "patients"
    assert single.interval == paired_difference(a[:1], b[:1], y, names, n_boot=400).interval
    with pytest.raises(InputError, match="seeds"):
        paired_difference(a, b[:2], y, names, resample_seeds="paired")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 6])
def test_coverage_over_seeds_and_patients(seeds: int) -> None:
    """Positives score N(m_s, 1), negatives N(0, 1), m_s ~ N(m, τ²): the mean AUROC over seeds is Φ(m / √(2 + τ²))."""
    rng = np.random.default_rng(3)
    means, spread, trials = (0.9, 0.6), 0.35, 500
    truth = float(np.diff(norm.cdf(np.array(means[::-1]) / np.sqrt(2 + spread**2)))[0])
    how: tuple[Seeds, ...] = ("fixed", "paired", "apart")
    covered = dict.fromkeys(how, 0)
    for trial in range(trials):
        y = np.zeros((120, 1), dtype=int)
        y[:50] = 1
        noise = rng.normal(size=y.shape)  # of the patients: shared by all, as hard recordings are
        a, b = ([rng.normal(mean, spread) * y + noise for _ in range(seeds)] for mean in means)
        for draw in how:
            found = paired_difference(a, b, y, ("A",), resample_seeds=draw, n_boot=300, seed=trial)
            covered[draw] += found.interval[0] <= truth <= found.interval[1]
    shares = {draw: count / trials for draw, count in covered.items()}
    # 500 trials at 95 %: two standard errors are 2 points; percentile intervals of few seeds are a little off besides.
    assert 0.91 <= shares["paired"] <= 0.99, shares
    assert 0.93 <= shares["apart"] <= 0.995, shares
    assert shares["fixed"] < 0.5, shares  # what seeds held fixed leaves out
