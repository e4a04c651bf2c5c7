"""Features of the fine-tuning batches, computed once, and the way back from them to θ.

A head-only unroll and the implicit head touch θ only through the encoder's features, so the encoder runs once on every example
whatever K is, and v is one pass back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ecgmeta.bilevel.problem import FeatureProblem
from ecgmeta.bilevel.trees import Tree, axpy, gradient, leaves


@runtime_checkable
class PooledBatch(Protocol):
    """A batch that is some rows of a pool of examples, which other batches of the same unroll may share.

    Only for features that do not depend on an example's batch; a problem whose features do says so with an attribute
    ``per_example = False``, and its pools are left alone. ``pool[rows]`` is a batch; one whose ``pool`` is None stands alone.
    """

    @property
    def pool(self) -> Any: ...

    @property
    def rows(self) -> Tensor:
        """(examples,) integers."""
        ...


@dataclass(frozen=True)
class _Table:
    """Examples that are encoded once: a list of batches, and the rows of their joint features that each reader reads."""

    pieces: list[Any]
    readers: dict[int, Tensor | None]  # number of a fine-tuning batch -> its rows; None: every row

    def features(self, number: int, table: Tensor) -> Tensor:
        rows = self.readers[number]
        return table if rows is None else table[rows]

    def cotangent(self, cotangents: Tree, like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        for number, rows in self.readers.items():
            own = cotangents[str(number)]
            # Rows index a pool, which may lie in main memory while the features lie on a GPU.
            total = total + own if rows is None else total.index_add(0, rows.to(own.device), own)
        return total


def _tables(batches: Sequence[Any], chunk: int, pooling: bool) -> list[_Table]:
    alone: dict[int, _Table] = {}
    pools: dict[int, list[int]] = {}
    for k, batch in enumerate(batches):
        if pooling and isinstance(batch, PooledBatch) and batch.pool is not None:
            pools.setdefault(id(batch.pool), []).append(k)
        else:
            alone.setdefault(id(batch), _Table([batch], {})).readers[k] = None
    shared = []
    for numbers in pools.values():
        parts = [batches[k].rows for k in numbers]
        rows, place = torch.cat(parts).unique(return_inverse=True)
        places: Sequence[Tensor] = place.split([len(part) for part in parts])
        pool = batches[numbers[0]].pool
        shared.append(_Table([pool[r] for r in rows.split(chunk)], dict(zip(numbers, places, strict=True))))
    return [*alone.values(), *shared]


class Encoded:
    """The features of ``batches`` at θ.

    Args:
        recompute: run the encoder without a graph first and again, piece by piece, on the way back, so that the memory of
            activations does not grow with the number of examples. False keeps the graph and saves a forward pass.
        chunk: most examples of a pool that the encoder sees at a time.

    Attributes:
        features: tree from the number of a batch to its features (examples, features), cut from the graph.
    """

    def __init__(
        self,
        problem: FeatureProblem,
        theta: Tree,
        batches: Sequence[Any],
        *,
        recompute: bool = True,
        chunk: int = 128,
    ) -> None:
        self._problem, self._theta = problem, theta
        self._tables = _tables(batches, chunk, getattr(problem, "per_example", True))
        self._nodes = None if recompute else leaves(theta)
        self._outputs: list[list[Tensor]] = []
        self._values: list[Tensor] = []
        self.features: Tree = {}
        for table in self._tables:
            with torch.set_grad_enabled(not recompute):
                outputs = [problem.features(self._nodes or theta, piece) for piece in table.pieces]
            self._outputs.append(outputs)
            self._values.append(torch.cat([output.detach() for output in outputs]))
            for number in table.readers:
                self.features[str(number)] = table.features(number, self._values[-1])

    def pull_back(self, cotangents: Tree) -> Tree:
        """``Σ_k (∂features_k/∂θ)ᵀ cotangent_k``, a tree shaped like θ; once only where the graph was kept."""
        pieces: list[Any] = []
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        for table, kept, values in zip(self._tables, self._outputs, self._values, strict=True):
            pieces += table.pieces
            outputs += kept
            weights += table.cotangent(cotangents, values).split([len(output) for output in kept])
        if self._nodes is not None:  # one pass through all graphs, which torch lets go on the way
            return gradient(outputs, self._nodes, grad_outputs=weights)
        total: Tree = {}
        for piece, weight in zip(pieces, weights, strict=True):
            nodes = leaves(self._theta)
            output = self._problem.features(nodes, piece)
            step = gradient([output], nodes, grad_outputs=[weight])
            total = axpy(1.0, step, total) if total else step
        return total
