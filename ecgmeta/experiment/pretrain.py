"""Pre-training of one arm: the engine's loop, driven step by step, with logs, checkpoints and clean stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
from ecgmeta.experiment.failures import LOGITS, MAGNITUDES, Failure, PhiGuard, diverged, finite, not_finite
from ecgmeta.experiment.model import Model, build
from ecgmeta.experiment.pace import Pace, phi_step_guess
from ecgmeta.experiment.run import Run
from ecgmeta.experiment.sinks import open_sinks
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import MetricLog, load_checkpoint, save_checkpoint
from ecgmeta.runtime.pretrained import check_weights
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.ranks import Ranks
from ecgmeta.runtime.signals import StopRequest, stop_between_steps

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
    guard: PhiGuard
    pace: Pace
    ranks: Ranks


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
    seconds = _resume(run, training, ranks.device)
    ranks.wait()
    if not ranks.leads:
        with stop_between_steps() as stop:
            _train(run, training, None, progress, stop, seconds)
            stop.check()
        return
    if training.model.augmenter is not None and training.state.step == 0:
        training.model.augmenter.save_pretrained(run.augmenter_before)
    note_data(run, cohort)
    log = MetricLog(run.metrics, training.state.step)
    try:
        with stop_between_steps() as stop:
            log.sinks = open_sinks(run, log)
            _train(run, training, log, progress, stop, seconds)
    finally:
        log.close()
    if training.model.augmenter is not None:
        training.model.augmenter.save_pretrained(run.augmenter)
    if training.model.weights is not None:
        training.model.weights.save_pretrained(run.weights)
    if training.schedule.period > 0:
        run.note(signal=training.state.signal.verdict())
    if (failures := training.guard.summary()) is not None:
        say(failures)
    run.previous.unlink(missing_ok=True)
    training.model.encoder.eval().save_pretrained(run.encoder)
    stop.check()  # a stop that came during the last step


def _train(
    run: Run,
    training: _Training,
    log: MetricLog | None,
    progress: Progress,
    stop: StopRequest,
    seconds: float,
) -> None:
    """Every step that is left; each is logged, shown, and where it is due saved, by the rank that has the log."""
    total, every = training.schedule.steps, run.config.pretrain.checkpoint_every
    start = time.perf_counter() - seconds
    last_norm = ""

    def lost(step: int, failure: Failure) -> None:
        if log is not None:
            log.write(step, failure=asdict(failure), seconds=time.perf_counter() - start)

    for report in finite(_steps(run.config, training), training.state, lost):
        done = report.step + 1
        training.pace.stepped(report.step)
        failure = training.guard(report)
        if report.hyper is not None:
            last_norm = f", |hypergradient| {report.diagnostics['norm']:.2g}"
        due = report.hyper is not None or done % run.config.pretrain.log_every == 0 or done in (1, total)
        if due and log is not None:
            log.write(report.step, **_logged(report, failure, training, time.perf_counter() - start))
        if failure is not None and failure.action == "stop":
            raise diverged(failure, report.step)
        text = f"pre-training {run.arm}: loss {report.pretrain_loss:.3f}{last_norm}"
        progress(done, total, text, training.pace.left(done))
        stop.number = training.ranks.agreed(stop.number)
        stopping = stop.number is not None  # asked once: what is stopped is what was saved
        if stopping or done == total or done % every == 0:
            if (failure := _broken(training)) is not None:
                lost(done, failure)  # as the step that cannot be taken
                raise diverged(failure, report.step)
            if log is not None:
                _save(run, training, time.perf_counter() - start)
        if stopping and done < total:
            stop.check()


def _steps(config: Experiment, training: _Training) -> Iterator[Report]:
    return meta_train(
        training.model.problem,
        training.state,
        training.batches,
        schedule=training.schedule,
        finetune=training.finetune,
        head_optimizer=training.head_optimizer,
        inverse=training.guard.solve,
        accumulate=config.meta.accumulate,
        control="random_walk" if config.meta.control == "random_walk" else "none",
        seed=config.seed,
        clip=config.meta.clip or None,
        products=ROUTES.get(config.meta.products),  # "cheapest" is none of them: the engine chooses
        on_failure="skip",  # the engine reports; what is done about it is the guard's
        reduce=mean_over_ranks() if training.ranks.size > 1 else local,
        autocast=torch.bfloat16 if config.pretrain.precision == "bf16" else None,
    )


def _prepare(config: Experiment, cohort: Cohort, ranks: Ranks) -> _Training:
    from ecgmeta.data import concat

    arm, device = config.pretrain.arm, ranks.device
    model = build(config, cohort, arm)
    model.simclr.to(device)
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
        seed=config.seed,
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
    guard = PhiGuard(config.meta, state)
    pace = Pace(schedule, config.pretrain.checkpoint_every, phi_step_guess(config))
    finetune: FinetuneFactor = Unroll(config.meta.unroll, head)
    if config.meta.head == "ridge":
        finetune = ImplicitHead("ridge", config.meta.penalty)
    return _Training(model, batches, state, schedule, finetune, head, guard, pace, ranks)


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


def _resume(run: Run, training: _Training, device: torch.device) -> float:
    """Load ``last.ckpt``, or ``previous.ckpt`` where only that exists; returns the seconds already spent."""
    file = next((each for each in (run.checkpoint, run.previous) if each.exists()), None)
    if file is None:
        return 0.0
    older = file == run.checkpoint and run.previous.exists()
    remedy = f"delete it to go on from {run.previous.name}" if older else "delete it to start again"
    try:
        saved = load_checkpoint(file, device)
    except InputError as error:
        raise InputError(file, error.field, error.found, f"{error.expected}; {remedy}") from error
    missing = {"meta", "model", "seconds"} - set(saved)
    if missing:
        expected = f"a checkpoint of `ecgmeta pretrain`; {remedy}"
        raise InputError(file, "content", f"no {sorted(missing)[0]!r}", expected)
    check_weights(training.model.simclr, {name: tuple(v.shape) for name, v in saved["model"].items()}, file)
    training.model.simclr.load_state_dict(saved["model"])
    try:
        training.state.load_state_dict(saved["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(file, "state", error, "a checkpoint of the same configuration") from error
    training.guard.load_state_dict(saved.get("guard", {}))
    training.pace.load(saved.get("pace", {}))
    say(f"pre-training {run.arm}: going on from step {training.state.step} of {training.schedule.steps}")
    return saved["seconds"]


def _save(run: Run, training: _Training, seconds: float) -> None:
    # The module's state has θ and φ too, but only it has the running statistics.
    state = {
        "meta": training.state.state_dict(),
        "model": training.model.simclr.state_dict(),
        "guard": training.guard.state_dict(),
        "pace": training.pace.medians(),
        "seconds": seconds,
    }
    save_checkpoint(run.checkpoint, state, run.previous)
    training.pace.saved()


def _broken(training: _Training) -> Failure | None:
    """What would make a checkpoint worthless: the loss says so a step later, when the last good one is gone."""
    name = not_finite({**training.model.simclr.state_dict(), **training.state.psi})
    return (
        None
        if name is None
        else Failure("weights", f"{name} is not finite; try smaller learning rates", "stop")
    )


def _logged(report: Report, failure: Failure | None, training: _Training, seconds: float) -> dict[str, Any]:
    values: dict[str, Any] = {"pretrain_loss": report.pretrain_loss, "seconds": seconds}
    values["epoch"] = (report.step + 1) / training.batches.steps_per_epoch
    if report.head_loss is not None:
        values["head_loss"] = report.head_loss
    if report.hyper is not None:
        values["hyper"] = report.diagnostics
        values["skipped"] = report.skipped
        values["solver"] = report.hyper.inverse.result.name.lower()
    if failure is not None:
        values["failure"] = asdict(failure)
        values["step_size"] = training.guard.step_size
    if training.model.augmenter is not None:
        values |= training.model.augmenter.trace()
    if training.model.weights is not None:
        values |= training.model.weights.trace()
    return values


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
