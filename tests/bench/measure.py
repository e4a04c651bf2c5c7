"""Time and peak memory of pieces of work, each in a process of its own, measured in turns."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

THREADS = 2
_libc = ctypes.CDLL(None)
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Cost:
    """Seconds and CPU seconds of one piece of work (medians of its repeats), the spread of the seconds (fastest, slowest),
    and the most memory it held above the bare process, in MB: in a run of its own, in which the allocator gives back at
    once what is freed, so that this is what was in use and not what was kept for later."""

    seconds: float
    cpu: float
    spread: tuple[float, float]
    peak_mb: float


@dataclass(frozen=True)
class Work:
    """``build()`` prepares and is not timed; ``build()()`` is the work, ``per`` units of it.

    Args:
        rounds: most repeats; work that is done once only is not warmed up either.
    """

    build: Callable[[], Callable[[], object]]
    per: int = 1
    rounds: int = 1_000


@dataclass
class _Row:
    work: Work
    process: Any
    pipe: Connection
    turns: list[tuple[float, float]] = field(default_factory=list)


def measure(works: Mapping[str, Work], rounds: int, say: Callable[[str], None] = print) -> dict[str, Cost]:
    """Cost of each work: ``rounds`` times one turn each, so that a change of the machine's pace meets all of them.

    The processes are forked after the imports and before torch starts a thread, so imports count for nothing, and each
    works while the others wait. ``say`` hears of the progress, with the time left once a round has been seen.
    """
    rows = {name: _start(work) for name, work in works.items()}
    repeated = {name: row for name, row in rows.items() if row.work.rounds > 1}
    for name in repeated:
        say(f"warming up: {name}")
        _turn(name, rows[name], timed=False)
    for number in range(rounds):
        for name, row in rows.items():
            if number < row.work.rounds:
                seconds, _ = _turn(name, row, timed=True)
                say(
                    f"round {number + 1} of {rounds}: {name}, {seconds / row.work.per:.2f} s{_left(rows, number, rounds)}"
                )
    peaks = dict.fromkeys(works, math.nan)  # of what is done once only, too: its parts have rows of their own
    for name, row in repeated.items():
        say(f"memory: {name}")
        peaks[name] = call(partial(_peak, row.work))
    return {name: _finish(name, row, peaks[name]) for name, row in rows.items()}


def _peak(work: Work) -> float:
    mapped_from = -3  # M_MMAP_THRESHOLD: from this size on, freed memory goes back to the system
    _libc.mallopt(mapped_from, 1 << 17)
    _libc.malloc_trim(0)
    bare = _status("VmRSS")
    run = work.build()
    if torch.cuda.is_initialized():
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what prepared it
    run()
    return _status("VmHWM") - bare


def call(function: Callable[[], Any]) -> Any:
    """``function()`` in a process of its own, for its memory's sake."""
    receiver, sender = _fork.Pipe(duplex=False)
    process = _fork.Process(target=lambda: sender.send(_threaded(function)), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("a computation died (out of memory?)") from None


def _threaded(function: Callable[[], Any]) -> Any:
    torch.set_num_threads(THREADS)
    return function()


def _left(rows: Mapping[str, _Row], number: int, rounds: int) -> str:
    """How long the turns that are still to come will take, as far as they have been seen."""
    left = 0.0
    for row in rows.values():
        if row.turns:
            left += median(t for t, _ in row.turns) * (min(rounds, row.work.rounds) - len(row.turns))
    return f"; about {left:.0f} s to go" if number else ""


def _start(work: Work) -> _Row:
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_child, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Row(work, process, ours)


def _turn(name: str, row: _Row, timed: bool) -> tuple[float, float]:
    row.pipe.send("work")
    turn = _receive(name, row)
    if timed:
        row.turns.append(turn)
    return turn


def _finish(name: str, row: _Row, peak: float) -> Cost:
    row.pipe.send("stop")
    row.process.join()
    seconds = [s / row.work.per for s, _ in row.turns]
    cpu = [c / row.work.per for _, c in row.turns]
    return Cost(median(seconds), median(cpu), (min(seconds), max(seconds)), peak)


def _receive(name: str, row: _Row) -> Any:
    try:
        return row.pipe.recv()
    except (EOFError, ConnectionResetError):
        raise SystemExit(f"{name}: the measurement died (out of memory?)") from None


def _child(work: Work, pipe: Connection) -> None:
    torch.set_num_threads(THREADS)
    run: Callable[[], object] | None = None
    while pipe.recv() == "work":
        if run is None:
            run = work.build()
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        turn = time.perf_counter() - wall, time.process_time() - cpu
        _libc.malloc_trim(0)  # a dozen of these processes wait side by side
        pipe.send(turn)


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not report {field}")
