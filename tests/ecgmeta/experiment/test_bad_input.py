"""Bad input: one line naming where, which field, what was found and what was expected; exit code 2; no run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import wfdb
from run_helpers import call, contents, error_line, pretrain

from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.runtime.files import folder_lock

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each


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
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("finetune", tmp_path) == 2
    assert "config.yaml" in error_line(capsys.readouterr().err)
    (tmp_path / "notes.txt").write_text("mine")
    assert pretrain(tmp_path) == 2
    assert "run folder" in error_line(capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


STATIC = ("pretrain.arm=simclr", "through=pretrain", "pretrain.max_steps=2")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of the arm simclr after pre-training, by the width of their encoders."""
    folders = {width: tmp_path_factory.mktemp("ended") / f"w{width}" for width in (8, 16)}
    for width, folder in folders.items():
        assert pretrain(folder, *STATIC, f"encoder.width={width}") == 0
    return folders


@pytest.fixture
def run(ended: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    capsys.readouterr()
    return shutil.copytree(ended[8], tmp_path / "run")


def refused(run: Path, code: int, capsys: pytest.CaptureFixture[str], before: dict[str, bytes]) -> str:
    """The error line of a command that was refused and changed nothing."""
    assert code == 2
    line = error_line(capsys.readouterr().err)
    assert "found" in line
    assert "expected" in line
    assert contents(run) == before
    return line


@pytest.mark.parametrize("spoil", ["other width", "cut", "garbage"])
def test_checkpoints_that_cannot_be_gone_on_from(
    spoil: str, run: Path, ended: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "encoder" / "model.safetensors").unlink()
    checkpoint = run / "last.ckpt"
    data = checkpoint.read_bytes()
    if spoil == "other width":
        shutil.copy(ended[16] / "last.ckpt", checkpoint)
    else:
        checkpoint.write_bytes(data[: len(data) // 2] if spoil == "cut" else b"not a checkpoint")
    before = contents(run)
    line = refused(run, pretrain(run, *STATIC), capsys, before)
    assert "last.ckpt" in line
    assert ("encoder.stem.0.weight" in line and "another architecture" in line) == (spoil == "other width")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [("other width", "stem.0.weight"), ("cut", "saved model"), ("rate", "12 leads at 100 Hz")],
)
def test_saved_encoders_that_cannot_be_fine_tuned(
    spoil: str, named: str, run: Path, ended: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "encoder" / "model.safetensors"
    if spoil == "other width":
        shutil.copy(ended[16] / "encoder" / "model.safetensors", file)
    elif spoil == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        config = run / "encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"fs": 100.0}))
    before = contents(run)
    assert named in refused(run, call("finetune", run), capsys, before)


def test_a_folder_with_another_run_names_the_first_key_that_differs(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    line = refused(run, pretrain(run, *STATIC, "pretrain.lr=0.5", "seed=3"), capsys, before)
    assert "seed: found a run with 0, expected 3" in line
    file = run.parent / "file"
    file.write_text("mine")
    assert pretrain(file, *STATIC) == 2
    assert "found a file" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("override", ["pretrain.lr=0.5", "data.fs=100", "seed=1", "data.test_fraction=0.5"])
def test_later_stages_may_not_change_what_pretraining_fixed(
    override: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    key = override.partition("=")[0]
    assert f"{key}: found" in refused(run, call("finetune", run, override), capsys, before)


@pytest.mark.parametrize("override", ["labels=1000", "finetune.lr=0", "x.y=1", "labels=ten"])
def test_refused_overrides_do_not_stay(override: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    refused(run, call("finetune", run, override), capsys, before)


def test_scores_before_there_are_any(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert "ecgmeta finetune" in refused(run, call("evaluate", run), capsys, before)


def test_two_processes_do_not_share_a_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    with folder_lock(run):
        line = refused(run, pretrain(run, *STATIC), capsys, before)
    assert "another process" in line
