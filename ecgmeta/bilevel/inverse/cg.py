"""Damped conjugate gradients for ``H⁻¹v``, plain or preconditioned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, axpy, dot, norm, rounding, zeros_like

Preconditioner = Callable[[Tree], Tree]


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients on ``(H + μI) u = v`` (Hestenes & Stiefel, 1952), from u = 0.

    Exact in as many iterations as H has distinct eigenvalues; the error contracts by ``(√κ−1)/(√κ+1)`` an iteration in the
    energy norm. Needs ``H + μI`` positive definite: a direction of negative curvature stops it and the result says so. So does
    running out of iterations before the tolerance is reached: that value is usable, and its residual says how close it is.

    Args:
        iterations: most Hessian-vector products.
        damping: μ ≥ 0.
        tolerance: stop where the relative residual is below it, or below the rounding of v's type.
    """

    iterations: int
    damping: float = 0.0
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.damping >= 0 or not self.tolerance >= 0:
            raise ValueError(
                f"ConjugateGradient needs iterations >= 1, damping >= 0, tolerance >= 0, got {self}"
            )

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        return conjugate_gradient(matvec, v, self.iterations, self.damping, self.tolerance)


def conjugate_gradient(
    matvec: Matvec,
    v: Tree,
    iterations: int,
    damping: float,
    tolerance: float,
    preconditioner: Preconditioner | None = None,
) -> Solution:
    """The iteration that plain and preconditioned solvers share; ``preconditioner`` is ``r ↦ P⁻¹r``, P positive definite.

    The residual is the iteration's own, which equals ``v − (H + μI)u`` up to rounding.
    """
    start = float(norm(v))
    u, r = zeros_like(v), v
    if start == 0:
        return Solution(u, 0, 0.0, None, Result.DONE)
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z, dot(r, z)
    # Below rounding the recursion goes on shrinking what is no longer the residual, until ⟨p, Hp⟩ underflows to 0 and looks
    # like a lack of curvature (float32, a Hessian of order 1e-3).
    target = start * max(tolerance, rounding(v))
    size, contraction = start, 0.0
    for spent in range(1, iterations + 1):
        product = axpy(damping, p, matvec(p)) if damping else matvec(p)
        curvature = dot(p, product)
        if not bool(curvature.isfinite()):
            return Solution(u, spent, size / start, contraction, Result.NON_FINITE)
        if float(curvature) <= 0:
            return Solution(u, spent, size / start, contraction, Result.INDEFINITE)
        alpha: Tensor = rz / curvature
        # Stored before the test below, so that stopping at the first iteration keeps what it found (A = 3I).
        u, r = axpy(alpha, p, u), axpy(-alpha, product, r)
        new_size = float(norm(r))
        contraction, size = max(contraction, new_size / size), new_size
        if size <= target:
            return Solution(u, spent, size / start, contraction, Result.DONE)
        z = r if preconditioner is None else preconditioner(r)
        rz, old = dot(r, z), rz
        p = axpy(rz / old, p, z)
    return Solution(u, spent, size / start, contraction, Result.TRUNCATED)
