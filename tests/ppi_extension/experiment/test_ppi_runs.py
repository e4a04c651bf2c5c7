"""Experiments from the command line to the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from ppi_run_helpers import call, encoders, error_line, metrics, pretrain, results, same_tensors, weights

from ppi_extension.data.builder import BuildSettings, build
from ppi_extension.data.species import SourceData
from ppi_extension.data.store import EgoStore
from ppi_extension.data.synthetic import PlantedSettings, planted
from ppi_extension.experiment.cohort import Cohort, divide
from ppi_extension.experiment.config import ARMS, FROM_META, RULES, SEARCH, VARIANTS
from ppi_extension.experiment.evaluate import separation
from ppi_extension.experiment.finetune import linear
from ppi_extension.experiment.report import _beside
from ppi_extension.experiment.run import Run, Study
from ppi_extension.experiment.scores import mean_of_tasks, over_seeds, task_auroc
from ppi_extension.gnn import EgoGNN

EVERY = f"arms=[{','.join(ARMS)}]"


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, store_folder: Path) -> Path:
    """All arms from two seeds, through the page."""
    folder = tmp_path_factory.mktemp("every") / "study"
    assert pretrain(folder, store_folder, EVERY, "seeds=2") == 0
    return folder


@pytest.mark.slow
def test_every_arm_is_in_the_table_with_paired_intervals(every: Path) -> None:
    found = results(every)
    assert {row["arm"] for row in found["rows"]} == set(ARMS)
    reference = next(row for row in found["rows"] if row["arm"] == "supervised")
    for row in found["rows"]:
        assert row["auroc"]["n"] == 2
        if row is reference:
            assert "difference" not in row
            continue
        paired = [row["by_seed"][seed] - reference["by_seed"][seed] for seed in ("0", "1")]
        expected = over_seeds(paired)
        assert row["difference"]["value"] == pytest.approx(expected.value)
        assert row["difference"]["low"] == pytest.approx(expected.low)
    markdown = (every / "results.md").read_text()
    assert all(f"| {arm} |" in markdown for arm in ARMS)
    lines = (every / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(ARMS) * (1 + 8)  # the mean and 8 tasks


@pytest.mark.slow
def test_the_length_is_chosen_on_validation_and_its_test_scores_are_reported(every: Path) -> None:
    study = Study.open(every)
    for row in results(every)["rows"]:
        means = {int(steps): value for steps, value in row["lengths"].items()}
        assert row["steps"] == max(means, key=lambda steps: means[steps])
        for seed, value in row["by_seed"].items():
            file = study.run(row["arm"], int(seed)).score_file("linear", row["steps"])
            assert value == pytest.approx(mean_of_tasks(np.array(json.loads(file.read_text())["test"])))
        assert len(means) == (1 if row["arm"] == "none" else 2)


@pytest.mark.slow
def test_what_arms_share_and_in_what_they_differ(every: Path) -> None:
    study = Study.open(every)
    runs = {arm: study.run(arm, 0) for arm in ARMS}
    for arm in VARIANTS:
        z = weights(runs[arm].weights)["z"]
        assert float(z.abs().max()) > 0, f"{arm} learned nothing"
        if arm != "meta":
            assert not z.equal(weights(runs["meta"].weights)["z"])
    learned = weights(runs["meta"].weights)["z"]
    assert weights(runs["retrained"].weights)["z"].equal(learned)
    permuted = weights(runs["permuted"].weights)["z"]
    assert not permuted.equal(learned)
    assert permuted.sort().values.equal(learned.sort().values)
    assert float(weights(runs["supervised"].weights)["z"].abs().max()) == 0
    assert float(weights(runs["random_weights"].weights)["z"].std()) > 0.5
    assert not weights(runs[SEARCH].weights)["z"].equal(weights(runs["random_weights"].weights)["z"])
    assert float(weights(runs["similarity"].weights)["z"].std()) == pytest.approx(1, abs=1e-5)
    kinds = EgoStore.open(study.store).info["notes"]["kinds"]
    known = weights(runs["oracle"].weights)["z"].tolist()
    assert known == [4.0 if kind == "useful" else -4.0 for kind in kinds.values()]
    first = {arm: metrics(runs[arm].folder)[0]["pretrain_loss"] for arm in ARMS if arm != "none"}
    assert first["meta"] == first["supervised"] == first["random_walk"] == first["cosine"]
    assert first["retrained"] != first["meta"]  # another initialisation
    for arm in RULES:
        assert not same_tensors(*(list(encoders(runs[a].folder).values())[-1] for a in (arm, "supervised")))


def _validated(run: Run, cohort: Cohort, steps: int) -> float:
    """AUROC on validation genes as fine-tuning finds it with every label."""
    encoder = EgoGNN.from_pretrained(run.encoder(steps))
    return mean_of_tasks(linear(encoder, cohort, run.config.finetune, run.seed).validation)


@pytest.mark.slow
def test_a_random_search_under_partial_access_reads_no_label_that_it_is_scored_on(
    tmp_path: Path, store_folder: Path, store: EgoStore
) -> None:
    folder = tmp_path / "study"
    options = (
        "meta.folds=4",
        "meta.share=0.5",
        "pretrain.cotrain=1",
        f"arms=[{SEARCH},none]",
        "evaluate.reference=none",
    )
    with mock.patch("ppi_extension.experiment.search.linear", side_effect=linear) as scored:
        assert pretrain(folder, store_folder, *options) == 0
    along = f"The fine-tuning tasks were trained along (pretrain.cotrain) in {SEARCH}."
    assert along in (folder / "results.md").read_text()
    assert along in (folder / "report.html").read_text(encoding="utf-8")
    cohort = divide(store, Study.open(folder).config, 0)
    for asked in scored.call_args_list:
        _, visible, _, _, tasks = asked.args
        assert tuple(tasks) == cohort.seen
        assert not set(tasks) & set(cohort.scored)
        assert set(visible.train) == set(cohort.metaft) < set(cohort.train)
        assert np.array_equal(visible.test, cohort.validation)
    assert len(scored.call_args_list) == 3 * 2


@pytest.mark.slow
def test_a_random_search_keeps_the_trial_that_is_best_on_validation_genes(every: Path) -> None:
    for seed in (0, 1):
        run = Study.open(every).run(SEARCH, seed)
        trials = [Run.open(run.folder / "trials" / str(number)) for number in (1, 2, 3)]
        assert [max(trial.lengths()) for trial in trials] == [3, 3, 3]  # a third of 8 steps each
        drawn = [weights(trial.weights)["z"] for trial in trials]
        assert not any(drawn[a].equal(drawn[b]) for a in range(3) for b in range(a))
        cohort = divide(EgoStore.open(Path(run.config.data.store)), run.config, seed)
        assert np.array_equal(np.sort(cohort.metaft), cohort.train)
        found = [max(_validated(trial, cohort, steps) for steps in trial.lengths()) for trial in trials]
        assert not list(trials[0].folder.glob("finetune/*"))
        assert run.info["search"]["scores"] == pytest.approx(found)
        best = int(np.argmax(found))
        assert run.info["search"]["best"] == best + 1
        assert encoders(run.folder).keys() == encoders(trials[best].folder).keys()
        for name, encoder in encoders(run.folder).items():
            assert same_tensors(encoder, encoders(trials[best].folder)[name])
        assert weights(run.weights)["z"].equal(drawn[best])


@pytest.mark.slow
def test_a_random_walk_moves_as_far_as_learning(every: Path) -> None:
    study = Study.open(every)
    steps = {
        arm: [line["hyper"]["displacement"] for line in metrics(study.run(arm, 0).folder) if "hyper" in line]
        for arm in ("meta", "random_walk")
    }
    assert steps["random_walk"][0] == pytest.approx(steps["meta"][0], rel=1e-4)


@pytest.mark.slow
def test_the_page_is_whole_and_says_what_was_learned(every: Path, store: EgoStore) -> None:
    page = (every / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://", page)
    for text in (
        "Raised most",
        "Lowered most",
        "Weights along pre-training",
        "meta minus it",
        "Learned weights against similarity, a head on the frozen encoder: ",
        "Learned weights against random_search, a head on the frozen encoder: ",
        "<li>meta: in 2 of 2 runs φ moved no further than chance",
    ):
        assert text in page
    assert all(f">{arm}</th>" in page for arm in ARMS)
    assert all(term in page for term in store.finetune_terms)
    assert "too few φ steps to tell" in page  # four of them


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.03, "+2.00 (+1.00 to +3.00) points."),
        (-0.01, 0.05, "+2.00 (−1.00 to +5.00) points; that learning was needed is not shown."),
        (None, None, ""),
    ],
)
def test_what_needs_no_hypergradient_is_set_beside_what_was_learned(
    low: float | None, high: float | None, said: str
) -> None:
    row = {"arm": "similarity", "protocol": "linear", "meta_minus": {"value": 0.02, "low": low, "high": high}}
    assert _beside(row) == (
        said and f"Learned weights against similarity, a head on the frozen encoder: {said}"
    )
    assert not _beside({"arm": "similarity", "protocol": "linear"})


@pytest.mark.slow
def test_going_on_repeats_nothing_and_more_seeds_are_added(every: Path, store_folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in every.glob("runs/*/*/encoders/*/model.safetensors")}
    assert pretrain(every, store_folder, "arms=[supervised,meta]", "seeds=3") == 0
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert len(results(every)["rows"][0]["by_seed"]) == 3


@pytest.mark.slow
def test_controls_that_take_the_weights_of_meta_go_on_too(tmp_path: Path, store_folder: Path) -> None:
    folder, arms = tmp_path / "study", "arms=[supervised,meta,permuted,retrained]"
    assert pretrain(folder, store_folder, arms) == 0
    before = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/encoders/*/model.safetensors")}
    assert pretrain(folder, store_folder, arms) == 0
    assert call("finetune", folder, "finetune.epochs=1") == 0
    assert pretrain(folder, store_folder, arms, "seeds=2") == 0
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert {row["arm"]: len(row["by_seed"]) for row in results(folder)["rows"]} == dict.fromkeys(
        ("supervised", "meta", "permuted", "retrained"), 2
    )


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(every: Path, tmp_path: Path, store_folder: Path) -> None:
    folder = tmp_path / "study"
    arms = "arms=[supervised,meta,permuted]"
    assert pretrain(folder, store_folder, arms, "seeds=2", "processes=2", "through=evaluate") == 0
    one, two = Study.open(every), Study.open(folder)
    for arm in ("supervised", "meta", *FROM_META[:1]):
        for seed in (0, 1):
            a, b = (study.run(arm, seed).folder for study in (one, two))
            assert metrics(a) == metrics(b)
            assert encoders(a).keys() == encoders(b).keys()
            assert all(same_tensors(encoders(a)[name], encoders(b)[name]) for name in encoders(a))


@pytest.mark.slow
def test_later_stages_take_new_settings_but_not_those_of_pre_training(
    tmp_path: Path, store_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    assert pretrain(folder, store_folder, "arms=[none,supervised]", "through=evaluate") == 0
    first = results(folder)["rows"][0]["auroc"]["value"]
    assert call("finetune", folder, "finetune.epochs=1", "finetune.lr=1e-4") == 0
    assert call("report", folder) == 0
    assert "earlier fine-tuning" in (folder / "report.html").read_text(encoding="utf-8")
    assert call("evaluate", folder) == 0
    assert call("report", folder) == 0
    assert "earlier fine-tuning" not in (folder / "report.html").read_text(encoding="utf-8")
    assert results(folder)["rows"][0]["auroc"]["value"] != first
    assert call("evaluate", folder, "evaluate.reference=none") == 0  # beside what was set before
    assert results(folder)["settings"]["epochs"] == 1
    capsys.readouterr()
    assert call("finetune", folder, "pretrain.lr=1") == 2
    assert "pretrain.lr" in error_line(capsys.readouterr().err)
    assert pretrain(folder, store_folder, "arms=[none,supervised]", "pretrain.lr=1") == 2
    assert "choose another --out" in error_line(capsys.readouterr().err)


@pytest.mark.slow
def test_partial_access_scores_the_tasks_that_pre_training_has_not_seen(
    tmp_path: Path, store_folder: Path, store: EgoStore
) -> None:
    folder = tmp_path / "study"
    assert pretrain(folder, store_folder, "arms=[supervised,meta]", "meta.folds=8", "through=evaluate") == 0
    for row in results(folder)["rows"]:
        assert list(row["tasks"]) == [store.finetune_terms[0]]  # fold 0 holds out the first
    uniform, meta = sorted(results(folder)["rows"], key=lambda row: row["arm"] == "meta")
    term = store.finetune_terms[0]
    gain = meta["tasks"][term]["value"] - uniform["tasks"][term]["value"]
    assert uniform["task_meta_minus"][term]["value"] == pytest.approx(gain)
    assert "task_meta_minus" not in meta
    with (folder / "results.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["arm"] == "supervised"]
    assert [float(line["meta_minus"]) for line in lines] == pytest.approx(
        [gain, gain]
    )  # the mean, and the task
    assert "has not seen" in (folder / "results.md").read_text()
    assert results(folder)["one_class"] == []  # those that are not scored lack no class


@pytest.mark.slow
def test_seeds_whose_epochs_have_other_lengths_are_compared_at_the_same_share_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = planted(PlantedSettings(species=3, genes=60))
    genes = [graph.genes.copy() for graph in problem.data.graphs]
    for other in genes[1:]:
        other[:20] = genes[0][:20]  # a third of the genes stands in every graph
    graphs = [replace(graph, genes=own) for graph, own in zip(problem.data.graphs, genes, strict=True)]
    labels = [replace(each, genes=own) for each, own in zip(problem.data.labels, genes, strict=True)]
    terms = BuildSettings(
        fanout=5, pretrain_terms=problem.pretrain_terms, finetune_terms=problem.finetune_terms
    )
    build(SourceData(graphs, labels), tmp_path / "store", terms, processes=1)
    folder = tmp_path / "study"
    longer = ("pretrain.max_steps=0", "pretrain.epochs=1", "pretrain.batch_size=4")
    assert pretrain(folder, tmp_path / "store", "arms=[supervised,meta]", "seeds=2", *longer) == 0
    study = Study.open(folder)
    lengths = {seed: study.run("meta", seed).lengths() for seed in (0, 1)}
    assert lengths[0] != lengths[1]
    for row in results(folder)["rows"]:
        assert row["auroc"]["n"] == 2
        means = [round((a + b) / 2) for a, b in zip(lengths[0], lengths[1], strict=True)]
        assert [int(steps) for steps in row["lengths"]] == means


def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, store_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    for overrides, said in (
        (["data.store=nowhere"], "nowhere"),
        (["arms=[metta]"], "arms"),
        (["pretrain.step=3"], "the nearest is 'pretrain."),
        (["data.test_graphs=[mars]"], "mars"),
        (["meta.folds=99"], "task folds"),
        (["meta.warmup_epochs=9"], "no φ step in the 8 steps of meta"),
    ):
        assert pretrain(folder, store_folder, *overrides) == 2
        assert said in error_line(capsys.readouterr().err)
        assert not folder.exists()
    assert call("evaluate", tmp_path) == 2
    assert "made by `ppi-extension pretrain`" in error_line(capsys.readouterr().err)


def test_what_is_found_in_planted_graphs_alone_leaves_nothing_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    small = ("data.planted.genes=60", "seeds=1", "processes=1", "pretrain.max_steps=4", "arms=[meta]")
    assert call("demo", "--out", folder, *small) == 2
    assert "no φ step in the 4 steps of meta" in error_line(capsys.readouterr().err)
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    assert call("demo", "--out", folder, *small) == 2
    assert (folder / "mine.txt").is_file()


def test_a_device_that_is_not_there_is_said_before_anything_is_written(
    tmp_path: Path,
    store_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "study"
    assert pretrain(folder, store_folder, "accelerator=cuda") == 2
    assert "cuda, and no such device" in error_line(capsys.readouterr().err)
    assert not folder.exists()


@pytest.mark.slow
def test_another_store_than_the_one_it_began_with_is_refused(
    tmp_path: Path, store_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    planted = [
        "data.store=''",
        "data.planted.genes=90",
        "data.planted.species=1",
        "arms=[none]",
        "through=pretrain",
    ]
    assert pretrain(folder, store_folder, *planted) == 0
    assert pretrain(folder, store_folder, *planted, f"data.store={store_folder}") == 2
    assert "other graphs" in error_line(capsys.readouterr().err)


@pytest.mark.slow
def test_the_demo_says_what_harmful_tasks_cost_uniform_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("data.planted.genes=90", "data.planted.species=2", "data.finetune_share=1", "seeds=2")
    short = ("pretrain.max_steps=8", "meta.warmup_epochs=0", "finetune.epochs=2", "processes=1")
    assert call("demo", "--out", tmp_path / "demo", *small, *short, "through=evaluate") == 0
    rows = {row["arm"]: row for row in results(tmp_path / "demo")["rows"]}
    assert rows["oracle"]["difference"]["n"] == 2
    assert "difference" not in rows["supervised"]
    assert "oracle" in capsys.readouterr().out


def test_an_oracle_needs_to_know_what_is_useful(
    tmp_path: Path, store: EgoStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(store.folder, folder)
    info = json.loads((folder / "info.json").read_text())
    del info["notes"]["kinds"]
    (folder / "info.json").write_text(json.dumps(info))
    assert pretrain(tmp_path / "study", folder, "arms=[oracle]") == 2
    assert "a planted problem, or a store with distractors" in error_line(capsys.readouterr().err)


def test_an_experiment_finds_its_graphs_from_any_working_directory(
    tmp_path: Path, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, given = tmp_path / "study", [f"data.store={store_folder.name}"]
    monkeypatch.chdir(store_folder.parent)
    study = Study.create(folder, Study.read(None, given))
    study.set_later(Study.read(None, given))
    monkeypatch.chdir(tmp_path)
    assert Study.open(folder).store == store_folder
    assert Study.open(folder).with_overrides(["finetune.epochs=1"]).data.store == str(store_folder)
    monkeypatch.chdir(store_folder.parent)
    Study.check(folder, Study.read(None, given))
    # One that was begun when the path was kept as it was given goes on where it was begun.
    for file in (folder / "config.yaml", folder / "later.yaml"):
        file.write_text(file.read_text().replace(str(store_folder), store_folder.name))
    assert Study.open(folder).store == store_folder
    Study.check(folder, Study.read(None, given))


@pytest.mark.parametrize("arm", FROM_META)
def test_the_run_of_a_control_is_taken_up_again(tmp_path: Path, arm: str) -> None:
    study = Study(tmp_path, Study.read(None, [f"arms=[meta,{arm}]"]))
    for _ in range(2):
        assert study.run(arm, 0, create=True).arm == arm


def test_separation_of_a_planted_problem(tmp_path: Path, store_folder: Path) -> None:
    run = Study(tmp_path, Study.read(None, [])).run("meta", 0)
    run.folder.mkdir(parents=True)
    np.savez_compressed(
        run.trajectory, steps=np.array([0, 1]), weights=np.array([[1, 1, 1, 1], [0.5, 2, 0.4, 1.0]])
    )
    useful = [False, True, False, True]
    found = separation(run, useful)
    assert found == 1.0
    assert found == task_auroc(torch.tensor([[0.5], [2.0], [0.4], [1.0]]), torch.tensor(useful)[:, None])[0]
