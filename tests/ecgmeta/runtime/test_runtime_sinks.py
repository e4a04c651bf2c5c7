"""Sinks beside the metric log: what they are given, read back; and the line for a package that is not there."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import MetricLog, read_log
from ecgmeta.runtime.sinks import TensorBoard, WandB, need, numbers


def test_numbers_of_a_line_are_flat_and_leave_texts_out() -> None:
    line = {
        "loss": 1,
        "hyper": {"norm": 2.5, "deep": {"x": 3}},
        "skipped": None,
        "solver": "done",
        "on": True,
    }
    assert dict(numbers(line)) == {"loss": 1.0, "hyper/norm": 2.5, "hyper/deep/x": 3.0}


def _events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of every event file as it stands there, duplicates too."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = defaultdict(list)
    for file in folder.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found[value.tag].append((event.step, value.tensor.float_val[0]))
    return dict(found)


def test_event_files_hold_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    log = MetricLog(path)
    log.sinks = [TensorBoard(folder)]
    for step in range(5):
        log.write(step, loss=step / 2, hyper={"norm": float(step)}, solver="done")
    log.close()
    resumed = MetricLog(path, start=3)
    resumed.sinks = [TensorBoard(folder, read_log(path))]
    for step in range(3, 6):
        resumed.write(step, loss=step / 2, **{"g² of gain": 0.5})
    resumed.close()
    events = _events(folder)
    assert events["loss"] == [(step, step / 2) for step in range(6)]
    assert events["hyper/norm"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert events["g2_of_gain"] == [(3, 0.5), (4, 0.5), (5, 0.5)]
    assert set(events) == {"loss", "hyper/norm", "g2_of_gain"}


class FakeWandB(ModuleType):
    """``wandb.init`` → a run with ``step``, ``log(data, step=)`` and ``finish()``, as its reference has them."""

    def __init__(self, first: int = 0) -> None:
        super().__init__("wandb")
        self.step, self.asked, self.logged, self.finished = first, dict[str, Any](), list[Any](), False

    def init(self, **asked: Any) -> FakeWandB:
        self.asked = asked
        return self

    def log(self, data: dict[str, float], step: int) -> None:
        self.logged.append((step, data))

    def finish(self) -> None:
        self.finished = True


def _wandb(folder: Path, first: int = 0) -> WandB:
    return WandB("ecg", "abc", folder, mode="offline", name="run", config={"seed": 0}, first=first)


def test_a_run_of_wandb_is_offline_and_has_the_identity_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.sinks = [_wandb(tmp_path)]
    log.write(0, loss=1.0, hyper={"norm": 2.0}, skipped=None)
    log.close()
    assert fake.asked == {
        "project": "ecg",
        "id": "abc",
        "resume": "allow",
        "dir": str(tmp_path),
        "mode": "offline",
        "name": "run",
        "config": {"seed": 0},
    }
    assert fake.logged == [(0, {"loss": 1.0, "hyper/norm": 2.0})]
    assert fake.finished


@pytest.mark.parametrize(
    ("fake", "first"),
    [(FakeWandB(first=4), 0), (FakeWandB(first=0), 4)],
    ids=["online: it knows its steps", "offline: it knows none"],
)
def test_a_resumed_run_of_wandb_takes_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeWandB, first: int
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = _wandb(tmp_path, first)
    for step in range(2, 6):
        sink.write(step, {"loss": 1.0})
    assert [step for step, _ in fake.logged] == [4, 5]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    with pytest.raises(InputError, match=rf"log\.{package}: .*pip install 'ecgmeta\[{package}\]'") as caught:
        need(package, f"log.{package}")
    assert "\n" not in str(caught.value)
