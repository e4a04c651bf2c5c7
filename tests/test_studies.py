"""The studies' frame: cells are run once, a cut file is mended, the statistics agree with a second route."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.charts import Estimate
from examples.studies import report, statistics
from examples.studies.study import (
    Plan,
    Study,
    Task,
    load,
    read_results,
    results_file,
    run_study,
    studies,
)


@dataclass
class ToySettings:
    size: int = 2


@dataclass
class ToyPlan(Plan):
    settings: ToySettings = field(default_factory=ToySettings)


@pytest.fixture
def threads() -> Iterator[None]:
    """A study sets torch's threads; the other tests keep theirs."""
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, threads: None) -> tuple[Study, list[str]]:
    """A study of two arms, and the cells that it ran."""
    ran: list[str] = []

    def tasks(settings: ToySettings, seeds: Sequence[int]) -> list[Task]:
        return [Task(arm, "one", seed, {"size": settings.size}) for arm in "ab" for seed in seeds]

    def run(task: Task) -> Mapping[str, float]:
        ran.append(task.name)
        if task.name == "b/one/1":
            raise FloatingPointError("the loss is nan")
        return {"score": task.seed + task.inputs["size"], "undefined": float("nan")}

    module = SimpleNamespace(Plan=ToyPlan, tasks=tasks, run=run, report=None)
    monkeypatch.setitem(sys.modules, "examples.studies.toy", module)
    return Study("toy", ToyPlan(record=[0, 1], pilot=[9]), module), ran


def test_a_finished_cell_is_not_run_again(toy: tuple[Study, list[str]], tmp_path: Path) -> None:
    study, ran = toy
    file = results_file("toy", tmp_path)
    assert [r.task.name for r in run_study(study, file, only="a/*")] == ["a/one/0", "a/one/1"]
    list(run_study(study, file))
    assert ran == ["a/one/0", "a/one/1", "b/one/0", "b/one/1"]
    results = read_results(file, study.tasks())
    assert [r.numbers.get("score") for r in results] == [2, 3, 2, None]
    assert np.isnan(results[0].numbers["undefined"])
    assert results[3].failed == "the loss is nan"
    study.plan.settings.size = 5  # other inputs, other cells
    assert read_results(file, study.tasks()) == []
    assert [r.task.seed for r in run_study(study, results_file("toy", tmp_path, pilot=True), pilot=True)] == [
        9,
        9,
    ]


def test_a_kill_loses_the_cell_under_way_alone(toy: tuple[Study, list[str]], tmp_path: Path) -> None:
    study, ran = toy
    file = results_file("toy", tmp_path)
    next(run_study(study, file))
    with file.open("ab") as out:
        out.write(b'{"arm": "a", "set')
    assert len(read_results(file, study.tasks())) == 1
    list(run_study(study, file))
    assert ran == ["a/one/0", "a/one/1", "b/one/0", "b/one/1"]
    assert len(read_results(file, study.tasks())) == 4
    file.write_text("no cell\n")
    with pytest.raises(InputError, match=r"line 1: found 'no cell'"):
        read_results(file, study.tasks())


def test_two_writers_are_refused(toy: tuple[Study, list[str]], tmp_path: Path) -> None:
    study, _ = toy
    first = run_study(study, results_file("toy", tmp_path))
    next(first)
    with pytest.raises(InputError, match="one at a time"):
        next(run_study(study, results_file("toy", tmp_path)))


def test_intervals_agree_with_other_routes() -> None:
    generator = np.random.default_rng(0)
    common = generator.normal(size=40)
    a = dict(enumerate(common + 0.3 + 0.1 * generator.normal(size=40)))
    b = dict(enumerate(common)) | {99: 1000.0}  # a seed that a lacks
    ours = statistics.paired(a, b)
    test = stats.ttest_rel([a[k] for k in a], [b[k] for k in a])
    assert ours.value == pytest.approx(np.mean([a[k] - b[k] for k in a]), rel=1e-12)
    assert (ours.low, ours.high) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-10)
    boot = statistics.bootstrap(statistics.differences(a, b))
    assert (boot.low, boot.high) == pytest.approx((ours.low, ours.high), abs=0.01)
    assert np.isnan(statistics.mean([1.0]).low)
    assert np.isnan(statistics.mean([]).value)


def test_power_agrees_with_simulation() -> None:
    x = np.random.default_rng(0).normal(1.9, 1.75, size=(20_000, 7))
    found = np.mean(stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05)
    assert statistics.power(1.75, 1.9, 7) == pytest.approx(found, abs=0.01)
    n = statistics.seeds_needed(1.75, 1.9)
    assert statistics.power(1.75, 1.9, n) >= 0.8 > statistics.power(1.75, 1.9, n - 1)


def test_table_escapes_bars() -> None:
    assert report.table(("a",), [("x|y",)]).splitlines() == ["| a |", "| --- |", "| x\\|y |"]


def test_unknown_study_is_named() -> None:
    with pytest.raises(InputError, match="nothing"):
        load("nothing")


@pytest.mark.slow
@pytest.mark.parametrize("name", studies())
@pytest.mark.usefixtures("threads")
def test_smallest_cells_run_and_are_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name.startswith("ppi_"):
        monkeypatch.setenv("ECGMETA_REAL_DATA", str(request.getfixturevalue("real_data")))
    monkeypatch.setenv("ECGMETA_STUDY_RUNS", str(tmp_path / "runs"))
    study = load(name, quick=True)
    file = results_file(name, tmp_path, quick=True)
    first = next(run_study(study, file))  # left after one cell, as a kill would
    done = [first, *run_study(study, file)]
    assert {r.task.key for r in done} == {t.key for t in study.tasks()}
    assert not [r.failed for r in done if r.failed]
    assert list(run_study(study, file)) == []
    found = report.section(name, tmp_path, quick=True)
    assert found is not None
    text, figures = found
    assert set(study.plan.expected) == set(study.module.report(study.plan, done).outcomes)
    for figure in figures:
        assert f"figures/{figure}.svg" in text


def test_a_forest_has_a_row_an_arm_under_its_heading() -> None:
    figure = report.forest(
        {"one": {"meta": Estimate(1.0, 0.5, 1.5), "walk": Estimate(0.0, -1.0, 1.0)}}, "points", 0.0
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "meta", "walk"]
    assert axes.get_xlim()[0] < -1 < 1.5 < axes.get_xlim()[1]
