"""Planted distractors: what they share with the functions they imitate, and what they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.builder import BuildSettings, build
from ppi_extension.data.distractors import distractor_terms, distractors
from ppi_extension.data.species import Labels, SourceData
from tests.ppi_extension.data.ppi_graphs import random_graph

TERMS = ("a", "b", "c")


def _labels(n: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).choice(np.array([-1, 0, 1], np.int8), (n, 3), p=[0.2, 0.5, 0.3])
    return values.astype(np.int8)


def test_a_distractor_has_the_counts_and_the_labelled_genes_of_its_function() -> None:
    graph, labels = random_graph("one", 200, 900), _labels(200)
    found = distractors(graph, labels, TERMS, copies=2, seed=3)
    assert found.shape == (200, 6)
    for copy in np.split(found, 2, axis=1):
        assert np.array_equal(copy == -1, labels == -1)
        assert np.array_equal((copy == 1).sum(axis=0), (labels == 1).sum(axis=0))
    assert distractor_terms(TERMS, 2)[4] == "distractor 2 of b"
    names = distractor_terms(TERMS, 2)
    assert len(set(names)) == 6
    assert np.array_equal(found, distractors(graph, labels, TERMS, copies=2, seed=3))
    assert not np.array_equal(found, distractors(graph, labels, TERMS, copies=2, seed=4))
    assert not np.array_equal(found[:, :3], found[:, 3:])


def test_a_distractor_follows_from_the_evidence_around_a_gene_alone() -> None:
    graph, labels = random_graph("one", 300, 1200), _labels(300)
    found = distractors(graph, labels, TERMS, copies=1, seed=0)
    # Whatever the genes are called and whoever has the function: rank by evidence decides.
    again = distractors(replace(graph, name="two"), np.ascontiguousarray(labels), TERMS, copies=1, seed=0)
    assert np.array_equal(found, again)
    counts = np.zeros((300, 7))
    for gene in range(300):
        counts[gene] = graph.channels[graph.indptr[gene] : graph.indptr[gene + 1]].sum(axis=0)
    # Genes with the same counts stand on the same side of each threshold, but for the tie at it.
    _, group = np.unique(counts, axis=0, return_inverse=True)
    for column in range(3):
        mixed = 0
        for number in range(group.max() + 1):
            own = found[(group == number) & (found[:, column] >= 0), column]
            mixed += len(np.unique(own)) > 1
        assert mixed <= 1


def test_distractors_stand_in_the_store_with_their_kinds(tmp_path: Path) -> None:
    graphs = [random_graph("one", 60), random_graph("two", 50, seed=1)]
    names = np.array([f"g{i}" for i in range(60)])
    source = SourceData(graphs, [Labels(names, (*TERMS, "later"), np.tile(_labels(60), (1, 2))[:, :4])])
    plain = BuildSettings(finetune_terms=("later",), min_positives=1, min_negatives=1)
    without = build(source, tmp_path / "without", plain, processes=1)
    store = build(source, tmp_path / "with", replace(plain, distractors=2), processes=1, notes={"x": 1})
    assert store.pretrain_terms == TERMS + distractor_terms(TERMS, 2)
    assert store.info["notes"]["x"] == 1
    kinds = store.info["notes"]["kinds"]
    assert [kinds[term] for term in store.pretrain_terms] == ["function"] * 3 + ["distractor"] * 6
    # All else is as it was, but that a gene that has no label of its own has none of a distractor.
    assert np.array_equal(store.genes, without.genes)
    assert np.array_equal(store.labels("pretrain")[:, :3], without.labels("pretrain"))
    assert np.array_equal(store.labels("finetune"), without.labels("finetune"))
    assert np.array_equal(store.labels("pretrain")[:, 3:6] == -1, without.labels("pretrain") == -1)
    assert "kinds" not in without.info["notes"]


def test_bad_numbers_and_graphs_without_evidence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distractors"):
        BuildSettings(distractors=-1)
    graph = random_graph("one", channels=1)
    source = SourceData([graph], [Labels(graph.genes, TERMS, _labels(60))])
    with pytest.raises(InputError, match="two kinds of evidence"):
        build(source, tmp_path / "store", BuildSettings(distractors=1, finetune_terms=("a",)), processes=1)
    assert not (tmp_path / "store").exists()
