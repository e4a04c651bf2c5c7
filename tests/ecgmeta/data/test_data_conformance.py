"""What every source promises, checked for each of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb
from data_helpers import write_code15, write_parquet, write_tree
from torch.utils.data import ConcatDataset, DataLoader

from ecgmeta.data import (
    CODE15,
    LUDB,
    MITBIH,
    PTBXL,
    ArrayDataset,
    ECGDataset,
    LongRecords,
    SyntheticCohort,
    WFDBFolder,
    concat,
)
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # every file of the real recordings

STANDARD = ["record", "patient", "fold", "age", "sex", "source", "original_fs", "window"]
Make = Callable[[Path, Path], ECGDataset]  # (real data, temporary folder)


def _memory_map(_: Path, folder: Path) -> ECGDataset:
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((6, 12, 200)).astype(np.float32))
    return ArrayDataset(folder / "x.npy", np.eye(6, 3), fs=100)


def _noise(n: int = 6, samples: int = 200) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 12, samples)).astype(np.float32)


def _hdf5(_: Path, folder: Path) -> ECGDataset:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["group/signals"], file["other"] = _noise(), np.arange(3)
    return ArrayDataset(folder / "x.h5", np.eye(6, 3), fs=100)


def _parquet(_: Path, folder: Path) -> ECGDataset:
    pytest.importorskip("pyarrow")
    return ArrayDataset(write_parquet(folder / "x.parquet", _noise()), ["af", "mi"], fs=100)


def _code15(real: Path, folder: Path, **options: Any) -> ECGDataset:
    pytest.importorskip("h5py")
    ecg = PTBXL(real / "ptbxl_fixture", fs=400, labels="none").signals
    write_code15(folder / "code", ecg[:6])
    return CODE15(write_code15(folder / "code", ecg[6:, :, :2800], part=3, first=900), **options)


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
    "code15": _code15,
    "code15_cached": lambda real, tmp: _code15(real, tmp, labels="all", cache=tmp / "cache"),
    "mitdb": lambda real, tmp: MITBIH(real / "mitdb"),
    "mitdb_rhythm_cached": lambda real, tmp: MITBIH(
        real / "mitdb", labels="rhythm", leads=("MLII",), cache=tmp
    ),
    "nstdb": lambda real, tmp: LongRecords(real / "nstdb", duration=60, fs=50),
    "cinc2017": lambda real, tmp: WFDBFolder(real / "cinc2017", leads=("ECG",), labels="none"),
    "challenge_all_codes": lambda real, tmp: WFDBFolder(real / "cinc2021/cpsc", labels="all"),
    "hdf5": _hdf5,
    "parquet": _parquet,
    "derived": lambda real, tmp: (
        PTBXL(real / "ptbxl_fixture", cache=tmp)
        .with_leads(("II", "V2", "I"))
        .with_leads(("avf", "III", "V2", "avr", "I"), derive=True)
    ),
    "ptbxl_clean": lambda real, tmp: PTBXL(
        real / "ptbxl_fixture", exclude=("baseline_drift",), validated=True, leads=("V1", "II")
    ),
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
    assert x.is_contiguous()
    assert data[:][0].is_contiguous()
    assert data.take([0]).flags.c_contiguous
    assert data.fs > 0
    assert len(set(data.label_names)) == len(data.label_names)
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
    assert str(meta["original_fs"].dtype) == "float64"
    assert str(meta["age"].dtype) == "float64"
    assert meta["window"].dtype == np.int64
    assert all(isinstance(name, str) and name for name in [*meta["record"], *meta["source"]])


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


def test_leads_are_chosen_by_name_and_limb_leads_derived(data: ECGDataset) -> None:
    whole = data[:][0]
    names = [name.lower() for name in data.leads[::-1]]
    turned = data.with_leads(names)
    assert turned.leads == data.leads[::-1]
    assert torch.equal(turned[:][0], whole.flip(1))
    assert torch.equal(torch.from_numpy(np.array(turned.signals)), whole.flip(1))
    assert torch.equal(turned.subset([0])[0][0], whole[0].flip(0))
    assert torch.equal(concat([turned, turned])[:][0], torch.cat([whole.flip(1)] * 2))
    assert torch.equal(torch.from_numpy(turned.labels), data[:][1])
    with pytest.raises(InputError, match="lead V99"):
        data.with_leads(["V99"])
    if not {"I", "II"} <= set(data.leads):
        with pytest.raises(InputError, match="lead"):
            data.with_leads(["III", "aVF"], derive="all")
        return
    one, two = (whole[:, data.leads.index(name)] for name in ("I", "II"))
    limb = data.with_leads(("I", "II")).with_leads(("aVF", "II", "III", "AVL", "avr"), derive=True)
    x = limb[:][0]
    assert x.is_contiguous()
    for row, expected in enumerate((two - one / 2, two, two - one, one - two / 2, -(one + two) / 2)):
        torch.testing.assert_close(x[:, row], expected, rtol=0, atol=2e-6)
    assert torch.equal(data.with_leads(("III",), derive="all")[:][0][:, 0], x[:, 2])


def test_works_in_a_data_loader_and_survives_pickling(data: ECGDataset) -> None:
    batches = list(DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in batches]), data[:][0])
    forked = list(DataLoader(data.subset(slice(None, 9)), batch_size=4, num_workers=2))
    assert torch.equal(torch.cat([x for x, _ in forked]), data[:9][0])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[:][0], data[:][0])
    assert copy.meta.equals(data.meta)
    assert str(len(data)) in repr(data)


STORES = ("ludb_cached", "challenge", "hdf5", "memory_map", "derived", "pool", "code15_cached", "synthetic")


def test_spawned_workers_read_every_kind_of_store(real_data: Path, tmp_path: Path) -> None:
    for name in STORES:
        (tmp_path / name).mkdir()
    parts = [SOURCES[name](real_data, tmp_path / name).subset(slice(None, 5)) for name in STORES]
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset(parts), batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    expected = [part[row] for part in parts for row in range(len(part))]
    found = list(loader)
    assert len(found) == len(expected) == 5 * len(STORES)
    for (x, y), (x0, y0) in zip(found, expected, strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(y, y0)


def _records(folder: Path) -> list[Path]:
    return sorted(path.with_suffix("") for path in folder.rglob("*.hea"))


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("cinc2021/chapman_ningbo", {}),
        ("cinc2021/cpsc", {}),
        ("cinc2021/georgia", {}),
        ("cinc2021/ptbxl", {}),
        ("cinc2021/mixed", {}),
        ("cinc2017", {"leads": ("ECG",)}),
        ("ptbxl_fixture/records100", {}),
        ("ptbxl_fixture/records500", {}),
        ("mitdb", {"leads": ("MLII", "V5")}),
        ("nstdb", {"leads": ("MLII", "V1")}),
    ],
)
def test_values_are_those_of_wfdb_and_every_file_loads_or_says_why_not(
    real_data: Path, folder: str, options: dict[str, Any]
) -> None:
    """At the rate of the record, the first seconds are wfdb's own numbers in float32."""
    records = _records(real_data / folder)
    rates = {wfdb.rdheader(str(path)).fs for path in records}
    seen, refused = 0, 0
    for rate in rates:
        data = WFDBFolder(real_data / folder, fs=rate, labels="none", duration=5, on_error="skip", **options)
        refused += len(data.skipped)
        # The only true reason in these files: five records have leads without a signal.
        assert all("(flat)" in line and "JS" in line for line in data.skipped)
        for row in np.flatnonzero(data.meta["original_fs"] == rate):
            path = next(p for p in records if p.name == data.meta["record"][row])
            found = wfdb.rdrecord(str(path), sampto=data.samples)
            order = [
                [name.casefold() for name in found.sig_name].index(lead.casefold()) for lead in data.leads
            ]
            x = data[int(row)][0].numpy()
            np.testing.assert_array_equal(x, found.p_signal.T[order].astype(np.float32))
            seen += 1
    assert seen + refused // len(rates) == len(records) > 0


def test_twelve_leads_are_not_made_of_one(real_data: Path) -> None:
    with pytest.raises(InputError, match=r"lead I: found only ECG, expected a signal of that name"):
        WFDBFolder(real_data / "cinc2017", labels="none")
    with pytest.raises(InputError, match=r"lead I: found only MLII, V5"):
        WFDBFolder(real_data / "mitdb", labels="none", derive=True)
