"""Shared work: in order, whoever did it; a failure, a death or a thread means that nobody shares."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.processes import share

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
PARENT = os.getpid()


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The processes forked in a test, all of which have ended when it has; others of this process are not ours to count.

    Whatever runs the tests may also keep a thread of its own.
    """
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    forked: list[int] = []
    fork = os.fork

    def counted() -> int:
        child = fork()
        forked.append(child)
        return child

    monkeypatch.setattr(os, "fork", counted)
    yield forked
    for child in forked:
        with pytest.raises(ChildProcessError):  # it was waited for
            os.waitpid(child, os.WNOHANG)


def shared(work: Callable[[int], Any], pieces: int = 12, processes: int = 3) -> list[Any] | None:
    return share(work, pieces, processes, lambda number: None)


def in_child(number: int) -> bool:
    time.sleep(0.02)  # long enough for every process to take some
    return os.getpid() != PARENT


def test_results_stand_in_order_and_several_processes_made_them() -> None:
    everyone, begun = multiprocessing.get_context("fork").Barrier(3), set[int]()

    def work(number: int) -> tuple[int, int, bytes]:
        if os.getpid() not in begun:  # each takes a piece, however busy the machine is
            begun.add(os.getpid())
            everyone.wait(60)
        return number, os.getpid(), bytes(100_000)  # more than a pipe holds

    taken: list[int] = []
    found = share(work, 12, 3, taken.append)
    assert found is not None
    assert [number for number, *_ in found] == list(range(12))
    assert len({process for _, process, _ in found}) == 3
    assert taken == [number for number, process, _ in found if process == os.getpid()]


def test_a_failure_anywhere_is_nobodys_result() -> None:
    def fails(child: bool) -> Callable[[int], int]:
        def work(number: int) -> int:
            if in_child(number) == child:
                raise ValueError(number)
            return number

        return work

    assert shared(fails(child=True)) is None
    assert shared(fails(child=False)) is None


def test_a_child_that_dies_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    def work(number: int) -> int:
        if in_child(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert shared(work) is None
    assert capfd.readouterr() == ("", "")


def test_what_stops_the_parent_ends_the_children_at_once() -> None:
    def work(number: int) -> None:
        if in_child(number):
            time.sleep(60)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        shared(work)
    assert time.monotonic() - start < 30


def test_signals_are_the_parents_alone() -> None:
    def work(number: int) -> set[int]:
        time.sleep(0.02)
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ())) if os.getpid() != PARENT else set()

    found = shared(work)
    assert found is not None
    assert {signal.SIGINT, signal.SIGTERM} <= set().union(*found)
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(("pieces", "processes"), [(12, 1), (2, 3), (257, 3), (0, 2)])
def test_too_little_or_too_much_is_not_shared(pieces: int, processes: int) -> None:
    assert shared(lambda number: number, pieces, processes) is None


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert shared(lambda number: number) is None


def test_bad_input_found_in_another_process_arrives_as_it_is() -> None:
    error = InputError(Path("records/a.hea"), "gain", float("nan"), "mV")
    found = pickle.loads(pickle.dumps(error))
    assert isinstance(found, InputError)
    assert (str(found), found.field) == (str(error), "gain")
