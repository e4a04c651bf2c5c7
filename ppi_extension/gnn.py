"""The encoder: Hu et al.'s edge-aware graph isomorphism network, and the head of its tasks.

Hu et al., *Strategies for Pre-training Graph Neural Networks*, ICLR 2020 (biology). A layer is

    hᵢ' = MLP( Σⱼ [hⱼ ‖ W aᵢⱼ + b] ),    j over the neighbours of i and i itself,

a the 9 attributes of an edge, and its self-loop an edge of which only attribute 7 is 1. PyG's ``GINEConv``, which adds the edge
to the node before a ReLU, is a different layer.

The sum over edges is linear, so it can be taken before W: ``Σ [hⱼ ‖ W a + b] = [Âh ‖ W(Σa) + deg·b]``, with Σa and deg the
same in all layers. The first layer of the MLP is linear too, so that it is one product of ``[Âh ‖ Σa ‖ deg]`` with ``[W₁ₓ ‖
W₁ₑW ‖ W₁ₑb]``: this ``"reduced"`` form never holds a row an edge, nor the embedded edges of a node. ``"plain"`` is the layer as
written above; both have the same parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained
from ppi_extension.data.pyg import Data, scatter
from ppi_extension.layers import RowLinear, RowNorm, linear

NODE_TYPES = 2  # Hu's embedding has a row for x = 0 and one for x = 1; every node of theirs is 1
SELF_LOOP = 7


@dataclass(frozen=True)
class Neighbours:
    """The edges of a batch, sorted by target: ``edges[starts[i]:starts[i + 1]]`` lead to node i.

    Attributes:
        edges: (E,) numbers of edges, by target.
        starts: (nodes,) where each node's begin.
        sources: (E,) where those edges come from.
    """

    edges: Tensor
    starts: Tensor
    sources: Tensor

    @classmethod
    def of(cls, sources: Tensor, targets: Tensor, nodes: int) -> Neighbours:
        edges = torch.argsort(targets, stable=True)
        counts = torch.bincount(targets, minlength=nodes)
        return cls(edges, counts.cumsum(0) - counts, sources[edges])

    def sum(self, rows: Tensor, values: Tensor) -> Tensor:
        """(nodes, features): the sum of ``values[rows]`` over each node's edges. Not differentiable."""
        # On a CPU this kernel takes 1/25 of the time of index_select and index_add, and holds no row an edge.
        return F.embedding_bag(rows, values, self.starts, mode="sum")


class Aggregate(torch.autograd.Function):
    """``A h``: the sum over a node's neighbours, with A's transpose for the way back.

    Linear, so every derivative of it is itself: reverse over reverse and forward over reverse are exact.
    """

    @staticmethod
    def forward(h: Tensor, into: Neighbours, out_of: Neighbours) -> Tensor:
        return into.sum(into.sources, h.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Neighbours, Neighbours], output: Tensor) -> None:
        _, ctx.into, ctx.out_of = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, None, None]:
        return Aggregate.apply(cotangent, ctx.out_of, ctx.into), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Any:
        return Aggregate.apply(tangent, ctx.into, ctx.out_of)


@dataclass(frozen=True)
class Edges:
    """``index`` (2, E) and ``attributes`` (E, channels) of a batch's edges, self-loops included."""

    index: Tensor
    attributes: Tensor

    @classmethod
    def of(cls, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Edges:
        nodes = torch.arange(len(x), device=x.device)
        own = edge_attr.new_zeros(len(x), edge_attr.shape[1])
        own[:, SELF_LOOP] = 1
        return cls(torch.cat([edge_index, nodes.expand(2, -1)], 1), torch.cat([edge_attr, own]))


@dataclass(frozen=True)
class EdgeSums:
    """What a batch's edges, self-loops included, come to at each node. All layers share it.

    Attributes:
        into, out_of: the edges by target and by source, without self-loops.
        types: (nodes, 2) neighbours of each type: Â of the one-hot x.
        edges: (nodes, channels + 1) ``[Σa ‖ deg]``.
    """

    into: Neighbours
    out_of: Neighbours
    types: Tensor
    edges: Tensor

    @classmethod
    def of(cls, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> EdgeSums:
        into = Neighbours.of(edge_index[0], edge_index[1], len(x))
        # Both directions as adjacent pairs, as Hu stores them: A is its own transpose.
        symmetric = torch.equal(edge_index[:, 0::2], edge_index.flip(0)[:, 1::2])
        out_of = into if symmetric else Neighbours.of(edge_index[1], edge_index[0], len(x))
        own = F.one_hot(x, NODE_TYPES).to(edge_attr)
        types = own + into.sum(into.sources, own)
        attributes = into.sum(into.edges, edge_attr)
        attributes[:, SELF_LOOP] += 1
        return cls(into, out_of, types, torch.cat([attributes, types.sum(1, keepdim=True)], 1))

    def neighbours(self, h: Tensor) -> Tensor:
        """``Âh``."""
        summed: Tensor = Aggregate.apply(h, self.into, self.out_of)
        return h + summed


class HuConv(nn.Module):
    """The parameters of one layer; see the module's docstring. The first layer looks its nodes up in ``node_embedding``."""

    linear_layer: type[nn.Linear] = nn.Linear
    norm_layer: type[nn.BatchNorm1d] = nn.BatchNorm1d

    def __init__(self, channels: int, width: int, norm: str, first: bool) -> None:
        super().__init__()
        self.edge_encoder = nn.Linear(channels, width)
        self.hidden = self.linear_layer(2 * width, 2 * width)
        self.norm = self.norm_layer(2 * width) if norm == "batch" else nn.Identity()
        self.out = self.linear_layer(2 * width, width)
        self.node_embedding = nn.Embedding(NODE_TYPES, width) if first else None
        if self.node_embedding is not None:
            nn.init.xavier_uniform_(self.node_embedding.weight)

    def finish(self, hidden: Tensor) -> Tensor:
        """(nodes, width): the MLP after its first linear layer."""
        return self.out(F.relu(self.norm(hidden)))


class PlainConv(HuConv):
    """The layer message by message, of torch's own layers."""

    def forward(self, h: Tensor, edges: Edges) -> Tensor:
        """(nodes, width) from the same; the first layer takes (nodes,) types."""
        if self.node_embedding is not None:
            h = self.node_embedding(h)
        message = torch.cat([h[edges.index[0]], self.edge_encoder(edges.attributes)], 1)
        return self.finish(self.hidden(scatter(message, edges.index[1], 0, len(h), "sum")))


class ReducedConv(HuConv):
    """The layer on sums over edges; the same function of the same parameters."""

    linear_layer, norm_layer = RowLinear, RowNorm

    def forward(self, h: Tensor, sums: EdgeSums) -> Tensor:
        """(nodes, width) from the same, which the first layer does not read."""
        edge = self.edge_encoder
        of_nodes, of_edges = self.hidden.weight.split(edge.out_features, 1)
        if self.node_embedding is None:
            summed = sums.neighbours(h)
        else:  # Âh = (Â one-hot x) · embedding: two columns
            summed, of_nodes = sums.types, of_nodes @ self.node_embedding.weight.T
        of_edges = of_edges @ torch.cat([edge.weight, edge.bias[:, None]], 1)
        inputs, weight = torch.cat([summed, sums.edges], 1), torch.cat([of_nodes, of_edges], 1)
        return self.finish(linear(inputs, weight, self.hidden.bias))


class EgoGNN(nn.Module, Pretrained):
    """Ego graphs to features: Hu's network, read out as the mean over the nodes beside the centre node.

    With the defaults it has 2,726,100 parameters.

    Args:
        channels: attributes of an edge; attribute 7 marks self-loops.
        width: of the nodes' features.
        layers: number of layers; each but the last ends with a ReLU.
        dropout: after every layer, in train mode.
        form: how a layer is computed; see the module's docstring.
        norm: ``"batch"``, or ``"none"`` (whose output for a graph does not depend on its batch).

    Shapes: a batch of B graphs with ``x`` (nodes, 1) of types, ``edge_index`` (2, E), ``edge_attr`` (E, channels), ``batch``
    (nodes,), ascending, and ``center_node_idx`` (B,), offset in the batch -> features (B, ``num_features``), 2·width.
    """

    def __init__(
        self,
        channels: int = 9,
        width: int = 300,
        layers: int = 5,
        dropout: float = 0.2,
        form: Literal["reduced", "plain"] = "reduced",
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        for field, value, fits, expected in (
            ("channels", channels, channels > SELF_LOOP, f"more than {SELF_LOOP}: attribute {SELF_LOOP} marks self-loops"),
            ("width", width, width > 0, "at least 1"),
            ("layers", layers, layers > 0, "at least 1"),
            ("dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1"),
            ("form", form, form in ("reduced", "plain"), "'reduced' or 'plain'"),
            ("norm", norm, norm in ("batch", "none"), "'batch' or 'none'"),
        ):  # fmt: skip
            if not fits:
                raise InputError("EgoGNN", field, value, expected)
        self.channels, self.dropout, self.form = channels, dropout, form
        conv = ReducedConv if form == "reduced" else PlainConv
        self.layers = nn.ModuleList(conv(channels, width, norm, first=n == 0) for n in range(layers))
        self.num_features = 2 * width

    def forward(self, data: Data) -> Tensor:
        """Features (B, 2·width).

        Raises:
            InputError: edges of another number of channels, or nodes that are in no graph of the batch.
        """
        h = self.nodes(data)
        center = data.center_node_idx
        # By index, never by pointers: those have no second derivative in torch_geometric.
        graph = data.batch if data.batch is not None else center.new_zeros(len(h))
        if len(graph) != len(h) or (len(graph) and int(graph.max()) >= len(center)):
            raise InputError(
                "batch", "batch", f"{len(graph)} nodes of {int(graph.max()) + 1} graphs",
                f"one entry for each of the {len(h)} nodes, of {len(center)} graphs (center_node_idx)",
            )  # fmt: skip
        return torch.cat([scatter(h, graph, 0, len(center), "mean"), h[center]], 1)

    def nodes(self, data: Data) -> Tensor:
        """Features (nodes, width) of every node."""
        if data.edge_attr is None or data.edge_attr.shape[1:] != (self.channels,):
            found = None if data.edge_attr is None else tuple(data.edge_attr.shape)
            raise InputError("batch", "edge_attr", found, f"(edges, {self.channels})")
        h = data.x.reshape(-1).long()
        kind = EdgeSums if self.form == "reduced" else Edges
        edges = kind.of(h, data.edge_index, data.edge_attr.to(next(self.parameters()).dtype))
        for n, layer in enumerate(self.layers):
            h = layer(h, edges)
            if n < len(self.layers) - 1:
                h = F.relu(h)
            if self.training and self.dropout > 0:
                h = dropout(h, self.dropout)
        return h


def dropout(h: Tensor, p: float) -> Tensor:
    """``h`` with a share p of its entries set to 0 and the others scaled by 1/(1 − p)."""
    # Not F.dropout: this takes 3/5 of its time, and drops the same entries in float64, so that a check there sees one function.
    kept = torch.rand(h.shape, device=h.device) >= p
    return h * (kept.to(h.dtype) / (1 - p))


class TaskHead(nn.Linear):
    """One logit a task: (B, features) -> (B, tasks)."""
