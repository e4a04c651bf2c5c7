"""Files that are whole or absent, checkpoints that execute nothing, logs that hold every step once, the lock."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import torch

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import (
    MetricLog,
    folder_lock,
    load_checkpoint,
    read_json,
    read_log,
    save_checkpoint,
    write_atomic,
    write_json,
    write_text,
)


def test_the_error_is_one_line_and_keeps_its_parts() -> None:
    error = InputError("a.dat", "length", "2\n3", "4")
    assert str(error) == "a.dat: length: found 2 3, expected 4"
    assert (error.where, error.field, error.found, error.expected) == ("a.dat", "length", "2\n3", "4")
    assert isinstance(error, ValueError)


def test_writing_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("first, and longer", "µV"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise failure

    with pytest.raises(failure):
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_says_null_where_a_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": float("nan"), "b": [1.5, float("-inf")], 3: (float("inf"), "x")})
    assert read_json(path) == {"a": None, "b": [1.5, None], "3": [None, "x"]}


@pytest.mark.parametrize("content", [None, "", "{", b"\xff\xfe"])
def test_json_that_is_none_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"a\.json: (file|content): found .*JSON"):
        read_json(path)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    plain = {"step": 3, "name": "x", "rows": [1, 2], "none": None}
    save_checkpoint(tmp_path / "last.ckpt", {**plain, "theta": {"w": weight}})
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded.pop("theta")["w"], weight)
    assert loaded == plain
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def _refused(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"w": torch.randn(500, generator=torch.Generator().manual_seed(0))})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    _refused(path)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _refused(path)
    _refused(tmp_path)
    path.write_text("step: 3\n")
    _refused(path)
    torch.save([torch.zeros(2)], path)
    _refused(path)


class _Malicious:
    """A pickle of it creates a file when it is loaded by anything that executes pickles."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_nothing_that_a_checkpoint_holds_is_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "last.ckpt"
    torch.save({"w": _Malicious(target)}, path)
    _refused(path)
    path.write_bytes(pickle.dumps({"w": _Malicious(target)}, protocol=2))
    _refused(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the trap works
    assert target.exists()


def test_a_resumed_log_holds_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    for step in range(5):
        log.write(step, loss=step / 2, extra=float("nan"))
    log.close()
    with path.open("a") as file:
        file.write('{"step": 5, "los')  # killed while writing
    assert [line["step"] for line in read_log(path)] == [0, 1, 2, 3, 4]
    resumed = MetricLog(path, start=3)
    resumed.write(3, loss=-1.0)
    resumed.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, -1.0)]
    assert lines[0]["extra"] is None


def test_a_new_log_forgets_an_old_one_and_is_readable_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        log = MetricLog(path)
        log.write(0, loss=1.0)
        assert read_log(path) == [{"step": 0, "loss": 1.0}]
        log.close()


def test_a_broken_line_before_the_last_is_no_quiet_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2: found .*expected one JSON object a line"):
        read_log(path)


def test_a_second_taker_of_a_folder_is_refused(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run"):
        with (
            pytest.raises(InputError, match="run folder: found another process"),
            folder_lock(tmp_path / "run"),
        ):
            pass
        with folder_lock(tmp_path / "other"):
            pass
    with folder_lock(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ecgmeta.runtime.files import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another process"), folder_lock(tmp_path):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with folder_lock(tmp_path):
        pass
