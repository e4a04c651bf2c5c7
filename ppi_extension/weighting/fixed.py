"""Weights that never move: all 1, drawn, or given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import torch_generator
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting.base import StepReport, Weighting, descend, recorded_losses


class Fixed(Weighting):
    """``1/T Σ wₜ ℓₜ`` with given w.

    Args:
        tasks: T.
        weights: (T,), finite and not negative.
        seed: of :meth:`random` alone.
    """

    def __init__(self, tasks: int, weights: Tensor | Sequence[float], seed: int = 0) -> None:
        super().__init__(tasks)
        values = torch.as_tensor(weights, dtype=torch.float32).detach().clone()
        if values.shape != (tasks,) or not bool((values.isfinite() & (values >= 0)).all()):
            raise InputError(
                "weighting", "weights", f"shape {tuple(values.shape)}", f"({tasks},) numbers of at least 0"
            )
        self._weights = values

    @classmethod
    def uniform(cls, tasks: int, seed: int = 0) -> Fixed:
        """All 1."""
        return cls(tasks, torch.ones(tasks))

    @classmethod
    def random(cls, tasks: int, seed: int = 0) -> Fixed:
        """Drawn uniformly from (0, 2)."""
        return cls(tasks, 2 * torch.rand(tasks, generator=torch_generator(seed, "random weights")))

    def weights(self) -> Tensor:
        return self._weights

    def step(
        self, problem: TaskProblem, optimizer: torch.optim.Optimizer, batch: Any, finetune_batch: Any = None
    ) -> StepReport:
        losses = recorded_losses(problem, batch)
        loss = (self._weights.to(losses) * losses).mean()
        descend(problem, optimizer, loss)
        return StepReport(float(loss.detach()), float(losses.detach().mean()))

    def _state(self) -> dict[str, Any]:
        return {"weights": self._weights.clone()}

    def _restore(self, state: dict[str, Any]) -> None:
        self._weights = state["weights"]
