"""Pre-training tasks that are known to be beside the point: planted among the real functions of real graphs, as a control.

Each gene has a hidden position, drawn at random, and an edge shows a planted kind of evidence the more likely the
higher its two genes stand. So what a network sees of the positions says nothing of what genes do. A distractor
imitates one function: the same genes are labelled, and as many of them are positive; but they are those that rank
highest in a random mix of the positions and their products. A network can learn distractors, and a small one that
is trained on many of them has little room for what functions have in common. What they are is saved with the store
(``notes.kinds``), so that learned weights can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.species import UNLABELLED, SpeciesGraph

FUNCTION, DISTRACTOR = "function", "distractor"
_STEEP = 2.0  # of the logistic curve from positions to evidence

Floats = NDArray[np.float64]


def distractor_terms(terms: Sequence[str], copies: int) -> tuple[str, ...]:
    """So many for each term, named after it; those of one draw stand together."""
    return tuple(f"{DISTRACTOR} {number + 1} of {term}" for number in range(copies) for term in terms)


def positions(graph: SpeciesGraph, channels: int, seed: int) -> Floats:
    """(n, channels) hidden positions of the genes of a graph, standard normal."""
    rng = numpy_generator(seed, "distractor positions", graph.name)
    return rng.normal(size=(graph.num_nodes, channels))


def with_evidence(graph: SpeciesGraph, where: Floats, seed: int) -> SpeciesGraph:
    """The graph with as many more kinds of evidence as positions have columns; both directions of an edge agree."""
    rng = numpy_generator(seed, "distractor evidence", graph.name)
    pairs = graph.pairs()
    height = where[pairs[:, 0]] + where[pairs[:, 1]]
    shown = (rng.random(height.shape) < 1 / (1 + np.exp(-_STEEP * height))).astype(np.uint8)
    count = where.shape[1]
    old = np.repeat(np.arange(graph.num_nodes), graph.degree) < graph.indices
    return SpeciesGraph.from_edges(
        graph.name,
        graph.species_id,
        graph.genes,
        pairs,
        np.concatenate([graph.channels[old], shown], axis=1),
        (*graph.channel_names, *(f"{DISTRACTOR}_{number + 1}" for number in range(count))),
    )


def distractors(
    where: Floats, labels: NDArray[np.int8], terms: Sequence[str], copies: int, seed: int
) -> NDArray[np.int8]:
    """(n, copies · T) labels of the distractors of `terms`, in the order of `distractor_terms`.

    A distractor asks the same in every graph of a source: its mix is drawn from the seed and its name.

    Args:
        where: (n, channels) positions.
        labels: (n, T) of the terms.
    """
    pairs = combinations_with_replacement(range(where.shape[1]), 2)
    known = np.concatenate([where, np.stack([where[:, a] * where[:, b] for a, b in pairs], axis=1)], axis=1)
    known = (known - known.mean(axis=0)) / known.std(axis=0)
    out = np.tile(labels, (1, copies))
    for column, name in enumerate(distractor_terms(terms, copies)):
        mix = numpy_generator(seed, "distractor", name).normal(size=known.shape[1])
        values = out[:, column]
        labelled = np.flatnonzero(values != UNLABELLED)
        positive = int((values == 1).sum())
        order = labelled[np.argsort(-(known[labelled] @ mix), kind="stable")]
        values[order] = 0
        values[order[:positive]] = 1
    return out
