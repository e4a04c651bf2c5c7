"""The command line called in this process, and what experiments are compared by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file
from torch import Tensor

from ppi_extension.cli import main

TINY = [
    *("encoder.width=8", "encoder.layers=2", "seeds=1", "pretrain.max_steps=8", "pretrain.batch_size=16"),
    *("pretrain.log_every=1", "pretrain.checkpoint_every=3", "pretrain.lengths=[0.5,1.0]"),
    *("meta.warmup_epochs=0", "meta.period=2", "meta.batch_size=16", "meta.validation_size=24"),
    *("finetune.epochs=3", "finetune.lr=0.05"),
]


def call(*arguments: object) -> int:
    """Exit code of ``ppi-extension ARGUMENTS``."""
    with mock.patch.object(sys, "argv", ["ppi-extension", *map(str, arguments)]):
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def pretrain(folder: Path, store: Path, *overrides: str) -> int:
    """Exit code of a tiny experiment in ``folder``."""
    return call("pretrain", "--out", folder, *TINY, f"data.store={store}", *overrides)


def error_line(stderr: str) -> str:
    """The one line that says what is wrong, and no traceback."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metric log without times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def encoders(run: Path) -> dict[str, dict[str, Tensor]]:
    """Every encoder of a run by its length."""
    return {each.name: weights(each) for each in sorted((run / "encoders").iterdir())}


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether every tensor is the same to the last bit."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
