"""Data-parallel hypergradients: the one hook through which every mean over a batch goes.

Each rank holds an equal part of every batch, and the loss of the whole is the mean of the ranks' losses (batch normalisation
takes each rank's own statistics, as in data-parallel training without synchronised ones).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from ecgmeta.bilevel.trees import Tree, flatten, unflatten

Reduce = Callable[[Tree], Tree]
"""Mean over data-parallel ranks of a tree that has the same names and shapes on each. Everything that is a mean over a batch
goes through one, so that each rank, holding a part of the global batch, ends with the global batch's hypergradient."""


def local(tree: Tree) -> Tree:
    """The :data:`Reduce` of a single process: the tree itself."""
    return tree


def mean_over_ranks(group: dist.ProcessGroup | None = None) -> Reduce:
    """The :data:`Reduce` of a ``torch.distributed`` process group (the default one where None): one all-reduce a dtype.

    Raises:
        RuntimeError: when it is used without an initialised process group.
    """

    def reduce(tree: Tree) -> Tree:
        means: Tree = {}
        for dtype in dict.fromkeys(value.dtype for value in tree.values()):  # in one order on every rank
            part = {name: value for name, value in tree.items() if value.dtype == dtype}
            total = flatten(part)
            dist.all_reduce(total, group=group)
            means |= unflatten(total / dist.get_world_size(group), part)
        return {name: means[name] for name in tree}

    return reduce


def mean_of(loss: Tensor, reduce: Reduce) -> Tensor:
    """The global batch's loss from a rank's own; not finite on every rank where it is not on one, so that all stop together."""
    return reduce({"loss": loss.detach()})["loss"]
