"""What a source reads: one graph a species or tissue, the functions of its genes, and how functions descend from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgmeta.runtime.errors import InputError

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class SpeciesGraph:
    """An undirected graph of n genes as compressed rows over both directions; neighbours ascend, none twice, none oneself.

    Attributes:
        name: of the species or tissue, unique in a source: "9606", "adipose_tissue".
        species_id: NCBI taxon; 9606 for human tissues.
        genes: (n,) what a gene is called wherever it stands: splits by gene and labels go by it.
        indptr: (n + 1,) node i has the neighbours ``indices[indptr[i]:indptr[i + 1]]``.
        indices: (m,) m is twice the number of edges.
        channels: (m, C) 1 where that kind of evidence supports the edge, the same in both directions; C may be 0.
        channel_names: C of them.
    """

    name: str
    species_id: int
    genes: NDArray[np.str_]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    channels: NDArray[np.uint8]
    channel_names: tuple[str, ...]

    @classmethod
    def from_edges(
        cls,
        name: str,
        species_id: int,
        genes: ArrayLike,
        pairs: ArrayLike,
        channels: ArrayLike | None = None,
        channel_names: Sequence[str] = (),
    ) -> SpeciesGraph:
        """From a list of edges in any order and direction.

        An edge that is listed more than once, in either direction, has every evidence that any of its lines has; self-loops
        are dropped.

        Args:
            genes: (n,) names, none twice.
            pairs: (E, 2) positions in ``genes``.
            channels: (E, C) of 0 and 1, or None for C = 0.
            channel_names: C names.

        Raises:
            InputError: shapes that do not fit, a position outside, a gene twice, a channel that is neither 0 nor 1.
        """
        names = np.asarray(genes, dtype=np.str_)
        edges = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        evidence = np.zeros((len(edges), 0), np.uint8) if channels is None else np.asarray(channels)
        _check(name, names, edges, evidence, channel_names)
        edges, evidence = _merged(edges, evidence.astype(np.uint8), len(names))
        source = np.concatenate([edges[:, 0], edges[:, 1]])
        target = np.concatenate([edges[:, 1], edges[:, 0]])
        order = np.lexsort((target, source))
        indptr = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.bincount(source, minlength=len(names)), out=indptr[1:])
        both = np.concatenate([evidence, evidence])[order]
        return cls(
            name, species_id, names, indptr, target[order].astype(np.int32), both, tuple(channel_names)
        )

    @property
    def num_nodes(self) -> int:
        return len(self.genes)

    @property
    def num_edges(self) -> int:
        """Undirected edges."""
        return len(self.indices) // 2

    @property
    def degree(self) -> NDArray[np.int64]:
        """(n,) neighbours of each node."""
        return np.diff(self.indptr)

    def pairs(self) -> NDArray[np.int64]:
        """(num_edges, 2) each edge once, the smaller position first."""
        source = np.repeat(np.arange(self.num_nodes), self.degree)
        once = source < self.indices
        return np.stack([source[once], self.indices[once]], axis=1).astype(np.int64)


def _check(
    name: str,
    genes: NDArray[np.str_],
    edges: NDArray[np.int64],
    channels: NDArray[np.generic],
    channel_names: Sequence[str],
) -> None:
    """Raise InputError where the parts of a graph do not fit each other."""
    where = f"graph {name}"
    if genes.ndim != 1:
        raise InputError(where, "genes", f"shape {genes.shape}", "one name a node")
    unique, counts = np.unique(genes, return_counts=True)
    if len(unique) < len(genes):
        raise InputError(where, "genes", f"{unique[counts > 1][0]} twice", "each gene once")
    if edges.size and not (edges.min() >= 0 and edges.max() < len(genes)):
        raise InputError(
            where, "pairs", f"positions {edges.min()} to {edges.max()}", f"0 to {len(genes) - 1}"
        )
    if channels.shape != (len(edges), len(channel_names)):
        raise InputError(
            where, "channels", f"shape {channels.shape}", f"({len(edges)}, {len(channel_names)}), as named"
        )
    if channels.size and not ((channels == 0) | (channels == 1)).all():
        raise InputError(where, "channels", "values other than 0 and 1", "0 and 1")


def _merged(
    edges: NDArray[np.int64], channels: NDArray[np.uint8], n: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Each edge once, the smaller node first, with the union of its evidence."""
    proper = edges[:, 0] != edges[:, 1]
    edges, channels = edges[proper], channels[proper]
    key = edges.min(axis=1) * n + edges.max(axis=1)
    order = np.argsort(key, kind="stable")
    unique, first = np.unique(key[order], return_index=True)
    if len(unique):
        channels = np.bitwise_or.reduceat(channels[order], first, axis=0)
    return np.stack(np.divmod(unique, max(n, 1)), axis=1), channels


@dataclass(frozen=True, eq=False)
class Labels:
    """Which functions genes have.

    Attributes:
        genes: (n,) each once; genes of a graph that are not among them are unlabelled.
        terms: T identifiers, such as "GO:0006915".
        values: (n, T) 1 positive, 0 negative, -1 unlabelled.
        names: what a term is called, where that is known.
        graph: the one graph in which these hold (a tissue's own labels); None: in every graph that has the gene.
    """

    genes: NDArray[np.str_]
    terms: tuple[str, ...]
    values: NDArray[np.int8]
    names: Mapping[str, str] = field(default_factory=dict)
    graph: str | None = None

    def __post_init__(self) -> None:
        where = f"labels of {self.graph or 'all graphs'}"
        if self.values.shape != (len(self.genes), len(self.terms)):
            wanted = f"({len(self.genes)}, {len(self.terms)}): genes, terms"
            raise InputError(where, "values", f"shape {self.values.shape}", wanted)
        if self.values.size and not (self.values.min() >= UNLABELLED and self.values.max() <= 1):
            raise InputError(
                where, "values", "others than 1, 0 and -1", "positive 1, negative 0, unlabelled -1"
            )
        for what, names in (("genes", self.genes), ("terms", np.array(self.terms, dtype=np.str_))):
            unique, counts = np.unique(names, return_counts=True)
            if len(unique) < len(names):
                raise InputError(where, what, f"{unique[counts > 1][0]} twice", "each once")


@dataclass(frozen=True, eq=False)
class SourceData:
    """All that a source has.

    Attributes:
        graphs: one a species or tissue.
        labels: later ones add genes and terms; where two speak of the same gene, term and graph the later one holds.
        hierarchy: term -> the terms directly above it (is_a, part_of); None where the source knows none.
        notes: what a user should know of how they were read, one sentence each.
    """

    graphs: list[SpeciesGraph]
    labels: list[Labels]
    hierarchy: Mapping[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [graph.name for graph in self.graphs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError("source", "graphs", f"{twice} twice", "each graph once")
        channels = {graph.channel_names for graph in self.graphs}
        if len(channels) > 1:
            raise InputError("source", "channel names", sorted(channels), "the same in every graph")
        for labels in self.labels:
            if labels.graph is not None and labels.graph not in names:
                raise InputError("source", "labels", f"for a graph {labels.graph}", f"one of {names[:5]}")

    @property
    def channel_names(self) -> tuple[str, ...]:
        return self.graphs[0].channel_names if self.graphs else ()
