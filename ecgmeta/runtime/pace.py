"""How long pre-training still takes: what each kind of its steps costs, and the schedule ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ecgmeta.runtime.progress import TimeLeft


class Timetable(Protocol):
    """When φ steps come, as :class:`ecgmeta.bilevel.Schedule` knows it."""

    @property
    def steps(self) -> int: ...

    def is_phi_step(self, step: int) -> bool: ...

    def phi_steps(self, start: int = 0) -> int: ...


class Pace:
    """Times the laps of pre-training, and says what is left.

    Args:
        schedule: when φ steps come.
        checkpoint_every: steps between checkpoints, which are laps of their own.
        guess: a φ step in plain steps, used until one was timed.
        clock: seconds.
    """

    def __init__(
        self,
        schedule: Timetable,
        checkpoint_every: int,
        guess: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._schedule, self._every, self._clock = schedule, checkpoint_every, clock
        self._left = TimeLeft({"plain": 1.0, "phi": guess})
        self._last = clock()

    def load(self, medians: Mapping[str, float]) -> None:
        """Start from the :meth:`medians` of an earlier process of this run."""
        self._left.load(medians)

    def stepped(self, step: int) -> None:
        """The 0-based ``step`` has just ended."""
        self._lap("phi" if self._schedule.is_phi_step(step) else "plain")

    def saved(self) -> None:
        """A checkpoint has just been written."""
        self._lap("checkpoint")

    def _lap(self, kind: str) -> None:
        now = self._clock()
        self._left.add(kind, now - self._last)
        self._last = now

    def left(self, done: int) -> float | None:
        """Seconds to the end after ``done`` steps."""
        total = self._schedule.steps
        phi = self._schedule.phi_steps(done)
        # One checkpoint is written at the end whether it is due or not.
        saves = total // self._every - done // self._every + (total % self._every > 0)
        return self._left({"plain": total - done - phi, "phi": phi, "checkpoint": saves})

    def medians(self) -> dict[str, float]:
        """Seconds by kind of lap, to be kept with a checkpoint."""
        return self._left.medians()
