"""Bad input: one line naming where, which field, what was found and what was expected; exit code 2; no run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import wfdb
from run_helpers import call, error_line, pretrain

from ecgmeta.data.leads import STANDARD_LEADS


def write_records(folder: Path, n: int = 6, spoil: str = "", leads: tuple[str, ...] = STANDARD_LEADS) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        signal = rng.normal(0, 0.3, (500, len(leads)))
        if k == 2 and spoil == "flat":
            signal[:, 4] = 0.1
        if k == 2 and spoil == "nan":
            signal[:, 4] = np.nan
        wfdb.wrsamp(
            f"R{k}", 100, ["mV"] * len(leads), list(leads), signal, fmt=["16"] * len(leads),
            adc_gain=[1000.0] * len(leads), baseline=[0] * len(leads), comments=["Age: 50", "Sex: Male", "Dx: 426783006"],
            write_dir=str(folder),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ("truncated", "R2.dat"),
        ("missing", "R2.dat"),
        ("flat", "aVL"),
        ("nan", "aVL"),
        ("leads", "leads"),
    ],
)
def test_spoiled_recordings(
    spoil: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "records", tmp_path / "run"
    write_records(folder, spoil=spoil)
    if spoil == "truncated":
        data = (folder / "R2.dat").read_bytes()
        (folder / "R2.dat").write_bytes(data[: len(data) // 2])
    if spoil == "missing":
        (folder / "R2.dat").unlink()
    if spoil == "leads":
        shutil.rmtree(folder)
        write_records(folder, leads=("MLII", "V5"))
    sources = ["data.pretrain=[wfdb]", "data.finetune=wfdb", f"data.root={folder}"]
    assert pretrain(out, *sources) == 2
    line = error_line(capsys.readouterr().err)
    assert named.lower() in line.lower()
    assert "found" in line
    assert "expected" in line
    assert not out.exists()


def test_an_unknown_key_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(tmp_path / "run", "pretrain.batchsize=3") == 2
    assert "'pretrain.batch_size'" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["data.pretrain=[ludb]", "data.finetune=ludb", f"data.root={tmp_path / 'nowhere'}"]
    assert pretrain(tmp_path / "run", *sources) == 2
    assert "nowhere" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_labels_with_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path / "records", n=30)
    sources = ["data.pretrain=[wfdb]", "data.finetune=wfdb", f"data.root={tmp_path / 'records'}"]
    assert pretrain(tmp_path / "run", *sources, "meta.labels=15") == 2
    assert "one class only" in error_line(capsys.readouterr().err)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("finetune", tmp_path) == 2
    assert "config.yaml" in error_line(capsys.readouterr().err)
    (tmp_path / "notes.txt").write_text("mine")
    assert pretrain(tmp_path) == 2
    assert "run folder" in error_line(capsys.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == ["notes.txt"]


def test_checkpoints_of_another_architecture_or_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    static = ["pretrain.arm=simclr", "through=pretrain"]
    assert pretrain(small, *static) == 0
    assert pretrain(large, *static, "encoder.width=8") == 0
    for name in ("encoder/model.safetensors", "last.ckpt"):
        (large / name).unlink()
    shutil.copy(small / "last.ckpt", large / "last.ckpt")
    capsys.readouterr()
    assert pretrain(large, *static, "encoder.width=8") == 2
    assert "another architecture" in error_line(capsys.readouterr().err)
    data = (small / "last.ckpt").read_bytes()
    (large / "last.ckpt").write_bytes(data[: len(data) // 2])
    assert pretrain(large, *static, "encoder.width=8") == 2
    assert "last.ckpt" in error_line(capsys.readouterr().err)
    assert pretrain(small, *static, "pretrain.lr=0.5") == 2
    assert "pretrain.lr" in error_line(capsys.readouterr().err)
