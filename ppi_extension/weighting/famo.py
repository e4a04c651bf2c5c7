"""FAMO: Liu, Feng, Stone and Liu, *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023 (Algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecgmeta.runtime.errors import InputError
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting.base import StepReport, Weighting, descend, labelled, recorded_losses

EPSILON = 1e-8


class Famo(Weighting):
    """All losses should fall at one relative pace; one more evaluation of the losses a step, no task's gradient.

    θ steps along ``c Σ pₜ ∇log ℓₜ`` with ``p = softmax(ξ)`` and ``c = 1/Σ(pₜ/ℓₜ)``, so that the step is a convex combination of
    the tasks' gradients. Then ξ takes an Adam step against ``Σ pₜ δₜ``, ``δₜ`` the fall of ``log ℓₜ`` on the same batch and
    noise: weight moves to the tasks that fell least. Tasks without labels in a batch have no part in its step.

    Args:
        tasks: T.
        lr, weight_decay: of Adam on ξ; the paper's 0.025 and 1e-3.
    """

    def __init__(self, tasks: int, seed: int = 0, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        super().__init__(tasks)
        for field, value, fits in (("lr", lr, lr > 0), ("weight_decay", weight_decay, weight_decay >= 0)):
            if not fits:
                raise InputError("weighting", field, value, "a number above 0 (weight_decay: at least 0)")
        self._logits = torch.zeros(tasks, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._logits], lr, weight_decay=weight_decay)
        self._last = torch.ones(tasks)

    def weights(self) -> Tensor:
        """(T,): those of the last step."""
        return self._last

    def step(
        self, problem: TaskProblem, optimizer: torch.optim.Optimizer, batch: Any, finetune_batch: Any = None
    ) -> StepReport:
        losses = recorded_losses(problem, batch)
        present = labelled(batch).to(self._logits.device)
        if not bool(present.any()):  # nothing to learn from, and θ stays
            return StepReport(0.0, 0.0)
        before = losses.detach().to(self._logits) + EPSILON
        shares = self._logits.masked_fill(~present, -torch.inf).softmax(0)
        ratios = shares.detach() / before
        self._last = self.tasks * ratios / ratios.sum()
        loss = (self._last.to(losses) * losses).mean()
        descend(problem, optimizer, loss)
        with torch.no_grad():
            after = problem.task_losses(problem.theta, batch).to(self._logits) + EPSILON
        fall = torch.where(present, before.log() - after.log(), 0.0)
        (self._logits.grad,) = torch.autograd.grad(shares, self._logits, fall)
        self._optimizer.step()
        return StepReport(float(loss.detach()), float(losses.detach().mean()))

    def _state(self) -> dict[str, Any]:
        return {
            "logits": self._logits.detach().clone(),
            "optimizer": self._optimizer.state_dict(),
            "last": self._last.clone(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self._logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._last = state["last"]
