"""Graphs and labels as a source reads them."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.species import Labels, SourceData, SpeciesGraph

GENES = ["a", "b", "c", "d"]


def test_edges_of_any_order_become_sorted_rows_of_both_directions() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 30, (200, 2))
    evidence = rng.integers(0, 2, (200, 3))
    graph = SpeciesGraph.from_edges("x", 1, [f"g{i}" for i in range(30)], pairs, evidence, ("p", "q", "r"))
    truth: nx.Graph = nx.Graph()
    for (i, j), seen in zip(pairs.tolist(), evidence, strict=True):
        if i != j:
            before = truth.edges[i, j]["seen"] if truth.has_edge(i, j) else 0
            truth.add_edge(i, j, seen=before | seen)
    assert graph.num_edges == truth.number_of_edges()
    for node in range(30):
        row = slice(graph.indptr[node], graph.indptr[node + 1])
        neighbours = sorted(truth[node]) if node in truth else []
        assert graph.indices[row].tolist() == neighbours
        assert graph.channels[row].tolist() == [truth.edges[node, j]["seen"].tolist() for j in neighbours]
    assert {tuple(pair) for pair in graph.pairs().tolist()} == {tuple(sorted(edge)) for edge in truth.edges}


def test_a_graph_may_have_no_channels_and_no_edges() -> None:
    graph = SpeciesGraph.from_edges("x", 1, GENES, [[0, 1], [1, 0], [2, 2]])
    assert graph.channels.shape == (2, 0)
    assert graph.degree.tolist() == [1, 1, 0, 0]
    assert SpeciesGraph.from_edges("x", 1, GENES, []).num_edges == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"genes": ["a", "b", "a", "d"]}, "genes: found a twice"),
        ({"pairs": [[0, 4]]}, "pairs: found positions 0 to 4"),
        ({"pairs": [[-1, 2]]}, "pairs: found positions -1 to 2"),
        ({"channels": [[1, 0]]}, "channels: found shape (1, 2)"),
        ({"channels": [[2]]}, "channels: found values other than 0 and 1"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict[str, Any], field: str) -> None:
    parts: dict[str, Any] = {"genes": GENES, "pairs": [[0, 1]], "channels": [[1]], "channel_names": ("p",)}
    with pytest.raises(InputError) as error:
        SpeciesGraph.from_edges("x", 1, **(parts | change))
    assert field in str(error.value)


def test_labels_and_sources_are_checked() -> None:
    def labels(values: Any, terms: tuple[str, ...] = ("t", "u"), graph: str | None = None) -> Labels:
        return Labels(np.array(["a", "b"]), terms, np.array(values, np.int8), graph=graph)

    good = labels([[1, 0], [-1, 1]])
    for broken, word in (
        (lambda: labels([[1, 0]]), "shape"),
        (lambda: labels([[1, 2], [0, 0]]), "others than 1, 0 and -1"),
        (lambda: labels([[1, 0], [0, 0]], ("t", "t")), "t twice"),
    ):
        with pytest.raises(InputError, match=word):
            broken()
    graph = SpeciesGraph.from_edges("x", 1, GENES, [[0, 1]])
    other = SpeciesGraph.from_edges("y", 1, GENES, [[0, 1]], [[1]], ("p",))
    assert SourceData([graph], [good]).channel_names == ()
    for graphs, all_labels, word in (
        ([graph, graph], [good], "x twice"),
        ([graph, other], [good], "channel names"),
        ([graph], [labels([[1, 0], [0, 0]], graph="z")], "a graph z"),
    ):
        with pytest.raises(InputError, match=word):
            SourceData(graphs, all_labels)
