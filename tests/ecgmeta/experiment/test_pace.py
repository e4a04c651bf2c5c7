"""Time left, against a clock that the test moves: what remains is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import pytest

from ecgmeta.bilevel import Schedule
from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.pace import phi_step_guess
from ecgmeta.runtime.pace import Pace
from ecgmeta.runtime.progress import TimeLeft


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """A run whose steps take known times: every step has its own duration, and so has a checkpoint."""

    schedule: Schedule
    plain: float
    phi: float
    save: float = 0.4
    every: int = 50
    jitter: float = 0.0

    def duration(self, step: int) -> float:
        seconds = self.phi if self.schedule.is_phi_step(step) else self.plain
        slow = 5.0 if step % 17 == 0 and self.jitter else 1.0  # a machine that stutters now and then
        return seconds * slow + self.jitter * ((step * 7) % 5 - 2) * self.plain

    def saves(self, step: int) -> bool:
        return (step + 1) % self.every == 0 or step + 1 == self.schedule.steps

    @cached_property
    def _remaining(self) -> list[float]:
        """From the end: the seconds of the last 0, 1, 2, ... steps."""
        steps = reversed(range(self.schedule.steps))
        return [0.0, *accumulate(self.duration(step) + self.save * self.saves(step) for step in steps)]

    def remaining(self, done: int) -> float:
        return self._remaining[self.schedule.steps - done]

    def errors(self, pace: Pace, clock: Clock, first: int = 0, after: float = 60.0) -> list[float]:
        """|estimate − truth| / truth at each step once ``after`` seconds have passed, while more than a tenth is left."""
        start, found = clock.now, []
        for step in range(first, self.schedule.steps):
            clock.now += self.duration(step)
            pace.stepped(step)
            if self.saves(step):
                clock.now += self.save
                pace.saved()
            left = pace.left(step + 1)
            truth = self.remaining(step + 1)
            if clock.now - start >= after and step < 0.9 * self.schedule.steps:
                assert left is not None
                found.append(abs(left - truth) / truth)
        return found


@pytest.mark.parametrize(("period", "warmup"), [(10, 100), (1, 50), (3, 0), (0, 0), (10, 5000)])
def test_it_is_right_within_a_fifth_after_the_first_minute(period: int, warmup: int) -> None:
    run = Run(Schedule(3000, period, warmup), plain=0.3, phi=1.5)
    clock = Clock()
    errors = run.errors(Pace(run.schedule, run.every, guess=5.0, clock=clock), clock)
    assert len(errors) > 1000
    assert max(errors) < 0.02  # nothing but the first few checkpoints is unknown


def test_a_mean_pace_would_be_wrong_and_it_is_not() -> None:
    run = Run(Schedule(3000, period=2, warmup=600), plain=0.2, phi=1.6)
    clock = Clock()
    pace = Pace(run.schedule, run.every, guess=7.0, clock=clock)  # as far from 8 as a count of passes may be
    mean_pace = (run.remaining(0) - run.remaining(300)) / 300 * 2700
    assert abs(mean_pace - run.remaining(300)) > 0.6 * run.remaining(300)
    assert max(run.errors(pace, clock)) < 0.2


def test_a_machine_that_stutters() -> None:
    run = Run(Schedule(3000, period=10, warmup=100), plain=0.3, phi=1.5, jitter=0.1)
    clock = Clock()
    # 1 step in 17 takes five times as long: medians leave that out, 4/17 of the time less the φ steps' share.
    assert max(run.errors(Pace(run.schedule, run.every, guess=5.0, clock=clock), clock)) < 0.2


def test_a_resumed_run_knows_before_its_first_phi_step() -> None:
    run = Run(Schedule(3000, period=500, warmup=0), plain=0.1, phi=60.0)
    clock = Clock()
    first = Pace(run.schedule, run.every, guess=5.0, clock=clock)
    for step in range(600):
        clock.now += run.duration(step)
        first.stepped(step)
        if run.saves(step):
            clock.now += run.save
            first.saved()
    clock.now += 1e6  # the machine was away
    resumed = Pace(run.schedule, run.every, guess=5.0, clock=clock)
    resumed.load(first.medians())
    assert max(run.errors(resumed, clock, first=600, after=1.0)) < 0.02


def test_a_machine_that_became_slower_is_noticed() -> None:
    left = TimeLeft({"plain": 1.0}, window=11)
    for seconds in [1.0] * 100 + [3.0] * 11:
        left.add("plain", seconds)
    assert left({"plain": 10}) == 30.0
    left.load({"plain": 100.0})
    assert left({"plain": 10}) == 30.0  # its own times go before an earlier process's


def test_what_was_never_seen_is_guessed_from_what_was() -> None:
    left = TimeLeft({"plain": 1.0, "phi": 4.0})
    assert left({"plain": 5}) is None
    left.add("plain", 2.0)
    assert left({"plain": 3, "phi": 2, "checkpoint": 7}) == 3 * 2 + 2 * 8
    only_phi = TimeLeft({"plain": 1.0, "phi": 4.0})
    only_phi.add("phi", 8.0)
    assert only_phi({"plain": 1}) == 2.0


@pytest.mark.parametrize("start", [0, 1, 7, 20, 39, 40, 55])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(40, 10, 0),
        Schedule(40, 3, 7),
        Schedule(41, 4, 9, freeze_after=23),
        Schedule(40, 0),
        Schedule(40, 5, 100),
        Schedule(40, 1, 0, freeze_after=90),
    ],
)
def test_phi_steps_ahead_are_counted(schedule: Schedule, start: int) -> None:
    assert schedule.phi_steps(start) == sum(
        schedule.is_phi_step(step) for step in range(start, schedule.steps)
    )


def test_the_guess_grows_with_what_a_phi_step_does() -> None:
    config = Experiment()
    config.pretrain.batch_size = config.meta.batch_size = 64
    config.meta.inverse, config.meta.products = "identity", "low_precision"
    assert phi_step_guess(config) == pytest.approx(2.6)  # the README's table: a plain step and 1.6
    config.meta.inverse, config.meta.terms = "neumann", 5
    assert phi_step_guess(config) == pytest.approx(5.8, rel=0.05)
    config.meta.accumulate = 3
    assert phi_step_guess(config) > 10
