"""Stopped, crashed and killed runs end in the numbers of one that never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_helpers import TINY, metrics, pretrain, results, same_tensors, watched, weights

from ecgmeta.runtime.files import load_checkpoint

OPTIONS = ("meta.inverse=neumann", "through=evaluate", "finetune.protocols=[full]", "baselines=[none]")


def _assert_same(resumed: Path, whole: Path) -> None:
    assert metrics(resumed) == metrics(whole)
    for name in ("encoder", "augmenter", "augmenter_before"):
        assert same_tensors(weights(resumed / name), weights(whole / name)), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(folder, *OPTIONS) == 0
    return folder


@pytest.mark.slow
def test_stops_and_crashes_leave_no_trace(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def stop(number: int, at: int, stage: str = "pre-training") -> int:
        def action(done: int, total: int, text: str) -> None:
            if done == at and text.startswith(stage):
                signal.raise_signal(number)

        with watched(action):
            return pretrain(folder, *OPTIONS)

    def crash(done: int, total: int, text: str) -> None:
        if done == 5 and text.startswith("pre-training"):
            raise RuntimeError("power cut")

    assert stop(signal.SIGINT, 2) == 130
    assert "stopped by SIGINT: saved. The same command goes on from here." in capsys.readouterr().err
    assert len(metrics(folder)) == 2
    assert (folder / "last.ckpt").exists()  # though none was due before step 3
    with watched(crash), pytest.raises(RuntimeError, match="power cut"):
        pretrain(folder, *OPTIONS)
    assert len(metrics(folder)) == 5  # the checkpoint is older than the log
    assert stop(signal.SIGTERM, 6) == 0
    assert not (folder / "encoder").exists()
    assert stop(signal.SIGINT, 8) == 130  # in the last step: pre-training ends, fine-tuning does not begin
    assert (folder / "encoder").exists()
    assert not (folder / "finetune").exists()
    assert stop(signal.SIGTERM, 0, "fine-tuning") == 0
    assert len(list((folder / "finetune").glob("*.npz"))) == 1
    assert not (folder / "results.json").exists()
    assert pretrain(folder, *OPTIONS) == 0
    _assert_same(folder, whole)
    assert results(folder) == results(whole)


def test_ctrl_c_while_data_are_read_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with watched(interrupt):
        assert pretrain(tmp_path / "run") == 130
    assert "error: interrupted. The same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_saves_and_exits_0_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # Only `through`, and how often a checkpoint is due, differ from `whole`: a checkpoint can only come from the signal.
    options = (*OPTIONS, "through=pretrain", "pretrain.checkpoint_every=1000")
    command = [sys.executable, "-m", "ecgmeta", "pretrain", "--out", str(folder), *TINY, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == "stopped by SIGTERM: saved. The same command goes on from here."
    assert (folder / "last.ckpt").exists()
    assert not (folder / "encoder").exists(), "too late"
    assert load_checkpoint(folder / "last.ckpt")["meta"]["step"] == len(metrics(folder)) < 8
    assert pretrain(folder, *options) == 0
    _assert_same(folder, whole)


def test_sigterm_while_data_are_read_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(done: int, total: int, text: str) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with watched(stop):
        assert pretrain(tmp_path / "run") == 0
    assert "stopped by SIGTERM: finished work stands. The same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_event_files_of_a_resumed_run_hold_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"

    def crash(done: int, total: int, text: str) -> None:
        if done == 5 and text.startswith("pre-training"):
            raise RuntimeError("power cut")

    options = ("through=pretrain", "log.tensorboard=true")
    with watched(crash), pytest.raises(RuntimeError, match="power cut"):
        pretrain(folder, "through=pretrain")  # without: a resumed run may turn it on
    assert pretrain(folder, *options) == 0
    assert len(list((folder / "tensorboard").iterdir())) == 1
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    for tag, path in (("pretrain_loss", ("pretrain_loss",)), ("hyper/norm", ("hyper", "norm"))):
        expected = []
        for line in metrics(folder):
            value: Any = line
            for key in path:
                value = value.get(key) if value else None
            expected += [(line["step"], pytest.approx(value))] if value is not None else []
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
        assert len(expected) > 3


@pytest.mark.slow
def test_a_resumed_run_of_wandb_is_the_same_one_and_hands_its_whole_history_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    ids: list[str] = []

    def init(**asked: Any) -> SimpleNamespace:
        ids.append(asked["id"])
        assert asked["mode"] == "offline"  # nothing is sent unless it is asked for
        steps: list[int] = []
        taken.append(steps)
        return SimpleNamespace(step=0, log=lambda data, step: steps.append(step), finish=lambda: None)

    def crash(done: int, total: int, text: str) -> None:
        if done == 5 and text.startswith("pre-training"):
            raise RuntimeError("power cut")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    options = ("through=pretrain", "log.wandb=ecg")
    with watched(crash), pytest.raises(RuntimeError, match="power cut"):
        pretrain(tmp_path / "run", *options)
    assert pretrain(tmp_path / "run", *options) == 0
    assert taken == [list(range(5)), list(range(8))]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_a_sink_that_is_not_installed_is_said_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert pretrain(tmp_path / "run", "log.wandb=ecg") == 2
    error = capsys.readouterr().err
    assert "pip install 'ecgmeta[wandb]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    options = (
        "meta.inverse=neumann",
        "through=pretrain",
        "pretrain.max_steps=60",
        "pretrain.checkpoint_every=7",
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "ecgmeta", "pretrain", "--out", str(killed), *TINY, *options]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (killed / "last.ckpt").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        moment = random.uniform(0, 0.7)
        time.sleep(moment)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    seen = len(metrics(killed)) if (killed / "metrics.jsonl").read_text().endswith("\n") else None
    assert not (killed / "encoder").exists(), f"too late to kill it: {moment} s, {seen} steps"
    assert pretrain(killed, *options) == 0
    assert pretrain(whole, *options) == 0
    assert len(metrics(whole)) == 60
    _assert_same(killed, whole)
