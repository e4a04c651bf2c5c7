"""The truncated Neumann series for ``H⁻¹v``."""

from __future__ import annotations

from dataclasses import dataclass

from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, axpy, dot, norm, scale


@dataclass(frozen=True)
class Neumann:
    """``value = α Σ_{j=0..J} (I − α(H + μI))ʲ v``   (Lorraine et al., 2020, eq. 8; ``J = terms``).

    With ``rⱼ = (I − αH)ʲ v``, the sum to J has the residual ``v − H·value = r_{J+1}``: it contracts by
    ``max |1 − αλ|`` a term, so it converges when ``0 < αλ < 2`` for every eigenvalue λ.

    Args:
        terms: J, the number of Hessian-vector products. 0 is ``α·v``.
        step_size: α. A setting of its own: the pre-training learning rate is usually thousands of times too small
            to matter (METHOD, "Where the released code differs", 2).
        damping: μ ≥ 0, added to the diagonal of H, for Hessians with negative eigenvalues down to −μ.
        exact_residual: spend one more product to know the residual of the returned sum. Without it the residual is
            that of the sum one term shorter, which is not smaller where the series converges.
        growth: largest term that negative curvature may make, relative to v.

    A term that grows along positive curvature means a step size above ``2/λmax``: the series is stopped before it, and the
    result says so. Growth along negative curvature is reported, and stops the series where a term is ``growth`` times v.
    """

    terms: int
    step_size: float
    damping: float = 0.0
    exact_residual: bool = False
    growth: float = 1.5

    def __post_init__(self) -> None:
        if self.terms < 0 or self.step_size <= 0 or self.damping < 0:
            raise ValueError(f"Neumann needs terms >= 0, step_size > 0, damping >= 0, got {self}")

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        start = float(norm(v))
        total, term, size = v, v, start
        residual: float | None = None
        contraction: float | None = None
        result = Result.DONE
        spent = 0
        while spent < self.terms + int(self.exact_residual) and size > 0:
            product = axpy(self.damping, term, matvec(term)) if self.damping else matvec(term)
            spent += 1
            following = axpy(-self.step_size, product, term)
            new_size = float(norm(following))
            if not new_size < float("inf"):
                result = Result.NON_FINITE
                break
            ratio = new_size / size
            contraction = ratio if contraction is None else max(contraction, ratio)
            if ratio > 1 + 1e-6:
                if float(dot(term, product)) >= 0:
                    result = Result.DIVERGED
                    break
                if new_size > self.growth * start:
                    result = Result.INDEFINITE
                    break
                result = Result.NEGATIVE_CURVATURE
            residual = new_size / start
            if spent <= self.terms:
                total = axpy(1.0, following, total)
            term, size = following, new_size
        if start == 0:
            residual = 0.0
        tail = size / float(norm(total)) if spent and start else None
        return Solution(scale(self.step_size, total), spent, residual, contraction, result, tail)
