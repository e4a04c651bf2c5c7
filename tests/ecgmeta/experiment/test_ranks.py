"""Two processes of `torchrun` end with the run of one; a step in micro-batches or bfloat16 still makes one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, pretrain
from safetensors.torch import load_file

from ecgmeta.runtime.ranks import Ranks, find_ranks

# A policy without a network and an encoder without batch statistics: nothing depends on which records a rank has.
SAME = (
    *("augment.augmenter=policy", "encoder.norm=group", "meta.products=double_backward", "meta.lr=1e-3"),
    # With α this small Adam's eps hides the rounding of entries near 0, whose sign would else decide a whole step.
    *("meta.head=steps", "meta.step_size=1e-3", "through=pretrain", "compare=[simclr]"),
)
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "-m",
    "ecgmeta",
    "pretrain",
]


def _two(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--out", str(folder), *TINY, *SAME, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            # pid (name) state parent ..., and a name may hold anything.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return sorted(found)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_torchrun_pretrains_as_one_process_does(tmp_path: Path) -> None:
    process = _two(tmp_path / "two")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert pretrain(tmp_path / "one", *SAME) == 0
    for arm in ("", "compare/simclr"):
        one, two = _lines(tmp_path / "one" / arm), _lines(tmp_path / "two" / arm)
        assert [line["step"] for line in two] == [line["step"] for line in one]
        losses, expected = ([x["pretrain_loss"] for x in lines] for lines in (two, one))
        assert losses[0] == pytest.approx(expected[0], rel=1e-6)
        # Rounding grows through Adam: 1e-5 after eight steps.
        assert losses == pytest.approx(expected, rel=1e-4)
    norms = [[x["hyper"]["norm"] for x in _lines(tmp_path / run) if "hyper" in x] for run in ("one", "two")]
    assert len(norms[0]) == 4
    # Equal sums in another order, in float32, which Adam then divides by numbers near 0; test_gather.py has them in float64.
    assert norms[1][0] == pytest.approx(norms[0][0], rel=1e-3)
    assert norms[1] == pytest.approx(norms[0], rel=0.1)
    phi = [load_file(tmp_path / run / "augmenter" / "model.safetensors") for run in ("one", "two")]
    # Adam's first four steps are of the length of its learning rate, 0.03, whatever the gradient: rounding, 2 % of the third
    # hypergradient, counts for little of them.
    for name, value in phi[0].items():
        torch.testing.assert_close(phi[1][name], value, rtol=0, atol=5e-3, msg=name)
    assert "pre-training meta" in output
    assert "batch normalisation" not in output
    assert (
        output.count("recordings to pre-train on") == 2
    )  # each says it before it knows the other; then one speaks


@pytest.mark.slow
def test_a_stop_of_one_process_stops_and_saves_both(tmp_path: Path) -> None:
    process = _two(tmp_path / "two", "pretrain.max_steps=400", "pretrain.epochs=100", "encoder.norm=batch")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (tmp_path / "two" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.kill(_children(process.pid)[0], signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "The same command goes on from here" in output
    assert output.count("batch normalisation: each process takes the statistics of its own part") == 1
    steps = len(_lines(tmp_path / "two"))
    assert 3 <= steps < 400


def test_a_process_alone_leads_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ranks = find_ranks("cpu")
    assert (ranks.rank, ranks.size, ranks.leads, ranks.device.type) == (0, 1, True, "cpu")
    ranks.wait()
    assert ranks.agreed(None) is None
    assert ranks.agreed(15) == 15
    assert not Ranks(torch.device("cpu"), 1, 2).leads


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["pretrain.micro_batches=4", "pretrain.precision=bf16"])
def test_a_run_in_micro_batches_or_bfloat16_learns_and_differs(tmp_path: Path, setting: str) -> None:
    assert pretrain(tmp_path / "plain", *SAME) == 0
    assert pretrain(tmp_path / "other", *SAME, setting) == 0
    plain, other = (_lines(tmp_path / run) for run in ("plain", "other"))
    assert [line["step"] for line in plain] == [line["step"] for line in other]
    first, its = plain[0]["pretrain_loss"], other[0]["pretrain_loss"]
    assert its != first
    # Four negatives a record instead of fifteen times two: a lower loss by about the logarithm of that; bfloat16 keeps it.
    assert abs(its - first) < 0.05 if "bf16" in setting else its < first - 0.5
    assert sum("hyper" in line for line in other) == 4


def test_batches_that_processes_and_parts_cannot_share_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "run", "pretrain.micro_batches=5") == 2
    said = capsys.readouterr().err
    assert "pretrain.batch_size: found 16, expected a multiple of 5" in said
