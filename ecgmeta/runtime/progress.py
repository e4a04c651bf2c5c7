"""Progress that says what is happening, how far it is and how long it will take."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as _TimeRemaining
from rich.text import Text


class Report(Protocol):
    """``report(done, total, text)``; a stage ends when ``done == total``."""

    def __call__(self, done: int, total: int, text: str, left: float | None = None) -> None:
        """``left``: seconds to the end of the stage, where the stage knows better than its mean pace."""


console = Console(stderr=True, highlight=False)


class TimeLeft:
    """Seconds left of work whose steps are of several kinds: ``Σ_kinds (steps ahead) · (median seconds of that kind)``.

    A mean pace is wrong for as long as the mixture changes: a φ step costs several plain ones, and none comes before warm-up
    has ended. Medians, because a first step compiles and allocates, and a shared machine stutters.

    Args:
        guess: seconds of one step of a kind that has not been seen yet, as a multiple of the first kind in ``guess``
            that has been; a kind that is not in it costs nothing until it is seen.
        window: most recent steps of a kind that its median is of, so that a change of pace is noticed.
    """

    def __init__(self, guess: Mapping[str, float], window: int = 31) -> None:
        self._guess, self._window = dict(guess), window
        self._earlier: dict[str, float] = {}
        self._times: dict[str, deque[float]] = {}

    def load(self, medians: Mapping[str, float]) -> None:
        """Take :meth:`medians` of an earlier process; each holds until this one has its own."""
        self._earlier = dict(medians)

    def add(self, kind: str, seconds: float) -> None:
        """One step of ``kind`` took ``seconds``."""
        self._times.setdefault(kind, deque(maxlen=self._window)).append(seconds)

    def medians(self) -> dict[str, float]:
        """Seconds of a step by kind, of every kind seen."""
        return self._earlier | {kind: statistics.median(times) for kind, times in self._times.items()}

    def __call__(self, ahead: Mapping[str, int]) -> float | None:
        """Seconds for ``ahead[kind]`` further steps of each kind; None before anything was seen."""
        known = self.medians()
        unit = next((known[kind] / size for kind, size in self._guess.items() if kind in known), None)
        if unit is None:
            return None
        return sum(n * known.get(kind, unit * self._guess.get(kind, 0.0)) for kind, n in ahead.items())


class _LeftColumn(_TimeRemaining):
    """What the stage says itself; else from its mean pace."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return super().render(task) if left is None else Text(_clock(left), style="progress.remaining")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar on standard error, one line a stage; plain lines at tenths of the way where it is no terminal."""
    if not console.is_terminal:
        yield _plain_reporter()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        _LeftColumn(),
    )
    with Progress(*columns, console=console) as bar:
        stages: dict[str, TaskID] = {}

        def report(done: int, total: int, text: str, left: float | None = None) -> None:
            # What stands before a colon names the stage; the rest may change from call to call.
            stage = text.partition(":")[0]
            if stage not in stages:
                stages[stage] = bar.add_task(text, total=total)
            bar.update(stages[stage], completed=done, total=total, description=text, left=left)
            if done >= total:
                stages.pop(stage)

        yield report


def _plain_reporter() -> Report:
    shown: dict[str, int] = {}

    def report(done: int, total: int, text: str, left: float | None = None) -> None:
        stage = text.partition(":")[0]
        tenth = 10 * done // max(total, 1)
        if shown.get(stage) != tenth:
            shown[stage] = tenth
            still = f", {_clock(left)} left" if left else ""
            console.print(f"{text} [{done}/{total}{still}]", markup=False, soft_wrap=True)
        if done >= total:
            shown.pop(stage, None)

    return report


def say(text: str) -> None:
    """One line on standard error."""
    console.print(text, markup=False, soft_wrap=True)
