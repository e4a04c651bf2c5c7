"""Your own recordings as a source: one class with three methods. Seconds on a laptop.

The folder here is made up on the spot: a table of visits and a csv file of samples for each, eight leads in µV at 250 Hz, as
a small device might write them. `ecgmeta` resamples, cuts, derives III, aVR, aVL and aVF, caches, and says what is wrong where.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from ecgmeta.data import RecordSource, SourceDataset, SyntheticCohort
from ecgmeta.data.load import Fail, Labels
from ecgmeta.data.records import Record
from ecgmeta.runtime.errors import InputError

FS = 250.0
FINDINGS = ("MI", "CD")


class Clinic(RecordSource):
    """``visits.csv`` (visit, person, age, sex, MI, CD) and ``<visit>.csv`` with a column a lead, in µV."""

    name = "clinic"

    def index(self, fail: Fail) -> pd.DataFrame:
        table = pd.read_csv(self.root / "visits.csv")
        rows = table.rename(columns={"visit": "record"}).drop(columns="person")
        return rows.assign(
            path=table["visit"] + ".csv", patient="clinic/" + table["person"], source=self.name
        )

    def read(self, row: Any) -> Record:
        path = self.root / row.path
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise InputError(path, "samples", error, "a csv file with a column a lead") from None
        signal = table.to_numpy(dtype=np.float32).T / 1000  # (leads, samples) mV
        return Record(str(path), np.ascontiguousarray(signal), FS, tuple(table.columns))

    def labels(self, index: pd.DataFrame) -> Labels:
        return index[list(FINDINGS)].to_numpy(dtype=np.float32), FINDINGS


def write_folder(root: Path, visits: int) -> None:
    """What the device would have left: some people came twice, and one file is empty."""
    cohort = SyntheticCohort(visits, fs=FS, seed=1).with_leads(
        ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    )
    names = [f"v{number}" for number in range(visits)]
    owner = np.arange(visits) * 2 // 3  # who comes with each visit
    table = pd.DataFrame({"visit": names, "person": [f"p{number}" for number in owner]})
    table[["age", "sex"]] = cohort.meta[["age", "sex"]].to_numpy()[owner]
    for finding in FINDINGS:
        table[finding] = cohort.labels[:, cohort.label_names.index(finding)].astype(int)
    table.to_csv(root / "visits.csv", index=False)
    for name, signal in zip(names, cohort.signals, strict=True):
        pd.DataFrame(np.rint(signal.T * 1000), columns=list(cohort.leads)).to_csv(
            root / f"{name}.csv", index=False
        )
    (root / "v3.csv").write_text("")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "clinic")
        root.mkdir()
        write_folder(root, visits=12)
        data = SourceDataset(Clinic(root), fs=100, derive=True, on_error="skip", cache=Path(folder, "cache"))
        print(data)
        print("left out:", *(line.replace(folder, "") for line in data.skipped))
        print(data.meta[["record", "patient", "age", "sex", "original_fs"]].head(3).to_string(index=False))
        for x, y in DataLoader(data, batch_size=4):
            print(
                f"{tuple(x.shape)} mV, labels {tuple(y.shape)}: {y.sum(0).int().tolist()} of {list(data.label_names)}"
            )
        print("two leads:", data.with_leads(("aVF", "V2")))


if __name__ == "__main__":
    main()
