"""Ego graphs: a gene, a sample of its surroundings, and every edge among them.

The recipe of Hu et al. (*Strategies for Pre-training Graph Neural Networks*, ICLR 2020, biology): breadth-first from the centre
to a depth of 2, at most 10 sampled neighbours a node, induced edges. The draw of a centre depends on the seed, the graph's
name and the centre's gene alone, so it is the same in any order and in any process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.species import SpeciesGraph

MOST_CHANNELS = 8  # one bit each of a byte
MOST_NODES = 1 << 16  # positions are stored in 16 bits at most


@dataclass(frozen=True, eq=False)
class Egos:
    """G ego graphs, packed end to end: what is sampled, stored, and put into batches.

    An edge stands once, at the smaller of its two local positions; edges of a graph ascend.

    Attributes:
        nodes: (G,) nodes of each graph.
        centers: (G,) local position of the centre.
        higher: (sum of nodes,) how many neighbours of a higher position each node has.
        targets: (E,) local positions of those neighbours, node by node.
        channels: (E,) evidence, channel c at bit c.
    """

    nodes: NDArray[np.int64]
    centers: NDArray[np.int64]
    higher: NDArray[np.uint16]
    targets: NDArray[np.uint16]
    channels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def edges(self) -> NDArray[np.int64]:
        """(G,) undirected edges of each graph."""
        counted = np.concatenate([[0], np.cumsum(self.higher, dtype=np.int64)])
        return np.diff(counted[np.concatenate([[0], np.cumsum(self.nodes)])])

    @classmethod
    def pack(cls, n: int, center: int, pairs: NDArray[np.int64], channels: NDArray[np.uint8]) -> Egos:
        """One graph of n nodes from its edges.

        Args:
            pairs: (E, 2) local positions, each edge once, in any order and direction, no self-loops.
            channels: (E, C) of 0 and 1, C at most 8.
        """
        low, high = pairs.min(axis=1, initial=n), pairs.max(axis=1, initial=-1)
        order = np.argsort(low * n + high)
        return cls(
            np.array([n]),
            np.array([center]),
            np.bincount(low, minlength=n).astype(np.uint16),
            high[order].astype(np.uint16),
            bits(channels)[order],
        )

    @classmethod
    def join(cls, parts: Iterable[Egos]) -> Egos:
        """End to end, in the order given; at least one."""
        columns = zip(*((p.nodes, p.centers, p.higher, p.targets, p.channels) for p in parts), strict=True)
        nodes, centers, higher, targets, channels = (np.concatenate(column) for column in columns)
        return cls(nodes, centers, higher, targets, channels)


def bits(channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(E,) bytes of (E, C) channels, channel c at bit c."""
    if channels.shape[1] > MOST_CHANNELS:
        raise InputError("edges", "channels", channels.shape[1], f"at most {MOST_CHANNELS}")
    if not channels.shape[1]:
        return np.zeros(len(channels), np.uint8)
    return np.packbits(channels, axis=1, bitorder="little")[:, 0]


class EgoSampler:
    """Cuts ego graphs out of one graph.

    Args:
        graph: where from.
        depth: steps from the centre to the outermost nodes.
        fanout: most neighbours drawn of a node, without replacement; those already reached count.
        seed: of all draws.

    Raises:
        InputError: a depth or fan-out below 1, too many channels, an ego graph that could have more than 65,536 nodes.
    """

    def __init__(self, graph: SpeciesGraph, *, depth: int = 2, fanout: int = 10, seed: int = 0) -> None:
        if depth < 1 or fanout < 1:
            raise InputError("ego graphs", "depth, fanout", f"{depth}, {fanout}", "at least 1 each")
        if min(largest(depth, fanout), graph.num_nodes) > MOST_NODES:
            raise InputError(
                "ego graphs", "depth, fanout", f"{depth}, {fanout}", f"at most {MOST_NODES} nodes a graph"
            )
        self.graph, self.depth, self.fanout, self.seed = graph, depth, fanout, seed
        self._bits = bits(graph.channels)
        self._place = np.full(graph.num_nodes, -1)  # local position of a node while its graph is cut out

    def __call__(self, center: int) -> Egos:
        """The ego graph of one node of the graph, its nodes in ascending order."""
        nodes = self.nodes(center)
        self._place[nodes] = np.arange(len(nodes))
        try:
            return self._induced(nodes, int(self._place[center]))
        finally:
            self._place[nodes] = -1

    def nodes(self, center: int) -> NDArray[np.int64]:
        """Positions in the graph of the ego graph's nodes, ascending."""
        rng = numpy_generator(self.seed, "ego", self.graph.name, str(self.graph.genes[center]))
        indptr, indices = self.graph.indptr, self.graph.indices
        reached, frontier = {center}, [center]
        for _ in range(self.depth):
            draws = iter(rng.random(len(frontier) * self.fanout).tolist())
            found: dict[int, None] = {}  # a set would not keep the order in which nodes are reached
            for node in frontier:
                start, end = indptr[node : node + 2].tolist()
                if end - start > self.fanout:
                    places = [start + place for place in _distinct(end - start, self.fanout, draws)]
                    found |= dict.fromkeys(indices[places].tolist())
                else:
                    found |= dict.fromkeys(indices[start:end].tolist())
            frontier = [node for node in found if node not in reached]
            reached.update(frontier)
        return np.sort(np.fromiter(reached, np.int64, len(reached)))

    def _induced(self, nodes: NDArray[np.int64], center: int) -> Egos:
        """All edges among the nodes, which have their local positions in ``_place``."""
        graph = self.graph
        starts, ends = graph.indptr[nodes], graph.indptr[nodes + 1]
        places = ranges(starts, ends - starts)
        source = np.repeat(np.arange(len(nodes)), ends - starts)
        target = self._place[graph.indices[places]]
        inside = target > source  # each edge once; a node outside has position -1
        source = source[inside]
        return Egos(
            np.array([len(nodes)]),
            np.array([center]),
            np.bincount(source, minlength=len(nodes)).astype(np.uint16),
            target[inside].astype(np.uint16),
            self._bits[places[inside]],
        )


def _distinct(n: int, k: int, draws: Iterator[float]) -> list[int]:
    """k different ones of the numbers below n (Floyd's algorithm: k draws, whatever n is)."""
    chosen: list[int] = []
    for upper in range(n - k, n):
        place = int(next(draws) * (upper + 1))
        chosen.append(upper if place in chosen else place)
    return chosen


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``start, start + 1, ..., start + length - 1`` of every pair, end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def largest(depth: int, fanout: int) -> int:
    """Most nodes of an ego graph: 1 + fanout + ... + fanout^depth; 111 for Hu's 2 and 10."""
    return sum(fanout**step for step in range(depth + 1))
