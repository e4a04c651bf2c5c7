"""Stopped, crashed and killed runs end in the numbers of one that never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import TINY, metrics, pretrain, results, same_tensors, watched, weights

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
