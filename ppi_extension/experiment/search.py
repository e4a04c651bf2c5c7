"""Random search over the task weights: what the arm meta learns, drawn, so that one sees whether gradients were needed."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np

from ecgmeta.runtime.files import copy_folder
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.signals import StopRequest
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import Experiment
from ppi_extension.experiment.finetune import linear
from ppi_extension.experiment.pretrain import pretrain, total_steps
from ppi_extension.experiment.run import Run
from ppi_extension.experiment.scores import mean_of_tasks
from ppi_extension.gnn import EgoGNN


def search(run: Run, cohort: Cohort, progress: Progress, stop: StopRequest) -> None:
    """Pre-train ``search.trials`` encoders under weights drawn at random, each a run of its own in ``trials/``, and keep the
    one that at its best length has the highest AUROC on validation genes.

    A trial's score is that of linear heads on its frozen encoder, for the fine-tuning tasks and on the training genes whose
    labels pre-training may see, with ``finetune`` as it was when the trial ended.

    Raises:
        Stopped, Diverged, InputError: see :func:`~ppi_extension.experiment.pretrain.pretrain`.
    """
    if run.pretrained:
        return
    trials = []
    for number in range(1, run.config.search.trials + 1):
        trial = Run.create(run.folder / "trials" / str(number), trial_config(run.config, cohort, number))
        pretrain(trial, cohort, None, progress, stop)
        if "validation" not in trial.info:
            trial.note(validation=_score(trial, cohort, stop))
        trials.append(trial)
    scores = [trial.info["validation"] for trial in trials]
    best = max(range(len(scores)), key=lambda i: -math.inf if scores[i] is None else scores[i])
    if scores[best] is None:
        say(f"warning: {run.name}: no validation gene tells one trial from another; the first is kept")
    else:
        say(f"{run.name}: trial {best + 1} of {len(scores)} is the best: validation AUROC {scores[best]:.3f}")
    _keep(trials[best], run)
    seconds = sum(trial.info["seconds"] for trial in trials)
    run.note(signal=None, seconds=seconds, search={"scores": scores, "best": best + 1})


def trial_config(config: Experiment, cohort: Cohort, number: int) -> Experiment:
    """The configuration of one trial: its share of the steps, and a draw of the weights that no other trial has."""
    batches = EgoBatches(cohort, config, config.meta, config.first_seed)
    together = config.search.compute * total_steps(config, batches, "random_weights")
    steps = max(1, round(together / config.search.trials))
    own = replace(
        config.pretrain,
        draw=config.pretrain.draw * config.search.trials + number,
        max_steps=steps,
        epochs=(steps + 1) / batches.steps_per_epoch,
        plain_factor=1.0,
    )
    return replace(config, arms=["random_weights"], pretrain=own)


def _score(trial: Run, cohort: Cohort, stop: StopRequest) -> float | None:
    """AUROC on validation genes at the best length; None where no task has both classes there. It reads no test gene."""
    visible = replace(cohort, train=np.sort(cohort.metaft), test=cohort.validation)
    found = []
    for steps in trial.lengths():
        stop.check()
        encoder = EgoGNN.from_pretrained(trial.encoder(steps)).to(trial.config.accelerator)
        fit = linear(encoder, visible, trial.config.finetune, trial.seed, cohort.seen)
        found.append(mean_of_tasks(fit.validation))
    return max((value for value in found if not math.isnan(value)), default=None)


def _keep(best: Run, run: Run) -> None:
    """What the best trial left, as this run's own."""
    shutil.copyfile(best.metrics, run.metrics)
    shutil.copyfile(best.trajectory, run.trajectory)
    copy_folder(best.weights, run.weights)
    copy_folder(best.folder / "encoders", run.folder / "encoders")
