"""Ego graphs: reached breadth-first, capped, induced, and the same whoever draws them."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.ego import Egos, EgoSampler, bits, largest, ranges
from ppi_extension.data.species import SpeciesGraph
from tests.ppi_extension.data.ppi_graphs import random_graph


def _pairs(egos: Egos) -> set[tuple[int, int]]:
    """Edges of a single packed graph, by local position."""
    low = np.repeat(np.arange(int(egos.nodes[0])), egos.higher)
    return set(zip(low.tolist(), egos.targets.tolist(), strict=True))


def _networkx(graph: SpeciesGraph) -> nx.Graph:
    whole: nx.Graph = nx.Graph(graph.pairs().tolist())
    whole.add_nodes_from(range(graph.num_nodes))
    return whole


def test_without_a_cap_an_ego_graph_is_the_one_of_networkx() -> None:
    graph = random_graph("x", n=80, edges=150)
    whole, sampler = _networkx(graph), EgoSampler(graph, depth=2, fanout=80)
    for center in range(graph.num_nodes):
        nodes, egos = sampler.nodes(center), sampler(center)
        truth = nx.ego_graph(whole, center, radius=2)
        assert nodes.tolist() == sorted(truth)
        assert nodes[egos.centers[0]] == center
        assert {(nodes[i], nodes[j]) for i, j in _pairs(egos)} == {
            tuple(sorted(edge)) for edge in truth.edges
        }


def test_with_a_cap_nodes_are_near_few_and_all_edges_among_them_are_there() -> None:
    graph = random_graph("x", n=200, edges=3000)
    whole, sampler = _networkx(graph), EgoSampler(graph, depth=2, fanout=5)
    sizes = []
    for center in range(0, 200, 7):
        nodes, egos = sampler.nodes(center), sampler(center)
        near = nx.ego_graph(whole, center, radius=2)
        assert set(nodes.tolist()) <= set(near)
        assert sum(whole.has_edge(center, node) for node in nodes.tolist()) >= 5
        assert len(nodes) <= largest(2, 5) == 31
        truth = whole.subgraph(nodes.tolist()).edges
        assert {(nodes[i], nodes[j]) for i, j in _pairs(egos)} == {tuple(sorted(edge)) for edge in truth}
        row = {(i, j): k for k, (i, j) in enumerate(graph.pairs().tolist())}
        evidence = graph.channels[np.repeat(np.arange(200), graph.degree) < graph.indices]
        low = np.repeat(np.arange(len(nodes)), egos.higher)
        chosen = [row[int(nodes[i]), int(nodes[j])] for i, j in zip(low, egos.targets, strict=True)]
        assert egos.channels.tolist() == bits(evidence[chosen]).tolist()
        sizes.append(len(nodes))
    assert np.mean(sizes) > 20  # the cap is met, not undercut


def test_every_neighbour_is_drawn_equally_often() -> None:
    leaves = 12
    star = SpeciesGraph.from_edges(
        "star", 1, [f"g{i}" for i in range(leaves + 1)], [(0, i) for i in range(1, 13)]
    )
    count = np.zeros(leaves + 1)
    draws = 3000
    for seed in range(draws):
        nodes = EgoSampler(star, depth=1, fanout=4, seed=seed).nodes(0)
        assert len(nodes) == 5  # without replacement
        count[nodes] += 1
    expected, spread = draws * 4 / leaves, np.sqrt(draws * 4 / leaves * (1 - 4 / leaves))
    assert np.abs(count[1:] - expected).max() < 4 * spread


def test_a_draw_depends_on_seed_graph_and_gene_alone() -> None:
    graph = random_graph("x", n=200, edges=3000)
    forward, backward = EgoSampler(graph), EgoSampler(graph)
    first = [forward.nodes(center) for center in range(50)]
    again = [backward.nodes(center) for center in reversed(range(50))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other_seed, other_name = EgoSampler(graph, seed=1), EgoSampler(random_graph("y", n=200, edges=3000))
    assert any(not np.array_equal(first[i], other_seed.nodes(i)) for i in range(50))
    assert any(not np.array_equal(first[i], other_name.nodes(i)) for i in range(50))


def test_a_node_without_neighbours_is_an_ego_graph_of_one() -> None:
    egos = EgoSampler(SpeciesGraph.from_edges("x", 1, ["a", "b"], []))(1)
    assert (egos.nodes.tolist(), egos.centers.tolist(), egos.targets.tolist()) == ([1], [0], [])


def test_graphs_are_packed_from_edges_in_any_order() -> None:
    graph = random_graph("x", n=20, edges=60)
    whole = EgoSampler(graph, fanout=20, depth=4)(0)
    rng = np.random.default_rng(0)
    pairs, nodes = graph.pairs(), EgoSampler(graph, fanout=20, depth=4).nodes(0)
    assert len(nodes) == 20
    evidence = graph.channels[np.repeat(np.arange(20), graph.degree) < graph.indices]
    order = rng.permutation(len(pairs))
    flipped = np.where(rng.random(len(pairs))[:, None] < 0.5, pairs, pairs[:, ::-1])
    packed = Egos.pack(20, 0, flipped[order], evidence[order])
    for name in ("nodes", "centers", "higher", "targets", "channels"):
        assert np.array_equal(getattr(packed, name), getattr(whole, name)), name


def test_ranges_are_joined_end_to_end() -> None:
    starts, lengths = np.array([5, 0, 9]), np.array([3, 0, 2])
    assert ranges(starts, lengths).tolist() == [5, 6, 7, 9, 10]
    assert ranges(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize(("depth", "fanout"), [(0, 10), (2, 0), (3, 100)])
def test_impossible_settings_are_refused(depth: int, fanout: int) -> None:
    with pytest.raises(InputError, match="depth, fanout"):
        EgoSampler(random_graph("x", n=70_000), depth=depth, fanout=fanout)


def test_ohmnet_ego_graphs_are_connected_and_induced(real_data: Path) -> None:
    arrays = np.load(real_data / "ppi" / "ppi_ohmnet24.npz", allow_pickle=False)
    tissue = str(arrays["tissue"][0])
    genes = arrays["genes"].astype(np.str_)[arrays[f"nodes/{tissue}"]]
    graph = SpeciesGraph.from_edges(tissue, 9606, genes, arrays[f"edges/{tissue}"].T)
    whole, sampler = _networkx(graph), EgoSampler(graph)
    for center in range(0, graph.num_nodes, 50):
        nodes, egos = sampler.nodes(center).tolist(), sampler(center)
        part = whole.subgraph(nodes)
        assert nx.is_connected(part)
        assert len(egos.targets) == part.number_of_edges()
        assert len(nodes) <= 111
