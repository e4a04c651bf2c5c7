"""The stages of an experiment in order; each takes up what the one before left in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecgmeta.experiment.cohort import Cohort, load
from ecgmeta.experiment.config import STAGES, Experiment
from ecgmeta.experiment.evaluate import evaluate
from ecgmeta.experiment.finetune import finetune
from ecgmeta.experiment.pretrain import pretrain
from ecgmeta.experiment.report import report
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.files import folder_lock
from ecgmeta.runtime.progress import progress_bar, say


def run_experiment(folder: Path, config: Experiment) -> dict[str, Any] | None:
    """Pre-train in ``folder`` and go on through ``config.through``; finished work is not repeated.

    Returns:
        The results, where the experiment goes as far as evaluation.
    """
    cohort = _load(config)  # first: bad data leaves no run folder behind
    with folder_lock(folder):
        run = Run.create(folder, config)
        device = _device(config)
        for other in [run, *(run.other(arm) for arm in config.compare if arm != run.arm)]:
            with progress_bar() as progress:
                pretrain(other, cohort, device, progress)
        run.set_later(config)
        return _later(run, cohort, STAGES[1 : STAGES.index(config.through) + 1])


def run_stage(folder: Path, stage: str, overrides: list[str]) -> dict[str, Any] | None:
    """One later stage on a run folder. Overrides are kept for the stages after it."""
    run = Run.open(folder)
    if overrides:
        run.set_later(run.with_overrides(overrides))
    cohort = _load(run.later)
    with folder_lock(folder):
        return _later(run, cohort, (stage,))


def _load(config: Experiment) -> Cohort:
    with progress_bar() as progress:
        cohort = load(config, progress)
    for line in cohort.skipped:
        say(f"left out: {line}")
    say(
        f"{len(cohort.pretrain):,} recordings to pre-train on, {len(cohort.train):,} labelled, "
        f"{len(cohort.test):,} to test on; labels: {', '.join(cohort.train.label_names)}"
    )
    return cohort


def _later(run: Run, cohort: Cohort, stages: Sequence[str]) -> dict[str, Any] | None:
    results = None
    with progress_bar() as progress:
        if "finetune" in stages:
            finetune(run, cohort, _device(run.later), progress)
        if "evaluate" in stages:
            results = evaluate(run, progress)
    if "report" in stages:
        say(f"report: {report(run, cohort)}")
    return results


def _device(config: Experiment) -> torch.device:
    from lightning_fabric import Fabric

    return Fabric(accelerator=config.accelerator, devices=1).device
