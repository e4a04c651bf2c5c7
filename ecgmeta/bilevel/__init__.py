"""Hypergradients through pre-training and fine-tuning, for any PyTorch problem.

The engine depends on torch and the standard library only, and knows nothing of ECG, graphs, files or logging.
Start from :class:`Problem` (or :class:`ModuleProblem` for ordinary modules), then :func:`hypergradient` or :func:`meta_train`.
"""

from ecgmeta.bilevel.hypergradient import Hypergradient, hypergradient
from ecgmeta.bilevel.inverse import Identity, Neumann, Result, Solution, Solver
from ecgmeta.bilevel.loop import Batches, LoaderBatches, MetaState, Report, Schedule, meta_train
from ecgmeta.bilevel.optimizers import SGD, Adam, Optimizer
from ecgmeta.bilevel.problem import FeatureModuleProblem, FeatureProblem, ModuleProblem, Problem
from ecgmeta.bilevel.unroll import FinetuneGradient, Unroll, finetune_gradient

__all__ = [
    "SGD",
    "Adam",
    "Batches",
    "FeatureModuleProblem",
    "FeatureProblem",
    "FinetuneGradient",
    "Hypergradient",
    "Identity",
    "LoaderBatches",
    "MetaState",
    "ModuleProblem",
    "Neumann",
    "Optimizer",
    "Problem",
    "Report",
    "Result",
    "Schedule",
    "Solution",
    "Solver",
    "Unroll",
    "finetune_gradient",
    "hypergradient",
    "meta_train",
]
