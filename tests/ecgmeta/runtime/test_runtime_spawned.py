"""Work in other processes: its results, and what is said where one of them dies."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from unittest import mock

import pytest

from ecgmeta.runtime.spawned import _received, spawned


def _divide(shared: int, task: int) -> int:
    if task == 0:
        os._exit(3)
    return shared // task


def test_results_come_with_their_tasks() -> None:
    assert dict(spawned(_divide, 12, [1, 2, 3], processes=1)) == {1: 12, 2: 6, 3: 4}


def test_a_process_that_dies_over_its_task_is_said_to_have_died() -> None:
    with pytest.raises(RuntimeError, match="died, exit code 3"):
        dict(spawned(_divide, 12, [0], processes=1))


def test_a_process_that_dies_before_it_takes_its_task_is_said_to_have_died() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send("task")
    theirs.close()  # with the task unread, which the other side sees as a reset, not as an end
    process = mock.create_autospec(BaseProcess, instance=True, exitcode=-9)
    with pytest.raises(RuntimeError, match="died, exit code -9"):
        _received(ours, process)
