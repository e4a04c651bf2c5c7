"""Conjugate gradients preconditioned by a low-rank Nyström sketch of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecgmeta.bilevel.inverse.cg import Preconditioner, conjugate_gradient
from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, flatten, unflatten, zeros_like


@dataclass(frozen=True)
class Nystrom:
    """Nyström-preconditioned conjugate gradients (Frangella, Tropp & Udell, 2023).

    A sketch ``H ≈ UΛUᵀ`` of rank k, from H times k random orthonormal vectors, gives the preconditioner
    ``P⁻¹ = (λ_k + μ) U(Λ + μI)⁻¹Uᵀ + (I − UUᵀ)``: the few large eigenvalues are solved for at once, and the iteration
    works on the rest. A negative eigenvalue of the sketch's core below −μ proves ``H + μI`` indefinite, and ends the solve
    before the iteration spends anything.

    Args:
        rank: k, Hessian-vector products spent on the sketch.
        iterations: most Hessian-vector products of the iteration after it.
        damping: μ > 0.
        tolerance: stop where the relative residual is below it, or below the rounding of v's type.
        seed: of the random vectors; the same seed gives the same sketch.
    """

    rank: int
    iterations: int
    damping: float
    tolerance: float = 1e-10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.iterations < 1 or not self.damping > 0 or not self.tolerance >= 0:
            raise ValueError(
                f"Nystrom needs rank >= 1, iterations >= 1, damping > 0, tolerance >= 0, got {self}"
            )

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        rank = min(self.rank, flatten(v).numel())
        sketch = self._sketch(matvec, v, rank)
        if isinstance(sketch, Result):
            return Solution(zeros_like(v), rank, None, None, sketch)
        found = conjugate_gradient(
            matvec, v, self.iterations, self.damping, self.tolerance, self._precondition(sketch)
        )
        return replace(found, iterations=found.iterations + rank)

    def _sketch(self, matvec: Matvec, v: Tree, rank: int) -> tuple[Tensor, Tensor] | Result:
        """Orthonormal columns U, (size of v, ≤ rank), and the eigenvalues Λ; or why there is no solving with them."""
        flat = flatten(v)
        generator = torch.Generator(device=flat.device).manual_seed(self.seed)
        test = torch.randn(flat.numel(), rank, generator=generator, dtype=flat.dtype, device=flat.device)
        test = torch.linalg.qr(test).Q
        images = torch.stack([flatten(matvec(unflatten(test[:, k], v))) for k in range(rank)], dim=1)
        if not bool(images.isfinite().all()):
            return Result.NON_FINITE
        # A small shift makes the core positive definite in floating point, and is taken off the eigenvalues again.
        shift = float(torch.finfo(flat.dtype).eps * images.norm() * flat.numel() ** 0.5)
        images = images + shift * test
        core = test.T @ images
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        # A value of the core is ⟨q, Hq⟩ + shift for a unit vector q, so H + μI takes a negative value there.
        if float(values[0]) + self.damping < 0:
            return Result.INDEFINITE
        # Directions of negative curvature that the damping outweighs do not belong in a preconditioner.
        kept = values > shift
        if not bool(kept.any()):
            return test[:, :1], torch.zeros(1, dtype=flat.dtype, device=flat.device)
        root = images @ (vectors[:, kept] * values[kept].rsqrt())
        basis, singular, _ = torch.linalg.svd(root, full_matrices=False)
        return basis, (singular.square() - shift).clamp(min=0)

    def _precondition(self, sketch: tuple[Tensor, Tensor]) -> Preconditioner:
        basis, values = sketch
        scales = (values.min() + self.damping) / (values + self.damping) - 1

        def apply(r: Tree) -> Tree:
            flat = flatten(r)
            return unflatten(flat + basis @ (scales * (basis.T @ flat)), r)

        return apply
