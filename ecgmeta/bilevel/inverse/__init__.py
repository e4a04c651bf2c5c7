"""Inverse-Hessian-vector products: one algorithm a file, one call shape, ``solve(matvec, v) -> Solution``."""

from ecgmeta.bilevel.inverse.cg import ConjugateGradient
from ecgmeta.bilevel.inverse.dense import Dense
from ecgmeta.bilevel.inverse.diagonal import Diagonal, adam_preconditioner
from ecgmeta.bilevel.inverse.identity import Identity
from ecgmeta.bilevel.inverse.neumann import Neumann
from ecgmeta.bilevel.inverse.nystrom import Nystrom
from ecgmeta.bilevel.inverse.solution import Matvec, Result, Solution, Solver

__all__ = [
    "ConjugateGradient",
    "Dense",
    "Diagonal",
    "Identity",
    "Matvec",
    "Neumann",
    "Nystrom",
    "Result",
    "Solution",
    "Solver",
    "adam_preconditioner",
]
