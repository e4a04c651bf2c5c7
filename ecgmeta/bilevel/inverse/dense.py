"""``H⁻¹v`` by writing H down: for tests and problems of a few hundred parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, flatten, unflatten


@dataclass(frozen=True)
class Dense:
    """Solve ``(H + μI) u = v`` with H built from one product a parameter.

    The solution is reported as it is where H is indefinite: a dense solve needs no definiteness, but a φ step taken at a saddle
    point of pre-training follows no implicit function of φ, so the result says so.

    Args:
        damping: μ ≥ 0.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"Dense needs damping >= 0, got {self}")

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        flat = flatten(v)
        n = flat.numel()
        identity = torch.eye(n, dtype=flat.dtype, device=flat.device)
        matrix = torch.stack([flatten(matvec(unflatten(column, v))) for column in identity], dim=1)
        matrix = (matrix + matrix.T) / 2 + self.damping * identity
        if not bool(matrix.isfinite().all()):
            return Solution(v, n, None, None, Result.NON_FINITE)
        value = torch.linalg.lstsq(matrix, flat.unsqueeze(1)).solution[:, 0]
        size = float(flat.norm())
        residual = float((flat - matrix @ value).norm()) / size if size else 0.0
        definite = float(torch.linalg.eigvalsh(matrix)[0]) > 0
        return Solution(
            unflatten(value, v), n, residual, None, Result.DONE if definite else Result.INDEFINITE
        )
