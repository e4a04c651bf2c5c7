"""A whole run on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_helpers import metrics, pretrain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("route", ["double_backward", "low_precision", "cheapest"])
@pytest.mark.parametrize("unroll", [1, 3])
def test_a_run_on_a_gpu_takes_its_phi_steps_and_ends_in_a_report(
    tmp_path: Path, unroll: int, route: str
) -> None:
    settings = (
        "accelerator=cuda",
        "meta.head=steps",
        f"meta.unroll={unroll}",
        f"meta.products={route}",
        "meta.inverse=neumann",
        "meta.step_size=1e-3",
    )
    assert pretrain(tmp_path, *settings, "through=pretrain") == 0
    lines = metrics(tmp_path)
    assert pretrain(tmp_path, *settings) == 0  # fine-tunes, evaluates and reports what is there
    assert metrics(tmp_path) == lines
    steps = [line for line in lines if "hyper" in line]
    assert len(steps) == 4
    assert all(line["skipped"] is None and line["hyper"]["norm"] > 0 for line in steps)
    assert (tmp_path / "report.html").is_file()


def test_the_first_loss_on_a_gpu_is_that_on_a_cpu(tmp_path: Path) -> None:
    """Up to the views, whose noise each device draws in its own way."""
    settings = (
        "through=pretrain",
        "pretrain.max_steps=1",
        "augment.crop=0",
        "augment.noise=0",
        "pretrain.arm=simclr",
    )
    for device in ("cpu", "cuda"):
        assert pretrain(tmp_path / device, *settings, f"accelerator={device}") == 0
    cpu, cuda = (metrics(tmp_path / device)[0]["pretrain_loss"] for device in ("cpu", "cuda"))
    assert abs(cpu - cuda) < 1e-3 * abs(cpu)
