"""Conjugate gradients preconditioned by a low-rank Nyström sketch of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecgmeta.bilevel.inverse.cg import Preconditioner, conjugate_gradient
from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, flatten, unflatten


@dataclass(frozen=True)
class Nystrom:
    """Nyström-preconditioned conjugate gradients (Frangella, Tropp & Udell, 2023).

    A sketch ``H ≈ UΛUᵀ`` of rank k, from H times k random orthonormal vectors, gives the preconditioner
    ``P⁻¹ = (λ_k + μ) U(Λ + μI)⁻¹Uᵀ + (I − UUᵀ)``: the few large eigenvalues are solved for at once, and the iteration
    works on the rest.

    Args:
        rank: k, Hessian-vector products spent on the sketch.
        iterations: most Hessian-vector products of the iteration after it.
        damping: μ > 0.
        tolerance: stop where the relative residual is below it.
        seed: of the random vectors; the same seed gives the same sketch.
    """

    rank: int
    iterations: int
    damping: float
    tolerance: float = 1e-10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.iterations < 1 or self.damping <= 0:
            raise ValueError(f"Nystrom needs rank >= 1, iterations >= 1, damping > 0, got {self}")

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        sketch = self._sketch(matvec, v)
        if sketch is None:
            return Solution(v, self.rank, None, None, Result.NON_FINITE)
        found = conjugate_gradient(
            matvec, v, self.iterations, self.damping, self.tolerance, self._precondition(sketch)
        )
        return replace(found, iterations=found.iterations + min(self.rank, flatten(v).numel()))

    def _sketch(self, matvec: Matvec, v: Tree) -> tuple[Tensor, Tensor] | None:
        flat = flatten(v)
        rank = min(self.rank, flat.numel())
        generator = torch.Generator(device=flat.device).manual_seed(self.seed)
        test = torch.randn(flat.numel(), rank, generator=generator, dtype=flat.dtype, device=flat.device)
        test = torch.linalg.qr(test).Q
        images = torch.stack([flatten(matvec(unflatten(test[:, k], v))) for k in range(rank)], dim=1)
        if not bool(images.isfinite().all()):
            return None
        # A small shift makes the core positive definite in floating point, and is taken off the eigenvalues again.
        shift = float(torch.finfo(flat.dtype).eps * images.norm() * flat.numel() ** 0.5)
        images = images + shift * test
        core = test.T @ images
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        # Directions of negative curvature do not belong in a preconditioner; the iteration itself reports them.
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
