"""Planted distractors: what they share with the functions they imitate, and what they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.builder import BuildSettings, build
from ppi_extension.data.distractors import distractor_terms, distractors, positions, with_evidence
from ppi_extension.data.species import Labels, SourceData
from tests.ppi_extension.data.ppi_graphs import random_graph

TERMS = ("a", "b", "c")


def _labels(n: int) -> NDArray[np.int8]:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([-1, 0, 1], np.int8), (n, 3), p=[0.2, 0.5, 0.3])


def test_a_distractor_has_the_counts_and_the_labelled_genes_of_its_function() -> None:
    labels, where = _labels(200), positions(random_graph("one", 200, 900), 3, seed=3)
    found = distractors(where, labels, TERMS, copies=2, seed=3)
    assert found.shape == (200, 6)
    for copy in np.split(found, 2, axis=1):
        assert np.array_equal(copy == -1, labels == -1)
        assert np.array_equal((copy == 1).sum(axis=0), (labels == 1).sum(axis=0))
    names = distractor_terms(TERMS, 2)
    assert names[4] == "distractor 2 of b"
    assert len(set(names)) == 6
    assert np.array_equal(found, distractors(where, labels, TERMS, copies=2, seed=3))
    assert not np.array_equal(found, distractors(where, labels, TERMS, copies=2, seed=4))
    assert not np.array_equal(found[:, :3], found[:, 3:])


def test_planted_evidence_shows_where_genes_stand_and_leaves_the_graph_as_it_was() -> None:
    graph = random_graph("one", 300, 6000, channels=4)
    where = positions(graph, 2, seed=1)
    found = with_evidence(graph, where, seed=1)
    assert found.channel_names == (*graph.channel_names, "distractor_1", "distractor_2")
    assert np.array_equal(found.indices, graph.indices)
    assert np.array_equal(found.channels[:, :4], graph.channels)
    gene = np.repeat(np.arange(300), graph.degree)
    height = where[gene] + where[graph.indices]
    for c in range(2):
        # 2·height is the log odds: far below it is hardly ever shown, far above nearly always.
        shown = found.channels[:, 4 + c]
        assert shown[height[:, c] < -1.5].mean() < 0.05
        assert shown[height[:, c] > 1.5].mean() > 0.95
        assert shown[np.abs(height[:, c]) < 0.1].mean() == pytest.approx(0.5, abs=0.1)
    # The same in both directions.
    edges = {(a, b): tuple(row) for a, b, row in zip(gene, graph.indices, found.channels, strict=True)}
    assert all(edges[b, a] == row for (a, b), row in edges.items())


def test_positions_say_nothing_of_functions() -> None:
    graph = random_graph("one", 4000, 9000)
    labels = (np.arange(4000)[:, None] % np.array([2, 3, 5]) == 0).astype(np.int8)
    where = positions(graph, 3, seed=0)
    planted = distractors(where, labels, TERMS, copies=3, seed=0)
    correlation = np.corrcoef(np.concatenate([where, planted, labels], axis=1).T)
    assert np.abs(correlation[-3:, :-3]).max() < 0.06  # of 4,000 independent pairs: SD 0.016
    assert np.abs(correlation[3:12, :3]).max() > 0.3


def test_distractors_stand_in_the_store_with_their_kinds(tmp_path: Path) -> None:
    graphs = [random_graph("one", 60, channels=4), random_graph("two", 50, channels=4, seed=1)]
    names = np.array([f"g{i}" for i in range(60)])
    source = SourceData(graphs, [Labels(names, (*TERMS, "later"), np.tile(_labels(60), (1, 2))[:, :4])])
    plain = BuildSettings(finetune_terms=("later",), min_positives=1, min_negatives=1)
    without = build(source, tmp_path / "without", plain, processes=1)
    store = build(source, tmp_path / "with", replace(plain, distractors=2), processes=1, notes={"x": 1})
    assert store.pretrain_terms == TERMS + distractor_terms(TERMS, 2)
    assert store.info["notes"]["x"] == 1
    kinds = store.info["notes"]["kinds"]
    assert [kinds[term] for term in store.pretrain_terms] == ["function"] * 3 + ["distractor"] * 6
    assert len(store.channel_names) == 7
    # All else is as it was.
    assert np.array_equal(store.genes, without.genes)
    assert np.array_equal(store[7].edge_index, without[7].edge_index)
    assert np.array_equal(store[7].edge_attr[:, :4], without[7].edge_attr[:, :4])
    assert np.array_equal(store.labels("pretrain")[:, :3], without.labels("pretrain"))
    assert np.array_equal(store.labels("finetune"), without.labels("finetune"))
    assert np.array_equal(store.labels("pretrain")[:, 3:6] == -1, without.labels("pretrain") == -1)
    assert "kinds" not in without.info["notes"]


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distractors"):
        BuildSettings(distractors=-1)
    with pytest.raises(InputError, match="distractor_channels"):
        BuildSettings(distractor_channels=0)
    source = SourceData([random_graph("one")], [Labels(np.array(["g1", "g2"]), TERMS, _labels(2))])
    settings = BuildSettings(distractors=1, finetune_terms=("a",), pretrain_terms=("b",))
    with pytest.raises(InputError, match="channels"):  # 7 and 3 more are too many
        build(source, tmp_path / "store", settings, processes=1)
    assert not (tmp_path / "store").exists()
