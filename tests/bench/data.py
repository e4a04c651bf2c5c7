"""What reading costs: the cache against wfdb record by record, on generated files in PTB-XL's layout; and what simulating does.

All rows read the same files, which the system has in memory. Three rounds, each row once a round; medians. The cache is
built twice a round: as users have it, by as many processes as there are processors, and held to one processor as all other
rows are by nature.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ecgmeta.data import PTBXL, SyntheticCohort
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.runtime.processes import processors

BATCH, BATCHES, SIMULATED = 256, 8, 10_000


def write_ptbxl(root: Path, n: int) -> None:
    """``n`` simulated records at 100 Hz under the names, headers and tables of PTB-XL."""
    cohort = SyntheticCohort(n, fs=100)
    digital = np.rint(cohort.signals * 1000).astype("<i2")
    names = [f"records100/{i // 1000 * 1000:05d}/{i:05d}_lr" for i in range(1, n + 1)]
    for name, record in zip(names, digital, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        record.T.tofile(path.with_name(path.name + ".dat"))
        lines = [f"{path.name} 12 100 1000"]
        for lead, row in zip(STANDARD_LEADS, record, strict=True):
            checksum = int(row.sum(dtype=np.int64)) & 0xFFFF
            lines.append(f"{path.name}.dat 16 1000.0(0)/mV 16 0 {row[0]} {checksum} 0 {lead.upper()}")
        path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")
    labels = [
        str({name: 100.0 for name, has in zip(cohort.label_names, row, strict=True) if has})
        for row in cohort.labels
    ]
    columns = {
        "ecg_id": range(1, n + 1),
        "patient_id": range(1, n + 1),
        "age": 60,
        "sex": 0,
        "scp_codes": labels,
        "strat_fold": np.arange(n) % 10 + 1,
        "filename_lr": names,
        "filename_hr": names,
    }
    pd.DataFrame(columns).to_csv(root / "ptbxl_database.csv", index=False)
    classes = pd.DataFrame({"diagnostic": 1, "form": 0, "rhythm": 0, "diagnostic_class": cohort.label_names})
    classes["diagnostic_subclass"] = classes["diagnostic_class"]
    classes.index = pd.Index(cohort.label_names)
    classes.to_csv(root / "scp_statements.csv")


class OneByOne(Dataset[Tensor]):
    """What scripts do: a record a call, through wfdb."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(rdsamp(self.paths[index]))


def rdsamp(path: str) -> NDArray[np.float32]:
    import wfdb

    return np.ascontiguousarray(wfdb.rdsamp(path)[0].T, dtype=np.float32)


def run(n: int, rounds: int = 3) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "ptb-xl")
        root.mkdir()
        console.print(f"writing {n} records in PTB-XL's layout")
        write_ptbxl(root, n)
        seconds = _measure(root, Path(folder), n, rounds, console)
    start = time.process_time()  # of all threads: an upper bound on one core's time
    SyntheticCohort(SIMULATED, fs=100)
    simulated = time.process_time() - start
    console.print(_table(seconds, n))
    console.print(f"simulating {SIMULATED} records takes {simulated:.1f} s of one core (goal: 60)")


def _measure(root: Path, folder: Path, n: int, rounds: int, console: Console) -> dict[str, float]:
    paths = [str(path.with_suffix("")) for path in sorted(root.glob("records100/*/*.hea"))]
    data = PTBXL(root, cache=folder / "cache", label_policy="paper")
    plain = folder / "plain.npy"
    np.save(plain, np.rint(data.signals * 1000).astype(np.int16))
    memory = np.load(plain, mmap_mode="r")
    order = np.random.default_rng(0)
    batches = [order.choice(n, min(BATCH, n), replace=False) for _ in range(BATCHES)]
    loader = DataLoader(OneByOne(paths), batch_size=min(BATCH, n), shuffle=True)

    def build() -> None:
        PTBXL(root, cache=folder / "new", label_policy="paper")

    def build_alone() -> None:
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(mine)})
        try:
            build()
        finally:
            os.sched_setaffinity(0, mine)

    rows: dict[str, tuple[Callable[[], object], int]] = {
        "wfdb.rdsamp, all records": (lambda: [rdsamp(path) for path in paths], 1),
        f"cache build, all records, {processors()} processors": (build, 1),
        "cache build, all records, one processor": (build_alone, 1),
        "a batch of 256: DataLoader over wfdb.rdsamp": (lambda: next(iter(loader)), 1),
        "a batch of 256: int16 memory map, gather and scale": (
            lambda: [
                torch.from_numpy(memory[rows].astype(np.float32) / np.float32(1000)) for rows in batches
            ],
            BATCHES,
        ),
        "a batch of 256: from the cache": (lambda: [data[rows] for rows in batches], BATCHES),
    }
    turns: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds):
        for name, (work, per) in rows.items():
            shutil.rmtree(folder / "new", ignore_errors=True)
            start = time.perf_counter()
            work()
            turns[name].append((time.perf_counter() - start) / per)
            console.print(f"round {number + 1} of {rounds}: {name}, {turns[name][-1]:.4f} s")
    return {name: median(values) for name, values in turns.items()}


def _table(seconds: dict[str, float], n: int) -> Table:
    rdsamp_all, build, alone, loader, gather, cache = seconds.values()
    table = Table(title=f"reading {n} records of 12 × 1000 samples")
    for column in ("", "seconds", "ratio", "goal"):
        table.add_column(column)
    ratios = {
        1: (f"{rdsamp_all / build:.1f} times rdsamp's pace", "≥ 20"),
        2: (f"{rdsamp_all / alone:.1f} times rdsamp's pace", ""),
        5: (
            f"{gather / cache:.2f} of the memory map's pace, {loader / cache:.0f} times the DataLoader's",
            "≥ 0.8, ≥ 10",
        ),
    }
    for row, (name, value) in enumerate(seconds.items()):
        table.add_row(name, f"{value:.4f}", *ratios.get(row, ("", "")))
    return table
