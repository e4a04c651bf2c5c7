"""Pre-training of one arm: the engine's loop, driven step by step, with logs, checkpoints and clean stops."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ecgmeta.augment import Augmenter, paper_static
from ecgmeta.bilevel import (
    Adam,
    FinetuneFactor,
    Identity,
    MetaState,
    Neumann,
    Report,
    Schedule,
    Solver,
    Unroll,
    meta_train,
)
from ecgmeta.bilevel.probe import ROUTES
from ecgmeta.experiment.batches import SimCLRBatches
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.contamination import metaft_records, note_seen
from ecgmeta.experiment.model import Model, build
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import MetricLog, load_checkpoint, save_checkpoint
from ecgmeta.runtime.pretrained import check_weights
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.signals import stop_between_steps

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset


@dataclass
class _Training:
    """What the loop below works on."""

    model: Model
    batches: SimCLRBatches
    state: MetaState
    schedule: Schedule
    finetune: FinetuneFactor
    head_optimizer: Adam
    inverse: Solver


def pretrain(run: Run, cohort: Cohort, device: torch.device, progress: Progress) -> None:
    """Pre-train ``run``'s arm from where it stands to its end; writes ``encoder/`` and ``augmenter/`` last.

    Raises:
        InputError: labels that cannot guide pre-training; a checkpoint of another architecture.
        Stopped: SIGINT or SIGTERM came; the checkpoint holds the last finished step.
        FloatingPointError: the loss is not finite.
    """
    if run.pretrained:
        return
    config = run.config
    training = _prepare(config, cohort, device)
    seconds = _resume(run, training, device)
    if training.model.augmenter is not None and training.state.step == 0:
        training.model.augmenter.save_pretrained(run.augmenter_before)
    _note_data(run, cohort)
    log = MetricLog(run.metrics, training.state.step)
    total = training.schedule.steps
    start = time.perf_counter() - seconds
    loop = meta_train(
        training.model.problem,
        training.state,
        training.batches,
        schedule=training.schedule,
        finetune=training.finetune,
        head_optimizer=training.head_optimizer,
        inverse=training.inverse,
        accumulate=config.meta.accumulate,
        control="random_walk" if config.meta.control == "random_walk" else "none",
        seed=config.seed,
        clip=config.meta.clip or None,
        products=ROUTES.get(config.meta.products),  # "cheapest" is none of them: the engine chooses
        on_failure="raise" if config.meta.on_failure == "raise" else "skip",
    )
    last_norm = ""
    try:
        with stop_between_steps() as stop:
            for report in loop:
                done = report.step + 1
                if report.hyper is not None:
                    last_norm = f", |hypergradient| {report.diagnostics['norm']:.2g}"
                if report.hyper is not None or done % config.pretrain.log_every == 0 or done in (1, total):
                    log.write(report.step, **_logged(report, training, time.perf_counter() - start))
                progress(done, total, f"pre-training {run.arm}: loss {report.pretrain_loss:.3f}{last_norm}")
                stopping = stop.number is not None  # asked once: what is stopped is what was saved
                if stopping or done == total or done % config.pretrain.checkpoint_every == 0:
                    _save(run, training, time.perf_counter() - start)
                if stopping and done < total:
                    stop.check()
    finally:
        log.close()
    if training.model.augmenter is not None:
        training.model.augmenter.save_pretrained(run.augmenter)
    if training.schedule.period > 0:
        run.note(signal=training.state.signal.verdict())
    training.model.encoder.eval().save_pretrained(run.encoder)
    stop.check()  # a stop that came during the last step


def _prepare(config: Experiment, cohort: Cohort, device: torch.device) -> _Training:
    arm = config.pretrain.arm
    model = build(config, cohort, arm)
    model.simclr.to(device)
    train, validation = None, None
    if arm == "meta":
        train, validation = metaft(config, cohort)
        _say_metaft(config, train, validation)
    batches = SimCLRBatches(
        cohort.pretrain,
        train,
        validation,
        static=paper_static(config.augment.crop, config.augment.noise),
        augmenter=model.augmenter,
        batch_size=config.pretrain.batch_size,
        hyper_batch_size=config.meta.hyper_batch_size or config.pretrain.batch_size,
        label_batch_size=config.meta.batch_size,
        seed=config.seed,
        device=device,
    )
    if batches.batch_size < config.pretrain.batch_size:
        say(
            f"pretrain.batch_size: {config.pretrain.batch_size} asked for, {batches.batch_size} recordings are there"
        )
    steps = batches.steps(config.pretrain.epochs)
    schedule = Schedule(
        steps=min(steps, config.pretrain.max_steps or steps),
        period=config.meta.period if arm == "meta" else 0,
        warmup=batches.steps(config.meta.warmup_epochs),
    )
    problem = model.problem
    state = MetaState(
        theta=problem.theta,
        phi=problem.phi,
        psi={name: value.detach().to(device) for name, value in problem.psi.items()},
        theta_optimizer=torch.optim.Adam(problem.theta.values(), lr=config.pretrain.lr),
        phi_optimizer=_phi_optimizer(config, model.augmenter) if arm == "meta" else None,
    )
    inverse: Solver = Identity(config.meta.step_size)
    if config.meta.inverse == "neumann":
        inverse = Neumann(config.meta.terms, config.meta.step_size, config.meta.damping)
    head = Adam(config.meta.head_lr)
    return _Training(model, batches, state, schedule, Unroll(config.meta.unroll, head), head, inverse)


MAGNITUDES = ("global_magnitude", "g", "logits", "gate_logits")
"""The few parameters of an augmenter that act on all records; they take larger steps than its network's weights."""


def _phi_optimizer(config: Experiment, augmenter: Augmenter | None) -> torch.optim.Optimizer:
    if augmenter is None:
        raise ValueError("the meta arm has an augmenter")
    few: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in augmenter.named_parameters():
        (few if name in MAGNITUDES else rest).append(parameter)
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


def _resume(run: Run, training: _Training, device: torch.device) -> float:
    """Load ``last.ckpt`` where it exists; returns the seconds already spent."""
    if not run.checkpoint.exists():
        return 0.0
    saved = load_checkpoint(run.checkpoint, device)
    missing = {"meta", "model", "seconds"} - set(saved)
    if missing:
        raise InputError(
            run.checkpoint, "content", f"no {sorted(missing)[0]!r}", "a checkpoint of `ecgmeta pretrain`"
        )
    check_weights(
        training.model.simclr, {name: tuple(v.shape) for name, v in saved["model"].items()}, run.checkpoint
    )
    training.model.simclr.load_state_dict(saved["model"])
    try:
        training.state.load_state_dict(saved["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(run.checkpoint, "state", error, "a checkpoint of the same configuration") from error
    say(f"pre-training {run.arm}: going on from step {training.state.step} of {training.schedule.steps}")
    return saved["seconds"]


def _save(run: Run, training: _Training, seconds: float) -> None:
    # The module's state has θ and φ too, but only it has the running statistics.
    state = {
        "meta": training.state.state_dict(),
        "model": training.model.simclr.state_dict(),
        "seconds": seconds,
    }
    save_checkpoint(run.checkpoint, state)


def _logged(report: Report, training: _Training, seconds: float) -> dict[str, Any]:
    values: dict[str, Any] = {"pretrain_loss": report.pretrain_loss, "seconds": seconds}
    values["epoch"] = (report.step + 1) / training.batches.steps_per_epoch
    if report.head_loss is not None:
        values["head_loss"] = report.head_loss
    if report.hyper is not None:
        values["hyper"] = report.diagnostics
        values["skipped"] = report.skipped
        values["solver"] = report.hyper.inverse.result.name.lower()
    if training.model.augmenter is not None:
        values |= training.model.augmenter.trace()
    return values


def _note_data(run: Run, cohort: Cohort) -> None:
    """Which recordings this run has seen: what a later evaluation compares its test set with."""
    if "data" in run.info:
        return
    used = {part: sorted(set(getattr(cohort, part).meta["patient"])) for part in ("pretrain", "test")}
    guiding = metaft_records(run.config, cohort) if run.arm == "meta" else None
    if guiding is not None:
        used["metaft"] = sorted(set(guiding.meta["patient"]))
    note_seen(run, cohort, guiding)
    run.note(data=used, skipped=cohort.skipped)
