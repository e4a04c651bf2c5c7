"""The stages of an experiment in order; each takes up what the one before left in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ecgmeta.experiment.cohort import Cohort, load
from ecgmeta.experiment.comparison import compare
from ecgmeta.experiment.config import CHOSEN, GUIDED, STAGES, Experiment
from ecgmeta.experiment.contamination import contaminated
from ecgmeta.experiment.evaluate import evaluate
from ecgmeta.experiment.finetune import check_labels, finetune
from ecgmeta.experiment.pretrain import metaft, pretrain
from ecgmeta.experiment.report import report
from ecgmeta.experiment.run import Run
from ecgmeta.experiment.search import say_compute, search
from ecgmeta.runtime.files import folder_lock
from ecgmeta.runtime.logs import check_sinks
from ecgmeta.runtime.progress import progress_bar, say
from ecgmeta.runtime.ranks import find_ranks
from ecgmeta.runtime.signals import stop_at_once


def run_experiment(folder: Path, config: Experiment) -> dict[str, Any] | None:
    """Pre-train in ``folder`` and go on through ``config.through``; finished work is not repeated.

    Returns:
        The results, where the experiment goes as far as evaluation.
    """
    with stop_at_once():
        return _run_experiment(folder, config)


def _run_experiment(folder: Path, config: Experiment) -> dict[str, Any] | None:
    # First everything that can be wrong: bad input leaves no run folder behind, and is not found out hours later.
    Run.check(folder, config)
    check_sinks(config.log)
    cohort = _load(config)
    if set(GUIDED) & {config.pretrain.arm, *config.compare}:
        metaft(config, cohort)
        say_compute(config)
    if config.through != "pretrain":
        check_labels(config, cohort)
    ranks = find_ranks(config.accelerator)
    with folder_lock(folder) if ranks.leads else nullcontext():
        run = Run.create(folder, config) if ranks.leads else Run(folder, config)
        for other in [run, *(run.other(arm, ranks.leads) for arm in config.compare if arm != run.arm)]:
            with progress_bar() as progress:
                (search if other.arm in CHOSEN else pretrain)(other, cohort, ranks, progress)
        ranks.part()
        if not ranks.leads:  # what comes after pre-training is one process's work
            return None
        run.set_later(config)
        return _later(run, cohort, STAGES[1 : STAGES.index(config.through) + 1])


def run_stage(folder: Path, stage: str, overrides: list[str]) -> dict[str, Any] | None:
    """One later stage on a run folder. Overrides are kept for the stages after it."""
    with stop_at_once():
        return _run_stage(Run.open(folder), stage, overrides)


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """One page about several runs; see :func:`~ecgmeta.experiment.comparison.compare`."""
    return compare([Run.open(folder) for folder in folders], out)


def _run_stage(run: Run, stage: str, overrides: list[str]) -> dict[str, Any] | None:
    config = run.with_overrides(overrides) if overrides else run.later
    cohort = _load(config, run.test_patients(config))
    if stage == "finetune":
        check_labels(config, cohort)
    if stage in ("finetune", "evaluate"):
        contaminated(config, run.arms(), cohort)
    with folder_lock(run.folder):
        if overrides:
            run.set_later(config)
        return _later(run, cohort, (stage,))


def _load(config: Experiment, test_patients: frozenset[str] | None = None) -> Cohort:
    with progress_bar() as progress:
        cohort = load(config, progress, test_patients)
    for line in cohort.skipped:
        say(f"left out: {line}")
    say(
        f"{len(cohort.pretrain):,} recordings to pre-train on, {len(cohort.train):,} labelled, "
        f"{len(cohort.test):,} to test on; labels: {', '.join(cohort.train.label_names)}"
    )
    return cohort


def _later(run: Run, cohort: Cohort, stages: Sequence[str]) -> dict[str, Any] | None:
    from lightning_fabric import Fabric

    results = None
    with progress_bar() as progress:
        if "finetune" in stages:
            finetune(run, cohort, Fabric(accelerator=run.later.accelerator, devices=1).device, progress)
        if "evaluate" in stages:
            results = evaluate(run, cohort, progress)
    if "report" in stages:
        say(f"report: {report(run, cohort)}")
    return results
