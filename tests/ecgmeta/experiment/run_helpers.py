"""The command line called in this process (importing torch and lightly once), and what runs are compared by."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file
from torch import Tensor

from ecgmeta.cli import main
from ecgmeta.runtime.progress import Report

# 84 recordings of 250 samples to pre-train on (5 steps an epoch), 40 of them labelled, 36 to test on.
TINY = [
    *("data.synthetic.n=120", "data.duration=5", "data.fs=50", "encoder.width=8"),
    *(
        "pretrain.batch_size=16",
        "pretrain.max_steps=8",
        "pretrain.log_every=1",
        "pretrain.checkpoint_every=3",
    ),
    *(
        "meta.labels=40",
        "meta.batch_size=16",
        "meta.period=2",
        "meta.warmup_epochs=0",
        "meta.inverse=identity",
    ),
    *("finetune.labels=[40]", "finetune.seeds=1", "finetune.epochs=2", "finetune.processes=1"),
    "evaluate.bootstrap=20",
]


def call(*arguments: object) -> int:
    """Exit code of ``ecgmeta ARGUMENTS``."""
    with mock.patch.object(sys, "argv", ["ecgmeta", *map(str, arguments)]):
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def pretrain(folder: Path, *overrides: str) -> int:
    """Exit code of a tiny run in ``folder``."""
    return call("pretrain", "--out", folder, *TINY, *overrides)


def error_line(stderr: str) -> str:
    """The one line that says what is wrong, and no traceback."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock, which is empty and the kernel's."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The metric log without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def results(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.json without times."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether every tensor is the same to the last bit."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@contextmanager
def watched(action: Callable[[int, int, str], None]) -> Iterator[None]:
    """Within it, a run calls ``action(done, total, text)`` where it would show progress."""

    def report(done: int, total: int, text: str, left: float | None = None) -> None:
        action(done, total, text)

    @contextmanager
    def bar() -> Iterator[Report]:
        yield report

    with mock.patch("ecgmeta.experiment.stages.progress_bar", bar):
        yield
