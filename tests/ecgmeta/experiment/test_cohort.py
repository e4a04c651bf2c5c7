"""No stage sees what it must not: patients, duplicate signals, folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from run_helpers import TINY, call, error_line, metrics
from wfdb_pool import DX, signal, write, write_pool

from ecgmeta.data import WFDBFolder
from ecgmeta.data.preprocess import Preprocess
from ecgmeta.encoders import ResNet1d
from ecgmeta.experiment.cohort import Cohort, load
from ecgmeta.experiment.config import Experiment, read
from ecgmeta.experiment.model import build_encoder
from ecgmeta.experiment.pretrain import metaft
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

ROOT = Path(__file__).resolve().parents[3]


def configuration(root: Path, *overrides: str) -> Experiment:
    wfdb = (f"data.root={root}", "data.pretrain=[wfdb:a]", "data.finetune=wfdb:a", "data.min_positives=1")
    return read(None, [*TINY, *wfdb, *overrides])


def patients(cohort: Cohort, part: str) -> set[str]:
    return set(getattr(cohort, part).meta["patient"])


@pytest.fixture(scope="module")
def synthetic() -> tuple[Experiment, Cohort]:
    config = read(None, TINY)
    return config, load(config)


def test_test_patients_are_in_no_other_part(synthetic: tuple[Experiment, Cohort]) -> None:
    config, cohort = synthetic
    train, validation = metaft(config, cohort)
    test = patients(cohort, "test")
    assert test
    for seen in (patients(cohort, "pretrain"), patients(cohort, "train")):
        assert seen
        assert not test & seen
    for part in (train, validation):
        assert set(part.meta["patient"]) <= patients(cohort, "train")
    assert not set(train.meta["patient"]) & set(validation.meta["patient"])


def test_labelled_subsets_are_nested(synthetic: tuple[Experiment, Cohort]) -> None:
    _, cohort = synthetic
    rows = [set(cohort.labelled(n, 0).tolist()) for n in (10, 20, 40)]
    assert [len(r) for r in rows] == [10, 20, 40]
    assert rows[0] < rows[1] < rows[2]
    assert set(cohort.labelled(40, 1).tolist()) != rows[2]
    assert len(cohort.labelled(10_000, 0)) == len(cohort.train)


def test_metaft_sees_what_fine_tuning_on_as_many_labels_sees(synthetic: tuple[Experiment, Cohort]) -> None:
    config, cohort = synthetic
    sizes = config.finetune.labels
    assert sizes == [config.meta.labels]
    fine_tuning = cohort.split(cohort.labelled(sizes[0], config.seed), config.seed)
    for ours, theirs in zip(metaft(config, cohort), fine_tuning, strict=True):
        assert ours.meta["record"].tolist() == theirs.meta["record"].tolist()


def test_loading_is_a_function_of_the_seed(synthetic: tuple[Experiment, Cohort]) -> None:
    config, cohort = synthetic
    assert patients(load(config), "test") == patients(cohort, "test")
    assert patients(load(read(None, [*TINY, "seed=1"])), "test") != patients(cohort, "test")


def test_copies_of_test_signals_under_other_names_are_not_pretrained_on(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    for number in range(24):  # the same hearts again, at half the rate and under other names
        write(tmp_path / "b" / f"copy{number}", signal(number)[:, ::2], fs=50)
    write(tmp_path / "b" / "new", signal(99))
    cohort = load(configuration(tmp_path, "data.pretrain=[wfdb:a,wfdb:b]"))
    used = set(cohort.pretrain.meta["record"])
    test = set(cohort.test.meta["record"])
    assert test
    assert not {name.replace("R", "copy") for name in test} & used
    assert {name.replace("R", "copy") for name in cohort.train.meta["record"]} | {"new"} <= used
    assert any("24 signals stand under two or more names" in note for note in cohort.notes)


def test_a_duplicate_pair_is_one_patient_of_the_labelled_split(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    for number in range(24):
        write(tmp_path / "a" / f"twin{number}", signal(number), dx=DX[int(number % 3 == 0)])
    cohort = load(configuration(tmp_path))
    names = {part: set(getattr(cohort, part).meta["record"]) for part in ("train", "test")}
    for part, members in names.items():
        for number in range(24):
            assert (f"R{number}" in members) == (f"twin{number}" in members), (part, number)


def test_reading_a_source_in_windows_and_with_labels_makes_no_duplicates(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / "a" / f"R{number}", signal(number, seconds=11), dx=DX[number % 2])
    cohort = load(configuration(tmp_path, "data.windows=all"))
    assert cohort.notes == []
    assert len(cohort.pretrain) == 2 * len(cohort.train)
    assert not patients(cohort, "pretrain") & patients(cohort, "test")


def test_other_labels_keep_the_test_patients_of_the_run(tmp_path: Path) -> None:
    write_pool(tmp_path / "a", 40)
    first = patients(load(configuration(tmp_path)), "test")
    later = configuration(tmp_path, "data.min_positives=20")
    assert patients(load(later), "test") != first  # stratified anew
    assert patients(load(later, test_patients=frozenset(first)), "test") == first
    with pytest.raises(InputError, match="test patients"):
        load(later, test_patients=frozenset({"nobody"}))


def test_a_record_at_another_rate_is_resampled(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    write(tmp_path / "a" / "R0", np.repeat(signal(0), 5, axis=1), fs=500)
    cohort = load(configuration(tmp_path))
    assert cohort.train.fs == cohort.test.fs == 50
    assert cohort.train.samples == cohort.pretrain.samples == 250
    rates = {*cohort.train.meta["original_fs"], *cohort.test.meta["original_fs"]}
    assert rates == {100.0, 500.0}


def test_an_encoder_carries_what_was_done_to_its_recordings(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    filters = ("data.highpass=0.5", "data.lowpass=20", "data.notch=40")
    config = configuration(tmp_path, *filters)
    cohort = load(config)
    build_encoder(config, cohort, 0).save_pretrained(tmp_path / "encoder")
    encoder = ResNet1d.from_pretrained(tmp_path / "encoder")
    assert Preprocess.from_dict(encoder.preprocess).notch == 40
    again = WFDBFolder(tmp_path / "a", **encoder.preprocess)
    rows = [again.meta["record"].tolist().index(name) for name in cohort.test.meta["record"]]
    assert torch.equal(again[rows][0], cohort.test[slice(None)][0])
    plain = load(configuration(tmp_path)).test[slice(None)][0]
    assert not torch.equal(plain, cohort.test[slice(None)][0])


def test_a_cache_made_ahead_is_the_one_that_a_run_reads(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    folder, settings = (
        tmp_path / "cache = of {a}",
        ("data.duration=5", "data.lowpass=20", "data.min_positives=1"),
    )
    assert call("data", "cache", tmp_path / "a", "-o", folder, "--fs", 50, *settings) == 0
    (entry,) = folder.iterdir()
    config = configuration(tmp_path, *settings, "data.fs=50")
    plain = load(config)
    config.data.cache = str(folder)
    cached = load(config)
    assert list(folder.iterdir()) == [entry]
    x, y = (cohort.train[slice(None)][0] for cohort in (cached, plain))
    assert float((x - y).abs().max()) <= 0.0005  # half a microvolt


def test_the_synthetic_cohort_is_filtered_where_asked() -> None:
    plain, filtered = (load(read(None, [*TINY, *more])).test for more in ([], ["data.highpass=1"]))
    assert filtered.meta["record"].tolist() == plain.meta["record"].tolist()
    offsets = [data[slice(None)][0].mean(-1).abs().mean() for data in (plain, filtered)]
    assert float(offsets[1]) < 0.2 * float(offsets[0])


def test_bad_records_are_left_out_where_asked_and_listed(tmp_path: Path) -> None:
    write_pool(tmp_path / "a")
    (tmp_path / "a" / "R5.dat").unlink()
    cohort = load(configuration(tmp_path, "data.on_error=skip"))
    assert len(cohort.train) + len(cohort.test) == 23
    assert len(cohort.skipped) == 1
    assert "R5" in cohort.skipped[0]
    assert any("1 recordings were left out" in note for note in cohort.notes)


def test_no_pretraining_source_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.pretrain"):
        load(read(None, [*TINY, "data.pretrain=[]"]))


def test_the_pool_of_real_recordings(real_data: Path) -> None:
    config = read(ROOT / "configs" / "ecg" / "real_small.yaml", [f"data.root={real_data}"])
    cohort = load(config)
    assert set(cohort.test.meta["source"]) == {"ludb"}
    assert not patients(cohort, "test") & patients(cohort, "pretrain")
    assert not patients(cohort, "test") & patients(cohort, "train")
    assert len(cohort.train) + len(cohort.test) == 200
    assert set(cohort.pretrain.meta["source"]) > {"ludb"}
    assert len(cohort.pretrain.leads) == 12
    assert cohort.pretrain.samples == 1000
    assert len(cohort.skipped) == 5
    positives = cohort.train.labels.sum(axis=0) + cohort.test.labels.sum(axis=0)
    assert (positives >= 20).all()
    merged = cohort.pretrain.meta[cohort.pretrain.meta["patient"] != cohort.pretrain.meta["patient_before"]]
    assert len(merged) > 0
    assert any(note.startswith("1 signals stand") for note in cohort.notes), cohort.notes


def test_three_steps_of_the_papers_configuration_on_ptbxl(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (f"data.root={real_data / 'ptbxl_fixture'}", "through=pretrain", "pretrain.max_steps=3")
    small = (
        "encoder.width=8",
        "compare=[]",
    )  # three networks of 4.6 M parameters are no matter of three steps
    config = ROOT / "configs" / "ecg" / "ptbxl_meta.yaml"
    assert call("pretrain", "--config", config, "--out", folder, *options, *small) == 0
    assert len(metrics(folder)) >= 2
    assert (folder / "encoder" / "model.safetensors").is_file()


def test_an_unknown_kind_of_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "--out", tmp_path / "run", *TINY, "data.finetune=ptb-xl") == 2
    assert "'ptb-xl'" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
