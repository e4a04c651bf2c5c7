"""Sinks beside the metric log: what they are given, read back; and the line for a package that is not there."""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


def _wandb(folder: Path, mode: str = "offline", history: Sequence[Mapping[str, Any]] = ()) -> WandB:
    return WandB("ecg", "abc", folder, mode=mode, name="run", config={"seed": 0}, history=history)


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
    ("mode", "known", "expected"),
    [("online", 2, [2, 3, 4, 5]), ("online", 5, [5]), ("offline", 0, [0, 1, 2, 3, 4, 5])],
    ids=["online: a kill has lost some", "online: the server is ahead", "offline: nothing knows"],
)
def test_a_resumed_run_of_wandb_gets_from_the_log_what_is_lacking_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, known: int, expected: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB(known))
    sink = _wandb(tmp_path, mode, [{"step": step, "loss": 1.0} for step in range(4)])
    for step in (4, 5):
        sink.write(step, {"loss": 1.0})
    fake = sys.modules["wandb"]
    assert isinstance(fake, FakeWandB)
    assert fake.logged == [(step, {"loss": 1.0}) for step in expected]


def _wandb_steps(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and numbers of every history record in a file of W&B, which is a LevelDB log: after 7 bytes of its own, blocks of
    32 KiB with records of checksum (4), length (2), kind (1: whole, 2 to 4: first, middle and last part) and content."""
    record_type = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, parts, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, parts = record_type.FromString(parts), b""
            if record.HasField("history"):
                items = {
                    "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item
                }
                numbers = {name: value for name, value in items.items() if not name.startswith("_")}
                found.append((record.history.step.num, numbers))
    return found


KILLED = """
import os, signal
from pathlib import Path
from ecgmeta.runtime.files import MetricLog
from ecgmeta.runtime.sinks import WandB
log = MetricLog(Path("metrics.jsonl"))
log.sinks = [WandB("ecg", "abc", Path("."), mode="offline", name="run", config={"seed": 0})]
for step in range(40):
    log.write(step, loss=step / 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_files_of_wandb_itself_hold_every_step_once_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="no package wandb: pip install 'ecgmeta[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (first,) = tmp_path.glob("wandb/offline-run-*-abc")
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, start=38)
    log.sinks = [_wandb(tmp_path, history=read_log(path))]
    for step in range(38, 42):
        log.write(step, loss=step / 2, hyper={"norm": 2.5}, skipped=None)
    log.close()
    wandb.teardown()  # its process has then written everything
    (file,) = tmp_path.glob("wandb/offline-run-*-abc/run-abc.wandb")
    assert not first.exists()
    expected = [
        (step, {"loss": step / 2} | ({"hyper/norm": 2.5} if step >= 38 else {})) for step in range(42)
    ]
    assert _wandb_steps(file) == expected


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    with pytest.raises(InputError, match=rf"log\.{package}: .*pip install 'ecgmeta\[{package}\]'") as caught:
        need(package, f"log.{package}")
    assert "\n" not in str(caught.value)
