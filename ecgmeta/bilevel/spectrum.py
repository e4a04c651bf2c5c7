"""How large and how negative the Hessian's eigenvalues are, from a few products with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ecgmeta.bilevel.inverse.solution import Matvec
from ecgmeta.bilevel.trees import Tree, flatten, unflatten


@dataclass(frozen=True)
class Spectrum:
    """Ritz values of the extreme eigenvalues: inside the true range, and usually close to its ends.

    Attributes:
        largest, smallest: estimates of λmax and λmin.
        iterations: products spent.
    """

    largest: float
    smallest: float
    iterations: int

    @property
    def damping(self) -> float:
        """A damping that makes the Hessian positive definite, with a tenth to spare; 0 where it is already."""
        return max(0.0, -1.1 * self.smallest)

    @property
    def step_size(self) -> float:
        """A Neumann step size that converges on the damped Hessian: ``1/(λmax + damping)``, half of the limit, because a
        Ritz value is never above λmax.

        Raises:
            ValueError: no curvature was seen.
        """
        scale = self.largest + self.damping
        if scale <= 0:
            raise ValueError(f"no positive curvature was seen (largest Ritz value {self.largest:.3g})")
        return 1.0 / scale


def lanczos(matvec: Matvec, like: Tree, iterations: int = 12, *, seed: int = 0) -> Spectrum:
    """Extreme eigenvalues of a symmetric operator by the Lanczos process with full reorthogonalisation.

    Args:
        matvec: the operator.
        like: a tree of the shape it acts on.
        iterations: products to spend, at most the dimension.
        seed: of the starting vector.
    """
    flat = flatten(like)
    generator = torch.Generator(device=flat.device).manual_seed(seed)
    q = torch.randn(flat.numel(), generator=generator, dtype=flat.dtype, device=flat.device)
    basis = [q / q.norm()]
    diagonal: list[float] = []
    off: list[float] = []
    scale = 0.0
    for _ in range(min(iterations, flat.numel())):
        w = flatten(matvec(unflatten(basis[-1], like)))
        scale = max(scale, float(w.norm()))
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # twice is enough, in floating point
            span = torch.stack(basis)
            w = w - span.T @ (span @ w)
        size = float(w.norm())
        # An invariant subspace: its Ritz values are eigenvalues, and what is left of w is rounding.
        if size <= 10 * torch.finfo(flat.dtype).eps * scale * len(basis) or len(diagonal) == min(
            iterations, flat.numel()
        ):
            break
        off.append(size)
        basis.append(w / size)
    n = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for k in range(n - 1):
        matrix[k, k + 1] = matrix[k + 1, k] = off[k]
    values = torch.linalg.eigvalsh(matrix)
    return Spectrum(float(values[-1]), float(values[0]), n)
