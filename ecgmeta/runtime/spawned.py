"""Work in other processes that start afresh: for work that uses torch, whose threads do not survive a fork."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from ecgmeta.runtime.errors import InputError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


def spawned(
    work: Callable[[Shared, Task], Result], shared: Shared, tasks: Iterable[Task], processes: int
) -> Iterator[tuple[Task, Result]]:
    """``(task, work(shared, task))`` of every task, each as it is done, by ``processes`` new interpreters.

    A task is asked for when a process is free, so what it holds need not exist before. To stop early let ``tasks`` end: what
    is under way is finished and yielded. Leaving the generator otherwise ends the processes at once. They ignore Ctrl-C and
    SIGTERM, which are this process's to heed, and end when it is gone.

    Args:
        work: a function of a module, so that a new interpreter finds it.
        shared: sent once to each process.
        tasks, results: can be pickled.
        processes: at least 1.

    Raises:
        InputError, FloatingPointError: as `work` raised it.
        RuntimeError: `work` raised something else, or a process died.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks)
    running: dict[Connection, tuple[BaseProcess, Task]] = {}
    everyone: list[BaseProcess] = []
    try:
        for task in waiting:
            # A process for each task until there are enough: fewer tasks start fewer.
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, work, shared), daemon=True)
            with _deaf():
                process.start()
            theirs.close()
            everyone.append(process)
            ours.send(task)
            running[ours] = (process, task)
            if len(running) == processes:
                break
        while running:
            for ready in cast(list[Connection], wait(list(running))):
                process, task = running.pop(ready)
                result: Result = _received(ready, process)
                following = next(waiting, None)
                if following is not None:
                    ready.send(following)
                    running[ready] = (process, following)
                yield task, result
    finally:
        for process in everyone:
            process.kill()
            process.join()


@contextmanager
def _deaf() -> Iterator[None]:
    """A process started within it ignores SIGINT and SIGTERM from its first instruction on: what is ignored is inherited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _received(connection: Connection, process: BaseProcess) -> Any:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionError):  # the latter where it died before it took its task
        process.join()
        raise RuntimeError(
            f"a process that worked died, exit code {process.exitcode}; a script that starts processes needs "
            "its main part under `if __name__ == '__main__':`"
        ) from None
    if kind == "input":
        raise InputError(*value)
    if kind == "numbers":
        raise FloatingPointError(value)
    if kind == "error":
        raise RuntimeError(f"in a process that worked:\n{value}")
    return value


def _serve(connection: Connection, work: Callable[[Any, Any], Any], shared: Any) -> None:
    """The whole life of a process: until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", work(shared, task))
        except InputError as error:
            answer = ("input", (str(error.where), error.field, str(error.found), str(error.expected)))
        except FloatingPointError as error:
            answer = ("numbers", str(error))
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)
