"""Damaged tables, comments and folders: an InputError, a record left out by name, or the right rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_helpers import sound_ecg, write_record, write_tree
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ecgmeta.data import PTBXL, WFDBFolder, audit
from ecgmeta.data.labels import LUDB_DIAGNOSES, parse_scp_codes
from ecgmeta.data.sources.ludb import LUDBSource
from ecgmeta.data.sources.ptbxl import PTBXLSource
from ecgmeta.data.tables import as_age, as_sex
from ecgmeta.runtime.errors import InputError

CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-1",
            "1e400",
            "9" * 400,
            "{'NORM': 1}",
            "{[]: 1}",
            "{",
            "0.5",
            "\x00",
            '"',
            ",",
            "\n",
        ]
    ),
    st.text(max_size=8),
)


def _raise(error: InputError) -> None:
    raise error


@given(
    text=st.one_of(
        st.text(max_size=40), st.just("(" * 9000), st.just("{[]: 1}"), st.just("{1: 2}"), st.just("\x00")
    )
)
@settings(max_examples=50, deadline=None)
def test_statements_are_a_dict_or_an_error(text: str) -> None:
    try:
        found = parse_scp_codes(text, "r")
    except InputError:
        return
    assert all(isinstance(code, str) for code in found)


@given(value=st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=12)))
def test_age_and_sex_of_anything(value: object) -> None:
    assert as_sex(value) in ("female", "male", "unknown")
    try:
        age = as_age(value, "r")
    except InputError:
        return
    assert np.isnan(age) or 0 <= age <= 125


@given(row=st.integers(0, 2), column=st.integers(0, 7), cell=CELLS)
@example(row=0, column=5, cell="9" * 330)  # no float can hold it
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_cell_of_ptbxls_table_never_ends_in_a_traceback(
    tmp_path: Path, row: int, column: int, cell: str
) -> None:
    columns = {
        "ecg_id": ["1", "2", "3"],
        "patient_id": ["11.0", "12.0", "13.0"],
        "age": ["40", "50", "300"],
        "sex": ["0", "1", "0"],
        "scp_codes": ["{'NORM': 100.0}", "{'NORM': 0.0}", "{'IMI': 50.0}"],
        "strat_fold": ["1", "2", "10"],
        "filename_lr": ["a", "b", "c"],
        "filename_hr": ["a", "b", "c"],
    }
    names = list(columns)
    columns[names[column]][row] = cell
    pd.DataFrame(columns).to_csv(tmp_path / "ptbxl_database.csv", index=False)
    try:
        index = PTBXLSource(tmp_path).index(_raise)
    except InputError:
        return
    assert len(index) == 3
    others = [r for r in range(3) if r != row]
    assert index["patient"].iloc[others].tolist() == [f"ptbxl/{11 + r}" for r in others]
    assert index["fold"].iloc[others].tolist() == [[1, 2, 10][r] for r in others]


@given(at=st.floats(0, 1), cut=st.integers(0, 40), put=st.binary(max_size=6))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_of_ludbs_table_never_end_in_a_traceback(
    tmp_path: Path, at: float, cut: int, put: bytes
) -> None:
    cells = {column: next(iter(known.values())) for column, known in LUDB_DIAGNOSES.items()}
    table = pd.DataFrame([{"ID": n, "Sex": "F", "Age": 50 + n, **cells} for n in range(3)])
    whole = table.to_csv(index=False).encode()
    start = int(at * len(whole))
    (tmp_path / "ludb.csv").write_bytes(whole[:start] + put + whole[start + cut :])
    try:
        index = LUDBSource(tmp_path).index(_raise)
    except InputError:
        return
    known = {label for labels in LUDB_DIAGNOSES.values() for label in labels}
    assert {code for codes in index["codes"] for code in codes} <= known


def test_a_number_that_is_none_is_named_with_its_row(real_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "p"
    root.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copyfile(real_data / "ptbxl_fixture" / name, root / name)
    table = pd.read_csv(root / "ptbxl_database.csv", dtype=str)
    for column, value in (("patient_id", "x7"), ("strat_fold", "2.5"), ("patient_id", "inf")):
        wrong = table.copy()
        wrong.loc[4, column] = value
        wrong.to_csv(root / "ptbxl_database.csv", index=False)
        with pytest.raises(InputError, match=rf"{column}, row 5: found .*{value}.*, expected a whole number"):
            PTBXL(root)


def test_a_record_that_stands_twice_in_a_table_is_read_once_or_refused(
    real_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "p"
    shutil.copytree(real_data / "ptbxl_fixture", root, copy_function=shutil.copyfile)
    table = pd.read_csv(root / "ptbxl_database.csv")
    pd.concat([table, table.iloc[[2]]]).to_csv(root / "ptbxl_database.csv", index=False)
    with pytest.raises(
        InputError, match="00003_lr: rows: found a second row for it, expected one row a record"
    ):
        PTBXL(root)
    for cache in (None, tmp_path / "cache"):
        data = PTBXL(root, on_error="skip", cache=cache)
        assert data.meta["ecg_id"].tolist() == list(range(1, 11))
        assert len(data.skipped) == 1
    found = [f for f in audit(root, fs=100, rhythm=0).findings if f.severity == "error"]
    assert [(f.check, f.records) for f in found] == [("row_twice", ("records100/00000/00003_lr",))]
    assert len(PTBXL(real_data / "ptbxl_fixture", folds=3)) == len(
        PTBXL(real_data / "ptbxl_fixture", folds=[3])
    )


def test_two_diagnosis_lines_that_differ_are_refused(tmp_path: Path) -> None:
    write_record(tmp_path / "A", sound_ecg(), comments=("Age: 50", "Dx: 426783006", "Dx: 426783006"))
    assert WFDBFolder(tmp_path).labels.sum() == 1
    write_record(tmp_path / "A", sound_ecg(), comments=("Age: 50", "Dx: 426783006", "dx: 164889003"))
    with pytest.raises(InputError, match=r"A.hea: dx: found '426783006' and '164889003'"):
        WFDBFolder(tmp_path)


def test_loops_pipes_and_links_to_nowhere_in_a_tree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree")
    (root / "part/up").symlink_to(root)
    (root / "gone.hea").symlink_to("nowhere.hea")
    (root / "self.hea").symlink_to("self.hea")
    (root / "folder.hea").mkdir()
    (root / "R.hea").write_bytes((root / "part/R0.hea").read_bytes())
    (root / "R0.dat").symlink_to("R0.dat")
    for cache in (None, tmp_path / "cache"):
        data = WFDBFolder(root, on_error="skip", cache=cache)
        assert data.meta["record"].tolist() == ["R0", "R1", "R2", "R3"]
        assert [line.split(":")[0].rsplit("/", 1)[-1] for line in data.skipped] == [
            "gone.hea",
            "self.hea",
            "R0.dat",
        ]
    with pytest.raises(InputError, match="header"):
        WFDBFolder(root)


def test_a_folder_of_links_to_the_databases_is_read(tmp_path: Path) -> None:
    """Large databases live elsewhere; what two links lead to is read once, under the first name."""
    for name in "ab":
        write_tree(tmp_path / "elsewhere" / name, 2)
    root = tmp_path / "root"
    root.mkdir()
    for link, name in (("one", "a"), ("two", "b"), ("three", "a")):
        (root / link).symlink_to(tmp_path / "elsewhere" / name)
    data = WFDBFolder(root)
    expected = [f"{link}/part/R{n}" for link in ("one", "two") for n in range(2)]
    assert data.meta["path"].tolist() == expected
    assert audit(root, rhythm=0).summary["read"] == 4
    one_name: Any = "II"
    with pytest.raises(InputError, match=r"leads: found 'II', expected a list of names"):
        WFDBFolder(root, leads=one_name)
    with pytest.raises(InputError, match="folder: found a file, expected the root"):
        WFDBFolder(root / "one/part/R0.hea")


def test_a_linked_folder_counts_for_the_cache(tmp_path: Path) -> None:
    root = tmp_path / "ludb"
    root.mkdir()
    (root / "data").symlink_to(write_tree(tmp_path / "elsewhere", 2) / "part")
    files = sorted(path for path, *_ in LUDBSource(root).files())
    assert files == [f"data/R{n}.{kind}" for n in range(2) for kind in ("dat", "hea")]
