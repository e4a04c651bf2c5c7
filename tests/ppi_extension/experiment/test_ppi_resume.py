"""Stopped, crashed and killed runs end in the numbers of one that never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from ppi_run_helpers import TINY, call, encoders, metrics, pretrain, results, same_tensors, weights

from ecgmeta.runtime.files import load_checkpoint
from ecgmeta.runtime.progress import Report
from ppi_extension.experiment.config import SEARCH

ARMS = (
    "meta",
    "cosine",
    "cotrain",
)  # φ by the engine; a rule with weights and a head; a rule with a live head
OPTIONS = (
    f"arms=[{','.join(ARMS)}]",
    "evaluate.reference=meta",
    "through=evaluate",
    "meta.inverse=neumann",
    "meta.step_size=0.01",
)


@contextmanager
def watched(action: Callable[[int, int, str], None]) -> Iterator[None]:
    """Within it, an experiment calls ``action(done, total, text)`` where it would show progress."""

    def report(done: int, total: int, text: str, left: float | None = None) -> None:
        action(done, total, text)

    @contextmanager
    def bar() -> Iterator[Report]:
        yield report

    with mock.patch("ppi_extension.experiment.stages.progress_bar", bar):
        yield


def _assert_same(resumed: Path, whole: Path, arms: tuple[str, ...] = ARMS) -> None:
    for arm in arms:
        a, b = (folder / "runs" / arm / "0" for folder in (resumed, whole))
        assert metrics(a) == metrics(b)
        assert encoders(a).keys() == encoders(b).keys()
        assert all(same_tensors(encoders(a)[name], encoders(b)[name]) for name in encoders(a)), arm
        if arm == "meta":
            assert same_tensors(weights(a / "weights"), weights(b / "weights"))
        assert (a / "trajectory.npz").read_bytes() == (b / "trajectory.npz").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, store_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "study"
    assert pretrain(folder, store_folder, *OPTIONS) == 0
    return folder


@pytest.mark.slow
def test_stops_and_crashes_leave_no_trace(
    whole: Path, tmp_path: Path, store_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"

    def stop(number: int, at: int, arm: str) -> int:
        def action(done: int, total: int, text: str) -> None:
            if done == at and text.startswith(f"pre-training {arm}"):
                signal.raise_signal(number)

        with watched(action):
            return pretrain(folder, store_folder, *OPTIONS)

    def crash(done: int, total: int, text: str) -> None:
        if done == 5 and text.startswith("pre-training cosine"):
            raise RuntimeError("power cut")

    assert stop(signal.SIGINT, 2, "meta") == 130
    assert "stopped by SIGINT: saved. The same command goes on from here." in capsys.readouterr().err
    assert load_checkpoint(folder / "runs" / "meta" / "0" / "last.ckpt")["meta"]["step"] == 2
    assert stop(signal.SIGTERM, 5, "meta") == 0
    assert stop(signal.SIGINT, 8, "meta") == 130  # in its last step
    with watched(crash), pytest.raises(RuntimeError, match="power cut"):
        pretrain(folder, store_folder, *OPTIONS)
    assert len(metrics(folder / "runs" / "cosine" / "0")) == 5  # the checkpoint is older than the log
    assert stop(signal.SIGTERM, 4, "cotrain") == 0
    assert not (folder / "results.json").exists()
    assert pretrain(folder, store_folder, *OPTIONS) == 0
    _assert_same(folder, whole)
    assert results(folder) == results(whole)


@pytest.mark.slow
def test_a_search_goes_on_with_the_trial_that_it_was_stopped_in(tmp_path: Path, store_folder: Path) -> None:
    folder, whole = tmp_path / "study", tmp_path / "whole"
    options = (f"arms=[{SEARCH}]", f"evaluate.reference={SEARCH}", "through=evaluate")

    def stop(done: int, total: int, text: str) -> None:
        if done == 2 and text.startswith("pre-training random_weights, seed 0, draw 2"):
            signal.raise_signal(signal.SIGINT)

    with watched(stop):
        assert pretrain(folder, store_folder, *options) == 130
    trials = folder / "runs" / SEARCH / "0" / "trials"
    first = (trials / "1" / "run.json").stat().st_mtime_ns
    cut = mock.patch("ppi_extension.experiment.search.shutil.copyfile", side_effect=RuntimeError("power cut"))
    with cut, pytest.raises(RuntimeError, match="power cut"):
        pretrain(folder, store_folder, *options)
    assert len(metrics(trials / "3")) == 3
    assert pretrain(folder, store_folder, *options) == 0
    assert (trials / "1" / "run.json").stat().st_mtime_ns == first
    assert pretrain(whole, store_folder, *options) == 0
    _assert_same(folder, whole, (SEARCH,))
    assert results(folder) == results(whole)
    assert call("finetune", folder, "finetune.protocols=[full]", "finetune.epochs=1") == 0


def _started(folder: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ppi_extension", "pretrain", "--out", str(folder), *TINY]
    command += [f"data.store={store}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not file.exists():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = (
    "arms=[meta]",
    "through=pretrain",
    "pretrain.max_steps=300",
    "pretrain.checkpoint_every=7",
    "meta.period=20",
)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_numbers(tmp_path: Path, store_folder: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = _started(killed, store_folder, *LONG)
    try:
        _wait_for(killed / "runs" / "meta" / "0" / "last.ckpt", process)
        time.sleep(random.uniform(0, 0.5))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "runs" / "meta" / "0" / "weights").exists(), "too late to kill it"
    assert pretrain(killed, store_folder, *LONG) == 0
    assert pretrain(whole, store_folder, *LONG) == 0
    assert len(metrics(whole / "runs" / "meta" / "0")) == 300
    _assert_same(killed, whole, ("meta",))


@pytest.mark.slow
def test_several_processes_stop_between_steps_and_go_on(tmp_path: Path, store_folder: Path) -> None:
    folder, whole = tmp_path / "stopped", tmp_path / "whole"
    options = (*LONG, "pretrain.max_steps=800", "seeds=2", "processes=2")
    process = _started(folder, store_folder, *options)
    _wait_for(folder / "runs" / "meta" / "1" / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not (folder / "runs" / "meta" / "0" / "weights").exists(), "it waited for a run to end"
    assert said.splitlines()[-1] == "stopped by SIGTERM: saved. The same command goes on from here."
    assert not (folder / "runs" / "meta" / "1" / "weights").exists(), "too late"
    assert load_checkpoint(folder / "runs" / "meta" / "1" / "last.ckpt")["meta"]["step"] < 800
    assert pretrain(folder, store_folder, *options) == 0
    assert pretrain(whole, store_folder, *LONG, "pretrain.max_steps=800", "seeds=1") == 0
    _assert_same(folder, whole, ("meta",))
