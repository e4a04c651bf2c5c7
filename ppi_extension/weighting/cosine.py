"""Weights that follow the cosine to the fine-tuning gradient.

META-TARTAN: Dery, Michel, Talwalkar and Neubig, *Should We Be Pre-training?*, ICLR 2022. There the weight of an auxiliary task
follows the product of its gradient with that of the end task; here it follows their cosine, so that a task's size does not
count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.noise import derive_seed
from ecgmeta.bilevel.trees import Tree, norm, zeros_like
from ecgmeta.runtime.errors import InputError
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting.base import (
    StepReport,
    WarmHead,
    Weighting,
    descend,
    finetune_gradients,
    recorded_losses,
)


class Cosine(Weighting):
    """``1/T Σ 2σ(zₜ) ℓₜ``, z by Adam along ``cos(∇ℓₜ, ∇L_FT)`` over the parameters that both tasks share.

    No task's gradient is built. All T products with the fine-tuning gradient are one Jacobian-vector product of the losses.
    The norms come from a second one: along a normal direction r, ``E⟨∇ℓₜ, r⟩² = ‖∇ℓₜ‖²``, of which a running mean is kept
    (corrected for its start at 0), since one draw is as spread as a χ² of one degree of freedom.

    The fine-tuning gradient is taken on a batch before the warm head has stepped on it, with the head as it stands.

    Args:
        tasks: T.
        seed: of the random directions.
        period: steps from one step of z to the next; the head steps every time.
        lr: of Adam on z.
        decay: of the running mean, an update of z.
        head_lr: of Adam on the warm head.
    """

    reads_finetune = True

    def __init__(
        self,
        tasks: int,
        seed: int = 0,
        period: int = 1,
        lr: float = 1e-2,
        decay: float = 0.9,
        head_lr: float = 1e-3,
    ) -> None:
        super().__init__(tasks)
        for field, value, fits, expected in (
            ("period", period, period >= 1, "at least 1"),
            ("lr", lr, lr > 0, "a number above 0"),
            ("decay", decay, 0 <= decay < 1, "at least 0 and below 1"),
        ):
            if not fits:
                raise InputError("weighting", field, value, expected)
        self.seed, self.period, self.decay = seed, period, decay
        self._z = torch.zeros(tasks)
        # Cosines in millions of dimensions are small: the eps of Adam must not decide the step.
        self._optimizer = torch.optim.Adam([self._z], lr, eps=1e-12)
        self._head = WarmHead(head_lr)
        self._squares, self._updates, self._steps = torch.zeros(tasks), 0, 0

    def weights(self) -> Tensor:
        return 2 * self._z.sigmoid()

    def step(
        self, problem: TaskProblem, optimizer: torch.optim.Optimizer, batch: Any, finetune_batch: Any = None
    ) -> StepReport:
        finetune_loss, shared, head = finetune_gradients(problem, finetune_batch, "cosine")
        self._steps += 1
        if self._steps % self.period == 0:
            self._z.grad = -self.cosines(problem, batch, shared)
            self._optimizer.step()
        self._head.step(problem, head)
        losses = recorded_losses(problem, batch)
        loss = (self.weights().to(losses) * losses).mean()
        descend(problem, optimizer, loss)
        return StepReport(float(loss.detach()), float(losses.detach().mean()), finetune_loss)

    def cosines(self, problem: TaskProblem, batch: Any, direction: Tree) -> Tensor:
        """(T,): estimates of ``cos(∇ℓₜ, direction)`` on a batch, after one more draw for the norms; 0 where a norm is 0."""
        nowhere = zeros_like(problem.theta)
        products = problem.task_slopes(problem.theta, batch, nowhere | direction)[1]
        drawn = self._random(direction)
        squares = problem.task_slopes(problem.theta, batch, nowhere | drawn)[1].square()
        self._updates += 1
        self._squares += (1 - self.decay) * (squares.to(self._squares) - self._squares)
        norms = (self._squares / (1 - self.decay**self._updates)).sqrt() * float(norm(direction))
        return torch.where(norms > 0, products.to(norms) / norms, 0.0).clamp(-1, 1)

    def _random(self, like: Tree) -> Tree:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "cosine", self._updates))
        return {
            n: torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device) for n, v in like.items()
        }

    def _state(self) -> dict[str, Any]:
        return {
            "z": self._z.clone(), "optimizer": self._optimizer.state_dict(), "head": self._head.state_dict(),
            "squares": self._squares.clone(), "updates": self._updates, "steps": self._steps,
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._z.copy_(state["z"])
        self._squares.copy_(state["squares"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._head.load_state_dict(state["head"])
        self._updates, self._steps = state["updates"], state["steps"]
