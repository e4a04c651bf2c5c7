"""Small batches of ego graphs in Hu's layout, for the tests of the model."""

from __future__ import annotations

import torch
from torch_geometric.data import Data


def ego_batch(
    seed: int,
    *,
    sizes: tuple[int, ...] = (5, 8, 3, 6),
    edges: int = 12,
    channels: int = 9,
    pretrain: int = 7,
    finetune: int = 3,
    unlabelled: float = 0.3,
    dtype: torch.dtype = torch.float64,
    symmetric: bool = True,
) -> Data:
    """A batch of ``len(sizes)`` random graphs; ``edges`` directed edges each, both directions as adjacent pairs."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    index, centers, batch, first = [], [], [], 0
    for number, size in enumerate(sizes):
        pairs = integers(size, 2, edges // 2)
        both = (
            torch.stack([pairs, pairs.flip(0)], 2).reshape(2, -1) if symmetric else integers(size, 2, edges)
        )
        index.append(both + first)
        centers.append(first + int(integers(size, 1)))
        batch += [number] * size
        first += size
    attributes = torch.zeros(len(sizes) * edges, channels, dtype=dtype)
    attributes[:, :7] = integers(2, len(attributes), 7).to(dtype)

    def labels(tasks: int) -> torch.Tensor:
        values = integers(2, len(sizes), tasks).to(torch.int8)
        values[torch.rand(values.shape, generator=generator) < unlabelled] = -1
        return values

    return Data(
        x=torch.ones(first, 1, dtype=dtype), edge_index=torch.cat(index, 1), edge_attr=attributes,
        batch=torch.tensor(batch), ptr=torch.tensor([0, *sizes]).cumsum(0), center_node_idx=torch.tensor(centers),
        pretrain_labels=labels(pretrain), finetune_labels=labels(finetune),
    )  # fmt: skip
