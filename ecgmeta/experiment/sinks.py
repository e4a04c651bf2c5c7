"""The sinks that a run's configuration asks for, beside its own metric log."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.files import MetricLog, read_log
from ecgmeta.runtime.sinks import Sink, TensorBoard, WandB, need


def check_sinks(config: Experiment) -> None:
    """Raise :class:`InputError` where a package that ``log`` asks for is not installed: before the data are read."""
    if config.log.tensorboard:
        need("tensorboard", "log.tensorboard")
    if config.log.wandb:
        need("wandb", "log.wandb")


def open_sinks(run: Run, metrics: MetricLog) -> list[Sink]:
    """What ``run.config.log`` asks for, beside ``metrics``, the run's own log."""
    log = run.config.log
    sinks: list[Sink] = []
    if log.tensorboard:
        sinks.append(TensorBoard(run.folder / "tensorboard", read_log(run.metrics)))
    if log.wandb:
        begun = "wandb" in run.info
        if not begun:
            run.note(wandb=uuid.uuid4().hex[:12])
        sinks.append(
            WandB(
                log.wandb,
                run.info["wandb"],
                run.folder,
                mode=log.wandb_mode,
                name=f"{run.folder.name}-{run.arm}-s{run.config.seed}",
                config=asdict(run.config),
                first=metrics.new if begun else 0,
            )
        )
    return sinks
