"""A cache built by several processes is the one that a single process builds, and fails as that one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import sound_ecg, write_record, write_tree

from ecgmeta.data import WFDBFolder, cache
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.processes import share

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
RECORDS = 30


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """From here on small trees are shared, too; whether each build was."""
    found: list[bool] = []

    def noted(*arguments: Any) -> Any:
        result = share(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(threading, "active_count", lambda: 1)  # whatever runs the tests may keep a thread
    monkeypatch.setattr(cache, "share", noted)
    monkeypatch.setattr(cache, "processors", lambda: 3)
    monkeypatch.setattr(cache, "_LEAST_RECORDS", 1)
    monkeypatch.setattr(cache, "_BLOCK", 4)
    return found


def built(root: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    WFDBFolder(root, cache=folder, **options)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alone(monkeypatch: pytest.MonkeyPatch, root: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    with monkeypatch.context() as patch:
        patch.setattr(cache, "processors", lambda: 1)
        return built(root, folder, **options)


def hard_tree(root: Path) -> Path:
    """Usual headers and others, another gain and rate, and bad records in the first block, a middle one and the whole of
    one."""
    write_tree(root, RECORDS)
    for number in range(0, RECORDS, 2):
        write_record(root / f"part/R{number}", sound_ecg(seed=number), comments=())
    write_record(root / "part/R21", sound_ecg(seed=21) * 3, gain="317/mV")
    write_record(root / "part/R4", sound_ecg(seed=4), fs=250)
    names = sorted(path.stem for path in root.rglob("*.hea"))
    for place in (0, 1, 9, *range(16, 20)):
        (root / f"part/{names[place]}.dat").write_bytes(b"")
    flat = sound_ecg(seed=22)
    flat[3] = 7
    write_record(root / f"part/{names[10]}", flat)
    (root / f"part/{names[25]}.hea").write_text("no header\n")
    return root


@pytest.mark.parametrize("fs", [100, 500])
def test_the_same_bytes_whoever_builds(
    tmp_path: Path, shared: list[bool], monkeypatch: pytest.MonkeyPatch, fs: int
) -> None:
    root = hard_tree(tmp_path / "tree")
    options: dict[str, Any] = {"on_error": "skip", "fs": fs}
    found = built(root, tmp_path / "shared", **options)
    assert shared == [True]
    assert found == alone(monkeypatch, root, tmp_path / "alone", **options)
    data = WFDBFolder(root, cache=tmp_path / "shared", **options)
    assert len(data.skipped) == 9
    assert len(data) == RECORDS - 9


def test_the_first_broken_record_is_the_error(
    tmp_path: Path, shared: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "tree", RECORDS)
    names = sorted(path.stem for path in root.rglob("*.hea"))
    for place in (28, 13, 14):
        (root / f"part/{names[place]}.dat").unlink()
    with pytest.raises(InputError) as one:
        alone(monkeypatch, root, tmp_path / "cache")
    with pytest.raises(InputError, match=rf"{names[13]}\.dat, which does not exist") as many:
        built(root, tmp_path / "cache")
    assert shared == [False]
    assert str(one.value) == str(many.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_recording_too_large_for_int16_is_stored_as_ever(
    tmp_path: Path, shared: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "tree", RECORDS)
    write_record(root / "part/R17", sound_ecg(seed=17), gain="10/mV")
    found = built(root, tmp_path / "shared")
    assert shared == [False]
    assert found == alone(monkeypatch, root, tmp_path / "alone")
    assert WFDBFolder(root, cache=tmp_path / "shared").signals.max() > cache.LARGEST_MV


def test_progress_never_goes_back_and_ends(tmp_path: Path, shared: list[bool]) -> None:
    said: list[tuple[int, int]] = []
    root = write_tree(tmp_path / "tree", RECORDS)
    WFDBFolder(root, cache=tmp_path / "cache", progress=lambda done, total, _: said.append((done, total)))
    assert shared == [True]
    assert said == sorted(said)
    assert said[-1] == (RECORDS, RECORDS)


def test_a_progress_that_raises_stops_the_build(tmp_path: Path, shared: list[bool]) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if total:
            raise RuntimeError("enough")

    root = write_tree(tmp_path / "tree", RECORDS)
    with pytest.raises(RuntimeError, match="enough"):
        WFDBFolder(root, cache=tmp_path / "cache", progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


SCRIPT = """
import os, signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it runs in the background
torch.set_num_threads(2)
torch.rand(600, 600) @ torch.rand(600, 600)
from ecgmeta.data import WFDBFolder, cache
from ecgmeta.data.sources import wfdb_folder
cache._LEAST_RECORDS, cache._BLOCK, cache.processors = 1, 4, lambda: 3
read, slow = wfdb_folder.read_record, float(sys.argv[3])
def slowly(*arguments, **options):
    os.write(1, f"reading {os.getpid()}\\n".encode())  # in one piece
    time.sleep(slow)
    return read(*arguments, **options)
wfdb_folder.read_record = slowly
print("sum", WFDBFolder(sys.argv[1], cache=sys.argv[2]).signals.sum(), flush=True)
"""


def run(tmp_path: Path, root: Path, slow: float) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(tmp_path / "cache"), str(slow)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_script_without_a_main_guard_that_has_used_torchs_threads(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", RECORDS)
    with run(tmp_path, root, slow=0.01) as process:
        out, err = process.communicate(timeout=120)
    lines = [line.split() for line in out.splitlines()]
    assert (process.returncode, err) == (0, "")
    assert len({line[1] for line in lines if line[0] == "reading"}) == 3
    sums = [float(line[1]) for line in lines if line[0] == "sum"]
    np.testing.assert_allclose(sums, [WFDBFolder(root).signals.sum()], rtol=1e-4)


@pytest.mark.slow
def test_ctrl_c_ends_all_of_it_with_one_traceback(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", RECORDS)
    with run(tmp_path, root, slow=5) as process:
        assert process.stdout is not None
        readers = {process.stdout.readline() for _ in range(3)}
        assert len(readers) == 3
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1
    assert err.count("Traceback") == 1
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(process.pid, 0)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_readers_of_a_killed_build_go_too(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", RECORDS)
    with run(tmp_path, root, slow=0.3) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        process.wait(60)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("a reader outlived its parent")
