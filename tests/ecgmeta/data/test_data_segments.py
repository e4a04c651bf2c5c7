"""Multi-segment records: joined by lead names, refused where the parts do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from wfdb_files import write_format

from ecgmeta.data import WFDBFolder
from ecgmeta.data.records import read_record
from ecgmeta.runtime.errors import InputError


def write_parts(folder: Path, lengths: tuple[int, ...] = (30, 20)) -> list[Path]:
    """Segments s0, s1, ... of three signals."""
    rng = np.random.default_rng(0)
    return [
        write_format(folder / f"s{n}", rng.integers(-500, 500, (3, length)).tolist(), 16)
        for n, length in enumerate(lengths)
    ]


def write_whole(folder: Path, lines: str, head: str = "m/2 3 250 50") -> Path:
    (folder / "m.hea").write_text(f"{head}\n{lines}\n")
    return folder / "m"


def write_layout(folder: Path, leads: tuple[str, ...]) -> None:
    lines = [f"~ 0 100/mV 16 0 0 0 0 {lead}" for lead in leads]
    (folder / "layout.hea").write_text("\n".join([f"layout {len(leads)} 250 0", *lines]) + "\n")


def rename(part: Path, old: str, new: str) -> None:
    header = part.with_suffix(".hea")
    header.write_text(header.read_text().replace(old, new))


def test_segments_of_one_layout_stand_end_to_end(tmp_path: Path) -> None:
    import wfdb

    parts = write_parts(tmp_path)
    for head in ("m/2 3 250 50", "m/2 3 250"):
        found = read_record(write_whole(tmp_path, "s0 30\ns1 20", head))
        expected = np.concatenate([read_record(part).signal for part in parts], axis=1)
        np.testing.assert_array_equal(found.signal, expected)
        assert found.leads == ("lead0", "lead1", "lead2")
    whole = wfdb.rdrecord(str(write_whole(tmp_path, "s0 30\ns1 20")))
    np.testing.assert_array_equal(found.signal, whole.p_signal.T.astype(np.float32))
    one = read_record(write_whole(tmp_path, "s0 30", "m/1 3 250 30"))
    np.testing.assert_array_equal(one.signal, expected[:, :30])


def test_a_layout_places_each_lead_by_name_and_leaves_the_rest_missing(tmp_path: Path) -> None:
    import wfdb

    parts = write_parts(tmp_path)
    rename(parts[1], "lead0", "lead3")  # s1 holds lead3, lead1, lead2
    write_layout(tmp_path, ("lead2", "lead0", "lead1", "lead3"))
    path = write_whole(tmp_path, "layout 0\ns0 30\n~ 7\ns1 20", "m/4 4 250 57")
    found = read_record(path)
    first, second = (read_record(part).signal for part in parts)
    expected = np.full((4, 57), np.nan, dtype=np.float32)
    expected[[1, 2, 0], :30] = first
    expected[[3, 2, 0], 37:] = second
    np.testing.assert_array_equal(found.signal, expected)
    np.testing.assert_array_equal(found.signal, wfdb.rdrecord(str(path)).p_signal.T.astype(np.float32))


def test_a_layout_is_no_record_of_its_own(tmp_path: Path) -> None:
    write_layout(tmp_path, ("I", "II"))
    with pytest.raises(InputError, match="format of signal I: found 0"):
        read_record(tmp_path / "layout")


@pytest.mark.parametrize(
    ("head", "lines", "message"),
    [
        ("m/3 3 250 50", "s0 30\ns1 20", "segment lines: found 2, expected 3"),
        ("m/1000000000 3 250 50", "s0 30\ns1 20", "segment lines: found 2"),
        ("m/0 3 250 50", "", "record line"),
        ("m/x 3 250 50", "s0 30", "record line"),
        ("m/2 3 250 51", "s0 30\ns1 20", "number of samples: found 51, expected 50"),
        ("m/2 3 250 50", "s0 31\ns1 19", "segment s0: found 30 samples, expected 31"),
        ("m/2 3 250 50", "s0 30\n../s1 20", "segment line 2: found '../s1'"),
        ("m/2 3 250 50", "s0 30\nm 20", "segment m: found a record with segments"),
        ("m/2 3 250 50", "s0 30\ngone 20", "gone.hea: header: found no such file"),
        ("m/2 3 250 50", "s0 30\ns1", "segment line 2"),
        ("m/2 3 250 30", "s0 30\ns1 0", "segment line 2: found 0 samples"),
        ("m/2 3 500 50", "s0 30\ns1 20", "rate of segment s0: found 250.0, expected 500 Hz"),
        ("m/2 4 250 50", "s0 30\ns1 20", "expected 4 different"),
        ("m/2 3 250 50", "s0 30\n~ 20", "segments: found a gap"),
        ("m/2 3 250 9", "~ 0\n~ 9", "found gaps only"),
        ("m/3 3 250", "layout 0\ns0 30\n~ 99999999999", "expected at most 268435456 samples in all"),
    ],
)
def test_segments_that_do_not_fit_are_named(tmp_path: Path, head: str, lines: str, message: str) -> None:
    write_parts(tmp_path)
    write_layout(tmp_path, ("lead0", "lead1", "lead2"))
    with pytest.raises(InputError, match=re.escape(message)):
        read_record(write_whole(tmp_path, lines, head))


def test_segments_whose_leads_or_bytes_differ_are_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    path = write_whole(tmp_path, "s0 30\ns1 20")
    rename(parts[1], "lead1", "lead9")  # wfdb would call it lead1
    with pytest.raises(
        InputError, match=r"leads of segment s1: found lead0, lead9, lead2, expected lead0, lead1"
    ):
        read_record(path)
    rename(parts[1], "lead9", "lead1")
    data = parts[1].with_suffix(".dat")
    data.write_bytes(data.read_bytes()[::-1])
    with pytest.raises(InputError, match=r"s1.hea: checksum of signal lead0"):
        read_record(path)
    assert read_record(path, checksum=False).signal.shape == (3, 50)


def test_a_folder_lists_the_whole_and_not_its_segments(tmp_path: Path) -> None:
    write_parts(tmp_path / "a", (600, 500))
    write_whole(tmp_path / "a", "s0 600\ns1 500", "m/2 3 250 1100")
    write_parts(tmp_path / "b", (1100,))  # a record of the same name elsewhere is one of its own
    leads = ("lead0", "lead1", "lead2")
    data = WFDBFolder(tmp_path, fs=250, duration=4, leads=leads, labels="none")
    assert data.meta["record"].tolist() == ["m", "s0"]
    np.testing.assert_array_equal(data.signals[0], read_record(tmp_path / "a" / "m").signal[:, :1000])
    (tmp_path / "a" / "s1.hea").write_text("nonsense\n")
    with pytest.raises(InputError, match="s1"):
        WFDBFolder(tmp_path, fs=250, duration=4, leads=leads, labels="none")
