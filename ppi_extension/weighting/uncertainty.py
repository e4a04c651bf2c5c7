"""Uncertainty weighting: Kendall, Gal and Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses*, CVPR 2018."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecgmeta.runtime.errors import InputError
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting.base import StepReport, Weighting, descend, labelled, recorded_losses


class Uncertainty(Weighting):
    """``1/T Σ (exp(−sₜ) ℓₜ + sₜ)`` over θ and the log variances s, which start at 0.

    That is twice the paper's form, so that the weights ``exp(−s)`` start at 1. A task's optimum is ``sₜ = log ℓₜ``, its weight
    then the inverse of its loss. A task without labels in a batch gives its s no gradient.

    Args:
        tasks: T.
        lr: of Adam on s: about how far a log variance moves in a step.
    """

    def __init__(self, tasks: int, seed: int = 0, lr: float = 1e-3) -> None:
        super().__init__(tasks)
        if not lr > 0:
            raise InputError("weighting", "lr", lr, "a number above 0")
        self._s = torch.zeros(tasks, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._s], lr)

    def weights(self) -> Tensor:
        return (-self._s.detach()).exp()

    def step(
        self, problem: TaskProblem, optimizer: torch.optim.Optimizer, batch: Any, finetune_batch: Any = None
    ) -> StepReport:
        losses = recorded_losses(problem, batch)
        loss = (self.weights().to(losses) * losses).mean()
        descend(problem, optimizer, loss)
        present = labelled(batch).to(self._s)
        weighted = (-self._s).exp() * losses.detach().to(self._s)
        objective = (present * (weighted + self._s)).mean()
        (self._s.grad,) = torch.autograd.grad(objective, self._s)
        self._optimizer.step()
        return StepReport(float(objective.detach()), float(losses.detach().mean()))

    def _state(self) -> dict[str, Any]:
        return {"s": self._s.detach().clone(), "optimizer": self._optimizer.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self._s.copy_(state["s"])
        self._optimizer.load_state_dict(state["optimizer"])
