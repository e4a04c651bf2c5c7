"""Damaged records end in an InputError or in the numbers that their bytes say, whatever the damage.

What is right where a file is damaged? A header that still obeys header(5) is believed: if it now says another gain, the record
has another gain. Every record that is read is compared with

1. `wfdb_files.reference`, a bit-by-bit reading of the same files by the documents, always;
2. ``wfdb.rdrecord``, in float32 and to the bit, unless the header asks for what wfdb is known to do wrongly (`wfdb_errs`).

Where wfdb reads what is refused here, the refusal is right: it pads, broadcasts or cuts what a header and a file disagree
about (three bytes of format 212 fill a record of any length, a missing header field shifts the next into its place).
"""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_helpers import sound_ecg, write_record
from hypothesis import given, settings
from hypothesis import strategies as st
from wfdb_files import BITS, FORMATS, decode, encode, reference, write_format

from ecgmeta.data import formats
from ecgmeta.data.records import Header, Record, read_header, read_record
from ecgmeta.runtime.errors import InputError

Random = np.random.Generator
LARGEST_READ = 100 << 20  # bytes: ten times what the largest of these records needs


# --- the formats themselves -------------------------------------------------------------------------------------------


@given(fmt=st.sampled_from(FORMATS), data=st.data())
@settings(max_examples=150, deadline=None)
def test_decoding_is_what_the_documents_say(fmt: int, data: st.DataObject) -> None:
    low = -(1 << (BITS[fmt] - 1))
    values = data.draw(st.lists(st.integers(low, -low - 1), max_size=12))
    raw = encode(fmt, values)
    assert decode(fmt, raw, len(values)) == values
    assert len(raw) == formats.stored_bytes(fmt, len(values))
    found = formats.decode(np.frombuffer(raw, dtype=np.uint8), fmt, len(values))
    assert found.tolist() == values


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("per_frame", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("skew", [(0, 0, 0), (0, 2, 5)])
@pytest.mark.parametrize("length", [True, False])
def test_every_format_reads_back(
    tmp_path: Path, fmt: int, per_frame: tuple[int, ...], skew: tuple[int, ...], length: bool
) -> None:
    path = write_format(
        tmp_path / "r",
        _walk(fmt, per_frame, 12),
        fmt,
        per_frame=per_frame,
        skew=skew,
        offset=24,
        length=length,
    )
    found = read_record(path)
    assert found.signal.shape == (3, 12)
    np.testing.assert_array_equal(found.signal, reference(tmp_path / "r.hea"))
    missing = np.isnan(found.signal)
    assert missing[:, -5:].any() == (skew != (0, 0, 0) or fmt in (80, 212))
    assert not missing.all()
    # wfdb cannot give format 61 in frames of several samples.
    if skew == (0, 0, 0) and (fmt != 61 or per_frame == (1, 1, 1)):
        np.testing.assert_array_equal(read_record(path, method="wfdb").signal, found.signal)


def _walk(fmt: int, per_frame: tuple[int, ...], frames: int) -> list[list[int]]:
    """One signal each for `per_frame`, as large as the format holds; in two formats one sample is missing."""
    rng, top = np.random.default_rng(fmt), min(1 << (BITS[fmt] - 1), 30000) - 1
    step = 40 if fmt == 8 else top // 3
    rows = [np.clip(np.cumsum(rng.integers(-step, step, frames * n)), -top, top) for n in per_frame]
    if fmt in (80, 212):
        rows[0][-1] = -top - 1
    return [row.tolist() for row in rows]


# --- damage -----------------------------------------------------------------------------------------------------------

NONSENSE = (
    *(
        "",
        "0",
        "-1",
        "1e9",
        "1e400",
        "1e-400",
        "nan",
        "inf",
        "-inf",
        "NaN",
        "99999999999",
        "9" * 5000,
        "0x10",
        "1_000",
    ),
    *(
        "16",
        "212",
        "310",
        "80",
        "8",
        "160",
        "61",
        "24",
        "32",
        "311",
        "516",
        "0",
        "999",
        "16x2",
        "212x3",
        "16x0",
        "16:3",
    ),
    *("16x1+24", "16+24", "16+0", "16+99999999", "80:70000000", "16x999999999", "16x2:1+24", "8+4"),
    *(
        "200",
        "0/mV",
        "-200/mV",
        "1000/uV",
        "1000(5)/µV",
        "2/V",
        "0(0)/mV",
        "1000(99999999999)/mV",
        "1e3/mV",
        "1E3/mV",
    ),
    *(
        "~",
        "-",
        ".",
        "..",
        "../x.dat",
        "/dev/zero",
        "x.hea",
        "x",
        "\x00",
        "a\x00b",
        "é",
        "٣",
        "\x0b",
        "I",
        "#",
        "x/2",
    ),
)


def _field(text: str, rng: Random) -> str:
    lines = text.split("\n")
    at = int(rng.integers(min(len(lines), 6)))
    words = lines[at].split(" ")
    words[int(rng.integers(len(words)))] = str(rng.choice(np.array(NONSENSE, dtype=object)))
    lines[at] = " ".join(words)
    return "\n".join(lines)


def _lines(text: str, rng: Random) -> str:
    lines = text.rstrip("\n").split("\n")
    i, j = rng.integers(len(lines), size=2)
    how = rng.integers(4)
    if how == 0:
        del lines[i]
    elif how == 1:
        lines[i], lines[j] = lines[j], lines[i]
    elif how == 2:
        lines.insert(i, lines[j])
    else:
        lines[i] = lines[i][: int(rng.integers(len(lines[i]) + 1))]
    return "\n".join(lines) + "\n"


def _everywhere(text: str, rng: Random) -> str:
    """The same change in every signal line: what a wrong but consistent writer does."""
    first, *rest = text.split("\n")
    old = rest[0].split()[1] if len(rest[0].split()) > 1 else "16"
    new = str(
        rng.choice(
            ["16", "80", "212", "310", "311", "24", "32", "160", "61", "8", "16+24", "16x2", "16:1", old]
        )
    )
    out = [line.replace(f" {old} ", f" {new} ", 1) for line in rest]
    if rng.random() < 0.3:
        first = " ".join(first.split()[:3])  # the length left to the file's size
    return "\n".join([first, *out])


def _segments(text: str, rng: Random) -> str:
    name = text.split()[0]
    count, length = rng.choice([1, 2, 1000000]), rng.choice(["50", "0", "10000000000", "-3", "x"])
    return f"{name}/{count} 3 250\n" + f"{rng.choice([name, '~', 'other', '..'])} {length}\n" * min(
        int(count), 3
    )


def _checksum(text: str, rng: Random) -> str:
    lines = text.split("\n")
    words = lines[1].split()
    words[6:7] = [str(rng.integers(1, 65536))]
    return "\n".join([lines[0], " ".join(words), *lines[2:]])


GAINS = ("500(7)/mV", "1/uV", "0(0)/mV", "1e3/mV", "2000(-5)", "100", "5.5e2/mV", "0", "1000000(1)/V")


def _gains(text: str, rng: Random) -> str:
    """Another lawful gain everywhere: must be read, as that gain says."""
    first, *rest = text.split("\n")
    new = str(rng.choice(GAINS))
    words = [line.split(" ") for line in rest]
    return "\n".join(
        [first, *(" ".join([*w[:2], new, *w[3:]]) if len(w) > 6 else " ".join(w) for w in words)]
    )


def _names(text: str, rng: Random) -> str:
    """Two leads of one name, another comment: what must still be read."""
    lines = text.split("\n")
    lines[2] = lines[2].rsplit(" ", 1)[0] + " " + lines[1].rsplit(" ", 1)[-1]
    return "\n".join(lines) + f"# comment {rng.integers(9)}\n"


HEADERS: dict[str, Callable[[str, Random], str]] = {
    "field": _field,
    "lines": _lines,
    "everywhere": _everywhere,
    "segments": _segments,
    "checksum": _checksum,
    "names": _names,
    "gains": _gains,
}


def _flip(raw: bytes, rng: Random) -> bytes:
    at = int(rng.integers(max(len(raw), 1)))
    return raw[:at] + bytes([raw[at] ^ (1 << int(rng.integers(8)))]) + raw[at + 1 :] if raw else b"\0"


def _cut(raw: bytes, rng: Random) -> bytes:
    return raw[: -int(rng.choice([1, 2, 3, 4, 24, max(1, len(raw) // 2), max(1, len(raw) - 1)]))]


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "flip": _flip,
    "cut": _cut,
    "more": lambda raw, rng: raw + rng.bytes(int(rng.choice([1, 2, 3, 4, 24, 1000]))),
    "put": lambda raw, rng: raw[: (at := int(rng.integers(len(raw) + 1)))] + rng.bytes(3) + raw[at:],
    "empty": lambda raw, rng: b"",
    "noise": lambda raw, rng: rng.bytes(len(raw)),
}
ENCODINGS = ("utf-16", "utf-8-sig", "utf-32", "cp037")
THINGS = ("missing", "folder", "loop", "pipe", "nowhere", "header")


def _in_place(file: Path, thing: str) -> None:
    """Something that is no signal file where one should be."""
    file.unlink()
    if thing == "folder":
        file.mkdir()
    elif thing == "loop":
        file.symlink_to(file.name)
    elif thing == "pipe":
        os.mkfifo(file)
    elif thing == "nowhere":
        file.symlink_to("nowhere")
    elif thing == "header":
        shutil.copyfile(file.with_suffix(".hea"), file) if file.suffix != ".hea" else None


def damage(header: Path, rng: Random) -> str:
    """Damages the record of `header` in one or two ways; says how."""
    said = []
    for _ in range(1 + (rng.random() < 0.25)):
        signals = sorted(p for p in header.parent.iterdir() if p != header)
        target = header if rng.random() < 0.6 or not signals else signals[0]
        if not target.is_file():
            continue
        kind = rng.random()
        if target == header and kind < 0.75:
            name = str(rng.choice(list(HEADERS)))
            text = header.read_bytes().decode("latin-1")
            if text.count("\n") < 3:
                continue
            changed = HEADERS[name](text, rng)
            codec = "utf-8" if any(ord(c) > 255 for c in changed) or rng.random() < 0.5 else "latin-1"
            header.write_bytes(changed.encode(codec))
        elif target == header and kind < 0.8:
            name = str(rng.choice(ENCODINGS))
            header.write_bytes(header.read_bytes().decode("latin-1").encode(name, errors="replace"))
        elif kind < 0.93:
            name = str(rng.choice(list(BYTES)))
            target.write_bytes(BYTES[name](target.read_bytes(), rng))
        else:
            name = str(rng.choice(THINGS))
            _in_place(target, name)
        said.append(f"{target.suffix}:{name}")
    return "+".join(said) or "untouched"


# --- what is right ----------------------------------------------------------------------------------------------------


def wfdb_errs(header: Header) -> str:
    """Why wfdb's numbers for this header are not the ones of the documents; empty where they are."""
    text = header.path.read_text(encoding="latin-1")
    specs = header.signals
    if any(spec.skew for spec in specs):
        return "two skews are an error, and a skewed frame of several samples ends in zeros"
    if any(spec.per_frame > 1 for spec in specs):
        return "the code for a missing sample is averaged"
    if any(spec.fmt == 311 for spec in specs):
        return "an unused bit of format 311 is read"
    if any(spec.fmt == 8 for spec in specs):
        return "format 8 starts at 0 where no initial value is given"
    if "E" in "".join(line.split()[2] for line in text.splitlines() if len(line.split()) > 2):
        return "1E3 is read as 1"
    return ""


def check_against_wfdb(header: Header, found: Record) -> bool:
    """Compare where wfdb can read it; whether it could."""
    import wfdb

    try:
        expected = wfdb.rdrecord(str(header.path.with_suffix("")))
    except Exception:  # it cannot: the reference stands alone
        return False
    scale = np.array([{"mv": 1.0, "uv": 1e3, "v": 1e-3}.get(u.casefold(), 1e3) for u in expected.units])
    signal = (expected.p_signal / scale).T
    if (scale == 1).all():
        np.testing.assert_array_equal(found.signal, signal.astype(np.float32))
    else:
        np.testing.assert_allclose(found.signal, signal, rtol=3e-7)
    assert found.fs == expected.fs
    return True


def check(path: Path) -> str:
    """Read one damaged record; "refused", "read" or "agreed" (wfdb read the same)."""
    tracemalloc.start()
    start = time.perf_counter()
    found: Record | None = None
    message = ""
    try:
        found = read_record(path)
    except InputError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LARGEST_READ
    assert time.perf_counter() - start < 10  # a hundred times what the slowest takes
    if found is None:
        assert str(path.parent) in message
        assert "\n" not in message
        assert len(message) < 1000
        return "refused"
    assert found.signal.dtype == np.float32
    assert not np.isinf(found.signal).any()
    header = read_header(path)
    assert found.leads == tuple(spec.name for spec in header.signals)
    np.testing.assert_array_equal(found.signal, reference(header.path))
    return "agreed" if not wfdb_errs(header) and check_against_wfdb(header, found) else "read"


def small_records(folder: Path) -> list[Path]:
    """A record in every format and some variants, three signals of 50 frames."""
    made = [write_format(folder / f"f{fmt}" / "r", _walk(fmt, (1, 1, 1), 50), fmt) for fmt in FORMATS]
    made.append(write_format(folder / "offset" / "r", _walk(16, (1, 1, 1), 50), 16, offset=24))
    made.append(write_format(folder / "frames" / "r", _walk(212, (1, 4, 2), 50), 212, per_frame=(1, 4, 2)))
    made.append(write_format(folder / "skew" / "r", _walk(61, (1, 1, 1), 50), 61, skew=(0, 3, 1)))
    made.append(
        write_format(folder / "plain" / "r", _walk(16, (1, 1, 1), 50), 16, checksum=False, length=False)
    )
    made.append(write_record(folder / "twelve" / "r", sound_ecg(0.1)))
    return made


def run(originals: list[Path], folder: Path, count: int, seed: int) -> Counter[str]:
    """Damage `count` copies of `originals` in turn; how they ended. An assertion names the seed of the copy."""
    ends: Counter[str] = Counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        header = originals[number % len(originals)].with_suffix(".hea")
        copy = folder / "copy"
        copy.mkdir()
        for file in header.parent.glob(f"{header.stem}.*"):
            if file.suffix in (".hea", ".dat", ".mat"):
                shutil.copyfile(file, copy / file.name)
        how = damage(copy / header.name, rng)
        try:
            ends[check(copy / header.stem)] += 1
        except Exception as error:
            raise AssertionError(f"{header}, damaged by default_rng([{seed}, {number}]): {how}") from error
        shutil.rmtree(copy)
    return ends


@pytest.mark.slow
def test_damaged_small_records_of_every_format(tmp_path: Path) -> None:
    originals = small_records(tmp_path / "originals")
    assert {check(path) for path in originals} == {"agreed", "read"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb's, about what it makes of the damage
        ends = run(originals, tmp_path, 900, seed=1)
    # That all were refused, or none compared, would prove nothing.
    assert ends["refused"] > 300
    assert ends["agreed"] > 80
    assert ends["read"] > 25


@pytest.mark.slow
def test_damaged_real_records(real_data: Path, tmp_path: Path) -> None:
    folders = ("cinc2021", "cinc2017", "ludb/data", "ptbxl_fixture/records100")
    found = [sorted((real_data / folder).rglob("*.hea")) for folder in folders]
    originals = [path for paths in found for path in paths[:: max(1, len(paths) // 10)]]
    assert len(originals) >= 30
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = run(originals, tmp_path, 400, seed=2)
    assert ends["refused"] > 150
    assert ends["agreed"] > 40
