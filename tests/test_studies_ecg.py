"""The ECG studies: what candidates are chosen by, what arms share, and whether a cell of each kind runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from ecgmeta.experiment.batches import Labelled
from ecgmeta.runtime.errors import InputError
from examples.studies import cost, ecg_labels, ecg_real, ecg_report
from examples.studies.ecg_arms import (
    Batches,
    FrameHead,
    Meta,
    Records,
    Scoring,
    Training,
    drawn,
    policy_of,
    pretrain,
    ramp,
    score,
    untrained,
    validated,
)
from examples.studies.ecg_remedies_report import chosen_by
from examples.studies.study import Result, Task, load

OPERATIONS = {"gain": 0.3, "muscle_noise": 0.3, "time_mask": 0.3}


def records(n: int, samples: int = 128) -> Records:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, samples, generator=generator)
    return Records(x, (x[:, :2].mean(-1) > 0).float(), ("a", "b"))


@pytest.fixture
def threads() -> Iterator[None]:
    """A study's cells set torch's threads; the other tests keep theirs."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.mark.parametrize(
    "name", ["ecg_synthetic", "ecg_remedies", "ecg_again", "ecg_labels", "ecg_real", "nuisance", "cost"]
)
def test_a_plan_has_one_cell_a_name_and_expects_what_it_reports(name: str) -> None:
    study = load(name)
    cells = study.tasks()
    assert max(Counter(task.name for task in cells).values()) == 1
    assert len({task.key for task in cells}) == len(cells)
    section = study.module.report(study.plan, [])
    assert set(section.outcomes) == set(study.plan.expected)
    # Nothing is met before a cell is done; "search" is about the cells of another study.
    assert {name for name, outcome in section.outcomes.items() if outcome.met is not None} <= {"search"}


def test_candidates_are_chosen_by_leaving_each_record_out() -> None:
    data, penalty = records(30), 0.3
    encoder = untrained(data.x, 0)
    x = encoder.eval()(data.x).detach().double()
    y = data.y.double()
    y = (y - y.mean(0)) / y.std(0, correction=0)
    shift = penalty * (x - x.mean(0)).square().sum() * torch.eye(x.shape[1], dtype=x.dtype)
    left_out = []
    for i in range(len(x)):
        # The whole's centring of the penalty and the targets, but the fit and the intercept without record i.
        kept = torch.arange(len(x)) != i
        a, b = x[kept] - x[kept].mean(0), y[kept] - y[kept].mean(0)
        w = torch.linalg.solve(a.T @ a + shift, a.T @ b)
        left_out.append(y[i] - (x[i] - x[kept].mean(0)) @ w - y[kept].mean(0))
    expected = 100 * (1 - float(torch.stack(left_out).square().mean()))
    assert validated(encoder, data, penalty) == pytest.approx(expected, rel=1e-6)


def test_arms_of_a_seed_see_the_same_records_and_noise() -> None:
    data = records(40)
    weak, strong = (policy_of(dict.fromkeys(OPERATIONS, level), 4) for level in (0.1, 1.0))
    first, second = (
        Batches(data.x, data, policy, 3, 8, 10, warm, 64) for policy, warm in ((weak, False), (strong, True))
    )
    one, other = first.pretrain(5), second.pretrain(5)
    assert torch.equal(one.x, other.x)
    assert one.x.shape == (16, 4, 64)
    noises = [
        [z for stage in draw.noise for _, z in stage if z is not None] for draw in (one.noise, other.noise)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*noises, strict=True))
    assert not torch.equal(one.x, first.pretrain(6).x)
    assert len(second.train(0, 0).y) == 10
    assert len(first.train(0, 0).y) == 2  # the ridge head keeps none warm


def test_a_chain_uses_one_magnitude_a_stage() -> None:
    """What the random walk's steps are scaled by."""
    policy, x = policy_of(OPERATIONS, 4), records(6).x
    policy(x, policy.draw(x, torch.Generator().manual_seed(0))).square().sum().backward()
    assert policy.g.grad is not None
    used = policy.g.grad[..., 0] != 0
    assert torch.equal(used, torch.eye(len(OPERATIONS), dtype=torch.bool))


@pytest.mark.parametrize("learn", ["", "ours", "paper", "walk"])
def test_only_learning_moves_the_magnitudes(learn: str, threads: None) -> None:
    data = records(40)
    training, meta = Training(steps=4, batch_size=8), Meta(period=2, warmup=0, labels=20)
    if learn == "paper":  # a φ step every tenth step
        training.steps = 10
    found = pretrain(data.x, data, OPERATIONS, 0, training, meta, learn=learn)
    moved = {name for name, value in found.magnitudes.items() if abs(value - OPERATIONS[name]) > 1e-6}
    assert moved == (set(OPERATIONS) if learn else set())
    again = pretrain(data.x, data, OPERATIONS, 0, training, meta, learn=learn)
    assert again.magnitudes == found.magnitudes


def test_a_learned_path_can_be_replayed(threads: None) -> None:
    data = records(40)
    training, meta = Training(steps=4, batch_size=8), Meta(period=2, warmup=0, labels=20)
    learned = pretrain(data.x, data, OPERATIONS, 0, training, meta, learn="ours")
    assert learned.path[0].tolist() == pytest.approx(list(OPERATIONS.values()))
    assert learned.path.shape == (4, len(OPERATIONS))
    assert not torch.equal(learned.path[0], learned.path[3])  # the second step ends with a φ step
    replayed = pretrain(data.x, data, OPERATIONS, 0, training, meta, path=learned.path)
    assert torch.allclose(replayed.path, learned.path)
    # The same initialisation and batches under the same magnitudes: the same encoder.
    for a, b in zip(learned.encoder.parameters(), replayed.encoder.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    growing = ramp(OPERATIONS, 0.5, 2.0, 5)
    assert growing[:, 0].tolist() == pytest.approx([0.15, 0.15 * 2**0.5, 0.3, 0.3 * 2**0.5, 0.6])


def test_a_search_draws_around_the_start() -> None:
    draws = np.log([list(drawn(OPERATIONS, 1.5, 0, trial).values()) for trial in range(400)])
    assert np.exp(draws.mean(0)) == pytest.approx(list(OPERATIONS.values()), rel=0.3)
    assert draws.std(0) == pytest.approx(1.5, rel=0.15)


def test_frames_that_nobody_labelled_are_left_out() -> None:
    data = records(3)
    y = torch.zeros(3, 8, 2)
    y[0, :5] = float("nan")
    head, batch = FrameHead(untrained(data.x, 0), 2), Labelled(data.x, y)
    assert head.features(batch).shape == (19, 64)
    assert head.targets(batch).shape == (19, 2)
    assert torch.isfinite(head(batch))


def test_frame_labels_follow_the_marks() -> None:
    """Frame i is the stretch of 0.16 s around 0.16 i s."""
    marks = pd.DataFrame(
        [("II", "P", 0.20, 0.25, 0.30), ("II", "QRS", 0.50, 0.55, 0.60), ("II", "T", 0.95, 1.0, 1.1)],
        columns=["lead", "wave", "onset", "peak", "offset"],
    )
    ludb: Any = SimpleNamespace(waves=lambda record, lead: marks)
    found = ecg_real.frame_labels(ludb, "1", 10)
    assert np.isnan(found[[0, 1, 7, 8, 9]]).all()
    assert found[2:7].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]


def result(arm: str, seed: int, **numbers: float) -> Result:
    named = {name.replace("_", " "): value for name, value in numbers.items()}
    return Result(Task(arm, "one", seed), named, 1.0)


def test_the_best_candidate_is_that_of_the_validation_and_not_of_the_test() -> None:
    results = [
        result("static 1", 0, validation=5.0, probe_250=70.0),
        result("static 3", 0, validation=6.0, probe_250=60.0),
        result("static 1", 1, validation=5.0, probe_250=71.0),
        result("meta", 0, probe_250=66.0),
        result("meta", 1, probe_250=66.0),
    ]
    assert ecg_report.values(results, "probe 250", "best static", "one") == {
        0: 60.0
    }  # seed 1 lacks a candidate
    elsewhere = Result(Task("static 9", "two", 0), {"validation": 9.0, "probe 250": 1.0}, 1.0)
    assert ecg_report.values([*results, elsewhere], "probe 250", "best static", "one") == {0: 60.0}
    planned = [r.task for r in results] + [Task("static 3", "one", 1)]
    assert {r.task.seed for r in ecg_report.whole(results, planned)} == {0}
    assert ecg_report.values(results, "probe 250", "start", "one") == {0: 70.0, 1: 71.0}
    assert ecg_report.best_without(results, "probe 250", "one", {0: 66.0, 1: 66.0}) == "start"
    found = ecg_report.gain(results, "probe 250", "one")
    assert found is not None
    assert found[1].value == -4.5


def test_with_few_labels_few_choose_and_the_run_that_saw_as_many_is_meta() -> None:
    results = [
        result("static 1", 0, validation_50=1.0, validation_500=1.0, probe_50=60.0, probe_500=70.0),
        result("static 3", 0, validation_50=0.0, validation_500=2.0, probe_50=65.0, probe_500=80.0),
        result("meta, 50 labels", 0, validation_50=0.0, probe_50=61.0),
        result("meta, 500 labels", 0, validation_500=0.0, probe_500=84.0),
    ]
    known = {n: ecg_labels.with_labels(results, n) for n in (50, 500)}
    static = [ecg_report.values(found, "probe", "best static", "one") for found in known.values()]
    assert static == [{0: 60.0}, {0: 80.0}]
    assert [ecg_labels._against(found, "one", "best static") for found in known.values()] == [
        {0: 1.0},
        {0: 4.0},
    ]
    assert ecg_labels._rises(known, "one", 50, 500).text.startswith("+3.0")


def again(seeds: int, meta: float, spread: float = 1.0) -> list[Result]:
    """All cells of one situation of the study on fresh seeds: learning has ``meta`` points more than the rest, give or take
    ``spread``, and the criterion with the lighter penalty knows its best run, the other one the worst."""
    study = load("ecg_again")
    found = []
    for task in study.module.tasks(study.plan.settings, study.plan.record[:seeds]):
        if task.setting != "destroyed":
            continue
        learned = task.arm.startswith("meta") and "paper" not in task.arm
        noise = spread * (-1) ** task.seed
        run = float(task.arm[-1]) if task.arm[-1].isdigit() else 1.0
        auroc = 80.0 + (meta + noise - abs(run - 2) if learned else -(run - 1) / 10)
        numbers = {"validation": -auroc, "R² at 0.003": auroc, "pretrain seconds": 2.0 if learned else 1.0}
        numbers |= {f"probe {n}": auroc for n in study.plan.settings.scoring.probe}
        numbers |= {f"φ {name}": 1.0 for name in study.plan.settings.situations["destroyed"].start}
        found.append(Result(task, numbers, 1.0))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meta", "gained", "lost", "excluded"),
    [
        (4.0, True, False, True),
        (1.0, False, False, True),
        (-1.0, False, True, True),
        (-3.0, False, True, False),
    ],
)
def test_fresh_seeds_are_judged_by_the_lighter_penalty(
    meta: float, gained: bool, lost: bool, excluded: bool
) -> None:
    study = load("ecg_again")
    plan = study.plan
    plan.settings.situations = {"destroyed": plan.settings.situations["destroyed"]}
    found = study.module.report(plan, again(13, meta))
    outcomes = {name: outcome.met for name, outcome in found.outcomes.items()}
    assert outcomes["gain"] is gained
    assert outcomes["no loss"] is not lost
    assert outcomes["loss excluded"] is excluded
    mixed = [outcomes[f"mixed, {name}"] for name in ("gain", "no loss", "loss excluded")]
    assert mixed == [gained, True, True]  # where learning is worse than a trial, a trial is chosen
    # The second run of three is chosen, and costs as much as all.
    assert f"{meta + 1 / 13:+.1f} (".replace("-", "−") in found.outcomes["no loss"].text
    assert re.search(r"\| best of 3 meta \| 6\.0 \|", found.body)
    assert re.search(
        r"\| destroyed \| 2\.2, against best of 7 search \| 13 \| 13 \| 1\.\d, against", found.body
    )
    short = study.module.report(plan, again(12, meta))
    assert {outcome.met for outcome in short.outcomes.values()} == {None}


def test_a_penalty_that_no_cell_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.005, expected one of"):
        chosen_by(again(1, 0.0), 0.005)


def test_a_probe_without_an_example_of_a_class_has_no_number() -> None:
    pool, test = records(40), records(30)
    pool.y[:16, 1] = 0
    found = score(untrained(pool.x, 0), pool, test, Scoring(probe=[20, 40], tuned=[]), 0)
    assert math.isnan(found["probe 20"])
    assert math.isfinite(found["probe 40"])


def test_the_best_of_runs_of_two_kinds() -> None:
    results = [
        result("meta", 0, validation=1.0, probe=60.0),
        result("meta 2", 0, validation=2.0, probe=65.0),
        result("search 1", 0, validation=3.0, probe=70.0),
        result("search 2", 0, validation=9.0, probe=90.0),
    ]
    names = ecg_report.candidates(results, "best of 2 meta + 1 search", "one")
    assert names == ["meta", "meta 2", "search 1"]
    assert ecg_report.values(results, "probe", "best of 2 meta + 1 search", "one") == {0: 70.0}
    assert ecg_report.candidates(results, "best of 2 meta + 3 search", "one") == []


def test_waiting_for_a_trial() -> None:
    assert cost._runs(2, 10) == "5.0"
    assert cost._runs(0, 12) == "more than 4"  # the rule of three
    assert cost._runs(0, 0) == "–"


@pytest.mark.slow
def test_learning_costs_time_and_memory(threads: None) -> None:
    study = load("cost", quick=True)
    task = next(t for t in study.tasks() if t.name == "ours, P = 1/small/0")
    numbers = study.module.run(task)
    assert numbers["ratio"] > 1
    assert numbers["learning, MB"] > numbers["plain, MB"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["no pre-training", "meta", "retrained", "search 1"])
def test_a_cell_of_the_synthetic_study_runs(arm: str, threads: None) -> None:
    study = load("ecg_synthetic", quick=True)
    task = next(t for t in study.tasks() if t.arm == arm)
    numbers = study.module.run(task)
    assert np.isfinite(list(numbers.values())).all()
    assert ("probe 60" in numbers) == (arm != "no pre-training")


@pytest.mark.slow
def test_a_cell_of_the_real_study_runs(
    real_data: Any, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    monkeypatch.setenv("ECGMETA_REAL_DATA", str(real_data))
    study = load("ecg_real", quick=True)
    for task in study.tasks():
        if task.arm == "meta":
            numbers = cast(dict[str, float], study.module.run(task))
            assert 50 < numbers["probe 140"] <= 100
