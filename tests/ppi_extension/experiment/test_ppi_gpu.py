"""A whole experiment on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ppi_run_helpers import metrics, pretrain, results

from ppi_extension.experiment.config import ARMS, Experiment
from ppi_extension.experiment.run import Study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_every_arm_runs_on_a_gpu(tmp_path: Path, store_folder: Path) -> None:
    assert pretrain(tmp_path / "study", store_folder, f"arms=[{','.join(ARMS)}]", "accelerator=cuda") == 0
    assert {row["arm"] for row in results(tmp_path / "study")["rows"]} == set(ARMS)


ANCHORED = ("pretrain.cotrain=1", "meta.start=similarity", "meta.anchor=0.1")


@pytest.mark.parametrize(("arm", "more"), [("meta", ()), ("meta_neumann1", ()), ("meta", ANCHORED)])
def test_losses_and_weights_on_a_gpu_are_those_on_a_cpu(
    tmp_path: Path, store_folder: Path, arm: str, more: tuple[str, ...]
) -> None:
    """Without dropout, which each device draws in its own way."""
    first: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        overrides = (f"arms=[{arm}]", "encoder.dropout=0", f"accelerator={device}", *more)
        assert pretrain(folder, store_folder, *overrides) == 0
        lines = metrics(Study.open(folder).run(arm, Experiment().first_seed).folder)
        first[device] = [line["pretrain_loss"] for line in lines if "pretrain_loss" in line]
    assert len(first["cpu"]) > 4
    torch.testing.assert_close(first["cuda"][:4], first["cpu"][:4], rtol=1e-3, atol=1e-4)
