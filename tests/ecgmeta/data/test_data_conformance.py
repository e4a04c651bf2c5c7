"""What every source promises, checked for each of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_helpers import write_tree
from torch.utils.data import DataLoader

from ecgmeta.data import LUDB, PTBXL, ArrayDataset, ECGDataset, SyntheticCohort, WFDBFolder, concat
from ecgmeta.runtime.errors import InputError

STANDARD = ["record", "patient", "fold", "age", "sex", "source", "original_fs", "window"]
Make = Callable[[Path, Path], ECGDataset]  # (real data, temporary folder)


def _memory_map(_: Path, folder: Path) -> ECGDataset:
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((6, 12, 200)).astype(np.float32))
    return ArrayDataset(folder / "x.npy", np.eye(6, 3), fs=100)


SOURCES: dict[str, Make] = {
    "ludb": lambda real, tmp: LUDB(real / "ludb", min_positives=20),
    "ludb_cached": lambda real, tmp: LUDB(real / "ludb", cache=tmp),
    "challenge": lambda real, tmp: WFDBFolder(real / "cinc2021", on_error="skip"),
    "challenge_windows": lambda real, tmp: WFDBFolder(
        real / "cinc2021/cpsc", windows="all", duration=5.0, fs=250, leads=("II", "V1")
    ),
    "ptbxl": lambda real, tmp: PTBXL(real / "ptbxl_fixture"),
    "ptbxl_500_cached": lambda real, tmp: PTBXL(real / "ptbxl_fixture", fs=500, labels="all", cache=tmp),
    "wfdb_written": lambda real, tmp: WFDBFolder(write_tree(tmp / "tree"), labels="none"),
    "array": lambda real, tmp: ArrayDataset(np.random.default_rng(0).standard_normal((5, 12, 100)), fs=50),
    "memory_map": _memory_map,
    "synthetic": lambda real, tmp: SyntheticCohort(12, seed=3),
    "pool": lambda real, tmp: concat(
        [WFDBFolder(real / "cinc2021/georgia"), PTBXL(real / "ptbxl_fixture")], labels="drop"
    ),
    "subset": lambda real, tmp: PTBXL(real / "ptbxl_fixture").subset([7, 2, 2]).subset(slice(1, None)),
}


@pytest.fixture(scope="module", params=list(SOURCES))
def data(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> ECGDataset:
    return SOURCES[request.param](real_data, tmp_path_factory.mktemp("source"))


def test_shapes_types_and_values(data: ECGDataset) -> None:
    n, leads, samples = data.signals.shape
    assert n == len(data) == len(data.meta) == len(data.labels) > 0
    assert leads == len(data.leads)
    assert samples == data.samples
    assert data.labels.shape == (n, len(data.label_names))
    assert data.labels.dtype == np.float32
    assert np.isin(data.labels, (0, 1)).all()
    x, y = data[0]
    assert (x.shape, y.shape) == ((leads, samples), (len(data.label_names),))
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)
    assert torch.isfinite(data[:][0]).all()
    assert 0.02 < float(data[:][0].std()) < 5  # millivolts, neither volts nor microvolts


def test_meta_has_the_standard_columns_and_types(data: ECGDataset) -> None:
    meta = data.meta
    assert list(meta.columns[: len(STANDARD)]) == STANDARD
    assert isinstance(meta.index, pd.RangeIndex)
    assert meta["patient"].notna().all()
    assert all(isinstance(name, str) and name for name in meta["patient"])
    assert str(meta["fold"].dtype) == "Int64"
    assert set(meta["sex"]) <= {"female", "male", "unknown"}
    assert meta["age"].dropna().between(0, 125).all()
    assert (meta["original_fs"] > 0).all()
    assert meta["valid_samples"].between(1, data.samples).all()


def test_every_way_of_indexing_gives_the_same_samples(data: ECGDataset) -> None:
    whole, labels = data[:]
    n = len(data)
    last = [n - 1, 0, -1]
    for index in (last, np.array(last), torch.tensor(last)):
        x, y = data[index]
        assert torch.equal(x, whole[last])
        assert torch.equal(y, labels[last])
    mask = np.arange(n) % 2 == 1
    assert torch.equal(data[mask][0], whole[mask])
    assert torch.equal(data[n - 1][0], data[-1][0])
    assert data[[]][0].shape == (0, *whole.shape[1:])
    assert torch.equal(torch.from_numpy(np.array(data.signals)), whole)
    with pytest.raises(IndexError):
        data[n]
    with pytest.raises(IndexError, match="float"):
        data[np.array([0.5])]


def test_a_batch_is_the_callers_own(data: ECGDataset) -> None:
    before = data[[0]][0].clone()
    data[[0]][0].zero_()
    assert torch.equal(data[[0]][0], before)


def test_subset_concat_and_labels_agree_with_the_whole(data: ECGDataset) -> None:
    whole, labels = data[:]
    rows = [len(data) - 1, 0]
    part = data.subset(rows)
    assert torch.equal(part[:][0], whole[rows])
    assert part.meta["record"].tolist() == data.meta["record"].iloc[rows].tolist()
    both = concat([part, data])
    assert torch.equal(both[:][0], torch.cat([whole[rows], whole]))
    assert torch.equal(both[:][1], torch.cat([labels[rows], labels]))
    assert torch.equal(both[[len(both) - 1, 1]][0], whole[[-1, 0]])
    names = data.label_names[::-1][:2]
    assert torch.equal(data.with_labels(names)[:][1], labels.flip(1)[:, :2])
    with pytest.raises(InputError, match="no such label"):
        data.with_labels(["no such label"])


def test_works_in_a_data_loader_and_survives_pickling(data: ECGDataset) -> None:
    batches = list(DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in batches]), data[:][0])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[:][0], data[:][0])
    assert copy.meta.equals(data.meta)
    assert str(len(data)) in repr(data)
