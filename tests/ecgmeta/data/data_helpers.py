"""Small WFDB records and sources that the tests of `ecgmeta.data` write to a temporary folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.leads import STANDARD_LEADS


def sound_ecg(seconds: float = 10.0, fs: int = 500, seed: int = 0) -> NDArray[np.int16]:
    """(12, samples) of smooth noise in microvolts that obeys the limb-lead identities to a rounding step."""
    rng = np.random.default_rng(seed)
    n = int(seconds * fs)
    x = np.cumsum(rng.standard_normal((12, n)), axis=1)
    x -= np.linspace(0, 1, n) * x[:, -1:]
    x *= 800 / np.abs(x).max()
    one, two = x[0], x[1]
    x[2], x[3], x[4], x[5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return np.rint(x).astype(np.int16)


def write_record(
    path: Path,
    digital: NDArray[np.int16],
    *,
    fs: float = 500,
    leads: tuple[str, ...] = STANDARD_LEADS,
    gain: str = "1000/mV",
    comments: tuple[str, ...] = ("Age: 50", "Sex: Male", "Dx: 426783006"),
) -> Path:
    """A format-16 record at `path` (no suffix), in the challenge's spelling."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digital.T.astype("<i2").tofile(path.with_name(path.name + ".dat"))
    lines = [f"{path.name} {len(leads)} {fs:g} {digital.shape[1]}"]
    for lead, row in zip(leads, digital, strict=True):
        checksum = int(row.sum(dtype=np.int64)) & 0xFFFF
        lines.append(f"{path.name}.dat 16 {gain} 16 0 {row[0]} {checksum} 0 {lead}")
    lines += [f"#{comment}" for comment in comments]
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")
    return path


def write_tree(root: Path, n: int = 4, seconds: float = 10.0) -> Path:
    """`n` different records below `root`."""
    for number in range(n):
        write_record(root / "part" / f"R{number}", sound_ecg(seconds, seed=number))
    return root
