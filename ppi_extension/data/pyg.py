"""What is used of PyG, imported without the warnings that its import sets off in torch: no error of ours is to be two lines."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from torch_geometric.data import Data
    from torch_geometric.utils import scatter

__all__ = ["Data", "first_graphs", "scatter"]


def first_graphs(batch: Data, count: int) -> Data:
    """The first ``count`` graphs of a batch whose ``batch`` ascends, with all that a network or a loss reads of them."""
    if count == len(batch.center_node_idx):
        return batch
    nodes = int((batch.batch < count).sum())
    edges = batch.edge_index[0] < nodes
    labels = {k: v[:count] for k, v in batch.to_dict().items() if k.endswith("_labels")}
    return Data(
        x=batch.x[:nodes], edge_index=batch.edge_index[:, edges], edge_attr=batch.edge_attr[edges],
        batch=batch.batch[:nodes], center_node_idx=batch.center_node_idx[:count], **labels,
    )  # fmt: skip
