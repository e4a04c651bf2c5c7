"""Scores against second routes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppi_extension.experiment.scores import mean_of_tasks, over_seeds, task_auroc


def test_auroc_is_the_chance_that_a_positive_scores_higher() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(80, 4, generator=generator).round(decimals=1)  # with ties
    labels = torch.randint(-1, 2, (80, 4), generator=generator)
    found = task_auroc(logits, labels)
    for task in range(4):
        positive, negative = (logits[labels[:, task] == c, task] for c in (1, 0))
        pairs = positive[:, None] - negative[None]
        expected = float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())
        assert found[task] == pytest.approx(expected, abs=1e-12)


def test_large_logits_do_not_tie() -> None:
    logits = torch.tensor([[20.0], [21.0], [22.0], [23.0]])  # their sigmoids are 1 in single precision
    assert task_auroc(logits, torch.tensor([[0], [0], [1], [1]]))[0] == 1.0


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, -1], [-1, -1, -1], [1, -1, 1]])
def test_a_task_with_one_class_has_no_score_and_no_part_in_the_mean(labels: list[int]) -> None:
    found = task_auroc(torch.randn(3, 2), torch.tensor([labels, [0, 1, 1]]).T)
    assert math.isnan(found[0])
    assert mean_of_tasks(found) == found[1]
    assert math.isnan(mean_of_tasks(found[:1]))


def test_an_interval_over_seeds_is_students() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 7)
    found = over_seeds(values.tolist())
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(values.mean())
    assert found.n == 7


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([0.5])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        found = over_seeds(rng.normal(1.0, 2.0, 5).tolist())
        covered += found.low < 1.0 < found.high
    assert 0.93 < covered / 2000 < 0.97
