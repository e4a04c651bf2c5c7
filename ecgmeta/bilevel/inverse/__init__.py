"""Inverse-Hessian-vector products: one algorithm a file, one call shape, ``solve(matvec, v) -> Solution``."""

from ecgmeta.bilevel.inverse.identity import Identity
from ecgmeta.bilevel.inverse.neumann import Neumann
from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution, Solver

__all__ = ["Identity", "Matvec", "Neumann", "Result", "Solution", "Solver"]
