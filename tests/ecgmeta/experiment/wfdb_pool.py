"""Small pools of WFDB records for the tests of `ecgmeta.experiment`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecgmeta.data.leads import STANDARD_LEADS

DX = ("426783006", "164889003")  # sinus rhythm, atrial fibrillation


def signal(seed: int, seconds: int = 5, fs: int = 100) -> np.ndarray:
    """(12, samples) of smooth noise in microvolts, different in every lead."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.standard_normal((12, seconds * fs)), axis=1)
    x -= x.mean(axis=1, keepdims=True)
    return np.rint(800 * x / np.abs(x).max()).astype(np.int16)


def write(
    path: Path,
    digital: np.ndarray,
    *,
    fs: int = 100,
    dx: str = DX[0],
    leads: tuple[str, ...] = STANDARD_LEADS,
) -> None:
    """A format-16 record with a challenge header at ``path`` (no suffix)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digital.T.astype("<i2").tofile(path.with_name(f"{path.name}.dat"))
    lines = [f"{path.name} {len(leads)} {fs} {digital.shape[1]}"]
    for lead, row in zip(leads, digital, strict=True):
        checksum = int(row.sum(dtype=np.int64)) & 0xFFFF
        lines.append(f"{path.name}.dat 16 1000/mV 16 0 {row[0]} {checksum} 0 {lead}")
    lines += ["#Age: 50", "#Sex: Male", f"#Dx: {dx}"]
    path.with_name(f"{path.name}.hea").write_text("\n".join(lines) + "\n")


def write_pool(root: Path, n: int = 24) -> Path:
    """``n`` records R0, R1, ... below ``root``, every third with atrial fibrillation."""
    for number in range(n):
        write(root / f"R{number}", signal(number), dx=DX[int(number % 3 == 0)])
    return root
