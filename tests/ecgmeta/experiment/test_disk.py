"""Runs on a disk that is full, in a folder that cannot be written, from a checkpoint that is broken."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from run_helpers import contents, error_line, metrics, pretrain, same_tensors, watched, weights

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

STATIC = ("pretrain.arm=simclr", "through=pretrain", "pretrain.checkpoint_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(folder, *STATIC) == 0
    return folder


def _fill(folder: Path, at: int, size: int) -> int:
    """The exit code of a run in ``folder`` whose files may not grow beyond ``size`` bytes once ``at`` steps are done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int, total: int, text: str) -> None:
        if done == at and text.startswith("pre-training"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        with watched(fill):
            return pretrain(folder, *STATIC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _same(folder: Path, whole: Path) -> None:
    assert metrics(folder) == metrics(whole)
    assert same_tensors(weights(folder / "encoder"), weights(whole / "encoder"))


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert _fill(folder, at=5, size=20_000) == 2
    line = error_line(capsys.readouterr().err)
    assert f"{folder / 'last.ckpt'}: writing: found File too large" in line
    assert not (folder / "encoder").exists()
    assert not [name for name in contents(folder) if name.endswith(".part")]
    with watched(lambda done, total, text: None):
        assert pretrain(folder, *STATIC) == 0
    _same(folder, whole)


@pytest.mark.slow
def test_a_disk_too_full_for_a_line_of_metrics(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert _fill(folder, at=5, size=500) == 2
    assert "metrics.jsonl: writing: found File too large" in error_line(capsys.readouterr().err)
    assert pretrain(folder, *STATIC) == 0
    _same(folder, whole)


def test_a_folder_on_a_read_only_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*arguments: Any, **named: Any) -> tuple[int, str]:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(named["dir"]))

    with mock.patch.object(tempfile, "mkstemp", refuse):
        assert pretrain(tmp_path / "run", *STATIC) == 2
    line = error_line(capsys.readouterr().err)
    assert "config.yaml: writing: found Read-only file system" in line


def test_a_folder_without_permission_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        assert pretrain(tmp_path / "run", *STATIC) == 2
    finally:
        tmp_path.chmod(0o700)
    assert f"{tmp_path / 'run'}: Permission denied" in error_line(capsys.readouterr().err)


@pytest.mark.slow
def test_a_half_written_checkpoint_is_named_with_the_one_before_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def power_cut(done: int, total: int, text: str) -> None:
        if done == 5:
            raise RuntimeError("power cut")

    with watched(power_cut), pytest.raises(RuntimeError, match="power cut"):
        pretrain(folder, *STATIC)
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    capsys.readouterr()
    assert pretrain(folder, *STATIC) == 2
    line = error_line(capsys.readouterr().err)
    assert line.startswith(f"error: {last}: content: found ")
    assert line.endswith("delete it to go on from previous.ckpt")
    last.unlink()
    before = (folder / "previous.ckpt").read_bytes()
    (folder / "previous.ckpt").write_bytes(before[:5000])
    assert pretrain(folder, *STATIC) == 2
    line = error_line(capsys.readouterr().err)
    assert line.startswith(f"error: {folder / 'previous.ckpt'}: content: found ")
    assert line.endswith("delete it to start again")
    (folder / "previous.ckpt").write_bytes(before)
    assert pretrain(folder, *STATIC) == 0
    assert "going on from step 2 of 8" in capsys.readouterr().err
    _same(folder, whole)
    assert not (folder / "previous.ckpt").exists()


def test_what_was_half_written_before_the_first_file_does_not_make_the_folder_foreign(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.yaml.x.part").write_text("see")
    (folder / ".lock").touch()
    assert pretrain(folder, *STATIC, "pretrain.max_steps=1") == 0
    assert not (folder / ".config.yaml.x.part").exists()
