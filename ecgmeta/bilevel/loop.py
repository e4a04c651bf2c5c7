"""Algorithm 1 of the paper as a generator: pre-train, keep a fine-tuning head warm, and now and then step φ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from ecgmeta.bilevel.batches import Batches, MicroBatches
from ecgmeta.bilevel.distributed import Reduce, local, mean_of
from ecgmeta.bilevel.hypergradient import Hypergradient, hypergradient
from ecgmeta.bilevel.inverse import Solver
from ecgmeta.bilevel.optimizers import Optimizer
from ecgmeta.bilevel.phi_step import PhiStep
from ecgmeta.bilevel.probe import ROUTES, choose_products, route_name
from ecgmeta.bilevel.problem import NoisyProblem, Problem, RecordingProblem, check_curvature, check_scalar
from ecgmeta.bilevel.products import Linearization, Loss, Products
from ecgmeta.bilevel.state import MetaState
from ecgmeta.bilevel.trees import Tree, axpy, detach, gradient, leaves, norm, scale
from ecgmeta.bilevel.unroll import FinetuneFactor


@dataclass(frozen=True)
class Schedule:
    """When things happen, in pre-training steps.

    Args:
        steps: total number of pre-training steps.
        period: P; after warm-up, every P-th step is a φ step. 0 means never: plain pre-training, and no head is kept.
        warmup: steps before φ may move (the head learns meanwhile).
        freeze_after: steps after which φ moves no more, nor the head, which nothing reads then; None never freezes them.
    """

    steps: int
    period: int = 10
    warmup: int = 0
    freeze_after: int | None = None

    def learns(self, step: int) -> bool:
        """Whether φ may still move at or after the 0-based ``step``."""
        return self.period > 0 and (self.freeze_after is None or step < self.freeze_after)

    def is_phi_step(self, step: int) -> bool:
        """Whether the 0-based ``step`` ends with a φ step."""
        return self.learns(step) and step >= self.warmup and (step + 1) % self.period == 0

    def phi_steps(self, start: int = 0) -> int:
        """How many φ steps there are at and after the 0-based step ``start``."""
        if self.period <= 0:
            return 0
        end = self.steps if self.freeze_after is None else min(self.steps, self.freeze_after)
        return max(0, end // self.period - max(start, self.warmup) // self.period)


@dataclass(frozen=True)
class Report:
    """What one step did.

    Attributes:
        step: 0-based number of the pre-training step.
        pretrain_loss: its loss.
        head_loss: loss of the warm head before its step, or None where none was due.
        hyper: the hypergradient, or None where no φ step was due. Over several draws its ``phi`` is their mean, and its factors
            are the last draw's. The pre-training gradient is with it where this step of θ was taken along it.
        skipped: why a due φ step was not taken, or None.
        diagnostics: of a φ step: the hypergradient's (the mean over draws; ``norm`` is that of the mean), and where the step
            was taken those of :class:`~ecgmeta.bilevel.phi_step.PhiStep` and of :class:`~ecgmeta.bilevel.signal.Signal`.
    """

    step: int
    pretrain_loss: float
    head_loss: float | None = None
    hyper: Hypergradient | None = None
    skipped: str | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)


def meta_train(
    problem: Problem,
    state: MetaState,
    batches: Batches,
    *,
    schedule: Schedule,
    finetune: FinetuneFactor,
    inverse: Solver,
    head_optimizer: Optimizer,
    share: bool = True,
    accumulate: int = 1,
    scaling: float | Literal["normalise"] = 1.0,
    eps: float = 1e-12,
    clip: float | None = None,
    control: Literal["none", "random_walk"] = "none",
    seed: int = 0,
    on_failure: Literal["raise", "skip"] = "skip",
    products: Products | None = None,
    reduce: Reduce = local,
    autocast: torch.dtype | None = None,
    curvature: float = 1.0,
) -> Iterator[Report]:
    """Pre-train θ while φ follows its hypergradient (paper, Algorithm 1). The caller drives it and may stop anywhere.

    Each step: one optimiser step of θ on ``L_PT(θ, φ)``; then either a φ step (every P-th step after warm-up) or one step of
    the head ψ on features that are not differentiated. θ is never reset. ``state.step`` tells where a resumed run goes on.

    Args:
        state: changed in place.
        finetune: the factor v of the φ step.
        head_optimizer: keeps the head ψ warm between φ steps.
        share: take the products of a φ step on the batch of its own pre-training step, before θ moves, so that this step's
            gradient comes with them; False takes them on ``batches.hyper``, after it (the paper).
        accumulate: draws of (pre-training, fine-tuning training and validation batches, noise) that a φ step's hypergradient
            is the mean of, all at one θ; :class:`~ecgmeta.bilevel.batches.Batches` says how they are numbered.
        scaling, eps, clip, control, seed: what a φ step does with the hypergradient; see
            :class:`~ecgmeta.bilevel.phi_step.PhiStep`. ``control="random_walk"`` steps as far in random directions.
        on_failure: what to do with a φ step whose inverse product diverged or whose hypergradient is not finite, in any draw:
            ``"skip"`` reports it and goes on, ``"raise"`` raises ``FloatingPointError``.
        products: the route for Hessian-vector and mixed products. None takes the cheapest of
            :data:`~ecgmeta.bilevel.probe.ROUTES` that agrees with double backward on the first φ step's batch, and keeps it in
            ``state.route``. Which is the cheapest is measured: name one where a repetition must be equal to the last bit. A
            problem that supplies its own mixed product needs none with a solver that takes no Hessian-vector product.
        reduce: mean over data-parallel ranks of every loss, gradient and product.
        autocast: lower precision of the plain steps' losses, such as ``torch.bfloat16``. A φ step, its own pre-training step
            included, stays in the precision of θ: second derivatives lose what they are made of in bfloat16.
        curvature: the share of a φ step's pre-training batch on which the solver's Hessian-vector products are taken, for a
            :class:`~ecgmeta.bilevel.problem.CurvatureProblem`; see :func:`~ecgmeta.bilevel.hypergradient.hypergradient`.

    Where ``batches.pretrain`` gives :class:`~ecgmeta.bilevel.batches.MicroBatches`, a step takes the mean of their gradients,
    and a φ step its products on ``batches.hyper`` (as with ``share=False``): its curvature is then that of one draw's loss.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: a tensor of φ is in no parameter group of ``state.phi_optimizer``, or in several; a setting out of range.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    check_curvature(problem, curvature)
    phi_step = PhiStep(scaling, eps, clip, control, seed)
    if schedule.period > 0:
        state.check_phi_optimizers()

    def route(
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> Linearization:
        # Chosen here, when products are first needed: a problem with its own mixed product may never need any.
        taken = products or _chosen(problem, state, batch.parts[0] if micro else batch, reduce)
        return taken(loss, theta, phi, recording)

    def draw(k: int) -> Hypergradient:
        shared = whole and k == 0
        _hold_noise(problem, state.step, k)
        first = k * finetune.train_batches
        return hypergradient(
            problem,
            state.theta,
            state.phi,
            state.psi,
            pretrain_batch=batch if shared else batches.hyper(state.step, k),
            train_batches=[batches.train(state.step, first + j) for j in range(finetune.train_batches)],
            val_batch=batches.validation(state.step, k),
            finetune=finetune,
            inverse=inverse,
            head_state=state.head_state,
            products=route,
            reduce=reduce,
            recording=_recording(problem) if shared else None,
            curvature=curvature,
        )

    while state.step < schedule.steps:
        step = state.step
        hyper, head_loss, skipped = None, None, None
        diagnostics: dict[str, float] = {}
        _hold_noise(problem, step)
        batch = batches.pretrain(step)
        micro = isinstance(batch, MicroBatches)
        whole = share and not micro
        if schedule.is_phi_step(step):
            if not whole:
                loss = _pretrain_step(problem, state, batch, reduce, autocast)
            hyper, first, diagnostics, skipped = _mean_of_draws(draw, accumulate, whole)
            if whole:
                loss = float(mean_of(first.loss, reduce))
                _apply(state, reduce(first.gradient))
            if skipped and on_failure == "raise":
                raise FloatingPointError(f"step {step}: {skipped}")
            if not skipped:
                state.signal.update(hyper.phi)
                diagnostics |= phi_step(state, hyper.phi) | state.signal.diagnostics()
        else:
            loss = _pretrain_step(problem, state, batch, reduce, autocast)
            if schedule.learns(step):
                head_loss = _head_step(problem, state, batches.train(step, 0), head_optimizer, reduce)
        state.step = step + 1
        yield Report(step, loss, head_loss, hyper, skipped, diagnostics)


def _mean_of_draws(
    draw: Callable[[int], Hypergradient], count: int, shared: bool
) -> tuple[Hypergradient, Linearization, dict[str, float], str | None]:
    """The mean hypergradient, the first draw's pre-training loss and gradient, diagnostics, and why it cannot be used."""
    total: Tree = {}
    logs: list[dict[str, float]] = []
    skipped = None
    for k in range(count):
        # The graph would live on through the next draw, and in the report through the caller's next step.
        hyper = draw(k).without_graph(gradient=shared and k == 0)
        logs.append(hyper.diagnostics())
        if k == 0:
            first = hyper.pretrain
        total = axpy(1.0, total, hyper.phi) if total else hyper.phi
        if not hyper.ok:
            skipped = hyper.message if count == 1 else f"draw {k + 1} of {count}: {hyper.message}"
            break
    hyper = replace(hyper, phi=scale(1 / len(logs), total))
    names = dict.fromkeys(name for log in logs for name in log)
    diagnostics = {name: fmean(log[name] for log in logs if name in log) for name in names}
    return hyper, first, diagnostics | {"norm": float(norm(hyper.phi))}, skipped


def _chosen(problem: Problem, state: MetaState, batch: Any, reduce: Reduce) -> Products:
    if state.route is None:
        route, _ = choose_products(
            lambda theta, phi: problem.pretrain_loss(theta, phi, batch), state.theta, state.phi, reduce=reduce
        )
        state.route = route_name(route)
    return ROUTES[state.route]


def _recording(problem: Problem) -> AbstractContextManager[None]:
    return problem.recording() if isinstance(problem, RecordingProblem) else nullcontext()


def _hold_noise(problem: Problem, step: int, draw: int = 0) -> None:
    if isinstance(problem, NoisyProblem):
        problem.at_step(step, draw)


def _pretrain_step(
    problem: Problem, state: MetaState, batch: Any, reduce: Reduce, autocast: torch.dtype | None
) -> float:
    parts = batch.parts if isinstance(batch, MicroBatches) else (batch,)
    device = next(iter(state.theta.values())).device.type
    total: Tree = {}
    mean = 0.0
    for part in parts:
        with _recording(problem), torch.autocast(device, autocast, enabled=autocast is not None):
            loss = problem.pretrain_loss(state.theta, detach(state.phi), part)
        value = mean_of(loss, reduce)
        check_scalar(value, "pre-training loss")
        mean += float(value) / len(parts)
        step = gradient(loss / len(parts), state.theta)
        total = axpy(1.0, total, step) if total else step
    _apply(state, reduce(total))
    return mean


def _head_step(problem: Problem, state: MetaState, batch: Any, optimizer: Optimizer, reduce: Reduce) -> float:
    psi = leaves(state.psi)
    loss = problem.finetune_loss(detach(state.theta), psi, batch)
    mean = mean_of(loss, reduce)
    check_scalar(mean, "fine-tuning loss")
    if state.head_state is None:
        state.head_state = optimizer.init(state.psi)
    state.psi, state.head_state = optimizer.update(state.psi, reduce(gradient(loss, psi)), state.head_state)
    return float(mean)


def _apply(state: MetaState, grads: Tree) -> None:
    for name, value in state.theta.items():
        value.grad = grads[name]
    state.theta_optimizer.step()
    state.theta_optimizer.zero_grad(set_to_none=True)
