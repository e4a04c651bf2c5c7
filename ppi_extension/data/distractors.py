"""Pre-training tasks that are known to be beside the point: planted among the real functions of real graphs, as a control.

A distractor imitates one function: the same genes are labelled, and as many of them are positive. But which ones those are
depends on the graph alone: they are the genes that rank highest in a random mix of products of two evidence counts, that is, of
how many of a gene's partners are supported by each kind of evidence (log, made uncorrelated). So a network that sees ego graphs
can learn distractors, and a small one that is trained on many of them has little room left for what functions have in common.
What they are is saved with the store (``notes.kinds``), so that learned weights can be judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.species import UNLABELLED, SpeciesGraph

FUNCTION, DISTRACTOR = "function", "distractor"
_FLAT = 1e-8  # directions of less variance than this share of the largest say nothing

Floats = NDArray[np.float64]


def distractor_terms(terms: Sequence[str], copies: int) -> tuple[str, ...]:
    """So many for each term, named after it; those of one draw stand together."""
    return tuple(f"{DISTRACTOR} {number + 1} of {term}" for number in range(copies) for term in terms)


def distractors(
    graph: SpeciesGraph, labels: NDArray[np.int8], terms: Sequence[str], copies: int, seed: int
) -> NDArray[np.int8]:
    """(n, copies · T) labels of the distractors of `terms`, in the order of `distractor_terms`.

    A distractor asks the same in every graph of a source: its mix is drawn from the seed and its name.

    Args:
        labels: (n, T) of the terms.

    Raises:
        InputError: edges with fewer than two kinds of evidence.
    """
    known = _products(graph)
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


def _products(graph: SpeciesGraph) -> Floats:
    """(n, pairs of channels) products of uncorrelated log evidence counts, each of SD 1."""
    count = graph.channels.shape[1]
    if count < 2:
        expected = "at least two kinds of evidence to make distractors of"
        raise InputError(f"graph {graph.name}", "channels", count, expected)
    sums = np.zeros((graph.num_nodes, count))
    np.add.at(sums, np.repeat(np.arange(graph.num_nodes), graph.degree), graph.channels)
    logs = np.log1p(sums)
    logs -= logs.mean(axis=0)
    values, vectors = np.linalg.eigh(logs.T @ logs / len(logs))
    scale = np.where(values > _FLAT * values.max(), 1 / np.sqrt(np.maximum(values, 1e-300)), 0)
    white = (
        logs @ (vectors * scale) @ vectors.T
    )  # the symmetric root: it does not depend on the vectors' signs
    products = np.stack([white[:, a] * white[:, b] for a, b in combinations(range(count), 2)], axis=1)
    sd = products.std(axis=0)
    return np.asarray(products / np.where(sd > 0, sd, 1), np.float64)
