"""``H⁻¹ ≈ step_size · I``."""

from __future__ import annotations

from dataclasses import dataclass

from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution
from ecgmeta.bilevel.trees import Tree, scale


@dataclass(frozen=True)
class Identity:
    """``value = step_size · v``: no Hessian-vector product at all.

    The hypergradient becomes a dot product of pre-training and fine-tuning gradients (METHOD: J = 0). Its residual is
    unknown without a product, and is reported so.

    Args:
        step_size: positive.
    """

    step_size: float = 1.0

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"Identity needs step_size > 0, got {self}")

    def __call__(self, matvec: Matvec, v: Tree) -> Solution:
        return Solution(scale(self.step_size, v), 0, None, None, Result.DONE)
