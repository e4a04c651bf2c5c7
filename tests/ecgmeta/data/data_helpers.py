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


def write_code15(root: Path, tracings: NDArray[np.floating], part: int = 0, first: int = 100) -> Path:
    """An ``exams_part{part}.hdf5`` and its rows in ``exams.csv``, laid out as published.

    `tracings` (N, 12, samples <= 4096) mV at 400 Hz are padded with zeros on both sides; exams are numbered from `first`
    and stand in the csv file in the opposite order; the last row of the HDF5 file is empty.
    """
    import h5py

    n, _, samples = tracings.shape
    before = (4096 - samples) // 2
    padded = np.zeros((n + 1, 4096, 12), dtype=np.float32)
    padded[:n, before : before + samples] = tracings.transpose(0, 2, 1)
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / f"exams_part{part}.hdf5", "w") as file:
        file["exam_id"] = np.array([*range(first, first + n), 0])
        file["tracings"] = padded
    table = root / "exams.csv"
    lines = table.read_text().splitlines() if table.exists() else [CODE15_HEADER]
    for number in reversed(range(n)):
        sick = [str(number % 6 == column) for column in range(6)]
        person = f"{40 + number},{number % 2 == 0},39.5,{','.join(sick)}"
        outcome = "False,2.1" if number % 3 == 0 else ","
        lines.append(f"{first + number},{person},{number // 2},{outcome},{number == 7},exams_part{part}.hdf5")
    table.write_text("\n".join(lines) + "\n")
    return root


CODE15_HEADER = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,AF,ST,patient_id,death,timey,normal_ecg,trace_file"


def write_parquet(path: Path, signals: NDArray[np.float32], leads: tuple[str, ...] = STANDARD_LEADS) -> Path:
    """A row a recording, a column of lists a lead, beside them two labels, a patient and an age."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {lead: list(signals[:, row]) for row, lead in enumerate(leads)}
    n = len(signals)
    others = {
        "af": np.arange(n) % 2,
        "mi": np.ones(n, dtype=int),
        "patient": [f"p{i // 2}" for i in range(n)],
    }
    parquet.write_table(pa.table(columns | others | {"age": np.full(n, 50.0)}), path)
    return path
