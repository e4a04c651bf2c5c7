"""The whole path on a tiny synthetic cohort, and the stages that follow on a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import call, contents, metrics, pretrain, results, same_tensors, weights

from ecgmeta.augment import LearnedWarp
from ecgmeta.bilevel.implicit_head import leave_one_out, standardise
from ecgmeta.encoders import ResNet1d
from ecgmeta.evaluation.cells import read_cell, write_cell
from ecgmeta.experiment import search
from ecgmeta.experiment.cohort import load
from ecgmeta.experiment.config import ARMS, read
from ecgmeta.experiment.evaluate import table
from ecgmeta.experiment.model import build
from ecgmeta.experiment.pretrain import _prepare
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.ranks import find_ranks

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

COMPARE = "compare=[simclr,simclr_warp]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "meta"
    assert pretrain(folder, COMPARE) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_run_folder_holds_what_its_docstring_says(finished: Path) -> None:
    top = {path.name for path in finished.iterdir()} - {".lock"}
    assert top == {
        *(
            "config.yaml",
            "later.yaml",
            "run.json",
            "metrics.jsonl",
            "last.ckpt",
            *("results.json", "results.csv", "results.md"),
            "seen.npz",
            "report.html",
        ),
        *("encoder", "augmenter", "augmenter_before", "compare", "finetune"),
    }
    assert {path.name for path in (finished / "compare").iterdir()} == {"simclr", "simclr_warp"}
    assert not (finished / "compare" / "simclr" / "augmenter").exists()
    cells = {path.suffix for path in (finished / "finetune").iterdir() if path.name != ".lock"}
    assert cells == {".npz"}


def test_every_arm_and_baseline_stands_in_the_table(finished: Path) -> None:
    rows = results(finished)
    found = {(row["arm"], row["protocol"]) for row in rows}
    assert found == {(arm, p) for arm in ("meta", "simclr", "simclr_warp") for p in ("full", "linear")} | {
        ("none", "full"),
        ("random", "linear"),
    }
    for row in rows:
        low, high = row["scores"]["macro_interval"]
        assert 0 <= low <= row["scores"]["macro_auroc"] <= high <= 1
        assert ("difference" in row) == (row["arm"] != "simclr")
    lines = table(json.loads((finished / "results.json").read_text()))
    assert len(lines) == len(rows)
    page = (finished / "report.html").read_text()
    assert "Synthetic recordings" in page
    assert "<li>The hypergradient had too few φ steps to tell" in page
    assert all(row["arm"] in page for row in rows)


def test_phi_moves_only_where_it_is_learned(finished: Path) -> None:
    for folder, learned in ((finished, True), (finished / "compare" / "simclr_warp", False)):
        before, after = (
            LearnedWarp.from_pretrained(folder / "augmenter_before"),
            LearnedWarp.from_pretrained(folder / "augmenter"),
        )
        moved = [
            name
            for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
            if not a.equal(b)
        ]
        assert bool(moved) == learned
        if learned:
            assert "global_magnitude" in moved
            assert len(moved) > 5


def test_the_augmenters_of_both_warp_arms_start_alike(finished: Path) -> None:
    start = weights(finished / "augmenter_before")
    assert same_tensors(start, weights(finished / "compare" / "simclr_warp" / "augmenter_before"))


def test_arms_share_the_initial_encoder(finished: Path) -> None:
    run = Run.open(finished)
    cohort = load(run.config)
    models = {arm: build(run.config, cohort, arm) for arm in ARMS}
    start = models["meta"].encoder.state_dict()
    for arm, model in models.items():
        assert same_tensors(start, model.encoder.state_dict()), arm
    # Until the first φ step the loss of meta and of simclr_warp is the same function of the same batch.
    assert (
        metrics(finished)[0]["pretrain_loss"] == metrics(run.other("simclr_warp").folder)[0]["pretrain_loss"]
    )
    assert not same_tensors(start, weights(finished / "encoder"))


def test_metrics_have_losses_and_the_norm_of_every_phi_step(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == list(range(8))
    for line in lines:
        assert line["pretrain_loss"] > 0
        phi_step = line["step"] % 2 == 1
        assert ("hyper" in line) == phi_step
        assert ("head_loss" in line) != phi_step
        if phi_step:
            assert line["hyper"]["norm"] > 0
            assert line["skipped"] is None


def test_networks_load_and_work(finished: Path) -> None:
    x = torch.randn(3, 12, 250, generator=torch.Generator().manual_seed(0))
    encoder = ResNet1d.from_pretrained(finished / "encoder")
    assert not encoder.training
    assert encoder.fs == 50
    assert encoder(x).shape == (3, encoder.num_features)
    warp = LearnedWarp.from_pretrained(finished / "augmenter")
    assert not warp(x, generator=torch.Generator().manual_seed(0)).equal(x)
    assert warp.eval()(x).equal(x)


def test_a_finished_run_is_not_repeated(copy: Path) -> None:
    before = contents(copy)
    assert pretrain(copy, COMPARE) == 0
    changed = {name for name, content in contents(copy).items() if content != before.get(name)}
    assert changed <= {"report.html"}


def test_other_label_counts_are_added(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(copy)
    assert call("finetune", copy, "labels=30") == 0
    assert call("evaluate", copy) == 0
    assert "AUROC" in capsys.readouterr().out
    after = results(copy)
    assert [row for row in after if row["labels"] == 40] == before
    assert sum(row["labels"] == 30 for row in after) == len(before)
    (copy / "report.html").unlink()
    assert call("report", copy) == 0
    assert "30 labelled recordings" in (copy / "report.html").read_text()


def test_cells_of_other_settings_are_trained_again_and_never_mixed_in(copy: Path) -> None:
    cell = "finetune/synthetic_default-40-meta-full-0.npz"
    before = contents(copy)
    assert call("finetune", copy, "finetune.lr=0.01") == 0
    assert contents(copy)[cell] != before[cell]
    assert call("finetune", copy, "labels=30", "finetune.lr=0.02") == 0
    assert call("evaluate", copy) == 0
    assert {row["labels"] for row in results(copy)} == {30}


def test_later_stages_keep_what_earlier_commands_have_set(copy: Path) -> None:
    """Scoring with an override of its own is of the cells that fine-tuning made, not of those the run began with."""
    assert call("finetune", copy, "labels=30", "finetune.lr=0.01") == 0
    assert call("evaluate", copy, "evaluate.bootstrap=10") == 0
    later = Run.open(copy).later
    assert (later.finetune.labels, later.finetune.lr, later.evaluate.bootstrap) == ([30], 0.01, 10)
    rows = results(copy)
    assert {row["labels"] for row in rows} == {30}
    assert {rate for row in rows if row["protocol"] == "full" for rate in row["lrs"]} == {0.01}
    assert (
        pretrain(copy, COMPARE) == 0
    )  # the command of the run itself takes everything back to its own values
    assert Run.open(copy).later == Run.open(copy).config
    assert {row["labels"] for row in results(copy)} == {40}


def test_a_table_with_seeds_missing_says_so(copy: Path) -> None:
    assert json.loads((copy / "results.json").read_text())["warnings"] == []
    assert call("evaluate", copy, "finetune.seeds=2") == 0
    (warning,) = json.loads((copy / "results.json").read_text())["warnings"]
    # A linear probe of a pre-trained encoder has one seed; only what was fine-tuned whole, and the random encoder, lack theirs.
    assert warning.startswith("Fine-tuning has not finished: ")
    assert "(meta, full, 40 labels; " in warning
    assert "meta, linear" not in warning
    assert "random, linear, 40 labels" in warning
    assert warning in (copy / "results.md").read_text()


def test_cells_scored_on_different_recordings_are_not_put_in_one_table(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "finetune" / "synthetic_default-40-meta-full-0.npz"
    found = read_cell(file)
    found.info["inputs"]["test"] = "another"
    write_cell(copy / "finetune", found)
    assert call("evaluate", copy) == 2
    assert "test recordings: found others than in" in capsys.readouterr().err


def test_test_patients_that_pretraining_has_seen_are_refused(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(copy)
    data = run.info["data"]
    data["pretrain"].append(data["test"][0])
    run.note(data=data)
    before = contents(copy)
    assert call("finetune", copy, "labels=30") == 2
    error = capsys.readouterr().err
    assert "test patients: found 1 that pre-training of meta has seen" in error
    after = contents(copy)
    assert {name for name in after if name.startswith("finetune")} == {
        name for name in before if name.startswith("finetune")
    }


def test_run_json_names_the_patients_of_every_part(finished: Path) -> None:
    run = Run.open(finished)
    data = {part: set(names) for part, names in run.info["data"].items()}
    assert data.keys() == {"pretrain", "test", "metaft"}
    assert not data["test"] & (data["pretrain"] | data["metaft"])
    assert data["metaft"] <= data["pretrain"]
    assert set(run.test_patients(run.config) or ()) == data["test"]
    assert run.info["command"].startswith("ecgmeta pretrain")


def test_a_run_with_a_diverging_series_says_what_was_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (
        "meta.inverse=neumann",
        "meta.step_size=1e6",
        "meta.terms=20",
        "through=report",
        "finetune.protocols=[linear]",
    )
    assert pretrain(folder, *options, "baselines=[]") == 0
    steps = [line for line in metrics(folder) if "hyper" in line]
    assert steps
    assert all(line["skipped"] for line in steps)
    assert same_tensors(
        dict(LearnedWarp.from_pretrained(folder / "augmenter").named_parameters()),
        dict(LearnedWarp.from_pretrained(folder / "augmenter_before").named_parameters()),
    )
    page = (folder / "report.html").read_text()
    assert f"{len(steps)} of {len(steps)} φ steps were skipped" in page


def test_a_loss_that_is_not_a_number_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "run", "pretrain.lr=1e30", "through=pretrain") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "loss" in lines[0]
    assert not (tmp_path / "run" / "encoder").exists()


def test_a_configuration_reads_back_as_it_was_written(finished: Path) -> None:
    assert read(finished / "config.yaml", []) == Run.open(finished).config


def test_several_runs_are_compared_on_one_page(
    finished: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("temperature: 0.5", "temperature: 0.25"))
    info = json.loads((copy / "run.json").read_text())
    info["data"]["test"] = info["data"]["test"][1:]
    (copy / "run.json").write_text(json.dumps(info))
    page = tmp_path / "both.html"
    assert call("report", finished, copy, "--out", page) == 0
    html = page.read_text()
    for said in (
        "2 runs compared: meta, copy",
        "meta: simclr_warp",
        "copy: simclr_warp",
        "copy was tested on other patients than meta: their numbers cannot be compared.",
        "pretrain.temperature",
        "meta: 0.5 | copy: 0.25",
    ):
        assert said in html, said
    assert 'src="http' not in html
    assert call("report", finished, finished, "--out", page) == 2
    assert "folders of different names" in capsys.readouterr().err


def test_weights_of_recordings_are_learned_saved_and_reported(tmp_path: Path) -> None:
    from ecgmeta.simclr import ExampleWeights

    assert pretrain(tmp_path / "run", "pretrain.arm=meta_weights", "compare=[]") == 0
    weights = ExampleWeights.from_pretrained(tmp_path / "run" / "weights").all()
    assert weights.shape == (84,)
    assert int((weights != 1).sum()) > 40  # half of the recordings were in a φ step's batch at least once
    assert not (tmp_path / "run" / "augmenter").exists()
    assert "Learned weights of the pre-training recordings" in (tmp_path / "run" / "report.html").read_text()


def test_a_policy_is_learned_saved_and_reported(tmp_path: Path) -> None:
    from ecgmeta.augment import LearnedPolicy, load_augmenter

    assert pretrain(tmp_path / "run", "augment.augmenter=policy", "compare=[]") == 0
    before, after = (load_augmenter(tmp_path / "run" / name) for name in ("augmenter_before", "augmenter"))
    assert isinstance(before, LearnedPolicy)
    assert isinstance(after, LearnedPolicy)
    for name in ("g", "logits", "gate_logits"):
        assert not torch.equal(getattr(before, name), getattr(after, name))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Learned policy (learned by hypergradient)" in page
    assert "stage 1: time_warp, chosen" in page


def test_a_search_keeps_the_trial_that_validates_best_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    from ecgmeta.augment import LearnedPolicy

    settings = [
        "pretrain.arm=search",
        "compare=[]",
        "augment.augmenter=policy",
        "search.trials=3",
        "through=pretrain",
    ]
    assert pretrain(tmp_path / "run", *settings) == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    scores, best = info["search"]["scores"], info["search"]["best"]
    assert scores.index(max(scores)) == best - 1
    assert info["data"]["metaft"]
    trials = [tmp_path / "run" / "trials" / str(n) for n in (1, 2, 3)]
    kept = contents(tmp_path / "run" / "encoder")
    assert kept == contents(trials[best - 1] / "encoder")
    starts = [LearnedPolicy.from_pretrained(trial / "augmenter").g.flatten()[0].item() for trial in trials]
    assert len(set(starts)) == 3
    # 8 steps times 1.3, shared by three.
    assert [len(metrics(trial)) for trial in trials] == [3, 3, 3]
    for name in ("encoder", "augmenter"):
        shutil.rmtree(tmp_path / "run" / name)
    shutil.rmtree(trials[2])
    assert pretrain(tmp_path / "run", *settings) == 0
    assert contents(tmp_path / "run" / "encoder") == kept


def test_the_best_of_several_runs_of_meta_is_kept_with_what_it_learned(tmp_path: Path) -> None:
    settings = ("pretrain.arm=meta_best", "compare=[simclr]", "search.runs=2")
    assert pretrain(tmp_path / "run", *settings) == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    scores, best = info["search"]["scores"], info["search"]["best"]
    assert scores.index(max(scores)) == best - 1
    assert info["data"]["metaft"]
    trials = [tmp_path / "run" / "trials" / str(n) for n in (1, 2)]
    kept = trials[best - 1]
    assert info["signal"] == json.loads((kept / "run.json").read_text())["signal"]
    for name in ("encoder", "augmenter", "augmenter_before"):
        assert contents(tmp_path / "run" / name) == contents(kept / name)
    assert contents(trials[0] / "encoder") != contents(trials[1] / "encoder")
    assert [len(metrics(trial)) for trial in trials] == [8, 8]
    assert "learned by hypergradient" in (tmp_path / "run" / "report.html").read_text()
    # The first is the run that `meta` would be; the patients are the same in all.
    assert pretrain(tmp_path / "meta", "compare=[]", "through=pretrain") == 0
    assert contents(tmp_path / "meta" / "encoder") == contents(trials[0] / "encoder")
    seen = [json.loads((folder / "run.json").read_text())["data"] for folder in (*trials, tmp_path / "meta")]
    assert seen[0] == seen[1] == seen[2]


def test_runs_that_were_drawn_may_be_chosen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.2, 0.3, 0.25])
    monkeypatch.setattr(search, "_score", lambda run, cohort: next(scores))
    settings = ("pretrain.arm=meta_best", "compare=[]", "search.runs=2", "search.drawn=2")
    assert pretrain(tmp_path / "run", *settings) == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["search"]["best"], info["search"]["arm"]) == (3, "simclr_warp")
    assert "signal" not in info
    trials = [tmp_path / "run" / "trials" / str(n) for n in (1, 2, 3, 4)]
    assert [len(metrics(trial)) for trial in trials] == [8, 8, 8, 8]  # each a whole run
    assert contents(trials[2] / "augmenter") != contents(trials[3] / "augmenter")
    assert contents(trials[2] / "augmenter") == contents(tmp_path / "run" / "augmenter")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not learned in this arm" in page
    assert "No φ step was taken" not in page
    # A folder that an earlier version made does not say which arm it kept: it had but one kind.
    del info["search"]["arm"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    assert call("report", tmp_path / "run") == 0
    assert "learned by hypergradient" in (tmp_path / "run" / "report.html").read_text()


def test_the_ridge_head_guides_with_every_metaft_record(tmp_path: Path) -> None:
    """A φ step draws from the records to train on and to validate on, and its loss is that of leaving each out."""
    settings = ("meta.batch_size=40", "meta.penalty=0.5", "through=pretrain")
    assert pretrain(tmp_path / "steps", "meta.head=steps", *settings) == 0
    assert pretrain(tmp_path / "ridge", *settings) == 0
    steps, ridge = (metrics(tmp_path / name) for name in ("steps", "ridge"))
    first = [next(line["hyper"] for line in lines if "hyper" in line) for lines in (steps, ridge)]
    assert steps[0]["pretrain_loss"] == ridge[0]["pretrain_loss"]
    assert first[0]["validation_loss"] != first[1]["validation_loss"]
    run = Run.open(tmp_path / "ridge")
    cohort = load(run.config)
    training = _prepare(run.config, cohort, find_ranks("cpu"))
    batch = training.batches.validation(0)
    assert len(batch.y) == 40
    assert batch.patients is not None
    assert len(batch.patients.unique()) < 40  # and each patient's recordings are left out together
    with torch.no_grad():
        features = training.model.encoder.eval()(batch.x)
    state = training.finetune(training.model.problem, training.state.theta, {}, [], batch)
    assert float(state.validation_loss) == pytest.approx(
        float(leave_one_out(features, standardise(batch.y), 0.5, batch.patients)), rel=1e-5
    )
