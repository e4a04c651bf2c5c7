"""Your own array: HDF5, Parquet, tables of labels, and leads chosen or derived while a source is read."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_helpers import sound_ecg, write_parquet, write_record

from ecgmeta.data import PTBXL, ArrayDataset, ECGDataset, SyntheticCohort, WFDBFolder, concat
from ecgmeta.data.leads import limb_errors
from ecgmeta.data.splits import overlap
from ecgmeta.runtime.errors import InputError

X = np.random.default_rng(1).standard_normal((6, 12, 100)).astype(np.float32)
TABLE = pd.DataFrame(
    {
        "AF": [1, 0, 1, 0, 1, 0],
        "patient": list("aabbcc"),
        "MI": [True, False, False, False, True, True],
        "fold": range(1, 7),
        "age": [50.0, 51, 52, 53, 54, np.nan],
    }
)


def test_a_table_of_labels_brings_names_and_metadata(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "labels.csv", index=False)
    for labels in (TABLE, tmp_path / "labels.csv"):
        data = ArrayDataset(X, labels, fs=100, meta=["patient", "fold", "age"])
        assert data.label_names == ("AF", "MI")
        assert data.labels.T.tolist() == [[1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1]]
        assert data.meta["patient"].tolist() == list("aabbcc")
        assert data.meta["fold"].tolist() == [1, 2, 3, 4, 5, 6]
    only = ArrayDataset(X, TABLE, fs=100, label_names=["MI"], meta=TABLE[["patient"]])
    assert only.label_names == ("MI",)
    with pytest.raises(InputError, match=r"label patient: found 'a', expected 0 and 1 in row 0, or meta="):
        ArrayDataset(X, TABLE, fs=100)
    with pytest.raises(InputError, match="a table with the columns patient"):
        ArrayDataset(X, np.eye(6), fs=100, meta=["patient"])
    with pytest.raises(InputError, match="columns: found AF, MI, expected HYP"):
        ArrayDataset(X, TABLE[["AF", "MI"]], fs=100, label_names=["HYP"])
    with pytest.raises(InputError, match="shape"):
        ArrayDataset(X[:5], TABLE[["AF"]], fs=100)


def test_tables_as_people_have_them(tmp_path: Path) -> None:
    """An index that does not start at 0, a byte-order mark, Windows line ends, numbers that became floats, other words."""
    meta = ["patient", "fold", "age"]
    expected = ArrayDataset(X, TABLE, fs=100, meta=meta)
    text = TABLE.to_csv(index=False)
    (tmp_path / "bom.csv").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "windows.csv").write_bytes(text.replace("\n", "\r\n").encode())
    for labels in (TABLE.set_index(np.arange(100, 106)), tmp_path / "bom.csv", tmp_path / "windows.csv"):
        data = ArrayDataset(X, labels, fs=100, meta=meta)
        np.testing.assert_array_equal(data.labels, expected.labels)
        pd.testing.assert_frame_equal(data.meta, expected.meta)
    assert ArrayDataset(X, TABLE["AF"], fs=100).label_names == ("AF",)
    # One missing number makes floats of a whole column; the patient is the same one.
    lacking = pd.DataFrame({"patient": [15709.0, np.nan, 3, 3, 3, 3]})
    whole = pd.DataFrame({"patient": [15709, 1, 3, 3, 3, 3]})
    data, other = (ArrayDataset(X, fs=100, meta=table) for table in (lacking, whole))
    assert data.meta["patient"].tolist() == ["15709", "array/1", "3", "3", "3", "3"]
    assert overlap(data.meta, other.meta) == ["15709", "3"]
    odd = pd.DataFrame({"age": [">89", "50", 300, None, 1.5, "nan"], "sex": ["F", "Male", "m", 1, None, "x"]})
    data = ArrayDataset(X, fs=100, meta=odd)
    np.testing.assert_array_equal(data.meta["age"], [90, 50, 90, np.nan, 1.5, np.nan])
    # 1 is a woman in PTB-XL and a man elsewhere.
    assert data.meta["sex"].tolist() == ["female", "male", "male", "unknown", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": X.tolist()}, "signals: found a list, expected a NumPy array"),
        ({"signals": torch.from_numpy(X)}, r"signals: found a Tensor, .*x\.numpy\(\)"),
        ({"fs": "100"}, "fs: found '100', expected a rate in Hz"),
        ({"leads": "II"}, r"leads: found 'II', expected a list of names, such as \['II'\]"),
        ({"leads": ["I", "i", *"abcdefghij"]}, "leads: found I, I, .*, expected different names"),
        ({"labels": np.array(["a"] * 6)}, "labels: .*, expected 0 and 1 only"),
        ({"labels": pd.concat([TABLE["AF"], TABLE["AF"]], axis=1)}, "columns: found AF more than once"),
        ({"meta": pd.DataFrame({"fold": list("aabbcc")})}, r"meta\.fold: found a, b, c, expected whole num"),
        ({"meta": pd.DataFrame({"age": ["old"] * 6})}, "age: found 'old', expected years"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"signals": X, "fs": 100.0} | arguments
    with pytest.raises(InputError, match=message):
        ArrayDataset(**given)


def test_what_synth_writes_is_read_in_three_lines(tmp_path: Path) -> None:
    from ecgmeta.experiment.cohort import synthesise

    cohort = synthesise(tmp_path, 8, 100.0, 0)
    data = ArrayDataset(tmp_path / "signals.npy", tmp_path / "labels.csv", fs=100, meta=tmp_path / "meta.csv")
    np.testing.assert_array_equal(data.signals, cohort.signals)
    np.testing.assert_array_equal(data.labels, cohort.labels)
    assert data.label_names == cohort.label_names
    assert data.meta["patient"].tolist() == cohort.meta["patient"].tolist()


def test_hdf5_by_name_repeated_rows_and_refusals(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/signals"], file["b"], file["flat"] = X, X[:, :, ::-1].astype(np.float64), X[:, 0]
        file["counts"] = (X * 100).astype(np.int16)
    for data in (
        ArrayDataset(f"{path}::a/signals", fs=100),
        ArrayDataset(path, fs=100, dataset="/a/signals"),
    ):
        np.testing.assert_array_equal(data.signals, X)
        np.testing.assert_array_equal(data[[4, 0, 4, -1]][0].numpy(), X[[4, 0, 4, -1]])
        assert data.subset([])[:][0].shape == (0, 12, 100)
    assert ArrayDataset(path, fs=100, dataset="b").take([0]).dtype == np.float32
    cases = [
        ({}, "datasets with three axes: found a/signals, b, counts, expected one, or dataset="),
        ({"dataset": "c"}, "dataset: found 'c', expected one of a/signals, b, counts, flat"),
        ({"dataset": "flat"}, r"dataset /flat: found shape \(6, 100\)"),
        ({"dataset": "counts"}, "type int16, expected floating numbers in mV"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            ArrayDataset(path, fs=100, **options)
    (tmp_path / "z.h5").write_bytes(b"no")
    with pytest.raises(InputError, match=r"z.h5: file: .* expected an HDF5 file"):
        ArrayDataset(tmp_path / "z.h5", fs=100)
    with pytest.raises(InputError, match="no such file"):
        ArrayDataset(tmp_path / "y.h5", fs=100)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match="expected an HDF5 file"):
        ArrayDataset(tmp_path / "x.npy", fs=100, dataset="a")


def test_parquet_columns_are_leads_labels_and_metadata(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = write_parquet(tmp_path / "x.parquet", X)
    data = ArrayDataset(path, ["af", "mi"], fs=100)
    np.testing.assert_array_equal(data.signals, X)
    assert data.label_names == ("af", "mi")
    assert data.labels[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert data.meta["patient"].tolist() == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert (data.meta["age"] == 50).all()
    two = ArrayDataset(path, TABLE, fs=100, leads=("v2", "AVR"), meta=["patient", "fold", "age"])
    assert two.leads == ("V2", "aVR")
    np.testing.assert_array_equal(two.signals, X[:, [7, 3]])
    assert two.meta["patient"].tolist() == list("aabbcc")
    with pytest.raises(InputError, match="lead V9: found only I, II"):
        ArrayDataset(path, fs=100, leads=("V9",))
    with pytest.raises(InputError, match=r"columns: .* expected hyp"):
        ArrayDataset(path, ["hyp"], fs=100)
    odd: list[tuple[dict[str, Any], str]] = [
        ({"I": [[0.0] * 5, [0.0] * 4]}, r"column I: row 1: found 4 samples, expected 5"),
        ({"I": [[0.0] * 5, None]}, r"column I: row 1: found nan samples"),
        ({"I": [[1] * 5] * 2}, r"column I: type: found int64"),
        ({"I": [[0.0] * 5] * 2, "II": [[0.0] * 4] * 2}, "samples: found I 5, II 4"),
        ({"I": [0.0, 1.0]}, "a column of lists for each lead"),
        ({"I": [[0.0, None, 1.0]]}, r"signals\[0\]: found NaN"),
    ]
    for columns, message in odd:
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=message):
            ArrayDataset(path, fs=100)
    path.write_bytes(b"no")
    with pytest.raises(InputError, match="a Parquet file"):
        ArrayDataset(path, fs=100)


@pytest.mark.parametrize(("module", "file"), [("h5py", "x.h5"), ("pyarrow", "x.parquet")])
def test_a_missing_extra_is_named(
    module: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real_import(name, *rest)

    (tmp_path / file).write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"not installed, expected pip install 'ecgmeta\["):
        ArrayDataset(tmp_path / file, fs=100)


def test_a_source_without_augmented_leads_is_loaded_with_derive(tmp_path: Path) -> None:
    ecg, eight = sound_ecg(fs=100), [0, 1, 6, 7, 8, 9, 10, 11]
    leads = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    write_record(tmp_path / "R", ecg[eight], fs=100, leads=leads)
    with pytest.raises(InputError, match="lead III"):
        WFDBFolder(tmp_path)
    data = WFDBFolder(tmp_path, derive=True)
    assert limb_errors(data.signals, data.leads).max() < 1e-5
    np.testing.assert_allclose(data.signals[0], ecg / 1000, atol=0.0011)  # rounded to µV before, not after
    assert data.meta["bad_leads"][0] == ""
    write_record(tmp_path / "R", ecg[eight[1:]], fs=100, leads=leads[1:])
    with pytest.raises(InputError, match="lead I: found only II"):
        WFDBFolder(tmp_path, derive=True)


def test_bad_leads_follow_the_choice_of_leads(real_data: Path) -> None:
    data = WFDBFolder(real_data / "cinc2021/mixed", bad_leads="zero", labels="none")
    bad = data.meta["bad_leads"]
    rows = np.flatnonzero(bad != "")
    assert rows.size
    names = bad[rows[0]].split(",")
    good = [lead for lead in data.leads if lead not in names]
    assert data.with_leads(good).meta["bad_leads"][rows[0]] == ""
    assert data.with_leads(names[::-1]).meta["bad_leads"][rows[0]] == ",".join(names[::-1])
    signals = np.zeros((2, 2, 50), dtype=np.float32)
    pair = ECGDataset(signals, fs=100, leads=("I", "II"), meta=pd.DataFrame({"bad_leads": ["", "II"]}))
    both = pair.with_leads(("aVF", "I"), derive=True)
    assert both.meta["bad_leads"].tolist() == ["", "aVF"]
    for wrong in ((), ("I", "i")):
        with pytest.raises(InputError, match="different names"):
            pair.with_leads(wrong)
    with pytest.raises(InputError, match="derive: found 'some'"):
        pair.with_leads(("I",), derive="some")  # type: ignore[arg-type]


def test_a_swap_of_derived_leads_is_undone_by_deriving_all() -> None:
    cohort = SyntheticCohort(4, seed=2)
    swapped = cohort.signals.copy()
    swapped[:, [4, 5]] = swapped[:, [5, 4]]
    data = ArrayDataset(swapped, fs=100)
    assert limb_errors(data.signals, data.leads).max() > 0.1
    right = data.with_leads(data.leads, derive="all")
    assert limb_errors(right.signals, right.leads).max() < 1e-5
    assert concat([right, right.subset([1])])[:][0].shape == (5, 12, 1000)
    one_lead = data.with_leads(("II", "V1"))
    with pytest.raises(InputError, match=r"lead III: .* from I and II"):
        one_lead.with_leads(("III",), derive=True)


def test_ptbxl_records_with_problems_are_left_out(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "ptbxl_fixture"
    table = pd.read_csv(root / "ptbxl_database.csv")
    data = PTBXL(root, labels="none")
    for column in ("baseline_drift", "static_noise", "burst_noise"):
        expected = table.loc[table[column].isna(), "ecg_id"].tolist()
        found = PTBXL(root, labels="none", exclude=[column], cache=tmp_path)
        assert found.meta["ecg_id"].tolist() == expected
    assert table["static_noise"].notna().any()
    assert len(list(tmp_path.iterdir())) == 1  # a filter is a choice, not another cache
    assert set(table.columns) - set(data.meta.columns) == {
        *("patient_id", "strat_fold", "scp_codes", "filename_lr", "filename_hr"),
    }
    checked = PTBXL(root, labels="none", validated=True)
    assert checked.meta["ecg_id"].tolist() == table.loc[table["validated_by_human"], "ecg_id"].tolist()
    with pytest.raises(InputError, match="exclude: found 'noise'"):
        PTBXL(root, exclude="noise")


def test_ptb_folders_name_the_patient_and_headers_the_reason(tmp_path: Path) -> None:
    """PTB's own layout: 15 leads in lower case in two files, 1000 Hz, a folder a patient."""
    leads = ("i", "ii", "iii", "avr", "avl", "avf", *(f"v{n}" for n in range(1, 7)), "vx", "vy", "vz")
    for record, patient in (
        ("s0010_re", "patient001"),
        ("s0014lre", "patient001"),
        ("s0306lre", "patient005"),
    ):
        ecg = np.concatenate([sound_ecg(12, 1000), sound_ecg(12, 1000, seed=1)[6:9]])
        comments = ("age: 81", "sex: female", "Reason for admission: Myocardial infarction")
        path = write_record(tmp_path / "ptb" / patient / record, ecg, fs=1000, leads=leads, comments=comments)
        header = path.with_suffix(".hea")
        lines = header.read_text().splitlines()
        lines[13:16] = [line.replace(".dat", ".xyz", 1) for line in lines[13:16]]
        header.write_text("\n".join(lines) + "\n")
        ecg[:12].T.astype("<i2").tofile(path.with_suffix(".dat"))
        ecg[12:].T.astype("<i2").tofile(path.with_suffix(".xyz"))
    data = WFDBFolder(tmp_path / "ptb", labels="none", fs=1000)
    assert data.meta["patient"].tolist() == ["patient001", "patient001", "patient005"]
    assert set(data.meta["source"]) == {"ptb"}
    assert set(data.meta["reason_for_admission"]) == {"Myocardial infarction"}
    assert (data.meta["age"][0], data.meta["sex"][0]) == (81, "female")
    np.testing.assert_allclose(data.signals[0], sound_ecg(12, 1000)[:, :10000] / 1000, atol=1e-6)
    frank = WFDBFolder(tmp_path / "ptb", labels="none", leads=("VX", "vy"))
    assert frank.signals.shape == (3, 2, 1000)


def test_all_codes_of_a_tree_in_sorted_order(real_data: Path) -> None:
    root = real_data / "cinc2021/georgia"
    data = WFDBFolder(root, labels="all")
    said = {
        path.stem: line.partition("Dx:")[2].strip().split(",")
        for path in root.glob("*.hea")
        for line in path.read_text().splitlines()
        if "Dx:" in line
    }
    assert data.label_names == tuple(sorted({code for codes in said.values() for code in codes}))
    for record, row in zip(data.meta["record"], data.labels, strict=True):
        assert {n for n, y in zip(data.label_names, row, strict=True) if y} == set(said[record])


def test_the_rate_of_st_petersburg_is_resampled(tmp_path: Path) -> None:
    ecg = sound_ecg(12, 257)
    write_record(tmp_path / "I0001", ecg, fs=257, gain="306/mV")
    data = WFDBFolder(tmp_path, fs=257)
    np.testing.assert_allclose(data.signals[0], ecg[:, :2570] / 306, rtol=1e-6, atol=1e-6)
    assert WFDBFolder(tmp_path).signals.shape == (1, 12, 1000)
