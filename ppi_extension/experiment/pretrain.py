"""Pre-training of one arm from one seed, with logs, checkpoints, clean stops, and an encoder kept at each length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgmeta.bilevel import (
    Adam,
    DoubleBackward,
    FinetuneFactor,
    Identity,
    ImplicitHead,
    MetaState,
    Neumann,
    Report,
    Schedule,
    Solution,
    Solver,
    Unroll,
    meta_train,
)
from ecgmeta.bilevel.inverse import Matvec
from ecgmeta.bilevel.trees import Tree
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.failures import PhiGuard
from ecgmeta.runtime.files import MetricLog, write_atomic
from ecgmeta.runtime.logs import open_sinks
from ecgmeta.runtime.pace import Pace
from ecgmeta.runtime.pretrained import check_weights
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.signals import StopRequest
from ecgmeta.runtime.training import Trainer
from ppi_extension.data.store import Which
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import Cohort, useful_tasks
from ppi_extension.experiment.config import VARIANTS, Experiment, Meta, cotrains, of_arm
from ppi_extension.experiment.model import Model, build
from ppi_extension.experiment.run import Run
from ppi_extension.task_weights import TaskWeights
from ppi_extension.weighting import Weighting, train

KEYS = {
    "series": "meta.step_size, meta.damping",
    "non-finite": "meta.step_size, pretrain.lr",
    "runaway": "meta.lr, meta.clip",
    "loss": "pretrain.lr, meta.head_lr",
    "weights": "pretrain.lr, meta.head_lr",
}
"""What to set where a reason says what to try."""
POINTS = 60  # of the weights' trajectory that are kept


class TaskGuard(PhiGuard):
    """The guard of a run; it is itself the solver of the run, so that α can change between φ steps."""

    def __init__(self, meta: Meta, state: MetaState) -> None:
        self._meta = meta
        # |z| has a limit of its own, see Training._hold: at it a task is decided, and nothing has failed.
        super().__init__(meta.on_failure, meta.step_size, state, KEYS, lambda name: float("inf"))

    def solve(self, matvec: Matvec, v: Tree) -> Solution:
        """``H⁻¹v`` by the configured solver at the present α."""
        solver: Solver = Identity(self.step_size)
        if self._meta.inverse == "neumann":
            solver = Neumann(self._meta.terms, self.step_size, self._meta.damping)
        return solver(matvec, v)


@dataclass
class Training:
    """Pre-training of one arm, as the trainer needs it."""

    run: Run
    meta: Meta
    model: Model
    batches: EgoBatches
    state: MetaState
    schedule: Schedule
    lengths: dict[int, Path]
    guard: TaskGuard
    pace: Pace
    anchor: Tensor  # where z started
    trajectory: list[tuple[int, Tensor]] = field(default_factory=list)
    bounded: int = 0
    keys = KEYS

    @property
    def name(self) -> str:
        return f"pre-training {self.run.name}"

    @property
    def arm(self) -> str:
        return self.run.arm

    def steps(self) -> Iterator[Report]:
        """The engine's steps; what belongs to the state after a step is done before the step is reported."""
        every = max(1, self.schedule.steps // POINTS)
        if not self.trajectory:
            self._note_weights()
        for report in self._engine() if self.model.rule is None else self._ruled(self.model.rule):
            if report.hyper is not None and report.skipped is None:
                self._hold()
            if self.state.step % every == 0 or self.state.step == self.schedule.steps:
                self._note_weights()
            if (folder := self.lengths.get(self.state.step)) is not None:
                self.model.encoder.eval().save_pretrained(folder)
            yield report

    def _engine(self) -> Iterator[Report]:
        meta = self.meta
        return meta_train(
            self.model.problem,
            self.state,
            self.batches,
            schedule=self.schedule,
            finetune=self._finetune(),
            head_optimizer=Adam(meta.head_lr),
            inverse=self.guard.solve,
            accumulate=meta.accumulate,
            scaling="normalise" if meta.scaling == "normalise" else 1.0,
            clip=meta.clip or None,
            control="random_walk" if self.arm == "random_walk" else "none",
            seed=self.run.seed,
            products=DoubleBackward,  # of Hu alone: Mᵀu is the problem's own
            curvature=meta.curvature,
            on_failure="skip",  # the engine reports; what is done about it is the guard's
        )

    def _ruled(self, rule: Weighting) -> Iterator[Report]:
        """The steps of another rule."""
        start, total = self.state.step, self.schedule.steps
        optimizer = self.state.theta_optimizer
        for report in train(rule, self.model.problem, optimizer, self.batches, steps=total, start=start):
            self.state.step += 1
            yield Report(self.state.step - 1, report.loss, report.finetune_loss)

    def _finetune(self) -> FinetuneFactor:
        meta = self.meta
        if meta.head == "ridge":
            return ImplicitHead("ridge", meta.penalty)
        return Unroll(meta.unroll, Adam(meta.head_lr), encoder=meta.encoder)

    @torch.no_grad()
    def _hold(self) -> None:
        """Draw z to its anchor, and keep |z| within its limit: beyond it a weight's derivative vanishes, and the task would not
        come back."""
        z = self.model.task_weights.z
        if self.meta.anchor:
            z.lerp_(self.anchor, self.meta.anchor)
        if limit := self.meta.limit:
            self.bounded = int((z.abs() >= limit).sum())
            z.clamp_(-limit, limit)

    def _note_weights(self) -> None:
        self.trajectory.append((self.state.step, self.model.weights().clone()))

    def logged(self, report: Report) -> dict[str, Any]:
        weights = self.model.weights()
        values: dict[str, Any] = {"epoch": (report.step + 1) / self.batches.steps_per_epoch}
        if report.head_loss is not None:
            values["head_loss"] = report.head_loss
        if self.schedule.period or self.model.rule is not None:
            spread = {"mean": weights.mean(), "sd": weights.std(correction=0), "min": weights.min()}
            spread["max"] = weights.max()
            values["weights"] = {name: float(value) for name, value in spread.items()}
            values["at_limit"] = self.bounded
        return values

    def tensors(self) -> dict[str, Tensor]:
        return {**self.model.problem.pretrain.state_dict(), **self.state.psi, **self.model.problem.psi}

    def state_dict(self) -> dict[str, Any]:
        # The module's state has θ and φ too, but only it has the running statistics.
        return {
            "meta": self.state.state_dict(),
            "model": self.model.problem.pretrain.state_dict(),
            # A rule trains the live head, the engine its own copy.
            "head": {name: value.detach().clone() for name, value in self.model.problem.psi.items()},
            "rule": None if self.model.rule is None else self.model.rule.state_dict(),
            "trajectory": list(self.trajectory),
            "bounded": self.bounded,
        }

    def load_state_dict(self, saved: dict[str, Any], file: Path) -> None:
        module = self.model.problem.pretrain
        check_weights(module, {name: tuple(value.shape) for name, value in saved["model"].items()}, file)
        module.load_state_dict(saved["model"])
        self.state.load_state_dict(saved["meta"])
        with torch.no_grad():
            for name, value in self.model.problem.psi.items():
                value.copy_(saved["head"][name])
        if self.model.rule is not None:
            self.model.rule.load_state_dict(saved["rule"])
        self.trajectory = [(step, weights) for step, weights in saved["trajectory"]]
        self.bounded = saved["bounded"]


def pretrain(
    run: Run, cohort: Cohort, learned: TaskWeights | None, progress: Progress, stop: StopRequest
) -> None:
    """Pre-train ``run`` from where it stands to its end.

    Args:
        learned: the weights that the arm meta has learned, for the arms that take them.
        stop: asked between steps.

    Raises:
        Stopped: a stop was asked for; the checkpoint holds the last finished step.
        Diverged: a loss or a weight is not finite, or a φ step failed under ``meta.on_failure=stop``.
        InputError: a checkpoint of another architecture.
    """
    if run.pretrained:
        return
    training = prepare(run, cohort, learned)
    if run.arm == "none":
        training.model.encoder.eval().save_pretrained(run.encoder(0))
        run.note(signal=None)
        return
    settings = run.config.pretrain
    trainer = Trainer(
        training,
        run.checkpoint,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
    )
    trainer.resume(run.config.accelerator)
    log = MetricLog(run.metrics, training.state.step)
    try:
        log.sinks = open_sinks(run.config.log, run, run.label, log)
        trainer.train(log, progress, stop)
    finally:
        log.close()
    if training.model.rule is None:
        training.model.task_weights.save_pretrained(run.weights)
    _save_trajectory(run.trajectory, training.trajectory)
    trainer.finished()
    learns = training.schedule.period > 0
    run.note(signal=training.state.signal.verdict() if learns else None, seconds=trainer.seconds)
    stop.check()  # a stop that came during the last step


def prepare(run: Run, cohort: Cohort, learned: TaskWeights | None) -> Training:
    """Everything that the first step needs."""
    config, arm, seed = run.config, run.arm, run.seed
    meta, device = of_arm(config.meta, arm), torch.device(config.accelerator)
    model = build(config, cohort, arm, seed, learned)
    model.problem.pretrain.to(device)
    model.problem.finetune.to(device)
    tasks: Which = "finetune" if arm == "ceiling" else "pretrain"
    split, along = arm in VARIANTS, cotrains(config, arm)
    batches = EgoBatches(cohort, config, meta, seed, tasks=tasks, split=split, along=along, device=device)
    schedule = _schedule(config, meta, batches, arm)
    problem = model.problem
    state = MetaState(
        theta=problem.theta,
        phi=problem.phi,
        psi={name: value.detach() for name, value in problem.psi.items()},
        theta_optimizer=torch.optim.Adam(problem.theta.values(), lr=config.pretrain.lr),
        phi_optimizer=_phi_optimizer(meta, problem.phi) if schedule.period else None,
    )
    pace = Pace(schedule, config.pretrain.checkpoint_every, 3.0)
    lengths = {max(1, round(share * schedule.steps)): Path() for share in config.pretrain.lengths}
    lengths = {steps: run.encoder(steps) for steps in lengths}
    start = model.task_weights.z.detach().clone()
    return Training(run, meta, model, batches, state, schedule, lengths, TaskGuard(meta, state), pace, start)


def check_phi(cohort: Cohort, config: Experiment) -> None:
    """Whether every arm that learns weights can.

    Raises:
        InputError: an arm that would take no φ step, and so be uniform weights under another name; a closed-form head on labels
            that are not all known; an oracle where nobody knows which tasks are useful.
    """
    if "oracle" in config.arms:
        useful_tasks(cohort.store)
    for arm in config.arms:
        if arm not in VARIANTS:
            continue
        meta = of_arm(config.meta, arm)
        schedule = _schedule(config, meta, EgoBatches(cohort, config, meta, 0), arm)
        if not schedule.phi_steps():
            found = f"no φ step in the {schedule.steps:,} steps of {arm} (warm-up: {schedule.warmup:,})"
            expected = "at least one: a shorter meta.warmup_epochs, more steps, or a later meta.until"
            raise InputError("configuration", "meta", found, expected)
        if meta.head == "ridge":
            labels = cohort.store.labels("finetune", cohort.metaft)
            unlabelled = int((labels[:, cohort.seen] < 0).sum())
            if unlabelled:
                found = f"ridge, and {unlabelled:,} labels that are not known"
                raise InputError("configuration", "meta.head", found, "unroll, which takes them")


def _schedule(config: Experiment, meta: Meta, batches: EgoBatches, arm: str) -> Schedule:
    steps = total_steps(config, batches, arm)
    return Schedule(
        steps=steps,
        period=meta.period if arm in VARIANTS else 0,
        warmup=batches.steps(meta.warmup_epochs) if meta.warmup_epochs else 0,
        freeze_after=None if meta.until == 1 else round(meta.until * steps),
    )


def total_steps(config: Experiment, batches: EgoBatches, arm: str) -> int:
    """Steps of an arm; more for those that take none of φ's, as ``pretrain.plain_factor`` says."""
    steps = batches.steps(config.pretrain.epochs)
    steps = min(steps, config.pretrain.max_steps or steps)
    return steps if arm in VARIANTS else max(1, round(config.pretrain.plain_factor * steps))


def _phi_optimizer(meta: Meta, phi: Tree) -> torch.optim.Optimizer:
    if meta.optimizer == "sgd":
        return torch.optim.SGD(phi.values(), lr=meta.lr)
    return torch.optim.Adam(phi.values(), lr=meta.lr, eps=meta.eps, betas=(0.9, meta.beta2))


def _save_trajectory(path: Path, points: list[tuple[int, Tensor]]) -> None:
    arrays: dict[str, Any] = {
        "steps": np.array([step for step, _ in points]),
        "weights": torch.stack([weights for _, weights in points]).cpu().numpy(),
    }
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
