"""Float64 copies of a problem, its trees and its batches, so that a check measures the method and not float32's rounding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor

from ecgmeta.bilevel.features import PooledBatch
from ecgmeta.bilevel.problem import ModuleProblem, Problem
from ecgmeta.bilevel.trees import Tree, clone

P = TypeVar("P", bound=Problem)


@runtime_checkable
class DoubleProblem(Protocol):
    """A problem that holds floating tensors of its own and can turn them, in place, to float64 (an ``nn.Module`` can).

    :func:`doubled` calls it on a copy.
    """

    def double(self) -> Any: ...


def doubled(problem: P) -> P:
    """The problem in float64: a deep copy where it holds tensors (modules, or a method ``double``), or the problem itself.

    Buffers and frozen parameters of a :class:`~ecgmeta.bilevel.problem.ModuleProblem` follow; the caller's modules are not
    touched. Tensors that a module keeps as plain attributes do not: register them as buffers. Noise is another in float64:
    dropout draws other masks from the same seed.
    """
    if isinstance(problem, DoubleProblem):
        other = copy.deepcopy(problem)
        other.double()
        return cast(P, other)
    if isinstance(problem, ModuleProblem):
        # One deep copy keeps identities: the copy's θ, φ and ψ are its modules' parameters, which double() turns in place.
        other = copy.deepcopy(problem)
        other.pretrain.double()
        other.finetune.double()
        return other
    return problem


def double_tree(tree: Mapping[str, Tensor]) -> Tree:
    """A detached float64 copy."""
    return {name: double_batch(value) for name, value in clone(tree).items()}


def double_batch(batch: Any) -> Any:
    """The same nest of tuples, named tuples, lists, dicts and dataclasses with its floating tensors in float64.

    A batch that is rows of a pool stands alone afterwards: the pool would bring its own precision back in. Anything else stays
    as it is.
    """
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, PooledBatch) and batch.pool is not None:
        batch = batch.pool[batch.rows]
    if isinstance(batch, dict):
        return {key: double_batch(item) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return type(batch)(*map(double_batch, batch))
    if type(batch) in (tuple, list):
        return type(batch)(map(double_batch, batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        pooled = isinstance(batch, PooledBatch)
        own = {f.name: getattr(batch, f.name) for f in fields(batch) if f.init}
        return replace(
            batch, **{n: None if pooled and n == "pool" else double_batch(x) for n, x in own.items()}
        )
    return batch
