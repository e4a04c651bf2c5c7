"""A nuisance that separates the fine-tuning data from the pre-training data, found by its hypergradient from both sides.

One cell of the study ``nuisance``, in which ten seeds and three strengths are reported.
"""

from __future__ import annotations

import pytest

from examples.studies.nuisance import Problem, Settings, Situation, pretrained

TRUTH = 3.0


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.6, 12.0])
def test_the_learned_magnitude_moves_to_the_known_optimum_from_both_sides(start: float) -> None:
    settings = Settings()
    problem = Problem(Situation("taskaug_scale", TRUTH), settings.records, 100)
    found, _ = pretrained(problem, settings, 100, start)
    assert TRUTH / 1.3 < found < TRUTH * 1.3
