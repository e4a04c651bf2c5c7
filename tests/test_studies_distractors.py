"""The study of planted distractors: which cells depend on what."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch

from examples.studies import ppi_real
from examples.studies.ppi_distractors import WITHOUT_PHI, Settings, tasks
from examples.studies.ppi_real_report import CHOSEN, Found, _above, _not_below
from examples.studies.study import Result, Task, load, read_results, results_file
from ppi_extension.data.synthetic import PlantedSettings, build_planted
from ppi_extension.experiment.config import read
from ppi_extension.experiment.pretrain import pretrain
from ppi_extension.experiment.run import Study
from ppi_extension.task_weights import TaskWeights
from tests.ppi_extension.experiment.ppi_run_helpers import TINY


@pytest.mark.parametrize(("name", "cells"), [("ppi_real", 190), ("ppi_distractors", 110), ("ppi_ohmnet", 17)])
def test_what_has_been_run_is_found_whatever_the_configuration_has_become(name: str, cells: int) -> None:
    assert len(read_results(results_file(name), load(name).tasks())) >= cells


def test_cells_without_phi_do_not_depend_on_its_settings() -> None:
    plan = load("ppi_distractors").plan
    one, other = (
        {
            task.name: task.key
            for task in tasks(Settings(plan.settings.arms, plan.settings.then, phi=phi), [0])
        }
        for phi in (["meta.lr=0.1"], ["meta.lr=0.2"])
    )
    assert one.keys() == other.keys()
    same = {name.partition("/")[0] for name in one if one[name] == other[name]}
    assert same == set(WITHOUT_PHI)


def test_arms_that_take_learned_weights_share_the_configuration_of_those_that_learn_them() -> None:
    cells = {task.arm: task.inputs for task in tasks(load("ppi_distractors").plan.settings, [0])}
    assert cells["meta"] == cells["retrained"] == cells["permuted"] == cells["cosine"]
    assert cells["meta"]["overrides"] != cells["supervised"]["overrides"]


def test_the_best_static_weights_are_those_of_the_validation_genes() -> None:
    scores = {"supervised": (60.0, 50.0), "random_weights": (61.0, 40.0), "similarity": (59.0, 90.0)}
    results = [
        Result(Task(arm, ppi_real.FULL, 0), {"validation": valid, "auroc": test, "length": 200.0}, 1.0)
        for arm, (valid, test) in scores.items()
    ]
    found = Found(load("ppi_ohmnet").plan, results, ppi_real.FULL)
    assert found.get(CHOSEN) == {0: 40.0}
    assert found.gain(CHOSEN).value == -10.0
    assert Found(load("ppi_ohmnet").plan, results[:1], ppi_real.FULL).get(CHOSEN) == {}


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_runs_on_the_same_genes_from_other_initialisations(tmp_path: Path) -> None:
    store = build_planted(tmp_path / "store", PlantedSettings(species=1, genes=80), processes=1)
    overrides = [*TINY, f"data.store={store.folder}", "arms=[meta,retrained]", "pretrain.max_steps=4"]
    study = Study.create(tmp_path / "study", read(None, overrides))
    with mock.patch("ppi_extension.experiment.pretrain.pretrain", side_effect=pretrain) as pretrained:
        ppi_real._pretrain_from_many(study, "retrained", 3, 3)
    runs = {
        int(file.name): study.run("meta", int(file.name)) for file in (study.folder / "runs/meta").iterdir()
    }
    learned = {seed: TaskWeights.from_pretrained(run.weights).z.detach() for seed, run in runs.items()}
    assert len(learned) == 3
    assert 3 in learned
    cohorts = {id(call.args[1]) for call in pretrained.call_args_list}
    assert len(pretrained.call_args_list) == 4
    assert len(cohorts) == 1
    mean = torch.stack(list(learned.values())).mean(0)
    used = TaskWeights.from_pretrained(study.run("retrained", 3).weights).z.detach()
    torch.testing.assert_close(used, mean)
    assert not used.equal(learned[3])


def test_seeds_of_an_ensemble_are_in_a_folder_of_their_own() -> None:
    cells = [task for task in load("ppi_distractors").tasks() if "ensemble" in task.inputs]
    assert {ppi_real._digest(task) for task in cells}.isdisjoint(
        ppi_real._digest(task) for task in load("ppi_distractors").tasks() if "ensemble" not in task.inputs
    )
    assert len(cells) == 10


def test_an_arm_that_was_not_run_is_not_said_to_be_as_good_or_better() -> None:
    def cells(arm: str, auroc: float, seeds: int) -> list[Result]:
        numbers = {"validation": auroc, "auroc": auroc, "length": 1.0}
        return [Result(Task(arm, ppi_real.FULL, seed), numbers, 1.0) for seed in range(seeds)]

    plan = load("ppi_ohmnet").plan
    others = [cell for arm in ("cotrain", "cosine", "supervised") for cell in cells(arm, 60.0, 9)]
    for own, met in ((0, None), (1, None), (9, False)):
        found = Found(plan, [*others, *cells("along (meta)", 30.0, own)], ppi_real.FULL)
        assert _not_below(found, "along (meta)", ("cotrain", "cosine")).met is (None if own < 9 else False)
        assert _above(found, "along (meta)", "cotrain").met is met
    found = Found(plan, [*others, *cells("along (meta)", 70.0, 9)], ppi_real.FULL)
    assert _not_below(found, "along (meta)", ("cotrain", "cosine")).met


def test_a_store_that_two_processes_want_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECGMETA_STUDY_RUNS", str(tmp_path))
    built = []

    def build(store: Path, _: object) -> None:
        built.append(store)
        time.sleep(0.2)
        store.mkdir()

    monkeypatch.setattr(ppi_real, "_build", build)
    task = Task("supervised", ppi_real.FULL, 0, {"build": {"depth": 1}})
    with ThreadPoolExecutor() as pool:  # a kernel's lock is of an open file, so between threads, too
        found = list(pool.map(ppi_real.built_store, [task, task]))
    assert found[0] == found[1] == built[0]
    assert len(built) == 1
