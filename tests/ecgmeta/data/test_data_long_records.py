"""Long records in windows: labels against wfdb's own reading of the annotations, leads, patients, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb
from data_helpers import sound_ecg, write_record

from ecgmeta.data import LUDB, MITBIH, LongRecords, read_delineation
from ecgmeta.data.sources.long_records import AAMI, RHYTHMS, MITBIHSource, annotation_spans
from ecgmeta.runtime.errors import InputError

HALF_HOUR = 180  # whole windows of 10 s in 650000 samples at 360 Hz


def annotated(path: Path, seconds: float, marks: list[tuple[float, str, str]], fs: int = 100) -> None:
    """A record of 12 leads with annotations (s, symbol, note)."""
    write_record(path, sound_ecg(seconds, fs), fs=fs)
    wfdb.wrann(
        path.name,
        "atr",
        np.array([round(at * fs) for at, _, _ in marks]),
        [symbol for _, symbol, _ in marks],
        aux_note=[note for _, _, note in marks],
        write_dir=str(path.parent),
    )


@pytest.mark.parametrize("name", ["mitdb/100", "nstdb/118e06"])
def test_beats_of_every_window_are_those_wfdb_finds(real_data: Path, name: str) -> None:
    folder, record = name.split("/")
    data = MITBIH(real_data / folder, fs=90)
    assert len(data) == HALF_HOUR
    assert data.label_names == ("N", "S", "V", "F", "Q")
    found = wfdb.rdann(str(real_data / name), "atr")
    expected = np.zeros((HALF_HOUR + 1, 5), dtype=np.float32)
    for sample, symbol in zip(found.sample, found.symbol, strict=True):
        for column, symbols in enumerate(AAMI.values()):
            if symbol in symbols:
                expected[sample // 3600, column] = 1
    np.testing.assert_array_equal(data.labels, expected[:HALF_HOUR])
    assert data.labels.sum(axis=0)[0] > 100
    assert data.labels.sum() > data.labels[:, 0].sum()  # both records have beats that are not normal
    assert data.meta["start"].tolist() == [10.0 * number for number in range(HALF_HOUR)]
    assert set(data.meta["record"]) == {record}


def test_signals_age_sex_leads_and_patients_of_the_real_records(real_data: Path) -> None:
    data = MITBIH(real_data / "mitdb", fs=360, labels="rhythm", min_positives=1)
    assert data.leads == ("MLII", "V5")
    truth = wfdb.rdsamp(str(real_data / "mitdb/100"))[0][3600:7200].T
    np.testing.assert_allclose(data[1][0].numpy(), truth, atol=1e-6)
    assert data.label_names == ("N",)
    assert data.labels.all()  # one rhythm annotation, N at the start, in force to the end
    assert (data.meta["age"][0], data.meta["sex"][0]) == (69, "male")
    noisy = MITBIH(real_data / "nstdb", leads=("v1",), labels="none", duration=30)
    assert noisy.leads == ("V1",)
    assert len(noisy) == 60
    assert set(noisy.meta["patient"]) == {"mitbih/118"}
    source = MITBIHSource(real_data / "mitdb")
    assert source.subject("202") == source.subject("201") != source.subject("203")
    assert set(LongRecords(real_data / "mitdb", labels="none").meta["patient"]) == {"100"}


def test_a_rhythm_is_in_force_until_the_next_one(tmp_path: Path) -> None:
    marks = [
        (2, "+", "(N"),
        (3, "N", ""),
        (12, "+", "(AFIB"),
        (15, "V", ""),
        (20, "+", "(N"),
        (25.5, "a", ""),
    ]
    annotated(tmp_path / "R", 42, [(float(at), symbol, note) for at, symbol, note in marks])
    rhythm = LongRecords(tmp_path, labels="rhythm", duration=5)
    assert rhythm.label_names == RHYTHMS
    n, af = (rhythm.labels[:, RHYTHMS.index(name)].tolist() for name in ("N", "AFIB"))
    #         0  5 10 15 20 25 30 35  s
    assert n == [
        1,
        1,
        1,
        0,
        1,
        1,
        1,
        1,
    ]  # 10-12 s is still N; AFIB ends at 20 s, where the next window begins
    assert af == [0, 0, 1, 1, 0, 0, 0, 0]
    assert rhythm.labels.sum() == 9
    beats = LongRecords(tmp_path, duration=5, min_positives=1)
    assert beats.label_names == ("N", "S", "V")
    assert beats.labels.argmax(axis=1)[[0, 3, 5]].tolist() == [0, 2, 1]
    assert beats.labels.sum() == 3
    first = LongRecords(tmp_path, duration=5, windows="first", labels="rhythm")
    assert first.labels.shape == (1, len(RHYTHMS))
    assert annotation_spans(("100 +", "200 N"), 100.0, beats=True) == [(2.0, 2.0, "N")]


def test_labels_follow_their_windows_through_cache_skips_and_subsets(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in range(2):
        annotated(root / f"R{number}", 30, [(5.0 + 10 * number, "V", ""), (25.0, "F", "")])
    flat = sound_ecg(30, 100, seed=0)
    flat[4, 1000:2000] = 7  # the second window of R0 has a flat lead
    write_record(root / "R0", flat, fs=100)
    plain = LongRecords(root, on_error="skip")
    assert list(zip(plain.meta["record"], plain.meta["window"], strict=True)) == [
        *(("R0", 0), ("R0", 2), ("R1", 0), ("R1", 1), ("R1", 2)),
    ]
    assert "lead aVL" in plain.skipped[0]
    v, f = plain.label_names.index("V"), plain.label_names.index("F")
    assert plain.labels[:, v].tolist() == [1, 0, 0, 1, 0]
    assert plain.labels[:, f].tolist() == [0, 1, 0, 0, 1]
    for _ in range(2):  # built, then opened
        cached = LongRecords(root, on_error="skip", cache=tmp_path / "cache")
        np.testing.assert_array_equal(cached.labels, plain.labels)
        np.testing.assert_allclose(cached.signals, plain.signals, atol=1e-3)
    assert plain.subset([3]).labels[0, v] == 1


def test_annotations_that_are_missing_broken_or_unknown(tmp_path: Path) -> None:
    annotated(tmp_path / "A", 30, [(1.0, "N", ""), (2.0, "+", "(N")])
    write_record(tmp_path / "B", sound_ecg(30, 100), fs=100)
    with pytest.raises(InputError, match=r"B.atr: annotations: found no such file"):
        LongRecords(tmp_path)
    data = LongRecords(tmp_path, on_error="skip", cache=tmp_path / "cache")
    assert set(data.meta["record"]) == {"A"}
    assert len(data.skipped) == 1
    assert set(LongRecords(tmp_path, labels="none", cache=tmp_path / "cache").meta["record"]) == {"A", "B"}
    (tmp_path / "B.atr").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"B.atr: annotations"):
        LongRecords(tmp_path)
    (tmp_path / "B.atr").unlink()
    annotated(tmp_path / "B", 30, [(12.0, "+", "(STRANGE")])
    with pytest.raises(InputError, match=r"B: rhythm at 12 s: found 'STRANGE'"):
        LongRecords(tmp_path, labels="rhythm")
    with pytest.raises(InputError, match="labels"):
        LongRecords(tmp_path, labels="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="annotator"):
        LongRecords(tmp_path, annotator="../x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="records: found none"):
        LongRecords(tmp_path / "empty")


def test_ludb_waves_are_counted_as_its_readme_counts_them(real_data: Path) -> None:
    waves = read_delineation(real_data / "ludb", 1)
    assert list(waves.columns) == ["lead", "wave", "onset", "peak", "offset"]
    assert waves["lead"].unique().tolist()[:4] == ["I", "II", "III", "aVR"]
    assert set(waves["wave"]) == {"P", "QRS", "T"}
    two = read_delineation(real_data / "ludb", "1", "ii")
    assert two.equals(waves[waves["lead"] == "II"].reset_index(drop=True))
    found = wfdb.rdann(str(real_data / "ludb/data/1"), "ii")
    peaks = [at / 500 for at, symbol in zip(found.sample, found.symbol, strict=True) if symbol == "N"]
    assert two.loc[two["wave"] == "QRS", "peak"].tolist() == peaks
    known = two.dropna()
    assert ((known["onset"] <= known["peak"]) & (known["peak"] <= known["offset"])).all()
    assert 0.06 < (known["offset"] - known["onset"])[known["wave"] == "QRS"].median() < 0.14  # s
    data = LUDB(real_data / "ludb")
    assert data.waves("1", "II").equals(two)
    assert any("gains" in line for line in data.notes)
    assert data.subset([0]).notes == data.notes
    with pytest.raises(InputError, match="lead: found 'V9'"):
        read_delineation(real_data / "ludb", 1, "V9")
    with pytest.raises(InputError, match=r"999.hea: header: found no such file"):
        read_delineation(real_data / "ludb", 999)


@pytest.mark.slow
def test_every_wave_of_ludb(real_data: Path) -> None:
    """The README counts 21966 QRS, 19666 T and 16797 P; the files hold 21965, 19661 and 16797 marks of a peak."""
    counts = {"QRS": 0, "T": 0, "P": 0}
    unmarked = 0
    for record in range(1, 201):
        waves = read_delineation(real_data / "ludb", record)
        for wave in counts:
            counts[wave] += int((waves["wave"] == wave).sum())
        known = waves.dropna()
        unmarked += len(waves) - len(known)
        assert ((known["onset"] <= known["peak"]) & (known["peak"] <= known["offset"])).all()
    assert counts == {"QRS": 21965, "T": 19661, "P": 16797}
    assert unmarked == 134
