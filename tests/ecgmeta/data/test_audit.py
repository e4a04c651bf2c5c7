"""The audit of whole folders and datasets: real ones, and trees with planted faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_helpers import sound_ecg, write_record, write_tree
from scipy.signal import resample_poly

from ecgmeta.data import LUDB, ArrayDataset, SyntheticCohort, audit
from ecgmeta.data.auditing.audit import Audit, signal_notes
from ecgmeta.data.auditing.findings import Finding
from ecgmeta.data.records import read_record
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # audits whole sets of recordings


def checks(found: Audit, severity: str = "") -> dict[str, int]:
    """Check -> number of findings, of one severity."""
    names = [f.check for f in found.findings if not severity or f.severity == severity]
    return {name: names.count(name) for name in names}


def pairs(found: Audit, check: str) -> set[frozenset[str]]:
    return {
        frozenset(name.rsplit("/", 1)[-1] for name in f.records) for f in found.findings if f.check == check
    }


@pytest.fixture(scope="module")
def challenge(real_data: Path) -> Audit:
    return audit(real_data / "cinc2021", rhythm=6)


def test_the_challenge_records(challenge: Audit) -> None:
    assert challenge.ok
    assert challenge.summary["recordings"] == challenge.summary["read"] == 111
    assert not checks(challenge, "error")
    flat = {f.records[0].rsplit("/", 1)[-1] for f in challenge.findings if f.check == "flat"}
    assert flat == {"JS45542", "JS45544", "JS45551", "JS20004", "JS20008"}
    # HR00004 keeps its largest value for a tenth of a second at an end of V4.
    clipped = {f.records[0]: f.leads for f in challenge.findings if f.check == "clipped"}
    assert clipped["ptbxl/HR00004"] == ("V4",)
    (part,) = challenge.summary["parts"]
    assert part["rates"] == {"500": 110, "1000": 1}
    assert part["sources"] == {"chapman_ningbo": 20, "cpsc": 20, "georgia": 10, "mixed": 50, "ptbxl": 11}
    assert part["lengths"]["38.4"] == 1
    assert part["leads"] == {"the standard 12": 111}


def test_duplicates_within_the_challenge_and_none_for_s0001(challenge: Audit) -> None:
    assert pairs(challenge, "duplicate") == {frozenset({"E07509", "E07510"})}


def test_s0001_under_another_name_rate_gain_and_lead_order(real_data: Path, tmp_path: Path) -> None:
    """No real file repeats S0001 (see `test_data_duplicates`), so this one is made."""
    path = real_data / "cinc2021/ptbxl/S0001"
    for kind in (".hea", ".mat"):
        shutil.copyfile(path.with_suffix(kind), tmp_path / f"S0001{kind}")
    record = read_record(path)
    slower = resample_poly(record.signal[::-1], 1, 2, axis=1)
    digital = np.rint(500 * slower).astype(np.int16)
    write_record(tmp_path / "other/JS1", digital, fs=500, leads=record.leads[::-1], gain="500/mV")
    write_record(tmp_path / "other/JS2", sound_ecg(), fs=500)
    assert pairs(audit(tmp_path, rhythm=0), "duplicate") == {frozenset({"S0001", "JS1"})}


def test_ludb_by_its_own_source_is_sound_and_by_its_headers_is_not(real_data: Path) -> None:
    own = audit(real_data / "ludb", rhythm=0)
    assert own.ok
    assert set(checks(own, "warning")) <= {"clipped", "amplitude", "electrodes", "stored_gain"}
    stored = next(f.text for f in own.findings if f.check == "stored_gain")
    assert stored.startswith(
        "LUDB: 200 of 200 recordings, such as data/133: the limb leads miss their identities"
    )
    plain = audit(real_data / "ludb", kind="wfdb", rhythm=0)
    assert not plain.ok
    assert checks(plain, "error") == {"gain": 200}
    gain = next(f for f in plain.findings if f.records == ("data/1",))
    # Header gains 1716, 1206, 1229, 1368, 1368, 698 for signals in microvolts: factors of 1000 over them.
    factors = 1 / np.array([1716, 1206, 1229, 1368, 1368, 698])
    said = [float(word.rstrip(",").removeprefix("×")) for word in gain.text.split() if word.startswith("×")]
    np.testing.assert_allclose(said, factors / np.median(factors), atol=0.02)


def test_wrong_gains_in_headers_are_said_though_ludb_does_not_use_them(
    real_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    table = pd.read_csv(real_data / "ludb/ludb.csv").iloc[:6]
    table.to_csv(tmp_path / "ludb.csv", index=False)
    for name in table["ID"]:
        for kind in (".hea", ".dat"):
            shutil.copyfile(real_data / f"ludb/data/{name}{kind}", tmp_path / f"data/{name}{kind}")
    found = audit(tmp_path, rhythm=0)
    assert found.ok
    (said,) = (f.text for f in found.findings if f.check == "stored_gain")
    assert said.startswith("LUDB: 6 of 6 recordings, such as data/")
    assert "they hold with gains I ×" in said
    assert checks(audit(tmp_path, kind="wfdb", rhythm=0), "error") == {"gain": 6}


def test_ptbxl_and_challenge_below_one_folder(real_data: Path, tmp_path: Path) -> None:
    for name in ("ptbxl_fixture", "cinc2021/ptbxl"):
        shutil.copytree(real_data / name, tmp_path / name, copy_function=shutil.copyfile)
    found = audit(tmp_path, rhythm=0)
    assert found.ok
    expected = {frozenset({f"{i:05d}_lr", f"{i:05d}_hr", f"HR{i:05d}"}) for i in range(1, 11)}
    assert pairs(found, "duplicate") == expected
    assert [part["name"].split(",")[0] for part in found.summary["parts"]] == ["ptbxl_fixture/PTB-XL"] * 2 + [
        "WFDB"
    ]
    slow = audit(tmp_path / "ptbxl_fixture", fs=100, rhythm=0)
    assert slow.summary["recordings"] == 10
    both = audit(tmp_path / "ptbxl_fixture", rhythm=0)
    assert both.summary["recordings"] == 20
    assert both.summary["patients"] == slow.summary["patients"]
    # The two rates of one recording are versions of it, not duplicates.
    assert not {"duplicate", "repeated", "duplicate_split"} & set(checks(both))


def test_ptbxl_patients_and_signals_on_two_sides(real_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "p"
    shutil.copytree(real_data / "ptbxl_fixture", root, copy_function=shutil.copyfile)
    table = pd.read_csv(root / "ptbxl_database.csv")
    table["patient_id"] = table["patient_id"].where(
        table["ecg_id"] != 8, table["patient_id"][0]
    )  # fold 3 and 9
    table["filename_lr"] = table["filename_lr"].where(
        table["ecg_id"] != 9, table["filename_lr"][1]
    )  # fold 2 and 10
    table.to_csv(root / "ptbxl_database.csv", index=False)
    found = audit(root, fs=100, rhythm=0)
    assert checks(found, "error") == {"patient_split": 1, "duplicate_split": 1}
    split = next(f for f in found.findings if f.check == "patient_split")
    assert split.text == "patient ptbxl/15709 in train and validation"
    assert {name[-8:] for name in split.records} == {"00001_lr", "00008_lr"}
    twice = next(f for f in found.findings if f.check == "duplicate_split")
    assert twice.text == "in train and test"


def test_broken_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 6)
    part = root / "part"
    (part / "R0.dat").write_bytes((part / "R0.dat").read_bytes()[:-100])
    (part / "R1.dat").unlink()
    changed = bytearray((part / "R2.dat").read_bytes())
    changed[5000] ^= 1
    (part / "R2.dat").write_bytes(changed)
    (part / "R3.hea").write_text("nonsense")
    (part / "stray.dat").write_bytes(b"1234")
    found = audit(root, rhythm=0)
    assert checks(found, "error") == {"truncated": 1, "unreadable": 2, "checksum": 1}
    named = {f.check: f.records for f in found.findings if f.check in ("truncated", "checksum")}
    assert named == {"truncated": ("part/R0",), "checksum": ("part/R2",)}
    assert {f.records[0] for f in found.findings if f.check == "unreadable"} == {"part/R1", "part/R3"}
    assert [f.records for f in found.findings if f.check == "orphan"] == [("part/stray.dat",)]
    assert found.summary["read"] == 2
    assert not found.ok


def test_planted_faults_in_a_tree(tmp_path: Path) -> None:
    sound = write_tree(tmp_path / "sound")
    assert not checks(audit(sound, rhythm=0), "error")
    x = sound_ecg(seed=50)
    order = [0, 1, 2, 3, 5, 4, *range(6, 12)]
    write_record(sound / "swapped", x[order])
    write_record(sound / "microvolts", sound_ecg(seed=51), gain="1/mV")
    write_record(sound / "unit", sound_ecg(seed=52), gain="1000/mmHg")
    write_record(sound / "copy", sound_ecg(seed=0), fs=500)
    found = audit(sound, rhythm=0)
    assert checks(found, "error") == {"lead_order": 1, "units": 2}
    assert {f.records[0] for f in found.findings if f.check == "units"} == {"microvolts", "unit"}
    assert pairs(found, "duplicate") == {frozenset({"R0", "copy"})}


def test_labels_are_counted_alone_and_together(tmp_path: Path) -> None:
    for number, codes in enumerate(("426783006", "164889003", "164889003,59118001", "")):
        write_record(tmp_path / f"R{number}", sound_ecg(seed=number), comments=(f"Dx: {codes}",))
    found = audit(tmp_path, rhythm=0)
    labels = found.summary["parts"][0]["labels"]
    assert labels["counts"] == {"AF": 2, "NSR": 1, "RBBB": 1}
    names = list(labels["counts"])
    together = np.array(labels["together"])
    assert together[names.index("AF"), names.index("RBBB")] == 1
    assert np.diag(together).tolist() == list(labels["counts"].values())
    assert labels["unlabelled"] == 1
    assert {"rare_label", "unlabelled"} <= set(checks(found, "note"))


def test_any_dataset_can_be_audited(real_data: Path) -> None:
    cohort = SyntheticCohort(200, seed=4)
    clean = audit(cohort, rhythm=4)
    assert clean.ok
    assert clean.summary["parts"][0]["folds"].keys() == {str(n) for n in range(1, 11)}
    assert clean.summary["rhythm"]["tried"] == 4
    assert not {"duplicate", "duplicate_split", "gain", "lead_order", "limb_identity"} & set(checks(clean))
    x = cohort.signals[:20].copy()
    x[7] = x[3]
    x[5, :6] = x[5, [0, 1, 2, 3, 5, 4]]
    meta = pd.DataFrame({"fold": [1] * 7 + [10] * 13, "record": [f"r{i}" for i in range(20)]})
    found = audit(ArrayDataset(x, fs=100, meta=meta), rhythm=0)
    assert checks(found, "error") == {"lead_order": 1, "duplicate_split": 1}
    assert pairs(found, "duplicate_split") == {frozenset({"r3", "r7"})}
    assert audit(LUDB(real_data / "ludb"), rhythm=0).ok


def test_a_patient_twice_is_a_note_and_names_stay_different() -> None:
    x = SyntheticCohort(4, seed=1).signals.copy()
    x[3] = x[0]
    meta = pd.DataFrame({"patient": ["a", "b", "c", "a"], "record": ["r", "s", "r", "t"]})
    found = audit(ArrayDataset(x, fs=100, meta=meta), rhythm=0)
    assert [f.records for f in found.findings if f.check == "repeated"] == [("r", "t")]
    assert found.record("r (2)").signal.shape == (12, 1000)
    np.testing.assert_array_equal(found.record("r (2)").signal, x[2])


def test_json_gives_the_audit_back(challenge: Audit) -> None:
    back = Audit.from_json(challenge.to_json())
    assert back.findings == [Finding.from_dict(f.to_dict()) for f in challenge.findings]
    assert back.summary == challenge.summary
    assert (back.ok, back.path, back.counts()) == (challenge.ok, challenge.path, challenge.counts())
    assert back.to_json() == challenge.to_json()
    with pytest.raises(InputError, match="read from JSON"):
        back.record("ptbxl/HR00004")
    for text in ("{}", "[", '{"path": 1, "findings": [{}], "summary": {}}'):
        with pytest.raises(InputError, match=r"JSON: .*Audit\.to_json"):
            Audit.from_json(text)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        audit(tmp_path / "none")
    with pytest.raises(InputError, match="recordings: found none"):
        audit(tmp_path)
    with pytest.raises(InputError, match="kind: found 'ptb'"):
        audit(tmp_path, kind="ptb")
    with pytest.raises(InputError, match="no such file"):
        audit(tmp_path, kind="ptbxl")
    with pytest.raises(InputError, match="rhythm: found -3"):
        audit(tmp_path, rhythm=-3)
    with pytest.raises(InputError, match="recording: found 'x'"):
        audit(write_tree(tmp_path), rhythm=0).record("x")


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    audit(write_tree(tmp_path, 3), rhythm=0, progress=lambda *args: said.append(args))
    assert said[0] == (0, 0, "indexing")
    assert (3, 3, "auditing") in said
    assert said[-1][0] == said[-1][1]


def test_notes_at_load_time_are_the_same_checks() -> None:
    x = SyntheticCohort(30, seed=6).signals.copy()
    assert signal_notes(ArrayDataset(x, fs=100)) == []
    x[4:7] *= 1000
    x[9, :6] = x[9, [1, 0, 2, 3, 4, 5]]
    notes = signal_notes(ArrayDataset(x, fs=100))
    assert len(notes) == 2
    assert notes[0].startswith(
        "Leads under the wrong names in 1 of 30 recordings, such as 9: I holds II, II holds I"
    )
    assert notes[1].startswith("Wrong units in 3 of 30 recordings, such as ")
    assert "of 15 recordings looked at" in signal_notes(ArrayDataset(x, fs=100), most=15)[0]
