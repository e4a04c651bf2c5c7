"""Ctrl-C and SIGTERM between steps: what is under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(
    BaseException
):  # as KeyboardInterrupt is: no `except Exception` on the way may take it for a failure
    """A run was asked to stop; all that it had finished is saved.

    Attributes:
        number: the signal.
        stands: where the run stands, and how to go on.
    """

    def __init__(self, number: int, stands: str = "saved. The same command goes on from here.") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.stands = number, stands


class StopRequest:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.number: int | None = None

    def check(self) -> None:
        """Raise :class:`Stopped` where a stop was asked for."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is only noted; a second one acts at once.

    In the main thread only, where signals arrive; elsewhere nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in numbers:
            signal.signal(each, previous[each])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within it SIGTERM raises :class:`Stopped` where it arrives: for the parts of a run that are quick to repeat.

    Outside the main thread, where signals do not arrive, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, "finished work stands. The same command goes on from the last checkpoint.")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
