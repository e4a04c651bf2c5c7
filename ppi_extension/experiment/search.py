"""Random search over the task weights: what the arm meta learns, drawn, so that one sees whether gradients were needed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.signals import StopRequest
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import Experiment
from ppi_extension.experiment.finetune import finetune, score_settings
from ppi_extension.experiment.pretrain import pretrain, total_steps
from ppi_extension.experiment.run import Run
from ppi_extension.experiment.scores import mean_of_tasks


def search(run: Run, cohort: Cohort, progress: Progress, stop: StopRequest) -> None:
    """Pre-train ``search.trials`` encoders under weights drawn at random, each a run of its own in ``trials/``, and keep the
    one that at its best length has the highest AUROC on validation genes, by the first of ``finetune.protocols``.

    Raises:
        Stopped, Diverged, InputError: see :func:`~ppi_extension.experiment.pretrain.pretrain`.
    """
    if run.pretrained:
        return
    trials, scores = [], []
    for number in range(1, run.config.search.trials + 1):
        trial = Run.create(run.folder / "trials" / str(number), trial_config(run.config, cohort, number))
        pretrain(trial, cohort, None, progress, stop)
        finetune(trial, cohort, trial.config, stop)
        trials.append(trial)
        scores.append(_score(trial, cohort))
    best = max(range(len(scores)), key=scores.__getitem__)
    say(f"{run.name}: trial {best + 1} of {len(scores)} is the best: validation AUROC {scores[best]:.3f}")
    _keep(trials[best], run)
    seconds = sum(trial.info["seconds"] for trial in trials)
    run.note(signal=None, seconds=seconds, search={"scores": scores, "best": best + 1})


def trial_config(config: Experiment, cohort: Cohort, number: int) -> Experiment:
    """The configuration of one trial: its share of the steps, and the ``number``-th draw of the weights."""
    batches = EgoBatches(cohort, config, config.meta, config.first_seed)
    steps = total_steps(config, batches, "random_weights") * config.search.compute / config.search.trials
    steps = max(1, round(steps))
    own = replace(
        config.pretrain,
        draw=number,
        max_steps=steps,
        epochs=(steps + 1) / batches.steps_per_epoch,
        plain_factor=1.0,
    )
    scoring = replace(config.finetune, protocols=config.finetune.protocols[:1])
    return replace(config, arms=["random_weights"], pretrain=own, finetune=scoring)


def _score(trial: Run, cohort: Cohort) -> float:
    """AUROC on validation genes at the best length, the mean over the tasks that are scored; the test genes' is not read."""
    found = trial.scores(score_settings(trial.config, cohort))
    table = np.array([one["validation"] for one in found], dtype=np.float64)[:, list(cohort.scored)]
    return max(mean_of_tasks(row) for row in table)


def _keep(best: Run, run: Run) -> None:
    """What the best trial left, as this run's own."""
    shutil.copyfile(best.metrics, run.metrics)
    shutil.copyfile(best.trajectory, run.trajectory)
    for source, target in ((best.weights, run.weights), (best.folder / "encoders", run.folder / "encoders")):
        aside = Path(f"{target}.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
