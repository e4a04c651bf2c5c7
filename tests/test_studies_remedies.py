"""The study of remedies: what each changes, which moment is kept, and which run the criterion chooses."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ecgmeta.bilevel.signal import Signal
from examples.studies import ecg_remedies, ecg_remedies_report, ecg_report
from examples.studies.ecg_arms import Records, Training, drawn_ramp, untrained
from examples.studies.ecg_remedies import Change, Remedy, Watch
from examples.studies.study import Result, Task, load


@pytest.fixture
def threads() -> Iterator[None]:
    """A study's cells set torch's threads; the other tests keep theirs."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


def moved(remedy: Remedy, before: list[float], after: list[float], gradients: Any = ()) -> list[float]:
    """The roots of the magnitudes that a remedy makes of a φ step from ``before`` to ``after``."""
    signal, n = Signal(), len(before)
    for gradient in gradients:
        matrix = torch.zeros(n, n, 2)
        matrix[..., 0].diagonal().copy_(torch.tensor(gradient))
        signal.update({"g": matrix})
    roots = torch.tensor(after)
    state: Any = SimpleNamespace(signal=signal)
    Change(remedy, 0.1, Training(), None, None, 0.3, 0).stepped(state, roots, torch.tensor(before))
    return roots.tolist()


def test_an_anchor_takes_a_share_of_the_way_back_in_the_log() -> None:
    change = Change(Remedy(anchor=0.25), 0.1, Training(), None, None, 0.3, 0)
    state: Any = SimpleNamespace(signal=Signal())
    roots = torch.tensor([4.0, 0.25])
    change.stepped(state, roots, torch.ones(2))
    assert roots.tolist() == pytest.approx([4.0**0.75, 0.25**0.75])
    change.stepped(state, roots, roots.clone())
    assert roots.tolist() == pytest.approx([4.0 ** (0.75**2), 0.25 ** (0.75**2)])


def test_a_multiplicative_step_stays_above_zero() -> None:
    assert moved(Remedy(multiplicative=True), [1.0, 0.1], [1.2, -0.1]) == pytest.approx(
        [np.exp(0.2), 0.1 * np.exp(-0.2)]
    )


def test_a_coordinate_without_drift_stands_still() -> None:
    gradients = [[1.0 + 0.1 * (-1) ** k, (-1.0) ** k] for k in range(8)]
    drifting, still = moved(Remedy(shrink=True), [1.0, 1.0], [2.0, 2.0], gradients)
    assert 1.9 < drifting < 2.0
    assert still == 1.0


def test_the_best_moment_is_that_of_the_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 4, 64, generator=torch.Generator().manual_seed(0))
    encoder = untrained(x, 0)
    criterion = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(ecg_remedies, "validated", lambda *_: next(criterion))
    watch, weight = Watch(encoder, Records(x, x[:, :1, 0]), 0.3, 10), next(encoder.parameters())
    for step in range(30):
        weight.data.fill_(step)
        watch.after(step)
    assert watch.seen == {10: 1.0, 20: 3.0, 30: 2.0}
    assert encoder.training
    assert float(watch.best[next(iter(dict(encoder.named_parameters())))].mean()) == 19.0


def test_the_criterion_chooses_among_runs() -> None:
    numbers = [("meta", 1.0, 70.0), ("meta 2", 3.0, 60.0), ("meta 3", 2.0, 90.0)]
    results = [Result(Task(arm, "one", 0), {"validation": v, "probe 250": p}, 1.0) for arm, v, p in numbers]
    assert ecg_report.values(results, "probe 250", "meta", "one") == {0: 70.0}
    assert ecg_report.values(results, "probe 250", "best of 2 meta", "one") == {0: 60.0}
    assert ecg_report.values(results[::2], "probe 250", "best of 2 meta", "one") == {}
    assert ecg_report.candidates(results, "best of 4 meta", "one") == []


def test_a_cell_is_what_its_remedy_changes() -> None:
    assert ecg_remedies._changed(Remedy(runs=3, seeds=[1])) == {}
    assert ecg_remedies._changed(Remedy(sgd=True, meta={"labels": 250})) == {
        "sgd": True,
        "meta": {"labels": 250},
    }


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["ramp", "schedule 1", "ensemble", "Neumann", "going back", "shrunken"])
def test_a_cell_runs(arm: str, threads: None) -> None:
    study = load("ecg_remedies", quick=True)
    cells = study.module.tasks(study.plan.settings, study.plan.pilot[:1])
    task = next(task for task in cells if task.arm == arm)
    numbers = study.module.run(task)
    assert np.isfinite(list(numbers.values())).all()
    assert {"probe 60", "stopped probe 60", "validation"} <= set(numbers)
    assert ("φ gain" in numbers) == ("remedy" in task.inputs)


def test_a_drawn_ramp_begins_at_the_start_and_ends_below_the_bound() -> None:
    start = {"gain": 0.3, "time_warp": 0.5}
    path, other = (drawn_ramp(start, 16.0, 50, 0, trial) for trial in (1, 2))
    assert path[0].tolist() == pytest.approx([0.3, 0.5])
    assert (path.diff(dim=0) > 0).all()
    assert (path[-1] < 16).all()
    assert not path.equal(other)
    assert path.equal(drawn_ramp(start, 16.0, 50, 0, 1))


def test_what_a_search_would_need_counts_runs_that_reach_the_criterion_of_their_seed() -> None:
    cells = [
        ("meta", 0, 2.0),
        ("meta", 1, 5.0),
        ("search 1", 0, 3.0),
        ("search 2", 0, 1.0),
        ("search 1", 1, 4.0),
    ]
    results = [Result(Task(arm, "one", seed), {"validation": v}, 1.0) for arm, seed, v in cells]
    assert "1 of 3 trials of the search (on 1 of 2 seeds none)" in ecg_remedies_report._reached(
        results, "one"
    )


def test_an_ensemble_costs_what_its_runs_cost() -> None:
    def cell(arm: str, seconds: float, own: float, **inputs: Any) -> Result:
        return Result(Task(arm, "one", 0, inputs), {"pretrain seconds": own, "validation": 0.0}, seconds)

    results = [cell("static 1", 9.0, 8.0), cell("ensemble", 56.0, 7.0, remedy={"ensemble": 3})]
    assert ecg_remedies_report.cost_of(results, "ensemble", "one") == 7.0
    assert ecg_remedies_report.cost_of(results, "start", "one") == 1.0
