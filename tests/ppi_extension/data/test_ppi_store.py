"""The store: what went in comes out, as PyG would batch it, and a broken one says so."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from ecgmeta.runtime.errors import InputError
from ppi_extension.data import folder
from ppi_extension.data.ego import Egos, EgoSampler
from ppi_extension.data.store import EgoStore
from ppi_extension.data.writer import EgoWriter
from tests.ppi_extension.data.ppi_graphs import CHANNELS, egos_of, random_graph, small_store

ROWS = np.array([70, 3, 109, 3, 0])


def test_one_graph_has_hus_schema(tmp_path: Path) -> None:
    store, labels = small_store(tmp_path / "store")
    graph = random_graph("two", 50, 400, seed=1)
    nodes, data = EgoSampler(graph, fanout=4).nodes(7), store[67]
    assert data.x.tolist() == [[1.0]] * len(nodes)
    assert nodes[int(data.center_node_idx)] == 7
    assert (int(data.species_id), store.genes[67], store.graph[67]) == (4932, "g7", "two")
    assert torch.equal(data.edge_index[:, 0::2], data.edge_index[:, 1::2].flip(0))
    assert data.edge_attr.shape == (data.edge_index.shape[1], 9)
    assert data.edge_attr[:, 7:].abs().sum() == 0
    for (i, j), row in zip(data.edge_index.T.tolist(), data.edge_attr, strict=True):
        start, end = graph.indptr[nodes[i] : nodes[i] + 2] if nodes[i] < 49 else (graph.indptr[49], None)
        place = start + int(np.flatnonzero(graph.indices[start:end] == nodes[j])[0])
        assert row[:7].tolist() == graph.channels[place].tolist()
    assert data.go_target_pretrain.tolist() == labels["pretrain"][67].tolist()
    assert data.go_target_downstream.tolist() == labels["finetune"][67].tolist()
    for name in ("edge_index", "center_node_idx", "species_id", "go_target_pretrain", "go_target_downstream"):
        assert data[name].dtype == torch.int64, name


@pytest.mark.parametrize("values", [(0, 1), (-1, 0, 1)])
def test_a_batch_is_what_pyg_makes_of_the_graphs(tmp_path: Path, values: tuple[int, ...]) -> None:
    store, labels = small_store(tmp_path / "store", values=values)
    assert (store.folder / "pretrain_labelled.npy").exists() == (-1 in values)
    ours = store.collate(ROWS)
    truth = Batch.from_data_list([store[row] for row in ROWS])
    for name in ("x", "edge_index", "edge_attr", "center_node_idx", "species_id", "batch", "ptr"):
        assert torch.equal(ours[name], truth[name]), name
        assert ours[name].dtype == truth[name].dtype, name
    assert ours.graphs == truth.num_graphs == 5
    assert ours.num_nodes == truth.num_nodes
    for which, target in (("pretrain", "go_target_pretrain"), ("finetune", "go_target_downstream")):
        assert ours[f"{which}_labels"].dtype == torch.int8
        assert ours[f"{which}_labels"].tolist() == labels[which][ROWS].tolist()
        assert truth[target].view(5, -1).tolist() == labels[which][ROWS].tolist()
    # The centre is the centre: its own graph, its own place.
    assert torch.equal(ours.batch[ours.center_node_idx], torch.arange(5))
    assert (ours.center_node_idx - ours.ptr[:-1]).tolist() == [int(store[r].center_node_idx) for r in ROWS]


def test_pygs_loader_offsets_the_centre_too(tmp_path: Path) -> None:
    store, _ = small_store(tmp_path / "store")
    loader = DataLoader([store[row] for row in range(6)], batch_size=6)
    (batch,) = loader
    assert torch.equal(batch.center_node_idx, store.collate(np.arange(6)).center_node_idx)


def test_the_legacy_centre_is_the_released_codes(tmp_path: Path) -> None:
    store, _ = small_store(tmp_path / "store")
    legacy = store.collate(ROWS, legacy_center_index=True)
    assert legacy.center_node_idx.tolist() == [int(store[row].center_node_idx) for row in ROWS]
    assert not torch.equal(legacy.batch[legacy.center_node_idx], torch.arange(5))


def test_labels_and_their_counts(tmp_path: Path) -> None:
    store, labels = small_store(tmp_path / "store", values=(-1, 0, 1))
    for which in ("pretrain", "finetune"):
        assert np.array_equal(store.labels(which), labels[which])
        assert np.array_equal(store.labels(which, ROWS), labels[which][ROWS])
        positive, negative = store.counts(which, ROWS)
        assert positive.tolist() == (labels[which][ROWS] == 1).sum(0).tolist()
        assert negative.tolist() == (labels[which][ROWS] == 0).sum(0).tolist()
    data = store.collate(ROWS, labels=("finetune",))
    assert "pretrain_labels" not in data
    assert "finetune_labels" in data


@pytest.mark.parametrize(("channels", "width"), [(0, 9), (3, 9), (7, 9), (8, 10)])
def test_evidence_keeps_its_columns(tmp_path: Path, channels: int, width: int) -> None:
    store, _ = small_store(tmp_path / "store", channels=channels)
    attributes = store.collate(np.arange(110)).edge_attr
    assert attributes.shape[1] == width
    on = attributes.bool().any(0).tolist()
    evidence = [True] + [False] * 6 if not channels else [c < channels for c in range(7)]
    assert on == [*evidence, False, False, True][:width]  # an eighth channel comes after self-loop and mask


def test_names_settings_and_sizes_are_kept(tmp_path: Path) -> None:
    store, _ = small_store(tmp_path / "store")
    assert store.term_names == {"p1": "a name"}
    assert store.info["settings"] == {"seed": 1}
    assert len(store) == len(store.genes) == 110
    assert store.species.tolist() == [9606] * 60 + [4932] * 50
    egos = Egos.join([egos_of(random_graph("one")), egos_of(random_graph("two", 50, 400, seed=1))])
    assert np.array_equal(store.nodes, egos.nodes)
    assert np.array_equal(store.edges, egos.edges)
    assert len(list(store)) == 110


def test_a_pickled_store_opens_its_folder_again(tmp_path: Path) -> None:
    store, _ = small_store(tmp_path / "store")
    assert len(pickle.dumps(store)) < 1000
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.collate(ROWS).edge_index, store.collate(ROWS).edge_index)


def test_graphs_of_more_than_256_nodes(tmp_path: Path) -> None:
    graph = random_graph("big", 400, 8000)
    egos = Egos.join(map(EgoSampler(graph, fanout=400), range(3)))
    assert egos.nodes.max() > 256
    none = np.zeros((3, 0), np.int8)

    def write(name: str, most_nodes: int) -> EgoStore:
        with EgoWriter(
            tmp_path / name,
            graphs={"big": 1},
            channel_names=CHANNELS,
            pretrain_terms=(),
            finetune_terms=(),
            most_nodes=most_nodes,
        ) as writer:
            writer.add(egos, genes=graph.genes[:3], graph="big", pretrain=none, finetune=none)
            return writer.finish()

    data = write("wide", 400)[1]
    nodes = EgoSampler(graph, fanout=400).nodes(1)
    place = {tuple(pair) for pair in graph.pairs().tolist()}
    found = {(int(nodes[i]), int(nodes[j])) for i, j in data.edge_index[:, ::2].T.tolist()}
    assert found == {(i, j) for i, j in place if {i, j} <= set(nodes.tolist())}
    with pytest.raises(InputError, match="at most 256"):
        write("narrow", 256)
    assert not (tmp_path / "narrow").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]  # nothing was left aside


def _flip_a_byte(store: Path) -> None:
    content = bytearray((store / "targets.npy").read_bytes())
    content[-1] ^= 1
    (store / "targets.npy").write_bytes(content)


def _other_version(store: Path) -> None:
    info = json.loads((store / "info.json").read_text())
    (store / "info.json").write_text(json.dumps(info | {"format": 0}))


def _forget_an_array(store: Path) -> None:
    info = json.loads((store / "info.json").read_text())
    del info["arrays"]["higher"]
    (store / "info.json").write_text(json.dumps(info))


def _info(**change: Any) -> Callable[[Path], None]:
    def breaking(store: Path) -> None:
        info = json.loads((store / "info.json").read_text())
        (store / "info.json").write_text(json.dumps(info | change))

    return breaking


def _forget_a_size(store: Path) -> None:
    info = json.loads((store / "info.json").read_text())
    del info["arrays"]["higher"]["bytes"]
    (store / "info.json").write_text(json.dumps(info))


def _forget_tasks(store: Path) -> None:
    info = json.loads((store / "info.json").read_text())
    _info(pretrain_terms=info["pretrain_terms"][:-1])(store)


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (_forget_a_size, "info.json: arrays: higher: found {'crc32'"),
        (_forget_tasks, "info.json: pretrain_terms: found"),
        (_info(pretrain_terms=[f"t{n}" for n in range(99)]), "info.json: pretrain_terms: found 99"),
        (_info(graphs=["one"]), "info.json: graphs: found list"),
        (_info(graphs={"one": 1}), "info.json: graphs: found 1, expected 2"),
        (_info(term_names=None), "info.json: term_names: found NoneType"),
        (_forget_an_array, "info.json: content: found no 'higher'"),
        (_flip_a_byte, "targets.npy: checksum"),
        (_other_version, "info.json: format: found 0, expected 1"),
        (lambda store: (store / "genes.npy").unlink(), "genes.npy: file: found no such file"),
        (lambda store: os.truncate(store / "nodes.npy", 150), "nodes.npy: size: found 150"),
        (lambda store: (store / "info.json").write_text("{"), "info.json: content"),
        (lambda store: (store / "info.json").write_text("[]"), "info.json: content: found no list"),
        (lambda store: (store / "info.json").unlink(), "info.json: file: found no such file"),
    ],
)
def test_a_broken_store_says_which_file(
    tmp_path: Path, breaking: Callable[[Path], object], words: str
) -> None:
    small_store(tmp_path / "store")
    breaking(tmp_path / "store")
    with pytest.raises(InputError) as error:
        EgoStore.open(tmp_path / "store")
    assert words in str(error.value)


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    store, _ = small_store(tmp_path / "store")
    for rows, word in (([110], "110 to 110"), ([-1, 2], "-1 to 2"), ([], "none")):
        with pytest.raises(InputError, match=word):
            store.collate(np.array(rows, np.int64))
    with pytest.raises(IndexError):
        store[110]
    assert torch.equal(store[-1].edge_index, store[109].edge_index)
    with pytest.raises(InputError, match="something stands there"):
        small_store(tmp_path / "store")
    with pytest.raises(InputError, match="no such folder"):
        EgoStore.open(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    graph = random_graph("one")
    egos, genes = egos_of(graph), graph.genes
    labels = np.zeros((60, 1), np.int8)

    def write(**change: object) -> None:
        parts = {"genes": genes, "graph": "one", "pretrain": labels, "finetune": labels[:, :0]}
        with EgoWriter(
            tmp_path / "store",
            graphs={"one": 1},
            channel_names=CHANNELS,
            pretrain_terms=["p"],
            finetune_terms=[],
        ) as writer:
            writer.add(egos, **(parts | change))  # type: ignore[arg-type]

    for change, words in (
        ({"graph": "two"}, "graph: found two"),
        ({"genes": genes[:3]}, "genes: found 3"),
        ({"pretrain": labels[:, :0]}, "pretrain labels: found shape"),
    ):
        with pytest.raises(InputError) as error:
            write(**change)
        assert words in str(error.value)
    write()  # and never finished
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="p twice"):
        EgoWriter(tmp_path / "x", graphs={}, channel_names=(), pretrain_terms=["p"], finetune_terms=["p"])


def test_a_killed_writer_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # When all arrays are on disk, and only the list of them is not.
        patch.setattr(folder, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        process = multiprocessing.get_context("fork").Process(target=small_store, args=(tmp_path / "store",))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".store.")
    os.utime(left, (0, 0))  # a day and more ago
    store, _ = small_store(tmp_path / "store")
    assert len(store) == 110
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.slow
def test_opening_the_package_warns_of_nothing() -> None:
    """An error of the command line is one line; a warning of a library before it would be more."""
    done = subprocess.run(
        [sys.executable, "-c", "import ppi_extension.gnn"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
