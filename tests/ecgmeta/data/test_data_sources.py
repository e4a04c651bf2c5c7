"""What is particular to each source: labels, gains, folds, traps, refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_helpers import sound_ecg, write_record, write_tree

from ecgmeta.data import LUDB, PTBXL, ArrayDataset, WFDBFolder, concat
from ecgmeta.data.labels import LUDB_LABELS, PTBXL_SETS, PtbxlSet, ptbxl_labels, scored_diagnoses
from ecgmeta.data.leads import limb_errors
from ecgmeta.data.sources.ptbxl import PTBXLSource
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # sets at full size


def test_ludb_is_in_millivolts_and_obeys_einthoven_exactly(real_data: Path) -> None:
    data = LUDB(real_data / "ludb", fs=500)
    assert len(data) == 200
    errors = limb_errors(data.signals, data.leads)
    assert errors[:, 0].max() < 1e-5  # III = II - I to the last digit
    assert errors.max() < 0.002  # the augmented leads to half a microvolt and the rounding of halves
    assert 0.5 < np.median(np.ptp(data.signals[:, 1], axis=1)) < 3


def test_ludb_read_by_its_headers_is_warned_of(real_data: Path) -> None:
    with pytest.warns(UserWarning, match=r"LUDB's headers hold wrong gains.*ecgmeta\.data\.LUDB"):
        wrong = WFDBFolder(real_data / "ludb", labels="none")
    assert (
        limb_errors(wrong.signals, wrong.leads).max() > 0.1
    )  # mV: III is not II - I, so the warning is true


def test_ludb_labels_count_what_its_readme_counts(real_data: Path) -> None:
    data = LUDB(real_data / "ludb")
    assert data.label_names == LUDB_LABELS
    counts = dict(zip(data.label_names, data.labels.sum(axis=0).astype(int), strict=True))
    expected = {
        "sinus_rhythm": 143,
        "sinus_bradycardia": 25,
        "atrial_fibrillation": 15,
        "left_axis_deviation": 66,
        "right_axis_deviation": 3,
        "av_block_1": 10,
        "av_block_3": 5,
        "incomplete_rbbb": 29,
        "lvh": 108,
        "lah": 102,
        "pacemaker": 10,
        "early_repolarization": 9,
    }
    assert {name: counts[name] for name in expected} == expected
    assert min(counts.values()) > 0
    assert data.meta["sex"].value_counts().to_dict() == {"male": 115, "female": 85}
    assert data.meta["age"].notna().all()
    assert (data.meta["age"] == 90).sum() == 1  # ">89"
    kept = LUDB(real_data / "ludb", min_positives=20)
    assert kept.label_names == tuple(name for name in LUDB_LABELS if counts[name] >= 20)


def test_ludb_with_an_unknown_diagnosis_names_the_row(real_data: Path, tmp_path: Path) -> None:
    text = (real_data / "ludb/ludb.csv").read_text()
    (tmp_path / "ludb.csv").write_text(text.replace("Sinus bradycardia", "Sinus surprise", 1))
    with pytest.raises(InputError, match="ID 1: Rhythms: found 'sinus surprise'"):
        LUDB(tmp_path)


def test_the_scored_diagnoses_are_those_of_the_challenge(real_data: Path) -> None:
    official = pd.read_csv(real_data / "cinc2021/scored_diagnoses_2021.csv")
    mapping, names = scored_diagnoses()
    assert {int(code) for code in mapping} == set(official["SNOMEDCTCode"])
    assert len(names) == 26
    for a, b in (
        ("713427006", "59118001"),
        ("284470004", "63593006"),
        ("427172004", "17338001"),
        ("733534002", "164909002"),
    ):
        assert mapping[a] == mapping[b]
    for code, short in zip(official["SNOMEDCTCode"], official["Abbreviation"], strict=True):
        merged = {"CLBBB": "LBBB", "CRBBB": "RBBB", "SVPB": "PAC", "VPB": "PVC"}
        assert mapping[str(code)] == merged.get(short, short)


def test_challenge_headers_of_both_spellings(real_data: Path) -> None:
    data = WFDBFolder(real_data / "cinc2021", on_error="skip")
    assert len(data) == 106
    assert len(data.skipped) == 5
    assert all("(flat)" in line and "JS" in line for line in data.skipped)
    assert data.meta.attrs["skipped"] == data.skipped
    position = {name: i for i, name in enumerate(data.meta["record"])}

    def labels(record: str) -> set[str]:
        return {n for n, y in zip(data.label_names, data.labels[position[record]], strict=True) if y}

    assert labels("JS00001") == {"AF", "RBBB", "TAb"}
    assert labels("JS20014") == {"PAC", "NSIVCB", "SB"}
    rows = data.meta.to_dict("records")
    known = rows[position["JS20014"]]
    assert (known["age"], known["sex"], known["source"]) == (87.0, "female", "mixed")
    assert np.isnan(rows[position["E00001"]]["age"])
    long = rows[position["S0001"]]
    assert (long["original_fs"], long["valid_samples"]) == (1000, 1000)
    kept = WFDBFolder(real_data / "cinc2021", bad_leads="zero", min_positives=10)
    assert len(kept) == 111
    assert (kept.meta["bad_leads"] != "").sum() == 5
    assert (kept.labels.sum(axis=0) >= 10).all()


def test_long_records_give_all_their_windows(real_data: Path) -> None:
    data = WFDBFolder(real_data / "cinc2021/ptbxl", windows="all")
    mine = data.meta[data.meta["record"] == "S0001"]
    assert mine["window"].tolist() == [0, 1, 2]
    assert mine["patient"].nunique() == 1


def test_the_real_pool(real_data: Path) -> None:
    ludb = LUDB(real_data / "ludb")
    challenge = WFDBFolder(real_data / "cinc2021", on_error="skip")
    pool = concat([ludb, challenge], labels="drop")
    assert len(pool) == 306
    assert pool.label_names == ()
    assert np.isfinite(pool.signals).all()
    # Every lead was rounded to a few microvolts on its own; 0.0036 mV is the largest disagreement at 100 Hz.
    assert limb_errors(pool.signals, pool.leads).max() < 0.005
    with pytest.raises(InputError, match="label_names of dataset 1"):
        concat([ludb, challenge])


def test_other_rates_do_not_mix(real_data: Path) -> None:
    a, b = (WFDBFolder(real_data / "cinc2021/georgia", fs=fs) for fs in (100, 250))
    with pytest.raises(InputError, match="fs of dataset 1: found 250"):
        concat([a, b])


@pytest.mark.parametrize("which", PTBXL_SETS)
def test_ptbxl_label_sets_have_the_published_sizes(real_data: Path, which: PtbxlSet) -> None:
    statements = pd.read_csv(real_data / "ptbxl_fixture/scp_statements.csv", index_col=0)
    sizes = {"all": 71, "diagnostic": 44, "subdiagnostic": 23, "superdiagnostic": 5, "form": 19, "rhythm": 12}
    codes = [(code,) for code in statements.index]
    matrix, names = ptbxl_labels(codes, statements, which, "test")
    assert len(names) == len(set(names)) == sizes[which]
    assert (matrix.sum(axis=0) > 0).all()
    assert (matrix.sum(axis=1) <= 1).all()


def test_ptbxl_fixture(real_data: Path) -> None:
    root = real_data / "ptbxl_fixture"
    data = PTBXL(root)
    assert data.label_names == ("NORM", "MI", "STTC", "CD", "HYP")
    assert data.labels[:, 0].tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]
    assert data.labels[7].tolist() == [0, 1, 0, 0, 0]  # IMI at a likelihood of 35
    assert data.meta["fold"].tolist() == [3, 2, 5, 3, 4, 4, 7, 9, 10, 9]
    assert data.meta["patient"][0] == "ptbxl/15709"
    assert data.meta["sex"][0] == "female"
    assert {"device", "recording_date", "baseline_drift", "report"} <= set(data.meta.columns)
    assert data.leads[3] == "aVR"
    assert PTBXL(root, folds=range(1, 9)).meta["fold"].max() == 7
    fast, resampled = PTBXL(root, fs=500), PTBXL(root, fs=250)
    assert fast.signals.shape == (10, 12, 5000)
    assert resampled.signals.shape == (10, 12, 2500)
    assert np.corrcoef(resampled.signals[3, 1], fast.signals[3, 1, ::2])[0, 1] > 0.999


def test_ptbxl_policy_decides_about_records_without_a_label(real_data: Path) -> None:
    root = real_data / "ptbxl_fixture"
    benchmark = PTBXL(root, labels="form", label_policy="benchmark")
    paper = PTBXL(root, labels="form", label_policy="paper")
    assert benchmark.meta["ecg_id"].tolist() == [1, 8]  # LVOLT and ABQRS, both of likelihood 0
    assert len(paper) == 10
    assert paper.labels.sum() == 2


def test_ptbxl_labels_and_folds_at_full_size(real_data: Path, tmp_path: Path) -> None:
    parts = [
        pd.read_csv(real_data / f"ptbxl_labels/ptbxl_super_class_{s}.csv") for s in ("train", "val", "test")
    ]
    table = pd.concat(parts).sort_values("ecg_id")
    example = {"NORM": "NORM", "MI": "IMI", "STTC": "NST_", "CD": "CRBBB", "HYP": "LVH"}
    classes = list(example)
    table["scp_codes"] = [
        str({example[name]: 0.0 for name, y in zip(classes, row, strict=True) if y} | {"SR": 0.0})
        for row in table[classes].to_numpy()
    ]
    extra = table.iloc[[0]].assign(ecg_id=99999, scp_codes="{'SR': 0.0}")
    full = pd.concat([table, extra]).assign(age=300.0, sex=0)
    full.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    shutil.copy(real_data / "ptbxl_fixture/scp_statements.csv", tmp_path)

    def fail(error: InputError) -> None:
        raise error

    source = PTBXLSource(tmp_path)
    index = source.index(fail)
    labels, names = source.labels(index)
    kept = source.keep(index, labels)
    assert names == tuple(classes)
    assert kept.sum() == len(table) == 21388
    np.testing.assert_array_equal(labels[kept], table[classes].to_numpy())
    assert labels.sum(axis=0).tolist() == [9514, 5469, 5235, 4898, 2649]
    assert (index["age"] == 90).all()
    assert index["patient"].nunique() == table["patient_id"].nunique()
    last = PTBXLSource(tmp_path, folds=[10])
    assert last.keep(index, labels).sum() == 2158
    paper = PTBXLSource(tmp_path, label_policy="paper")
    assert paper.keep(index, labels).all()


def test_ptbxl_with_a_missing_file_or_a_strange_statement(real_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "p"
    shutil.copytree(real_data / "ptbxl_fixture", root, copy_function=shutil.copyfile)
    (root / "records100/00000").chmod(0o755)
    (root / "records100/00000/00004_lr.hea").unlink()
    with pytest.raises(InputError, match=r"00004_lr.hea: header: found no such file"):
        PTBXL(root)
    data = PTBXL(root, on_error="skip")
    assert len(data) == 9
    assert len(data.skipped) == 1
    table = root / "ptbxl_database.csv"
    text = table.read_text()
    table.write_text(text.replace("'NORM': 80.0", "'NORMAL': 80.0"))
    with pytest.raises(InputError, match="scp_codes: found NORMAL"):
        PTBXL(root)
    table.write_text(text.replace("{'NORM': 80.0", "{'NORM' 80.0"))
    with pytest.raises(InputError, match="ecg_id 2: scp_codes"):
        PTBXL(root)
    table.write_text(text.replace("strat_fold", "fold"))
    with pytest.raises(InputError, match=r"columns: .* expected strat_fold"):
        PTBXL(root)


def test_folders_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    for source in (LUDB, PTBXL, WFDBFolder):
        with pytest.raises(InputError, match="no such folder"):
            source(tmp_path / "none")
    with pytest.raises(InputError, match="records: found none to use"):
        WFDBFolder(tmp_path)
    with pytest.raises(InputError, match=r"ludb.csv: table: found no such file"):
        LUDB(tmp_path)


def test_one_bad_record_stops_or_is_listed(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / "part/R2.dat").write_bytes(b"short")
    with pytest.raises(InputError, match=r"R2.dat: size: found 5 bytes, expected 120000"):
        WFDBFolder(root)
    data = WFDBFolder(root, on_error="skip")
    assert data.meta["record"].tolist() == ["R0", "R1", "R3"]
    assert len(data.skipped) == 1
    assert "R2.dat" in data.skipped[0]


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 1)
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (InputError, {"labels": "some"}),
        (InputError, {"on_error": "ignore"}),
        (InputError, {"min_positives": -1}),
        (InputError, {"duration": 0.0}),
        (TypeError, {"colour": "red"}),
    ]
    for error, options in cases:
        with pytest.raises(error, match=next(iter(options))):
            WFDBFolder(root, **options)


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    WFDBFolder(write_tree(tmp_path), progress=lambda done, total, text: said.append((done, total, text)))
    assert said[0] == (0, 0, "indexing wfdb")
    assert said[-1] == (4, 4, "reading wfdb")


def test_age_out_of_range_is_named(tmp_path: Path) -> None:
    write_record(tmp_path / "R", sound_ecg(), comments=("Age: 640", "Sex: F"))
    with pytest.raises(InputError, match=r"R.hea: age: found '640'"):
        WFDBFolder(tmp_path)


def test_arrays_that_cannot_be_right() -> None:
    good = np.ones((3, 12, 50), dtype=np.float32)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"signals": good.transpose(0, 2, 1)}, "swapped"),
        ({"signals": good[0]}, "shape"),
        ({"signals": good.astype(np.int16)}, "mV"),
        ({"signals": good[:, :5]}, "5 leads"),
        ({"signals": np.where(np.arange(3)[:, None, None] == 1, np.nan, good)}, r"signals\[1\]"),
        ({"signals": good, "labels": np.full((3, 2), 0.5)}, "0 and 1 only"),
        ({"signals": good, "labels": np.ones((2, 2))}, "shape"),
        ({"signals": good, "meta": pd.DataFrame({"patient": ["a"]})}, "1 rows"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            ArrayDataset(**{"fs": 100.0} | arguments)
    data = ArrayDataset(good, np.array([1, 0, 1]), fs=100, meta=pd.DataFrame({"patient": ["a", None, ""]}))
    assert data.label_names == ("label_0",)
    assert data.meta["patient"].tolist() == ["a", "array/1", "array/2"]


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, ecgmeta.data; print([m for m in ('torch', 'pandas', 'wfdb', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
