"""Hypergradients through pre-training and fine-tuning, for any PyTorch problem.

The engine depends on torch and the standard library only, and knows nothing of ECG, graphs, files or logging.
Start from :class:`Problem` (or :class:`ModuleProblem` for ordinary modules), then :func:`hypergradient` or
:func:`meta_train`.
"""

from ecgmeta.bilevel.batches import Batches, LoaderBatches, MicroBatches
from ecgmeta.bilevel.check import Check, check_hypergradient
from ecgmeta.bilevel.hypergradient import Hypergradient, hypergradient
from ecgmeta.bilevel.implicit_head import ImplicitHead
from ecgmeta.bilevel.inverse import (
    ConjugateGradient,
    Identity,
    Neumann,
    Nystrom,
    Result,
    Solution,
    Solver,
    adam_preconditioner,
)
from ecgmeta.bilevel.lookahead import Lookahead, lookahead
from ecgmeta.bilevel.loop import Report, Schedule, meta_train
from ecgmeta.bilevel.optimizers import SGD, Adam, Optimizer
from ecgmeta.bilevel.paper import paper
from ecgmeta.bilevel.probe import choose_products
from ecgmeta.bilevel.problem import FeatureModuleProblem, FeatureProblem, ModuleProblem, Problem
from ecgmeta.bilevel.products import (
    CentralDifference,
    DoubleBackward,
    ForwardOverReverse,
    LowPrecision,
)
from ecgmeta.bilevel.signal import Signal
from ecgmeta.bilevel.spectrum import Spectrum, lanczos
from ecgmeta.bilevel.state import MetaState
from ecgmeta.bilevel.unroll import FinetuneFactor, FinetuneGradient, Unroll

__all__ = [
    "SGD",
    "Adam",
    "Batches",
    "CentralDifference",
    "Check",
    "ConjugateGradient",
    "DoubleBackward",
    "FeatureModuleProblem",
    "FeatureProblem",
    "FinetuneFactor",
    "FinetuneGradient",
    "ForwardOverReverse",
    "Hypergradient",
    "Identity",
    "ImplicitHead",
    "LoaderBatches",
    "Lookahead",
    "LowPrecision",
    "MetaState",
    "MicroBatches",
    "ModuleProblem",
    "Neumann",
    "Nystrom",
    "Optimizer",
    "Problem",
    "Report",
    "Result",
    "Schedule",
    "Signal",
    "Solution",
    "Solver",
    "Spectrum",
    "Unroll",
    "adam_preconditioner",
    "check_hypergradient",
    "choose_products",
    "hypergradient",
    "lanczos",
    "lookahead",
    "meta_train",
    "paper",
]
