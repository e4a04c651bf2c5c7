"""From sources to stores: tasks, labels, centres, and the same store by any number of processes."""

from __future__ import annotations

import filecmp
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.builder import BuildSettings, build, choose_tasks, joined
from ppi_extension.data.ego import EgoSampler
from ppi_extension.data.species import Labels, SourceData
from tests.ppi_extension.data.ppi_graphs import random_graph

# t0 is above t1, t1 above t2; t3 .. t5 stand alone
HIERARCHY = {"t1": ("t0",), "t2": ("t1",)}
TERMS = tuple(f"t{i}" for i in range(6))


def _source(genes: int = 60, seed: int = 0) -> SourceData:
    rng = np.random.default_rng(seed)
    graphs = [random_graph("one", genes), random_graph("two", genes - 10, seed=1)]
    values = rng.integers(0, 2, (genes - 5, 6)).astype(np.int8)  # the last five genes have no label
    names = np.array([f"g{i}" for i in range(genes - 5)])
    return SourceData(graphs, [Labels(names, TERMS, values, {"t3": "three"})], HIERARCHY)


def test_every_labelled_gene_gets_its_ego_graph_and_labels(tmp_path: Path) -> None:
    source = _source()
    store = build(source, tmp_path / "store", BuildSettings(finetune_terms=("t1",), fanout=4))
    assert store.genes.tolist() == [f"g{i}" for i in range(55)] + [f"g{i}" for i in range(50)]
    assert store.graph.tolist() == ["one"] * 55 + ["two"] * 50
    # t2 descends from the fine-tuning term; t0 is above it and may stay
    assert store.pretrain_terms == ("t0", "t3", "t4", "t5")
    assert store.finetune_terms == ("t1",)
    assert store.info["settings"]["dropped_terms"] == ["t2"]
    assert store.info["settings"]["finetune_terms"] == ["t1"]
    assert store.term_names == {"t3": "three"}
    values = source.labels[0].values
    assert np.array_equal(store.labels("pretrain")[:55], values[:, [0, 3, 4, 5]])
    assert np.array_equal(store.labels("finetune")[55:], values[:50, [1]])
    ego = EgoSampler(source.graphs[1], fanout=4)(7)
    assert store.nodes[62] == ego.nodes[0]
    assert store[62].edge_index.shape[1] == 2 * len(ego.targets)


def test_the_store_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    source = _source(genes=1300)
    calls: list[tuple[int, int]] = []
    for processes in (1, 3):
        build(
            source,
            tmp_path / str(processes),
            processes=processes,
            report=lambda done, total, text, left=None: calls.append((done, total)),
        )
    names = [path.name for path in (tmp_path / "1").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "1", tmp_path / "3", names, shallow=False) == (names, [], [])
    assert calls[-1] == (6, 6)
    # Where another thread lives nothing is forked, and all is as it was.
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        build(source, tmp_path / "thread", processes=3)
    finally:
        stop.set()
        thread.join()
    assert filecmp.cmpfiles(tmp_path / "1", tmp_path / "thread", names, shallow=False) == (names, [], [])


def test_fine_tuning_terms_are_drawn_by_seed() -> None:
    source = SourceData(_source().graphs, _source().labels)
    half = BuildSettings(finetune_fraction=0.5)
    tasks = choose_tasks(source, half)
    assert len(tasks.finetune) == len(tasks.pretrain) == 3
    assert sorted(tasks.finetune + tasks.pretrain) == list(TERMS)
    assert tasks.dropped == ()
    assert choose_tasks(source, half) == tasks
    assert len({choose_tasks(source, replace(half, seed=seed)).finetune for seed in range(8)}) > 1
    assert choose_tasks(source, BuildSettings(finetune_fraction=0)).pretrain == TERMS


def test_terms_without_enough_examples_are_left_out_unless_given() -> None:
    source = _source()
    rare = np.full((60, 2), 0, np.int8)
    rare[:3, 0] = 1  # three genes in each of two graphs
    rare[:, 1] = 1
    extra = Labels(np.array([f"g{i}" for i in range(60)]), ("rare", "always"), rare)
    source = SourceData(source.graphs, [*source.labels, extra])
    settings = BuildSettings(finetune_terms=("t3",), min_positives=7)
    assert choose_tasks(source, settings).pretrain == ("t0", "t1", "t2", "t4", "t5")
    assert "rare" in choose_tasks(source, replace(settings, min_positives=6)).pretrain
    given = replace(settings, pretrain_terms=("rare", "t0"))
    assert choose_tasks(source, given).pretrain == ("rare", "t0")


def test_labels_of_one_graph_hold_there_only_and_later_ones_hold() -> None:
    graphs = _source().graphs
    first = Labels(np.array(["g1", "g2", "g99"]), ("t",), np.array([[1], [0], [1]], np.int8))
    second = Labels(np.array(["g2", "g1"]), ("t",), np.array([[1], [-1]], np.int8), graph="two")
    source = SourceData(graphs, [first, second])
    one, two = (joined(source, graph, ("t", "u")) for graph in graphs)
    assert one[:4].tolist() == [[-1, -1], [1, -1], [0, -1], [-1, -1]]
    assert two[:4].tolist() == [[-1, -1], [1, -1], [1, -1], [-1, -1]]


def test_a_limit_draws_centres_of_each_graph(tmp_path: Path) -> None:
    source = _source()
    store = build(source, tmp_path / "a", BuildSettings(limit=20))
    assert store.graph.tolist() == ["one"] * 20 + ["two"] * 20
    assert len(set(store.genes[:20])) == 20
    assert not np.array_equal(store.genes[:20], store.genes[20:])
    whole = build(source, tmp_path / "b", BuildSettings())
    place = {(graph, gene): i for i, (graph, gene) in enumerate(zip(whole.graph, whole.genes, strict=True))}
    for row, pair in enumerate(zip(store.graph, store.genes, strict=True)):
        assert store[row].edge_index.tolist() == whole[place[pair]].edge_index.tolist()


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    source = _source()
    with pytest.raises(InputError, match="found none of 6 to use"):
        build(source, tmp_path / "store", BuildSettings(min_positives=100))
    with pytest.raises(InputError, match="nowhere, which no labels have"):
        build(source, tmp_path / "store", BuildSettings(pretrain_terms=("t1", "nowhere")))
    strangers = Labels(np.array(["h1"]), ("t",), np.array([[1]], np.int8))
    with pytest.raises(InputError, match="genes: found none with a label"):
        build(
            SourceData(source.graphs, [strangers]), tmp_path / "store", BuildSettings(pretrain_terms=("t",))
        )
    for settings in ({"finetune_fraction": 1.0}, {"limit": 0}, {"depth": 0}, {"fanout": 0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            BuildSettings(**settings)
    assert not list(tmp_path.iterdir())
