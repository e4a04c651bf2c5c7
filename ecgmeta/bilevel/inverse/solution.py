"""What every inverse-Hessian-vector product takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ecgmeta.bilevel.trees import Tree

Matvec = Callable[[Tree], Tree]


class Result(Enum):
    """How a solve ended; the value is a sentence that says what to try."""

    DONE = "the requested number of terms was taken"
    NEGATIVE_CURVATURE = "negative curvature was met, in a sum too short to grow; damping of about |λmin| would let it converge"
    DIVERGED = "the series grew: the step size is above 2/λmax; try a smaller step_size"
    INDEFINITE = (
        "negative curvature was met: the Hessian is not positive definite here; try damping of about |λmin|"
    )
    NON_FINITE = "a product was not finite: check the loss, or lower the learning rate of pre-training"


@dataclass(frozen=True)
class Solution:
    """An approximation ``value ≈ H⁻¹v``, and how far it can be trusted.

    Attributes:
        value: the tree, shaped like v.
        iterations: Hessian-vector products spent.
        residual: ``‖v − H·value‖ / ‖v‖`` where the solver knows it, else None (it is never guessed).
        contraction: largest factor by which one iteration changed the residual's norm, or None. Below 1 it converges.
        result: how it ended.
        tail: norm of the last term of a series divided by the norm of their sum, or None.
    """

    value: Tree
    iterations: int
    residual: float | None
    contraction: float | None
    result: Result
    tail: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the value may be used: a short sum that met negative curvature may, and says so in its result."""
        return self.result in (Result.DONE, Result.NEGATIVE_CURVATURE)


class Solver(Protocol):
    """``solve(matvec, v) -> Solution``: sees an operator and a right-hand side, never a model."""

    def __call__(self, matvec: Matvec, v: Tree) -> Solution: ...
