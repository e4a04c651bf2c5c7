"""Pre-training of one arm: the engine's loop, driven step by step, with logs, checkpoints and clean stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ecgmeta.augment import paper_static
from ecgmeta.bilevel import (
    Adam,
    FinetuneFactor,
    ImplicitHead,
    MetaState,
    Report,
    Schedule,
    Unroll,
    meta_train,
)
from ecgmeta.bilevel.distributed import local, mean_over_ranks
from ecgmeta.bilevel.probe import ROUTES
from ecgmeta.experiment.batches import SimCLRBatches
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import GUIDED, LEARNING, Experiment
from ecgmeta.experiment.contamination import metaft_records, note_seen
from ecgmeta.experiment.failures import KEYS, LOGITS, MAGNITUDES, AugmenterGuard
from ecgmeta.experiment.model import Model, build, run_seed
from ecgmeta.experiment.pace import phi_step_guess
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import MetricLog
from ecgmeta.runtime.logs import open_sinks
from ecgmeta.runtime.pace import Pace
from ecgmeta.runtime.pretrained import check_weights
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.ranks import Ranks
from ecgmeta.runtime.signals import stop_between_steps
from ecgmeta.runtime.training import Trainer

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset


@dataclass
class _Training:
    """Pre-training of one arm, as the trainer needs it."""

    config: Experiment
    model: Model
    batches: SimCLRBatches
    state: MetaState
    schedule: Schedule
    finetune: FinetuneFactor
    head_optimizer: Adam
    guard: AugmenterGuard
    pace: Pace
    ranks: Ranks
    keys = KEYS

    @property
    def name(self) -> str:
        return f"pre-training {self.config.pretrain.arm}"

    def steps(self) -> Iterator[Report]:
        config = self.config
        return meta_train(
            self.model.problem,
            self.state,
            self.batches,
            schedule=self.schedule,
            finetune=self.finetune,
            head_optimizer=self.head_optimizer,
            inverse=self.guard.solve,
            accumulate=config.meta.accumulate,
            control="random_walk" if config.meta.control == "random_walk" else "none",
            seed=run_seed(config),
            clip=config.meta.clip or None,
            products=ROUTES.get(config.meta.products),  # "cheapest" is none of them: the engine chooses
            on_failure="skip",  # the engine reports; what is done about it is the guard's
            reduce=mean_over_ranks() if self.ranks.size > 1 else local,
            autocast=torch.bfloat16 if config.pretrain.precision == "bf16" else None,
        )

    def logged(self, report: Report) -> dict[str, Any]:
        values: dict[str, Any] = {"epoch": (report.step + 1) / self.batches.steps_per_epoch}
        if report.head_loss is not None:
            values["head_loss"] = report.head_loss
        if self.model.augmenter is not None:
            values |= self.model.augmenter.trace()
        if self.model.weights is not None:
            values |= self.model.weights.trace()
        return values

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self.model.simclr.state_dict(), **self.state.psi}

    def state_dict(self) -> dict[str, Any]:
        # The module's state has θ and φ too, but only it has the running statistics.
        return {"meta": self.state.state_dict(), "model": self.model.simclr.state_dict()}

    def load_state_dict(self, saved: dict[str, Any], file: Path) -> None:
        shapes = {name: tuple(value.shape) for name, value in saved["model"].items()}
        check_weights(self.model.simclr, shapes, file)
        self.model.simclr.load_state_dict(saved["model"])
        self.state.load_state_dict(saved["meta"])


def pretrain(run: Run, cohort: Cohort, ranks: Ranks, progress: Progress) -> None:
    """Pre-train ``run``'s arm from where it stands to its end; writes ``encoder/`` and ``augmenter/`` last.

    Of data-parallel ranks, each with its part of every batch, the first writes. With batch normalisation each takes the
    statistics of its part, and the first's are saved.

    Raises:
        InputError: labels that cannot guide pre-training; a checkpoint of another architecture.
        Stopped: SIGINT or SIGTERM came; the checkpoint holds the last finished step.
        Diverged: a loss or a weight is not finite, or a φ step failed under ``meta.on_failure=stop``; the last checkpoint
            stands, and holds finite numbers.
    """
    ranks.wait()  # all look before the first one writes
    if run.pretrained:
        return
    training = _prepare(run.config, cohort, ranks)
    settings = run.config.pretrain
    trainer = Trainer(
        training,
        run.checkpoint,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        agreed=ranks.agreed,
    )
    trainer.resume(ranks.device)
    ranks.wait()
    if not ranks.leads:
        with stop_between_steps() as stop:
            trainer.train(None, progress, stop)
            stop.check()
        return
    if training.model.augmenter is not None and training.state.step == 0:
        training.model.augmenter.save_pretrained(run.augmenter_before)
    note_data(run, cohort)
    log = MetricLog(run.metrics, training.state.step)
    try:
        with stop_between_steps() as stop:
            log.sinks = open_sinks(
                run.config.log, run, f"{run.folder.name}-{run.arm}-s{run.config.seed}", log
            )
            trainer.train(log, progress, stop)
    finally:
        log.close()
    if training.model.augmenter is not None:
        training.model.augmenter.save_pretrained(run.augmenter)
    if training.model.weights is not None:
        training.model.weights.save_pretrained(run.weights)
    if training.schedule.period > 0:
        run.note(signal=training.state.signal.verdict())
        if run.arm in LEARNING and not training.state.signal.drifts:
            say(f"the hypergradient {run.info['signal']}")
    if (failures := training.guard.summary()) is not None:
        say(failures)
    trainer.finished()
    training.model.encoder.eval().save_pretrained(run.encoder)
    stop.check()  # a stop that came during the last step


def _prepare(config: Experiment, cohort: Cohort, ranks: Ranks) -> _Training:
    from ecgmeta.data import concat

    arm, device = config.pretrain.arm, ranks.device
    model = build(config, cohort, arm)
    model.simclr.to(device)
    if ranks.size > 1 and any(
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.simclr.modules()
    ):
        say(
            "batch normalisation: each process takes the statistics of its own part of a batch, so numbers are not those of "
            "one process; encoder.norm=group has none, nor has augment.augmenter=policy with magnitudes that no network sets"
        )
    train, validation = None, None
    if arm in LEARNING:
        train, validation = metaft(config, cohort)
        _say_metaft(config, train, validation)
        if config.meta.head == "ridge":  # leaves every record out in turn, and so needs no split
            validation = concat([train, validation])
    batches = SimCLRBatches(
        cohort.pretrain,
        train,
        validation,
        static=paper_static(config.augment.crop, config.augment.noise),
        augmenter=model.augmenter,
        batch_size=config.pretrain.batch_size,
        hyper_batch_size=config.meta.hyper_batch_size or config.pretrain.batch_size,
        label_batch_size=config.meta.batch_size,
        seed=run_seed(config),
        device=device,
        rank=ranks.rank,
        ranks=ranks.size,
        micro_batches=config.pretrain.micro_batches,
    )
    if batches.batch_size < config.pretrain.batch_size:
        say(
            f"pretrain.batch_size: {config.pretrain.batch_size} asked for, {batches.batch_size} recordings are there"
        )
    steps = batches.steps(config.pretrain.epochs)
    schedule = Schedule(
        steps=min(steps, config.pretrain.max_steps or steps),
        period=config.meta.period if arm in LEARNING else 0,
        warmup=batches.steps(config.meta.warmup_epochs),
    )
    problem = model.problem
    state = MetaState(
        theta=problem.theta,
        phi=problem.phi,
        psi={name: value.detach().to(device) for name, value in problem.psi.items()},
        theta_optimizer=torch.optim.Adam(problem.theta.values(), lr=config.pretrain.lr),
        phi_optimizer=_phi_optimizer(config, model.augmenter or model.weights) if arm in LEARNING else None,
    )
    head = Adam(config.meta.head_lr)
    guard = AugmenterGuard(config.meta, state)
    pace = Pace(schedule, config.pretrain.checkpoint_every, phi_step_guess(config))
    finetune: FinetuneFactor = Unroll(config.meta.unroll, head)
    if config.meta.head == "ridge":
        finetune = ImplicitHead("ridge", config.meta.penalty)
    return _Training(config, model, batches, state, schedule, finetune, head, guard, pace, ranks)


def _phi_optimizer(config: Experiment, learns: torch.nn.Module | None) -> torch.optim.Optimizer:
    if learns is None:
        raise ValueError("an arm that learns has something to learn")
    # The few that act on all records take larger steps than the weights of the augmenter's network.
    few: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in learns.named_parameters():
        (few if name in (*MAGNITUDES, *LOGITS) else rest).append(parameter)
    groups = [{"params": rest, "lr": config.meta.lr}, {"params": few, "lr": config.meta.magnitude_lr}]
    return torch.optim.Adam([group for group in groups if group["params"]], eps=config.meta.eps)


def metaft(config: Experiment, cohort: Cohort) -> tuple[ECGDataset, ECGDataset]:
    """The labelled recordings that guide φ: to train the head on, and to validate on.

    Raises:
        InputError: too few patients to split; one class only in every label.
    """
    cohort = cohort.with_labels(config.meta.label_names)
    train, validation = cohort.split(cohort.labelled(config.meta.labels, config.seed), config.seed)
    if len(_one_class(train, validation)) == len(train.label_names):
        raise InputError(
            config.data.finetune,
            "MetaFT labels",
            "one class only in every label",
            "records with and without a label",
        )
    return train, validation


def _one_class(train: ECGDataset, validation: ECGDataset) -> list[str]:
    both = np.concatenate([train.labels, validation.labels])
    return [n for n, column in zip(train.label_names, both.T, strict=True) if column.min() == column.max()]


def _say_metaft(config: Experiment, train: ECGDataset, validation: ECGDataset) -> None:
    n, one_class = len(train) + len(validation), _one_class(train, validation)
    if n < config.meta.labels:
        say(f"meta.labels: {config.meta.labels} asked for, {n} labelled recordings are there: using all")
    if one_class:  # such a label teaches φ nothing
        say(
            f"MetaFT labels: one class only in {', '.join(one_class)}: these labels cannot guide pre-training"
        )


def note_data(run: Run, cohort: Cohort) -> None:
    """Which recordings this run has seen: what a later evaluation compares its test set with."""
    if "data" in run.info:
        return
    used = {part: sorted(set(getattr(cohort, part).meta["patient"])) for part in ("pretrain", "test")}
    guiding = metaft_records(run.config, cohort) if run.arm in GUIDED else None
    if guiding is not None:
        used["metaft"] = sorted(set(guiding.meta["patient"]))
    note_seen(run, cohort, guiding)
    run.note(data=used, skipped=cohort.skipped)
