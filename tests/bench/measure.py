"""Time and peak memory of one piece of work, in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Cost:
    """Seconds of one piece of work (median of its repeats) and the most memory it held above the bare process, in MB."""

    seconds: float
    peak_mb: float


def measure(build: Callable[[], Callable[[], None]], repeats: int, per: int = 1) -> Cost:
    """Cost of ``build()()``, after one unmeasured call, divided by ``per``; ``build`` itself is not timed.

    The process is forked after the imports and before torch starts a thread, so imports count for nothing and no
    measurement finds memory that an earlier one left behind.
    """
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(build, repeats, per, sender))
    process.start()
    sender.close()
    try:
        cost = receiver.recv()
    except EOFError:
        raise SystemExit("a measurement died (out of memory?)") from None
    process.join()
    return cost


def _child(build: Callable[[], Callable[[], None]], repeats: int, per: int, sender: Connection) -> None:
    bare = _status("VmRSS")
    work = build()
    if repeats > 1:
        work()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / per)
    sender.send(Cost(median(times), _status("VmHWM") - bare))


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not report {field}")
