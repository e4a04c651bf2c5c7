"""A configuration can name the sources: CODE-15% and long records as the data of an experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb
from data_helpers import sound_ecg, write_code15, write_record

from ecgmeta.experiment.cohort import load
from ecgmeta.experiment.config import read


def test_code15_is_split_by_patient(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    signals = np.stack([sound_ecg(10, 400, seed=seed) / 400 for seed in range(12)])
    write_code15(tmp_path / "code", signals)
    overrides = ("data.pretrain=[code15:code]", "data.finetune=code15:code", f"data.root={tmp_path}")
    cohort = load(read(None, [*overrides, f"data.cache={tmp_path / 'cache'}"]))
    assert cohort.train.label_names == ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")
    assert len(cohort.train) + len(cohort.test) == 12
    assert not set(cohort.pretrain.meta["patient"]) & set(cohort.test.meta["patient"])
    assert any("unit" in note for note in cohort.notes)


def test_long_records_give_all_their_labelled_windows(tmp_path: Path) -> None:
    for number in range(6):
        path = write_record(tmp_path / "long" / f"{100 + number}", sound_ecg(30, 100, seed=number), fs=100)
        beats = np.arange(50, 3000, 100)
        symbols = ["V" if at > 2000 and number % 2 else "N" for at in beats]
        wfdb.wrann(path.name, "atr", beats, symbols, write_dir=str(path.parent))
    overrides = ("data.pretrain=[mitbih:long]", "data.finetune=mitbih:long", f"data.root={tmp_path}")
    cohort = load(read(None, [*overrides, "data.min_positives=1"]))
    assert cohort.train.label_names == ("N", "V")
    assert len(cohort.train) + len(cohort.test) == 18
    assert not set(cohort.pretrain.meta["patient"]) & set(cohort.test.meta["patient"])
