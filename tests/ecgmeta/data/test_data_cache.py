"""The cache: the same numbers, safe under a kill, two writers and corruption."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from data_helpers import sound_ecg, write_record, write_tree

from ecgmeta.data import LUDB, PTBXL, WFDBFolder
from ecgmeta.data.cache import LARGEST_MV, write_signals
from ecgmeta.data.preprocess import Window
from ecgmeta.data.store import ScaledStore
from ecgmeta.runtime.errors import InputError


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a record that is read is a failure: the cache must answer."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a record was read although the cache holds it")

    monkeypatch.setattr("ecgmeta.data.sources.wfdb_folder.read_record", read)
    monkeypatch.setattr("ecgmeta.data.sources.ptbxl.read_record", read)


def test_cached_equals_read_to_half_a_microvolt(real_data: Path, tmp_path: Path) -> None:
    plain = LUDB(real_data / "ludb")
    for _ in range(2):
        cached = LUDB(real_data / "ludb", cache=tmp_path)
        assert np.abs(cached.signals - plain.signals).max() <= 5e-4
        assert cached.meta.equals(plain.meta)
        assert (cached.meta.dtypes == plain.meta.dtypes).all()
        np.testing.assert_array_equal(cached.labels, plain.labels)
    assert len(entries(tmp_path)) == 1


def test_whole_microvolts_come_back_to_the_bit_whatever_folds_are_asked(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = real_data / "ptbxl_fixture"
    plain, folds, rhythm = PTBXL(root), PTBXL(root, folds=[3, 9]), PTBXL(root, labels="rhythm")
    PTBXL(root, folds=[10], cache=tmp_path)
    refuse_reading(monkeypatch)
    for expected, found in (
        (plain, PTBXL(root, cache=tmp_path)),
        (folds, PTBXL(root, folds=[3, 9], cache=tmp_path)),
        (rhythm, PTBXL(root, labels="rhythm", cache=tmp_path)),
    ):
        np.testing.assert_array_equal(found.signals, expected.signals)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.meta.equals(expected.meta)
    assert len(entries(tmp_path)) == 1


def test_what_was_skipped_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_tree(tmp_path / "tree"), tmp_path / "cache"
    (root / "part/R1.dat").write_bytes(b"")
    first = WFDBFolder(root, on_error="skip", cache=cache)
    refuse_reading(monkeypatch)
    second = WFDBFolder(root, on_error="skip", cache=cache)
    assert first.skipped == second.skipped
    assert "R1.dat" in second.skipped[0]


def test_the_key_follows_files_and_settings(tmp_path: Path) -> None:
    root, cache = write_tree(tmp_path / "tree"), tmp_path / "cache"
    before = WFDBFolder(root, cache=cache).signals
    WFDBFolder(root, cache=cache, fs=50)
    WFDBFolder(root, cache=cache, checksum=False)
    assert len(entries(cache)) == 3
    write_record(root / "part/R0", sound_ecg(seed=99))
    changed = WFDBFolder(root, cache=cache)
    assert len(entries(cache)) == 4
    assert np.abs(changed.signals[0] - before[0]).max() > 0.1
    np.testing.assert_array_equal(changed.signals[1:], before[1:])


@pytest.mark.parametrize("part", ["signals.npy", "units.npy", "index.json", "windows.json", "info.json"])
@pytest.mark.parametrize("how", ["truncate", "flip", "remove"])
def test_a_broken_entry_is_rebuilt_with_a_warning(tmp_path: Path, part: str, how: str) -> None:
    root, cache = write_tree(tmp_path / "tree", 2, seconds=2.0), tmp_path / "cache"
    before = WFDBFolder(root, cache=cache).signals
    file = cache / entries(cache)[0] / part
    whole = file.read_bytes()
    if how == "remove":
        file.unlink()
    else:
        middle = len(whole) // 2
        # A flipped brace or digit of info.json would be a readable, different statement: break its first byte instead.
        at = 0 if part == "info.json" else middle
        flipped = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        file.write_bytes(whole[:middle] if how == "truncate" else flipped)
    with pytest.warns(UserWarning, match="broken cache entry is rebuilt"):
        after = WFDBFolder(root, cache=cache)
    np.testing.assert_array_equal(after.signals, before)
    assert len(entries(cache)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WFDBFolder(root, cache=cache)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    root, cache = write_tree(tmp_path / "tree"), tmp_path / "cache"
    (root / "part/R3.dat").unlink()
    with pytest.raises(InputError, match=r"R3.dat, which does not exist"):
        WFDBFolder(root, cache=cache)
    assert entries(cache) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cache folder"):
        WFDBFolder(root, cache=blocked / "cache")


SLOW_BUILD = """
import sys, time
from ecgmeta.data import WFDBFolder
def wait(done, total, text):
    if text.startswith("reading") and done < total:
        print("half", flush=True); time.sleep(30)
WFDBFolder(sys.argv[1], cache=sys.argv[2], progress=wait)
"""


@pytest.mark.slow
def test_a_killed_build_leaves_no_entry_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    root, cache = write_tree(tmp_path / "tree"), tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(root), str(cache)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    (left,) = entries(cache)
    assert left.startswith(".building-")
    old = time.time() - 2 * 24 * 3600
    os.utime(cache / left, (old, old))
    data = WFDBFolder(root, cache=cache)
    assert len(data) == 4
    (entry,) = entries(cache)  # what the killed one left was old enough to be removed
    assert entry.startswith("wfdb-")


def _build(root: Path, cache: Path, barrier: Barrier) -> None:
    barrier.wait(60)
    data = WFDBFolder(root, cache=cache)
    assert len(data) == 4


def test_two_writers_at_once_leave_one_good_entry(tmp_path: Path) -> None:
    root, cache = write_tree(tmp_path / "tree"), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_build, args=(root, cache, barrier)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(entries(cache)) == 1
    np.testing.assert_allclose(WFDBFolder(root, cache=cache).signals, WFDBFolder(root).signals, atol=5e-4)


def test_a_recording_too_large_for_int16_makes_the_file_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((6, 2, 30)).astype(np.float32)
    signals[3, 1, 4] = 2 * LARGEST_MV
    signals[1] = np.rint(signals[1] * 1000) / 1000
    windows = [Window(x, 0, 30, ()) for x in signals]
    units, dtype = write_signals(tmp_path / "x.npy", windows, (2, 30))
    assert dtype == np.float32
    stored = np.load(tmp_path / "x.npy")
    assert stored.dtype == np.float32
    assert np.abs(stored - signals).max() < 5e-4
    np.testing.assert_array_equal(stored[[1, 3, 4, 5]], signals[[1, 3, 4, 5]])
    assert (units == 1).all()
    units, dtype = write_signals(tmp_path / "y.npy", windows[:3], (2, 30))
    assert dtype == np.int16
    back = ScaledStore(tmp_path / "y.npy", units).all()
    np.testing.assert_array_equal(back[1], signals[1])
    assert np.abs(back - signals[:3]).max() <= np.abs(signals[:3]).max() / 65534 * 1.01
