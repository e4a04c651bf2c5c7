"""CODE-15% in files laid out as published: which exam has which tracing, what the zeros around it become, which unit."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import write_code15

from ecgmeta.data import CODE15, PTBXL, audit
from ecgmeta.data.sources.code15 import ABNORMALITIES, typical_peak_to_peak
from ecgmeta.runtime.errors import InputError

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def ecg(real_data: Path) -> np.ndarray:
    """Ten real recordings at CODE-15's rate, (10, 12, 4000) mV."""
    return PTBXL(real_data / "ptbxl_fixture", fs=400, labels="none").signals


def test_every_exam_has_its_own_tracing_without_the_zeros(ecg: np.ndarray, tmp_path: Path) -> None:
    write_code15(tmp_path, ecg[:6])
    write_code15(tmp_path, ecg[6:, :, :2800], part=12, first=500)
    data = CODE15(tmp_path, fs=400)
    assert data.meta["record"].tolist() == [*map(str, range(100, 106)), *map(str, range(500, 504))]
    np.testing.assert_array_equal(data.signals[:6], ecg[:6])
    np.testing.assert_array_equal(data.signals[6:, :, :2800], ecg[6:, :, :2800])
    assert not data.signals[6:, :, 2800:].any()
    assert data.meta["valid_samples"].tolist() == [4000] * 6 + [2800] * 4
    assert data.label_names == ABNORMALITIES == ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")
    np.testing.assert_array_equal(data.labels[:6], np.eye(6))
    assert data.meta["patient"].tolist()[:4] == ["code15/0", "code15/0", "code15/1", "code15/1"]
    assert data.meta["sex"].tolist()[:2] == ["male", "female"]
    assert data.meta["age"].tolist()[:2] == [40, 41]
    assert {"nn_predicted_age", "death", "timey", "normal_ecg", "AF"} <= set(data.meta.columns)
    assert any("unit" in line for line in data.notes)


def test_an_audit_reads_code15_by_its_own_source(ecg: np.ndarray, tmp_path: Path) -> None:
    spoiled = ecg[:6].copy()
    spoiled[2, [4, 5]] = spoiled[2, [5, 4]]
    write_code15(tmp_path / "code", spoiled)
    found = audit(tmp_path, rhythm=0)
    assert [part["name"] for part in found.summary["parts"]] == ["code/CODE-15%"]
    wrong = [finding for finding in found.findings if finding.severity == "error"]
    assert [(f.check, f.leads, len(f.records)) for f in wrong] == [("lead_order", ("aVL", "aVF"), 1)]
    assert "102" in wrong[0].records[0]


def test_parts_label_sets_and_the_cache(ecg: np.ndarray, tmp_path: Path) -> None:
    root = write_code15(tmp_path / "code", ecg[:8])
    write_code15(root, ecg[8:], part=1, first=500)
    assert len(CODE15(root, parts=[1])) == 2
    wide = CODE15(root, labels="all", cache=tmp_path / "cache")
    assert wide.label_names[-1] == "normal_ecg"
    assert wide.labels[:, -1].tolist() == [0] * 7 + [1, 0, 0]
    again = CODE15(root, labels="none", cache=tmp_path / "cache")
    assert again.label_names == ()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    np.testing.assert_array_equal(again.signals, wide.signals)
    (root / "exams_part1.hdf5").unlink()
    assert len(CODE15(root)) == 8  # whoever has one part of eighteen can use it
    with pytest.raises(InputError, match=r"exams_part1.hdf5: file: found no such file"):
        CODE15(root, parts=[0, 1])


def test_amplitudes_that_are_not_millivolts_are_refused(ecg: np.ndarray, tmp_path: Path) -> None:
    in_microvolts = write_code15(tmp_path / "uv", ecg * 1000)
    with pytest.raises(InputError, match=r"units_per_mv=1 is wrong"):
        CODE15(in_microvolts)
    data = CODE15(in_microvolts, units_per_mv=1000)
    assert 0.3 < typical_peak_to_peak(data) < 2  # what a second of PTB-XL spans
    with pytest.raises(InputError, match=r"units_per_mv=1 is wrong"):
        CODE15(write_code15(tmp_path / "v", ecg / 1000))
    halved = CODE15(write_code15(tmp_path / "double", ecg * 2), units_per_mv=2)
    np.testing.assert_allclose(halved.signals, data.signals, atol=1e-5)


def test_what_is_wrong_is_named_with_its_exam(ecg: np.ndarray, tmp_path: Path) -> None:
    flat = ecg[:4].copy()
    flat[2] = 0
    root = write_code15(tmp_path, flat)
    with pytest.raises(InputError, match=r"exams_part0.hdf5, exam_id 102: tracings: found zeros throughout"):
        CODE15(root)
    table = root / "exams.csv"
    text = table.read_text()
    table.write_text(text.replace("\n101,", "\n999,"))
    data = CODE15(root, on_error="skip")
    assert data.meta["record"].tolist() == ["100", "103"]
    assert any("exam_id 999: trace_file" in line for line in data.skipped)
    table.write_text(text.replace("103,43,False", "103,43,perhaps"))
    with pytest.raises(InputError, match=r"exam_id 103: is_male: found 'perhaps'"):
        CODE15(root)
    table.write_text(text)
    with h5py.File(root / "exams_part0.hdf5", "w") as file:
        file["exam_id"] = np.arange(3)
    with pytest.raises(InputError, match=r"exams_part0.hdf5: dataset: found 'tracings'"):
        CODE15(root)
    (root / "exams_part0.hdf5").write_bytes(b"not hdf5")
    with pytest.raises(InputError, match=r"exams_part0.hdf5: file: .* expected an HDF5 file"):
        CODE15(root)
    (root / "exams_part0.hdf5").unlink()
    with pytest.raises(InputError, match="none of 1 files"):
        CODE15(root)


@pytest.mark.parametrize(("option", "value"), [("labels", "some"), ("units_per_mv", 0.0)])
def test_settings_that_make_no_sense(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=option):
        CODE15(tmp_path, **{option: value})


def test_a_missing_h5py_is_named_with_its_extra(
    ecg: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_code15(tmp_path, ecg[:2])
    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"ecgmeta\[hdf5\]"):
        CODE15(root)
