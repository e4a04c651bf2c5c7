"""The sinks that a run's configuration asks for, beside its own metric log."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Any

from ecgmeta.runtime.files import MetricLog, read_log
from ecgmeta.runtime.runs import RunFolder
from ecgmeta.runtime.sinks import Sink, TensorBoard, WandB, need


@dataclass
class Log:
    """Where metrics go beside the run's metrics.jsonl."""

    tensorboard: bool = False  # event files in the run folder; needs ecgmeta[tensorboard]
    wandb: str = ""  # project of Weights & Biases; needs ecgmeta[wandb]; empty: none
    wandb_mode: str = "offline"  # sends nothing until `wandb sync`, because runs name their data; or "online"


def check_sinks(log: Log) -> None:
    """Raise :class:`InputError` where a package that ``log`` asks for is not installed: before the data are read."""
    if log.tensorboard:
        need("tensorboard", "log.tensorboard")
    if log.wandb:
        need("wandb", "log.wandb")


def open_sinks(log: Log, run: RunFolder[Any], name: str, metrics: MetricLog) -> list[Sink]:
    """What ``log`` asks for, beside ``metrics``, the run's own log; ``name`` is how the run is shown there."""
    sinks: list[Sink] = []
    history = read_log(metrics.path) if log.tensorboard or log.wandb else []
    if log.tensorboard:
        sinks.append(TensorBoard(run.folder / "tensorboard", history))
    if log.wandb:
        if "wandb" not in run.info:
            run.note(wandb=uuid.uuid4().hex[:12])
        sinks.append(
            WandB(
                log.wandb,
                run.info["wandb"],
                run.folder,
                mode=log.wandb_mode,
                name=name,
                config=asdict(run.config),
                history=history,
            )
        )
    return sinks
