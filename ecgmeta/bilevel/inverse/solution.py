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

    DONE = "all terms were taken, or the tolerance was reached; the residual, where known, says how close"
    TRUNCATED = (
        "the iterations ran out before the tolerance was reached: usable, and the residual says how close; "
        "try more iterations, or damping, for closer"
    )
    NEGATIVE_CURVATURE = "negative curvature was met, in a sum too short to grow; damping of about |λmin| would let it converge"
    DIVERGED = (
        "the series grew: the step size is above 2/λmax, or curvature is negative as well; "
        "try a smaller step_size, then damping, as lanczos proposes"
    )
    INDEFINITE = "negative curvature was met: H is not positive definite here; try damping of about |λmin|, as lanczos proposes"
    NON_FINITE = "a product was not finite: check the loss, or lower the learning rate of pre-training"


@dataclass(frozen=True)
class Solution:
    """An approximation ``value ≈ H⁻¹v``, and how far it can be trusted. H here is the operator with the solver's damping.

    Attributes:
        value: the tree, shaped like v.
        iterations: Hessian-vector products spent.
        residual: ``‖v − H·value‖ / ‖v‖`` where the solver knows it, else None (it is never guessed).
        contraction: largest factor by which one iteration changed the residual's norm (for a preconditioned series the norm
            ``√(rᵀPr)``), or None. Below 1 it converges.
        result: how it ended.
        tail: norm of the last term of a series that is in the sum, divided by the norm of the sum; None where there is but one.
    """

    value: Tree
    iterations: int
    residual: float | None
    contraction: float | None
    result: Result
    tail: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the value may be used. Stopped early it may, and so may a short sum that met negative curvature; the result
        tells them apart."""
        return self.result in (Result.DONE, Result.TRUNCATED, Result.NEGATIVE_CURVATURE)


class Solver(Protocol):
    """``solve(matvec, v) -> Solution``: sees an operator and a right-hand side, never a model."""

    def __call__(self, matvec: Matvec, v: Tree) -> Solution: ...
