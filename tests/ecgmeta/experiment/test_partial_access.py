"""Meta-learning that sees fewer labelled recordings, or other labels, than fine-tuning; and what the results say of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import TINY, call, error_line, pretrain, results

from ecgmeta.experiment.cohort import Cohort, load
from ecgmeta.experiment.config import Experiment, read
from ecgmeta.experiment.contamination import metaft_records
from ecgmeta.experiment.finetune import predictions
from ecgmeta.experiment.model import build
from ecgmeta.experiment.pretrain import metaft
from ecgmeta.experiment.run import Run

PARTIAL = ("meta.labels=20", "meta.label_names=[NORM,MI]", "finetune.label_names=[CD,HYP]", "labels=20,60")

pytestmark = pytest.mark.slow  # whole runs


def _configured(*overrides: str) -> tuple[Experiment, Cohort]:
    config = read(None, [*TINY, *overrides])
    return config, load(config)


def test_unseen_labels_decide_nothing_in_meta_learning() -> None:
    """With every unseen label turned around, the recordings, their split and the head stay what they were."""
    config, cohort = _configured(*PARTIAL[:3])
    train, validation = metaft(config, cohort)
    assert train.label_names == validation.label_names == ("NORM", "MI")
    names = cohort.train.label_names
    turned = cohort.train.labels.copy()
    unseen = [names.index(name) for name in names if name not in ("NORM", "MI")]
    turned[:, unseen] = 1 - turned[:, unseen]
    before = cohort.train.labels
    cohort.train.labels = turned
    for ours, theirs in zip(metaft(config, cohort), (train, validation), strict=True):
        assert ours.meta["record"].tolist() == theirs.meta["record"].tolist()
        assert np.array_equal(ours.labels, theirs.labels)
    cohort.train.labels = before
    model = build(config, cohort, "meta")
    assert {len(p) for name, p in model.problem.psi.items() if name.endswith("bias")} == {2}


def test_with_the_same_labels_the_fewer_recordings_are_among_the_more() -> None:
    config, cohort = _configured("meta.labels=20")
    few = set(metaft_records(config, cohort).meta["record"])
    many = set(cohort.train.subset(cohort.labelled(60, config.seed)).meta["record"])
    assert len(few) == 20
    assert few < many


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "partial"
    assert (
        pretrain(folder, "data.synthetic.n=200", *PARTIAL, "finetune.protocols=[linear]", "compare=[simclr]")
        == 0
    )
    return folder


def _row(folder: Path, arm: str, labels: int) -> dict[str, Any]:
    return next(row for row in results(folder) if (row["arm"], row["labels"]) == (arm, labels))


def test_fine_tuning_learns_and_scores_its_own_labels(partial: Path) -> None:
    for found in predictions(Run.open(partial)):
        assert found.label_names == ("CD", "HYP")
        assert found.logits.shape[1] == 2
    assert [s["name"] for s in _row(partial, "meta", 60)["scores"]["labels"]] == ["CD", "HYP"]


def test_every_row_counts_the_labelled_recordings_it_used(partial: Path) -> None:
    run = Run.open(partial)
    cohort = load(run.config)
    guided = set(metaft_records(run.config, cohort).meta["record"])
    chosen = cohort.with_labels(run.later.finetune.label_names)
    for labels in (20, 60):
        tuned = set(chosen.train.subset(chosen.labelled(labels, run.config.seed)).meta["record"])
        row, other = _row(partial, "meta", labels), _row(partial, "simclr", labels)
        assert (row["labels_meta"], row["labels_used"]) == (20, len(tuned | guided))
        assert (other["labels_meta"], other["labels_used"], other["note"]) == (0, labels, "")
        assert "meta-learning saw the labels NORM, MI; new to it: CD, HYP" in row["note"]
    note = _row(partial, "meta", 60)["note"]
    assert note in (partial / "results.md").read_text()
    assert "new to it: CD, HYP" in (partial / "report.html").read_text()


def test_rows_of_unequal_labels_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("finetune.protocols=[linear]", "baselines=[]", "through=evaluate", "evaluate.bootstrap=0")
    assert pretrain(folder, "meta.labels=30", "labels=20,30,60", *options) == 0
    notes = {row["labels"]: row["note"] for row in results(folder)}
    assert notes[30] == ""
    assert notes[60] == "fine-tuned on 60 labelled recordings, of which meta-learning saw 30"
    assert notes[20] == "meta-learning saw 30 labelled recordings, so 30 in all were used, not 20"


def test_the_table_is_one_in_every_form(partial: Path) -> None:
    rows = results(partial)
    with (partial / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(rows)  # the macro mean and two labels
    for row in rows:
        key = (row["arm"], row["protocol"], str(row["labels"]))
        mine = {
            line["label"]: line for line in lines if (line["arm"], line["protocol"], line["labels"]) == key
        }
        scores = row["scores"]
        assert float(mine["macro"]["auroc"]) == scores["macro_auroc"]
        assert float(mine["macro"]["average_precision"]) == scores["macro_ap"]
        assert float(mine["CD"]["auroc_low"]) == scores["labels"][0]["interval"][0]
        assert int(mine["HYP"]["positives"]) == scores["labels"][1]["positives"]
        if "difference" in row:
            assert float(mine["macro"]["difference"]) == row["difference"]["delta"]
        markdown = (partial / "results.md").read_text()
        assert f"{scores['macro_auroc']:.3f} (" in markdown
    assert markdown.count("\n| ") == len(rows) + 2


def test_the_page_has_a_plot_only_where_there_are_several_label_counts(partial: Path) -> None:
    assert "AUROC against labelled recordings" in (partial / "report.html").read_text()
    assert call("report", partial) == 0
    file = partial / "results.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"rows": [row for row in before["rows"] if row["labels"] == 60]}))
    assert call("report", partial) == 0
    assert "AUROC against labelled recordings" not in (partial / "report.html").read_text()
    file.write_text(json.dumps(before))


@pytest.mark.parametrize("key", ["meta", "finetune"])
def test_labels_that_do_not_exist_are_named(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "run", f"{key}.label_names=[NORM,XYZ]") == 2
    assert "XYZ" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_several_rates_are_one_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(tmp_path / "run", "finetune.lrs=[0.1,-1]") == 2
    assert "finetune.lrs" in error_line(capsys.readouterr().err)
    options = ("finetune.protocols=[full]", "baselines=[]", "through=evaluate", "pretrain.max_steps=1")
    assert pretrain(tmp_path / "run", "finetune.lrs=[0.01,0.0001]", *options) == 0
    (found,) = predictions(Run.open(tmp_path / "run"))
    assert found.info["chosen"]["lr"] in (0.01, 0.0001)
    assert [entry["lr"] for entry in found.info["chosen"]["tried"]] == [0.01, 0.0001]
    assert results(tmp_path / "run")[0]["lrs"] == [found.info["chosen"]["lr"]]
