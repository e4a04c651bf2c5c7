"""The truncated Neumann series for ``H⁻¹v``, plain or with a diagonal preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

from ecgmeta.bilevel.inverse.diagonal import Diagonal, read_diagonal
from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, axpy, dot, multiply, norm, rounding, scale

# Curvature below this share of ‖z‖‖Hz‖ is taken for rounding (float32), not for negative curvature.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Neumann:
    """``value = αP Σ_{j=0..J} (I − α(H + μI)P)ʲ v``   (P = I: Lorraine et al., 2020, eq. 8; ``J = terms``).

    As an iteration: ``z = αPr``, ``value += z``, ``r −= (H + μI)z`` from r = v, so that r is the residual of what has been
    summed. ``‖r‖_P = √(rᵀPr)`` contracts by at most ``max |1 − αλ|`` a term, λ over the eigenvalues of
    ``P^½(H + μI)P^½``: the series converges when ``0 < αλ < 2`` for each of them.

    Args:
        terms: J, the number of Hessian-vector products. 0 is ``αPv``.
        step_size: α. A setting of its own: the pre-training learning rate is usually thousands of times too small to matter
            (METHOD, "Where the released code differs", 2). :func:`~ecgmeta.bilevel.spectrum.lanczos` proposes one.
        damping: μ ≥ 0, added to the diagonal of H, for Hessians with negative eigenvalues down to −μ.
        exact_residual: spend one more product to know the residual of the returned sum. Without it the residual is
            that of the sum one term shorter, which is not smaller where the series converges.
        growth: largest ‖r‖_P that negative curvature may make, relative to that of v; above 1. Infinity: every term is taken,
            whatever grows, as in Raghu et al.'s released code; ``contraction`` alone tells then.
        preconditioner: called at each solve, for the diagonal of P as a tree shaped like v, positive; None is P = I. A function
            because Adam's moments move between φ steps: see :func:`~ecgmeta.bilevel.inverse.diagonal.adam_preconditioner`.

    Growth along positive curvature means a step size above ``2/λmax``, or eigenvalues of both signs in one term: the series is
    stopped before it, and the result says so. Negative curvature is reported once a term lies along it, and stops the series
    where it has made the residual ``growth`` times v. A residual below the rounding of v's type ends the series too.
    """

    terms: int
    step_size: float
    damping: float = 0.0
    exact_residual: bool = False
    growth: float = 1.5
    preconditioner: Diagonal | None = None

    def __post_init__(self) -> None:
        if self.terms < 0 or not self.step_size > 0 or not self.damping >= 0 or not self.growth > 1:
            raise ValueError(f"Neumann needs terms >= 0, step_size > 0, damping >= 0, growth > 1, got {self}")

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        """Raises ``ValueError`` where the preconditioner is not positive or not shaped like v."""
        weights = None if self.preconditioner is None else read_diagonal(self.preconditioner, v)

        def precondition(r: Tree) -> Tree:
            return r if weights is None else multiply(weights, r)

        def sizes(r: Tree, z: Tree) -> tuple[float, float, float]:
            """``‖r‖_P, ‖r‖, ‖z‖`` for z = Pr; θ is large, and one pass over it does where P = I."""
            length = float(norm(r))
            if weights is None:
                return length, length, length
            return float(dot(r, z).sqrt()), length, float(norm(z))

        # term = P r and total = Σ P r: α comes in at the end, so that P = I costs no more than the plain series.
        residual, term = v, precondition(v)
        total = term
        size, length, along = sizes(residual, term)
        start = size
        known: float | None = None if length else 0.0
        contraction: float | None = None
        result, summed, spent = Result.DONE, 1, 0
        # A term below rounding would not change the sum, so its product is not spent.
        while spent < self.terms + int(self.exact_residual) and size > rounding(v) * start:
            product = axpy(self.damping, term, matvec(term)) if self.damping else matvec(term)
            spent += 1
            curvature, across = float(dot(term, product)), along * float(norm(product))
            following = axpy(-self.step_size, product, residual)
            next_term = precondition(following)
            new_size, new_length, new_along = sizes(following, next_term)
            if not new_size < float("inf"):
                result = Result.NON_FINITE
                break
            ratio = new_size / size
            contraction = ratio if contraction is None else max(contraction, ratio)
            if curvature < -ROUNDING * across:
                if new_size > self.growth * start:
                    result = Result.INDEFINITE
                    break
                result = Result.NEGATIVE_CURVATURE
            elif ratio > 1 + ROUNDING and self.growth < float("inf"):
                result = Result.DIVERGED
                break
            known = new_length / length
            residual, size = following, new_size
            if spent <= self.terms:
                term, along, summed = next_term, new_along, summed + 1
                total = axpy(1.0, term, total)
        tail = along / float(norm(total)) if summed > 1 else None
        return Solution(scale(self.step_size, total), spent, known, contraction, result, tail)
