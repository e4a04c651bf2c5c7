"""Algorithm 1 of the paper as a generator: pre-train, keep a fine-tuning head warm, and now and then step φ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ecgmeta.bilevel.distributed import Reduce, local
from ecgmeta.bilevel.hypergradient import Hypergradient, hypergradient
from ecgmeta.bilevel.inverse import Solver
from ecgmeta.bilevel.optimizers import Optimizer, State
from ecgmeta.bilevel.problem import Problem, RecordingProblem, check_scalar
from ecgmeta.bilevel.products import DoubleBackward, Products
from ecgmeta.bilevel.trees import Tree, clone, detach, gradient, leaves, norm
from ecgmeta.bilevel.unroll import FinetuneFactor


@dataclass(frozen=True)
class Schedule:
    """When things happen, in pre-training steps.

    Args:
        steps: total number of pre-training steps.
        period: P; after warm-up, every P-th step is a φ step. 0 means never: plain pre-training, and no head is kept.
        warmup: steps before φ may move (the head learns meanwhile).
    """

    steps: int
    period: int = 10
    warmup: int = 0

    def is_phi_step(self, step: int) -> bool:
        """Whether the 0-based ``step`` ends with a φ step."""
        return self.period > 0 and step >= self.warmup and (step + 1) % self.period == 0


class Batches(Protocol):
    """Where batches come from. Giving each step its batch by number is what makes a resumed run exact."""

    def pretrain(self, step: int) -> Any:
        """The batch of the ordinary pre-training step."""
        ...

    def hyper(self, step: int) -> Any:
        """A pre-training batch for the products of a φ step."""
        ...

    def train(self, step: int, k: int) -> Any:
        """A fine-tuning training batch; ``k`` counts the steps of an unroll."""
        ...

    def validation(self, step: int) -> Any:
        """A fine-tuning validation batch."""
        ...


class LoaderBatches:
    """:class:`Batches` from three iterables (such as ``DataLoader``), each started again when it ends.

    A resumed run does not see the same batches unless the iterables do: number the batches yourself where that matters.
    """

    def __init__(self, pretrain: Iterable[Any], train: Iterable[Any], validation: Iterable[Any]) -> None:
        self._pretrain, self._train, self._validation = map(_cycle, (pretrain, train, validation))

    def pretrain(self, step: int) -> Any:
        return next(self._pretrain)

    def hyper(self, step: int) -> Any:
        return next(self._pretrain)

    def train(self, step: int, k: int) -> Any:
        return next(self._train)

    def validation(self, step: int) -> Any:
        return next(self._validation)


def _cycle(source: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for item in source:
            empty = False
            yield item
        if empty:
            raise ValueError("a source of batches is empty")


@dataclass
class MetaState:
    """Everything that :func:`meta_train` changes. θ and φ are optimised in place; ψ is replaced.

    Attributes:
        theta, phi: trees of leaf tensors, usually the live parameters of modules.
        psi: the warm fine-tuning head.
        theta_optimizer, phi_optimizer: ``torch.optim`` optimisers over the tensors of ``theta`` and ``phi``.
        head_state: state of the head's functional optimiser.
        step: pre-training steps done.
    """

    theta: Tree
    phi: Tree
    psi: Tree
    theta_optimizer: torch.optim.Optimizer
    phi_optimizer: torch.optim.Optimizer | None = None
    head_state: State | None = None
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, loadable with ``torch.load(..., weights_only=True)``."""
        return {
            "step": self.step,
            "theta": clone(self.theta),
            "phi": clone(self.phi),
            "psi": clone(self.psi),
            "head_state": None
            if self.head_state is None
            else {name: clone(tree) for name, tree in self.head_state.items()},
            "theta_optimizer": self.theta_optimizer.state_dict(),
            "phi_optimizer": None if self.phi_optimizer is None else self.phi_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict` exactly.

        Raises:
            ValueError: the names or shapes of a tree differ (a checkpoint of another architecture).
        """
        for name in ("theta", "phi", "psi"):
            _check_same(name, getattr(self, name), state[name])
        with torch.no_grad():
            for name in ("theta", "phi"):
                for key, value in getattr(self, name).items():
                    value.copy_(state[name][key])
        self.psi = clone(state["psi"])
        head_state = state["head_state"]
        self.head_state = None if head_state is None else {k: clone(tree) for k, tree in head_state.items()}
        self.theta_optimizer.load_state_dict(state["theta_optimizer"])
        if self.phi_optimizer is not None and state["phi_optimizer"] is not None:
            self.phi_optimizer.load_state_dict(state["phi_optimizer"])
        self.step = state["step"]


def _check_same(name: str, own: Tree, saved: Tree) -> None:
    for key in [*own, *saved]:
        found = tuple(saved[key].shape) if key in saved else "nothing"
        expected = tuple(own[key].shape) if key in own else "nothing"
        if found != expected:
            raise ValueError(f"{name}.{key}: the checkpoint has {found}, the model has {expected}")


@dataclass(frozen=True)
class Report:
    """What one step did.

    Attributes:
        step: 0-based number of the pre-training step.
        pretrain_loss: its loss.
        head_loss: loss of the warm head before its step, or None where none was due.
        hyper: the hypergradient with its diagnostics, or None where no φ step was due.
        skipped: why a due φ step was not taken, or None.
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
    clip: float | None = None,
    on_failure: Literal["raise", "skip"] = "skip",
    products: Products = DoubleBackward,
    reduce: Reduce = local,
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
        clip: largest norm of the hypergradient handed to φ's optimiser; None does not clip.
        on_failure: what to do with a φ step whose inverse product diverged or whose hypergradient is not finite: ``"skip"``
            reports it and goes on, ``"raise"`` raises ``FloatingPointError``.
        products: the route for Hessian-vector and mixed products.
        reduce: mean over data-parallel ranks of every gradient and product.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    while state.step < schedule.steps:
        step = state.step
        hyper, head_loss, skipped = None, None, None
        if schedule.is_phi_step(step):
            batch = batches.pretrain(step)
            recording = _recording(problem) if share else None
            if not share:
                loss = _pretrain_step(problem, state, batch, reduce)
            hyper = hypergradient(
                problem,
                state.theta,
                state.phi,
                state.psi,
                pretrain_batch=batch if share else batches.hyper(step),
                train_batches=[batches.train(step, k) for k in range(finetune.train_batches)],
                val_batch=batches.validation(step),
                finetune=finetune,
                inverse=inverse,
                head_state=state.head_state,
                products=products,
                reduce=reduce,
                recording=recording,
            )
            if share:
                loss = float(hyper.pretrain.loss)
                _apply(state.theta_optimizer, state.theta, reduce(hyper.pretrain.gradient))
            skipped = None if hyper.ok else hyper.message
            if skipped and on_failure == "raise":
                raise FloatingPointError(f"step {step}: {skipped}")
            if not skipped:
                _phi_step(state, hyper.phi, clip)
        else:
            loss = _pretrain_step(problem, state, batches.pretrain(step), reduce)
            if schedule.period > 0:
                head_loss = _head_step(problem, state, batches.train(step, 0), head_optimizer, reduce)
        state.step = step + 1
        yield Report(step, loss, head_loss, hyper, skipped, {} if hyper is None else hyper.diagnostics())


def _recording(problem: Problem) -> AbstractContextManager[None]:
    return problem.recording() if isinstance(problem, RecordingProblem) else nullcontext()


def _pretrain_step(problem: Problem, state: MetaState, batch: Any, reduce: Reduce) -> float:
    with _recording(problem):
        loss = problem.pretrain_loss(state.theta, detach(state.phi), batch)
    check_scalar(loss, "pre-training loss")
    _apply(state.theta_optimizer, state.theta, reduce(gradient(loss, state.theta)))
    return float(loss.detach())


def _head_step(problem: Problem, state: MetaState, batch: Any, optimizer: Optimizer, reduce: Reduce) -> float:
    psi = leaves(state.psi)
    loss = problem.finetune_loss(detach(state.theta), psi, batch)
    check_scalar(loss, "fine-tuning loss")
    if state.head_state is None:
        state.head_state = optimizer.init(state.psi)
    state.psi, state.head_state = optimizer.update(state.psi, reduce(gradient(loss, psi)), state.head_state)
    return float(loss.detach())


def _phi_step(state: MetaState, grads: Tree, clip: float | None) -> None:
    if state.phi_optimizer is None:
        raise ValueError("a φ step needs state.phi_optimizer")
    factor = 1.0 if clip is None else min(1.0, clip / max(float(norm(grads)), 1e-300))
    _apply(state.phi_optimizer, state.phi, {name: factor * g for name, g in grads.items()})


def _apply(optimizer: torch.optim.Optimizer, params: Tree, grads: dict[str, Tensor]) -> None:
    for name, value in params.items():
        value.grad = grads[name]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
