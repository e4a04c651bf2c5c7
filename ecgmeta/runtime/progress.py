"""Progress that says what is happening, how far it is and how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int, str], None]
"""``report(done, total, text)``; a stage ends when ``done == total``."""

console = Console(stderr=True, highlight=False)


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
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        stages: dict[str, TaskID] = {}

        def report(done: int, total: int, text: str) -> None:
            # What stands before a colon names the stage; the rest may change from call to call.
            stage = text.partition(":")[0]
            if stage not in stages:
                stages[stage] = bar.add_task(text, total=total)
            bar.update(stages[stage], completed=done, total=total, description=text)
            if done >= total:
                stages.pop(stage)

        yield report


def _plain_reporter() -> Report:
    shown: dict[str, int] = {}

    def report(done: int, total: int, text: str) -> None:
        stage = text.partition(":")[0]
        tenth = 10 * done // max(total, 1)
        if shown.get(stage) != tenth:
            shown[stage] = tenth
            console.print(f"{text} [{done}/{total}]", markup=False, soft_wrap=True)
        if done >= total:
            shown.pop(stage, None)

    return report


def say(text: str) -> None:
    """One line on standard error."""
    console.print(text, markup=False, soft_wrap=True)
