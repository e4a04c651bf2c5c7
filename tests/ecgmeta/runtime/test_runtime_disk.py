"""A full disk, a folder that cannot be written, a write that was killed: one line, and what stood there still stands."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import (
    PART,
    MetricLog,
    folder_lock,
    load_checkpoint,
    read_log,
    save_checkpoint,
    write_json,
    write_text,
)
from ecgmeta.runtime.pretrained import Pretrained

STATE = {"w": torch.arange(50_000.0)}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it the system refuses to let a file grow beyond ``size`` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every temporary file is on a device that is always full."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")

    def on_full(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        return os.open("/dev/full", os.O_WRONLY), str(dir / f"{prefix}x{suffix}")

    monkeypatch.setattr(tempfile, "mkstemp", on_full)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_json(path, {"a": 1}),
        lambda path: save_checkpoint(path, STATE),
    ],
)
def test_a_full_disk_is_named_and_the_old_file_stands(
    full: None, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(
        InputError, match=r"file: writing: found No space left on device, expected room"
    ) as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_too_large_for_the_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"step": 1})
    with largest_file(20_000), pytest.raises(InputError, match=r"last\.ckpt: writing: found File too large"):
        save_checkpoint(path, STATE, tmp_path / "previous.ckpt")
    assert load_checkpoint(path) == {"step": 1}
    assert not [name for name in os.listdir(tmp_path) if name.endswith(PART)]


def _write_lines(log: MetricLog, n: int) -> None:
    for step in range(n):
        log.write(step, loss=1.0)


def test_a_log_on_a_full_disk_keeps_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    with (
        largest_file(1000),
        pytest.raises(InputError, match=r"metrics\.jsonl: writing: found File too large"),
    ):
        _write_lines(log, 100)
    log.close()
    steps = [line["step"] for line in read_log(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 10
    MetricLog(path, start=5).close()  # and a resumed run reads it
    assert len(read_log(path)) == 5


def test_weights_on_a_full_disk_are_named(tmp_path: Path) -> None:
    class Net(Pretrained, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(200, 200)

    with largest_file(20_000), pytest.raises(InputError, match=r"net: writing: found .*File too large"):
        Net().save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net" / "model.safetensors").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        raise OSError(number, os.strerror(number), str(dir / prefix))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    path = tmp_path / "last.ckpt"
    with pytest.raises(
        InputError, match=rf"{path}: writing: found {os.strerror(number)}, expected .*permission"
    ):
        save_checkpoint(path, STATE)


def test_permissions_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        with pytest.raises(InputError, match="Permission denied"):
            write_text(tmp_path / "a.txt", "new")
    finally:
        tmp_path.chmod(0o700)


def test_the_checkpoint_before_is_kept_beside(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in range(4):
        save_checkpoint(last, {"step": step}, previous)
        assert load_checkpoint(last) == {"step": step}
        assert previous.exists() == (step > 0)
        if step:
            assert load_checkpoint(previous) == {"step": step - 1}
    # A write that fails gives the last one its second name; the next write finds both names there.
    with largest_file(20_000), pytest.raises(InputError):
        save_checkpoint(last, STATE, previous)
    save_checkpoint(last, {"step": 4}, previous)
    assert [load_checkpoint(path)["step"] for path in (last, previous)] == [4, 3]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


def test_without_hard_links_there_is_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*names: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for step in range(2):
        save_checkpoint(tmp_path / "last.ckpt", {"step": step}, tmp_path / "previous.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt") == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_what_a_killed_process_was_writing_is_swept_with_the_lock(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f".last.ckpt.x{PART}").write_text("half")
    (tmp_path / f".encoder.x{PART}").mkdir()
    (tmp_path / f".encoder.x{PART}" / "model.safetensors").write_text("half")
    (tmp_path / f"mine{PART}").write_text("not hidden: not ours")
    with folder_lock(tmp_path):
        names = {path.name for path in tmp_path.rglob("*")}
    assert names == {".lock", "sub", f"mine{PART}"}
