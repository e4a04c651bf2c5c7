"""Test recordings that training has seen are refused, or reported everywhere: by patient, and by signal under any name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_helpers import TINY, call, contents, error_line, results
from wfdb_pool import DX, signal, write, write_pool

from ecgmeta.data import ECGDataset
from ecgmeta.experiment.cohort import load
from ecgmeta.experiment.contamination import METAFT, PRETRAIN, TEST, contaminated, read_seen, record_names
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

QUICK = (
    *("pretrain.max_steps=2", "meta.period=1", "labels=10", "baselines=[]"),
    "finetune.protocols=[linear]",
)
NEW = range(60, 84)  # hearts that no pre-training has seen


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``: what is pre-trained on, beside a header without its samples. ``clean``: other hearts. ``copies``: those, and
    some of ``a`` at another rate and gain."""
    root = tmp_path_factory.mktemp("pool")
    write_pool(root / "a", 40)
    (root / "a/LOST.hea").write_text((root / "a/R5.hea").read_text().replace("R5", "LOST"))
    for number in NEW:
        for folder in ("clean", "copies"):
            write(root / folder / f"N{number}", signal(number), dx=DX[number % 2])
    return root


@pytest.fixture(scope="module")
def finished(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    sources = (f"data.root={pool}", "data.pretrain=[wfdb:a]", "data.finetune=wfdb:a", "data.min_positives=1")
    skip = "data.on_error=skip"
    assert call("pretrain", "--out", folder, *TINY, *sources, *QUICK, skip, "through=pretrain") == 0
    trained = Run.open(folder)
    cohort = load(trained.config)
    for place, row in enumerate(range(8)):  # known hearts under new names
        number = int(cohort.pretrain.meta["record"].iloc[row].removeprefix("R"))
        write(
            pool / "copies" / f"X{place}",
            (0.8 * signal(number)[:, ::2]).astype(np.int16),
            dx=DX[place % 2],
            fs=50,
        )
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def _forget_recordings(run: Path) -> None:
    """Let a run believe that it was pre-trained on others, so that only the prints in it can tell."""
    for name in ("config.yaml", "later.yaml"):
        file = run / name
        file.write_text(file.read_text().replace("- wfdb:a", "- wfdb:clean"))


def test_a_run_records_what_it_saw(finished: Path) -> None:
    run = Run.open(finished)
    cohort, seen = load(run.config), read_seen(run)
    assert seen is not None
    assert seen.of(PRETRAIN).records.tolist() == record_names(cohort.pretrain)
    assert seen.of(TEST).records.tolist() == record_names(cohort.test)
    rows = cohort.labelled(run.config.meta.labels, run.config.seed)
    assert seen.of(METAFT).records.tolist() == record_names(cohort.train.subset(rows))
    np.testing.assert_allclose(np.linalg.norm(seen.prints, axis=1), 1, atol=2e-3)
    (skipped,) = json.loads((finished / "run.json").read_text())["skipped"]
    assert "LOST.hea: signal file: found LOST.dat, which does not exist" in skipped


def test_its_own_test_set_is_clean(copy: Path) -> None:
    assert call("finetune", copy, "labels=10") == 0
    assert call("evaluate", copy) == 0
    assert json.loads((copy / "results.json").read_text())["warnings"] == []


@pytest.mark.parametrize("known", [True, False])
def test_other_data_with_known_signals_are_refused(
    known: bool, copy: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the pre-training recordings are gone, and only the prints in the run can tell."""
    folder = "copies" if known else "clean"
    data = (f"data.finetune=wfdb:{folder}", "data.min_positives=1", "labels=8")
    _forget_recordings(copy)
    before = contents(copy)
    code = call("finetune", copy, *data)
    if not known:
        assert code == 0
        return
    cohort = load(Run.open(copy).with_overrides(list(data)))
    copies = [name for name in cohort.test.meta["record"] if name.startswith("X")]
    assert copies, "the split of this seed tests on no copy"
    line = error_line(capsys.readouterr().err)
    assert code == 2
    assert f"test signals: found {len(copies)} that pre-training of meta has seen" in line
    assert copies[0] in line
    assert "evaluate.contaminated=report" in line
    assert contents(copy) == before


def test_contamination_is_reported_everywhere_where_asked(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _forget_recordings(copy)
    data = ("data.finetune=wfdb:copies", "data.min_positives=1", "labels=8", "evaluate.contaminated=report")
    assert call("finetune", copy, *data) == 0
    assert "Contaminated: test signals" in capsys.readouterr().err
    assert call("evaluate", copy) == 0
    assert "Contaminated: test signals" in capsys.readouterr().err
    found = json.loads((copy / "results.json").read_text())
    assert any("Contaminated: test signals" in line for line in found["warnings"])
    assert "Contaminated: test signals" in (copy / "results.md").read_text()
    assert len(results(copy)) == 1
    assert call("report", copy) == 0
    page = (copy / "report.html").read_text()
    assert "Contaminated: test signals" in page
    assert "that no stage of training has seen" not in page


def test_prints_that_are_broken_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "seen.npz").write_bytes(b"nothing")
    assert call("finetune", copy, "labels=10") == 2
    assert "seen.npz" in error_line(capsys.readouterr().err)


def test_the_name_of_a_test_recording_does_not_hide_another_signal(finished: Path) -> None:
    run = Run.open(finished)
    cohort = load(run.config)
    signals = cohort.test.signals.copy()
    signals[0] = cohort.pretrain.signals[
        0
    ]  # a heart that was pre-trained on, under a name that was tested on
    test = ECGDataset(
        signals, cohort.test.labels, fs=50, leads=cohort.test.leads, label_names=cohort.test.label_names,
        meta=cohort.test.meta,
    )  # fmt: skip
    assert contaminated(run.config, run.arms(), cohort) == []
    with pytest.raises(InputError, match=f"found 1 .*{cohort.test.meta['record'].iloc[0]}#0"):
        contaminated(run.config, run.arms(), replace(cohort, test=test))
