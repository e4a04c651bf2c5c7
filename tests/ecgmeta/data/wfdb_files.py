"""WFDB records in every storage format, written and read bit by bit: the truth the fast readers are held to.

Slow and plain on purpose, from signal(5) and header(5), and independent of both `ecgmeta.data` and wfdb.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10}
FORMATS = tuple(BITS)


def encode(fmt: int, values: list[int]) -> bytes:
    """Samples (format 8: differences) to bytes; an unfinished block ends with its last used byte."""
    out = bytearray()
    for start in range(0, len(values), {212: 2, 310: 3, 311: 3}.get(fmt, 1)):
        v = [value % (1 << BITS[fmt]) for value in values[start : start + 3]] + [0, 0]
        left = len(values) - start
        if fmt == 212:
            block = [v[0] & 255, v[0] >> 8 | (v[1] >> 8 << 4 if left > 1 else 0), v[1] & 255]
            out += bytes(block[: 3 if left > 1 else 2])
        elif fmt == 310:
            third = v[2] if left > 2 else 0
            pairs = (v[0] << 1 | (third & 31) << 11, (v[1] if left > 1 else 0) << 1 | (third >> 5) << 11)
            out += b"".join(pair.to_bytes(2, "little") for pair in pairs)[: 2 if left == 1 else 4]
        elif fmt == 311:
            word = v[0] | (v[1] << 10 if left > 1 else 0) | (v[2] << 20 if left > 2 else 0)
            out += word.to_bytes(4, "little")[: {1: 2, 2: 3}.get(left, 4)]
        elif fmt in (80, 160):
            out += ((v[0] + (1 << (BITS[fmt] - 1))) % (1 << BITS[fmt])).to_bytes(BITS[fmt] // 8, "little")
        else:
            out += v[0].to_bytes(BITS[fmt] // 8, "big" if fmt == 61 else "little")
    return bytes(out)


def decode(fmt: int, raw: bytes, count: int) -> list[int]:
    """The first `count` samples (format 8: differences) of `raw`."""
    bits, raw, out = BITS[fmt], raw + bytes(4), []
    for number in range(count):
        if fmt == 212:
            a, b, c = raw[number // 2 * 3 :][:3]
            value = a | (b & 15) << 8 if number % 2 == 0 else c | b >> 4 << 8
        elif fmt in (310, 311):
            block, place = raw[number // 3 * 4 :][:4], number % 3
            if fmt == 311:
                value = int.from_bytes(block, "little") >> 10 * place & 1023
            else:
                low, high = (int.from_bytes(block[at : at + 2], "little") for at in (0, 2))
                value = (low >> 1 & 1023, high >> 1 & 1023, low >> 11 | high >> 11 << 5)[place]
        else:
            size = bits // 8
            value = int.from_bytes(raw[number * size : (number + 1) * size], "big" if fmt == 61 else "little")
            if fmt in (80, 160):
                value = (value + (1 << (bits - 1))) % (1 << bits)
        out.append(value - (1 << bits) if value >> (bits - 1) else value)
    return out


def write_format(
    path: Path,
    stored: list[list[int]],
    fmt: int,
    *,
    per_frame: tuple[int, ...] = (),
    skew: tuple[int, ...] = (),
    offset: int = 0,
    gain: str = "100(3)/mV",
    checksum: bool = True,
    length: bool = True,
) -> Path:
    """A record of the signals `stored` (as in the file, all samples of all frames) in `fmt`, all in one file."""
    per_frame, skew = per_frame or (1,) * len(stored), skew or (0,) * len(stored)
    frames = len(stored[0]) // per_frame[0]
    written = (
        [[b - a for a, b in zip([row[0], *row], row, strict=False)] for row in stored] if fmt == 8 else stored
    )
    flat = [
        row[frame * wide + place]
        for frame in range(frames)
        for row, wide in zip(written, per_frame, strict=True)
        for place in range(wide)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".dat").write_bytes(bytes(range(offset)) + encode(fmt, flat))
    lines = [f"{path.name} {len(stored)} 250" + (f" {frames}" if length else "")]
    for number, (row, wide, late) in enumerate(zip(stored, per_frame, skew, strict=True)):
        form = f"{fmt}" + f"x{wide}" * (wide > 1) + f":{late}" * (late > 0) + f"+{offset}" * (offset > 0)
        total = sum(row) & 0xFFFF if checksum else 0
        lines.append(f"{path.name}.dat {form} {gain} {BITS[fmt]} 0 {row[0]} {total} 0 lead{number}")
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")
    return path


def reference(header: Path) -> NDArray[np.float32]:
    """(signals, samples) of a single-segment record in mV, from its bytes by the documents, one sample at a time.

    For a record that is known to be whole; nothing is checked.
    """
    raw = header.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line and line[0] != "#"]
    specs = [line.split() for line in lines[1:]]
    forms = [_form(words[1]) for words in specs]
    rows: list[NDArray[np.float64]] = []
    for name in dict.fromkeys(words[0] for words in specs):
        mine = [number for number, words in enumerate(specs) if words[0] == name]
        fmt, offset, wide = forms[mine[0]][0], forms[mine[0]][3], [forms[number][1] for number in mine]
        body = header.with_name(name).read_bytes()[offset:]
        first = lines[0].split()
        frames = int(first[3]) if len(first) > 3 else _count(fmt, len(body)) // sum(wide)
        flat = decode(fmt, body, frames * sum(wide))
        table = np.array(flat, dtype=np.int64).reshape(frames, sum(wide))
        start = 0
        for number, count in zip(mine, wide, strict=True):
            rows.append(_signal(table[:, start : start + count], fmt, forms[number][2], specs[number]))
            start += count
    return np.stack(rows).astype(np.float32)


def _count(fmt: int, size: int) -> int:
    """The most samples that `size` bytes hold."""
    count = size * 8 // BITS[fmt]
    while len(encode(fmt, [0] * count)) > size:
        count -= 1
    return count


def _form(text: str) -> tuple[int, int, int, int]:
    """``16x2:1+24`` → format, samples per frame, skew, offset."""
    marks = {mark: int(number) for mark, number in re.findall(r"([x:+])(\d+)", text)}
    return int(re.split(r"[x:+]", text)[0]), marks.get("x", 1), marks.get(":", 0), marks.get("+", 0)


def _signal(stored: NDArray[np.int64], fmt: int, skew: int, words: list[str]) -> NDArray[np.float64]:
    parts = re.fullmatch(r"([^(/]*)(?:\((.*)\))?(?:/(.*))?", [*words, "200"][2])
    assert parts is not None
    gain, baseline, units = parts.groups()
    zero = int(words[4]) if len(words) > 4 else 0
    if fmt == 8:
        initial = int(words[5]) if len(words) > 5 else zero
        stored = (np.cumsum(stored.reshape(-1)) + initial).reshape(stored.shape)
    lowest = None if fmt == 8 else -(1 << (BITS[fmt] - 1))
    wide = stored.shape[1]
    out = np.full(len(stored), np.nan)
    for frame in range(len(stored) - skew):
        values = [int(value) for value in stored[frame + skew]]
        if lowest not in values:
            out[frame] = int(sum(values) / wide)
    unit = {"mv": 1.0, "uv": 1e3, "v": 1e-3}[(units or "mV").casefold().replace("µ", "u").replace("μ", "u")]
    return (out - int(baseline or zero)) / ((float(gain) or 200.0) * unit)
