"""What every rule is to a training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ecgmeta.bilevel import Batches
from ecgmeta.bilevel.problem import check_scalar
from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves
from ecgmeta.runtime.errors import InputError
from ppi_extension.problem import TaskProblem


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: what was minimised, before the step.
        pretrain_loss: the unweighted mean of the tasks' losses, which is comparable between rules.
        finetune_loss: of rules that read fine-tuning data, before the step.
    """

    loss: float
    pretrain_loss: float
    finetune_loss: float | None = None


class Weighting(ABC):
    """A rule that weighs T tasks.

    Attributes:
        reads_finetune: whether :meth:`step` needs a fine-tuning batch.
        finetune_mode: in which mode its problem should take the fine-tuning loss.
    """

    reads_finetune: ClassVar[bool] = False
    finetune_mode: ClassVar[Literal["eval", "train"]] = "eval"

    def __init__(self, tasks: int) -> None:
        if tasks < 1:
            raise InputError("weighting", "tasks", tasks, "at least 1")
        self.tasks = tasks

    @abstractmethod
    def step(
        self,
        problem: TaskProblem,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        finetune_batch: Any = None,
    ) -> StepReport:
        """One step of ``problem.theta`` by ``optimizer``, and of whatever the rule itself learns.

        Raises:
            FloatingPointError: a loss is not finite.
            InputError: the rule needs a fine-tuning batch and has none.
        """

    def weights(self) -> Tensor:
        """(T,): the weights in use, 1 where a task counts as in the mean; detached."""
        return torch.ones(self.tasks)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that it learns, loadable with ``torch.load(..., weights_only=True)``."""
        return {"rule": type(self).__name__} | self._state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict` exactly.

        Raises:
            InputError: it is another rule's.
        """
        if state.get("rule") != type(self).__name__:
            raise InputError("weighting", "rule", state.get("rule"), f"the state of {type(self).__name__}")
        self._restore(state)

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _restore(self, state: dict[str, Any]) -> None: ...


def train(
    rule: Weighting,
    problem: TaskProblem,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    steps: int,
    start: int = 0,
) -> Iterator[StepReport]:
    """Steps ``start`` … ``steps − 1`` of pre-training with a rule. The caller drives it and may stop anywhere."""
    for step in range(start, steps):
        problem.at_step(step)
        finetune_batch = batches.train(step, 0) if rule.reads_finetune else None
        yield rule.step(problem, optimizer, batches.pretrain(step), finetune_batch)


def recorded_losses(problem: TaskProblem, batch: Any) -> Tensor:
    """(T,): the tasks' losses at the live θ with their graph; the one evaluation of a step that moves running statistics."""
    with problem.recording():
        return problem.task_losses(problem.theta, batch)


def descend(problem: TaskProblem, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of θ along ``loss``."""
    check_scalar(loss, "pre-training loss")
    apply(optimizer, problem.theta, gradient(loss, problem.theta))


def apply(optimizer: torch.optim.Optimizer, parameters: Tree, gradients: Tree) -> None:
    """One step of ``optimizer`` on these gradients of its parameters."""
    for name, value in parameters.items():
        value.grad = gradients[name]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def labelled(batch: Any) -> Tensor:
    """(T,) booleans: which tasks have a labelled example in the batch."""
    return (batch.pretrain_labels >= 0).any(0)


class WarmHead:
    """Adam on ψ, the live fine-tuning head of a problem, kept by a rule that needs its gradient to mean something."""

    def __init__(self, lr: float) -> None:
        if not lr > 0:
            raise InputError("weighting", "head_lr", lr, "a number above 0")
        self._lr = lr
        self._optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None

    def step(self, problem: TaskProblem, gradients: Tree) -> None:
        """One step on these gradients of ψ."""
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(problem.psi.values(), self._lr)
            if self._saved is not None:
                self._optimizer.load_state_dict(self._saved)
        apply(self._optimizer, problem.psi, gradients)

    def state_dict(self) -> dict[str, Any] | None:
        return self._saved if self._optimizer is None else self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        # The problem, whose head this is, comes with the first step.
        self._optimizer, self._saved = None, state


def finetune_gradients(problem: TaskProblem, batch: Any, rule: str) -> tuple[float, Tree, Tree]:
    """The fine-tuning loss at the live (θ, ψ), and its gradients with respect to the shared part of θ and to ψ.

    Raises:
        InputError: there is no batch.
    """
    if batch is None:
        raise InputError("weighting", rule, "no fine-tuning batch", "one at every step")
    theta, psi = leaves(problem.theta), leaves(problem.psi)
    loss = problem.finetune_loss(theta, psi, batch)
    check_scalar(loss, "fine-tuning loss")
    shared = {name: theta[name] for name in problem.shared}
    both = gradient(
        loss, {**{f"s/{n}": v for n, v in shared.items()}, **{f"p/{n}": v for n, v in psi.items()}}
    )
    return (
        float(loss.detach()),
        detach({name: both[f"s/{name}"] for name in shared}),
        detach({name: both[f"p/{name}"] for name in psi}),
    )
