"""Work on this machine's other processors, without a start-up that costs more than the work."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO, TypeVar

T = TypeVar("T")
MOST_PIECES = 256  # a number is handed out as one byte


def processors() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def share(
    work: Callable[[int], T], pieces: int, processes: int, before: Callable[[int], object]
) -> list[T] | None:
    """``[work(0), work(1), ...]``, done by this process and forked ones, each of which takes the next number when it is free.

    Forked, because a new interpreter takes longer to import this package than to read ten thousand records, and needs a
    script that guards its main part. A fork is sound here only because of what is asked of `work` and because no thread of
    Python holds a lock at that moment: with other threads, and on systems whose own libraries do not survive a fork, nothing
    is shared. The pools of torch and OpenMP do not run in a child, and so may not be asked for anything there.

    Args:
        work: computes with the standard library, NumPy and SciPy, never with torch; its result can be pickled.
        pieces: how many, at most `MOST_PIECES`.
        processes: in all, this one among them.
        before: called in this process with each number that it takes.

    Returns:
        None where nothing can be shared, a piece failed or a process died. Whoever asks then does all the work alone, and
        meets the failure where it would have been met.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or not 1 < processes <= pieces <= MOST_PIECES:
        return None
    numbers, end = os.pipe()
    os.write(end, bytes(range(pieces)))
    os.close(end)
    children: list[tuple[int, BinaryIO]] = []
    try:
        _start(children, processes - 1, work, numbers)
        done = {}
        for number in _taken(numbers):
            before(number)
            try:
                done[number] = work(number)
            except Exception:
                return None
        for _, results in children:
            done |= pickle.load(results)
        return [done[number] for number in range(pieces)]
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ):  # of a fork; of a child without, or within, its results
        return None
    finally:  # also of Ctrl-C
        os.close(numbers)
        for child, results in children:
            results.close()
            with suppress(ProcessLookupError, ChildProcessError):  # a handler of SIGCHLD was first
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _taken(numbers: int) -> Iterator[int]:
    """Numbers from the pipe until it is empty; of all who read there each number has one taker."""
    while found := os.read(numbers, 1):
        yield found[0]


def _start(
    children: list[tuple[int, BinaryIO]], count: int, work: Callable[[int], object], numbers: int
) -> None:
    """Fork `count` times, noting the process and where its results come from."""
    # Signals are for the parent, which ends its children: they are born with every one blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for _ in range(count):
            parent, (ours, theirs) = os.getpid(), os.pipe()
            with warnings.catch_warnings():  # Python 3.12 warns of threads that are torch's and idle
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                _serve(work, numbers, parent, theirs)
            os.close(theirs)
            children.append((child, os.fdopen(ours, "rb")))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[int], object], numbers: int, parent: int, results: int) -> None:
    """The whole life of a child; an exception ends it without results and without a word."""
    try:
        gc.disable()  # what the parent left to collect may be a GPU's, and its memory is shared while nobody touches it
        done = {}
        for number in _taken(numbers):
            if os.getppid() != parent:  # killed
                break
            done[number] = work(number)
        with open(results, "wb") as out:
            pickle.dump(done, out)
    finally:
        os._exit(0)
