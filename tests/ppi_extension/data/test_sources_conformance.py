"""Every source of protein graphs keeps the same promises, on files in its format and, for OhmNet, on the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from ppi_source_files import (
    NAMES,
    PARENTS,
    THRESHOLDS,
    hu_arrays,
    world,
    write_gaf,
    write_hu,
    write_obo,
    write_ogb,
    write_ohmnet,
    write_string,
)

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.builder import BuildSettings, joined
from ppi_extension.data.sources import SOURCES, read_source, store_of
from ppi_extension.data.sources.hu import HuGraphs
from ppi_extension.data.sources.ohmnet import descent
from ppi_extension.data.species import Labels, SourceData, SpeciesGraph

Make = Callable[[Path, Path], SourceData]
WORLD = world()
SMALL = BuildSettings(min_positives=1, min_negatives=1, finetune_fraction=0.3)

CASES: dict[str, Make] = {
    "string": lambda real, tmp: read_source("string", write_string(tmp, WORLD), min_genes=2),
    "string_unpacked": lambda real, tmp: read_source(
        "string", write_string(tmp, WORLD, packed=False), min_genes=1, taxa=[4932], unannotated="negative"
    ),
    "gaf": lambda real, tmp: read_source("gaf", write_gaf(tmp, WORLD), min_genes=2),
    "ogb": lambda real, tmp: read_source("ogb", write_ogb(tmp, WORLD)),
    "ogb_homology": lambda real, tmp: read_source("ogb", write_ogb(tmp, WORLD), homology=1000),
    "ohmnet_real": lambda real, tmp: read_source(
        "ohmnet", real / "ppi", labels="both", tissues=["liver", "bone", "basophil"]
    ),
    "ohmnet_published": lambda real, tmp: read_source("ohmnet", write_ohmnet(tmp), labels="both"),
    "ohmnet_archives": lambda real, tmp: read_source("ohmnet", write_ohmnet(tmp, packed=True), labels="both"),
    "hu": lambda real, tmp: read_source("hu", write_hu(tmp / "data.pt", hu_arrays())),
    "hu_zipped": lambda real, tmp: read_source("hu", write_hu(tmp / "data.pt", hu_arrays(), zipped=True)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(case: str, real_data: Path, tmp_path: Path) -> SourceData:
    return CASES[case](real_data, tmp_path / "source")


def test_every_source_has_a_case() -> None:
    assert {name.partition("_")[0] for name in CASES} == set(SOURCES)


def test_graphs_are_symmetric_and_labels_in_range(data: SourceData) -> None:
    assert data.graphs or isinstance(data, HuGraphs)
    for graph in data.graphs:
        n = graph.num_nodes
        source = np.repeat(np.arange(n), graph.degree)
        there, back = source * n + graph.indices, graph.indices * n + source
        assert (np.diff(there) > 0).all()  # ascending, none twice
        assert not (source == graph.indices).any()
        order = np.argsort(back)
        np.testing.assert_array_equal(back[order], there)
        np.testing.assert_array_equal(graph.channels[order], graph.channels)
        assert graph.channels.shape == (len(there), len(data.channel_names))
        assert len(set(graph.genes.tolist())) == n > 0
    for labels in data.labels:
        assert labels.values.dtype == np.int8
        assert set(np.unique(labels.values).tolist()) <= {-1, 0, 1}
        assert list(labels.terms) == sorted(set(labels.terms))
        assert set(labels.names) <= set(labels.terms)


def test_genes_of_labels_are_genes_of_graphs(data: SourceData) -> None:
    for graph in data.graphs:
        terms = sorted({term for labels in data.labels for term in labels.terms})
        values = joined(data, graph, terms)
        assert (values == 1).any()
        assert (values == 0).any()


def test_reading_twice_gives_the_same(case: str, data: SourceData, real_data: Path, tmp_path: Path) -> None:
    again = CASES[case](real_data, tmp_path / "again")
    assert [graph.name for graph in again.graphs] == [graph.name for graph in data.graphs]
    for one, two in zip(data.graphs, again.graphs, strict=True):
        for name in ("genes", "indptr", "indices", "channels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for first, second in zip(data.labels, again.labels, strict=True):
        assert (first.terms, first.graph) == (second.terms, second.graph)
        np.testing.assert_array_equal(first.genes, second.genes)
        np.testing.assert_array_equal(first.values, second.values)
    assert again.hierarchy == data.hierarchy


def test_a_store_is_built_of_it(case: str, data: SourceData, tmp_path: Path) -> None:
    settings = BuildSettings(limit=3) if case == "ohmnet_real" else SMALL
    store = store_of(data, tmp_path / "store", None if isinstance(data, HuGraphs) else settings)
    assert len(store) > 0
    assert store.channel_names == data.channel_names
    assert store.pretrain_terms
    for graph in data.graphs:
        here = store.genes[store.graph == graph.name]
        assert len(here) > 0
        assert set(here.tolist()) <= set(graph.genes.tolist())
    assert store[0].edge_index.max() < store[0].num_nodes


def _edges(graph: SpeciesGraph) -> dict[tuple[str, str], tuple[int, ...]]:
    source = np.repeat(np.arange(graph.num_nodes), graph.degree)
    out = {}
    for a, b, on in zip(source, graph.indices, graph.channels, strict=True):
        first, second = sorted((str(graph.genes[a]), str(graph.genes[b])))
        out[(first, second)] = tuple(int(x) for x in on)
    return out


@pytest.mark.parametrize("name", ["string", "gaf", "ogb", "string_unpacked"])
def test_edges_and_labels_are_those_of_a_plain_loop(name: str, real_data: Path, tmp_path: Path) -> None:
    data = CASES[name](real_data, tmp_path)
    assert sorted(g.species_id for g in data.graphs) == ([4932] if "un" in name else [4932, 9606])
    unannotated = -1 if name in ("string", "gaf") else 0
    for graph in data.graphs:
        assert _edges(graph) == WORLD.edges(graph.species_id)
        labels = next(labels for labels in data.labels if labels.graph == graph.name)
        assert set(labels.terms) == set(PARENTS)
        assert set(graph.genes.tolist()) <= set(labels.genes.tolist())
        for row, gene in enumerate(labels.genes.tolist()):
            has = WORLD.has(gene)
            expected = [int(term in has) if has else unannotated for term in labels.terms]
            assert labels.values[row].tolist() == expected, gene
    if name != "ogb":
        assert data.hierarchy is not None
        assert {t: set(up) for t, up in data.hierarchy.items()} == {t: set(up) for t, up in PARENTS.items()}


def test_homology_is_a_further_channel_at_the_end(tmp_path: Path) -> None:
    plain = read_source("ogb", write_ogb(tmp_path, WORLD))
    more = read_source("ogb", tmp_path, homology=999)
    assert more.channel_names == (*plain.channel_names, "homology")
    for graph, seven in zip(more.graphs, plain.graphs, strict=True):
        edges = _edges(graph)
        assert all(on[-1] == 1 for on in edges.values())  # all have 0.999
        assert len(edges) == len([a for a, _ in WORLD.scores if a.startswith(graph.name)])
        assert {pair: on[:-1] for pair, on in edges.items() if any(on[:-1])} == _edges(seven)


def test_gaf_says_how_many_genes_were_found(tmp_path: Path) -> None:
    data = read_source("gaf", write_gaf(tmp_path, WORLD), min_genes=1)
    # what is annotated: not rows of NOT, IEA, obsolete terms, mice; one more has an ambiguous name
    direct = {taxon: sum(p in WORLD.direct for p in names) for taxon, names in WORLD.proteins.items()}
    found = {note.partition(":")[0]: note for note in data.notes}
    for taxon, count in direct.items():
        assert f"{count} of {count + 1} annotated genes" in found[str(taxon)]


def test_evidence_may_be_let_in(tmp_path: Path) -> None:
    data = read_source("gaf", write_gaf(tmp_path, WORLD), min_genes=1, without=["ND"])
    for labels in data.labels:
        column = labels.values[:, labels.terms.index("GO:0000020")]
        assert (column == 1).all()  # each protein has it by IEA


def test_thresholds_and_aspects_are_options(tmp_path: Path) -> None:
    write_string(tmp_path, WORLD)
    every = read_source("string", tmp_path, thresholds=[1] * 7, min_genes=1, aspects=["component"])
    assert all(labels.terms == ("GO:0000020",) for labels in every.labels)
    for graph in every.graphs:
        given = {tuple(sorted(pair)) for pair, s in WORLD.scores.items() if any(s)}
        assert set(_edges(graph)) == {pair for pair in given if pair[0].startswith(graph.name)}
    few = read_source("string", tmp_path, min_genes=15)
    counts = {t: sum(t in WORLD.has(p) for g in every.graphs for p in g.genes.tolist()) for t in PARENTS}
    assert 0 < len(few.labels[0].terms) < len(PARENTS)
    assert len(THRESHOLDS) == len(every.channel_names)
    assert all(counts[term] >= 15 for term in few.labels[0].terms)


def test_real_ohmnet_union_is_that_of_the_published_labels(real_data: Path, tmp_path: Path) -> None:
    """The archive's union against the 504 published label files, read with the other reader."""
    networks = tmp_path / "bio-tissue-networks"
    networks.mkdir()
    (networks / "none.edgelist").write_text("1 2\n")
    (tmp_path / "bio-tissue-labels.tar.gz").symlink_to(real_data / "ppi" / "bio-tissue-labels.tar.gz")
    published = read_source("ohmnet", tmp_path).labels[0]
    union = read_source("ohmnet", real_data / "ppi" / "ppi_ohmnet24.npz", tissues=["basophil"]).labels[0]
    assert published.terms == union.terms
    row = {gene: number for number, gene in enumerate(published.genes.tolist())}
    blank = np.full(len(union.terms), -1, np.int8)
    expected = np.stack([published.values[row[g]] if g in row else blank for g in union.genes.tolist()])
    np.testing.assert_array_equal(union.values, expected)


def test_all_real_tissues_are_read(real_data: Path) -> None:
    """As many genes and edges as the arrays have, counted without the reader."""
    data = read_source("ohmnet", real_data / "ppi")
    assert len(data.graphs) == 24
    assert sum(graph.num_nodes for graph in data.graphs) == 56_944
    with np.load(real_data / "ppi" / "ppi_ohmnet24.npz") as archive:
        edges = [archive[name].astype(np.int64) for name in archive.files if name.startswith("edges/")]
    assert sum(pairs.shape[1] for pairs in edges) == 818_716  # with loops
    proper = [np.sort(pairs[:, pairs[0] != pairs[1]], axis=0) for pairs in edges]
    assert [graph.num_edges for graph in data.graphs] == [len(np.unique(pairs, axis=1).T) for pairs in proper]


def test_an_ontology_names_terms_and_without_one_a_note_says_so(tmp_path: Path) -> None:
    data = read_source("ogb", write_ogb(tmp_path, WORLD))
    assert data.hierarchy is None
    assert "no ontology" in data.notes[0]
    again = read_source("ogb", tmp_path, obo=str(write_obo(tmp_path / "elsewhere")))
    assert again.hierarchy is not None
    assert not again.notes
    assert again.labels[0].names["GO:0000012"] == NAMES["GO:0000012"]


def test_real_ohmnet_graph_is_that_of_the_graphml(real_data: Path) -> None:
    import networkx

    graph = read_source("ohmnet", real_data / "ppi", tissues=["basophil"]).graphs[0]
    (file,) = (real_data / "ppi" / "graphml_sample").glob("*.graphml")
    other = networkx.Graph(networkx.read_graphml(file))
    expected = {tuple(sorted(pair)) for pair in other.edges if pair[0] != pair[1]}
    assert set(_edges(graph)) == expected
    assert set(graph.genes.tolist()) == set(other.nodes)


def test_ohmnet_union_and_tissue_labels(tmp_path: Path) -> None:
    write_ohmnet(tmp_path)
    union = read_source("ohmnet", tmp_path).labels
    assert len(union) == 1
    table = dict(zip(union[0].genes.tolist(), union[0].values.tolist(), strict=True))
    # heart says 12 has not 11, lens that it has: positive in some tissue
    assert table == {"11": [1, 0], "12": [1, -1], "13": [0, 1], "99": [1, -1]}
    own = read_source("ohmnet", tmp_path, labels="tissue", tissues=["heart"]).labels
    assert [labels.graph for labels in own] == ["heart"]
    assert own[0].values.tolist() == [[1], [0], [1]]


def test_ohmnet_union_of_graphs_says_in_which_tissue_an_edge_is(tmp_path: Path) -> None:
    data = read_source("ohmnet", write_ohmnet(tmp_path), graphs="union", channels=["blood_plasma", "heart"])
    (graph,) = data.graphs
    ends = [tuple(graph.genes[pair].tolist()) for pair in graph.pairs()]
    source = np.repeat(np.arange(graph.num_nodes), graph.degree)
    evidence = graph.channels[source < graph.indices].tolist()
    assert dict(zip(ends, evidence, strict=True)) == {
        ("11", "12"): [1, 1],
        ("11", "13"): [0, 1],
        ("11", "14"): [0, 1],
        ("12", "13"): [0, 1],
    }
    for wrong in ({"channels": ["lens"]}, {"labels": "both"}, {"descent": 2.0}):
        with pytest.raises(InputError):
            read_source("ohmnet", tmp_path, graphs="union", **wrong)
    with pytest.raises(InputError, match="channels"):
        read_source("ohmnet", tmp_path, channels=["heart"])


def test_ohmnet_descent_is_read_off_the_labels() -> None:
    values = np.array([[1, 1, 0], [1, 1, 1], [0, 1, -1], [-1, 0, 1], [0, 0, 1], [0, 0, 1]], np.int8)
    labels = Labels(np.array(list("abcdef")), ("narrow", "wide", "other"), values)
    # Both genes of narrow have wide. Of those of narrow and of wide, two are labelled for other, and one of these has it.
    assert descent(labels, 0.9) == {"narrow": ("wide",), "wide": (), "other": ()}
    assert descent(labels, 0.3)["wide"] == ("other",)


def _unpacked(arrays: dict[str, list[NDArray[np.float64]]], number: int) -> dict[str, NDArray[np.float64]]:
    return {name: parts[number] for name, parts in arrays.items()}


@pytest.mark.parametrize("zipped", [False, True])
def test_hu_graphs_come_out_as_they_went_in(tmp_path: Path, zipped: bool) -> None:
    arrays = hu_arrays()
    data = read_source("hu", write_hu(tmp_path / "data.pt", arrays, zipped))
    store = store_of(data, tmp_path / "store")
    assert len(store) == len(arrays["x"])
    for number in range(len(store)):
        given, found = _unpacked(arrays, number), store[number]
        for name in ("center_node_idx", "species_id", "go_target_pretrain", "go_target_downstream", "x"):
            np.testing.assert_array_equal(found[name].numpy(), given[name])
        edges = [
            {(a, b): tuple(on) for (a, b), on in zip(ends.T.tolist(), attributes.tolist(), strict=True)}
            for ends, attributes in (
                (given["edge_index"], given["edge_attr"]),
                (found.edge_index.numpy(), found.edge_attr.numpy()),
            )
        ]
        assert edges[0] == edges[1]
        assert len(edges[0]) == given["edge_index"].shape[1] == found.edge_index.shape[1]


def test_hu_terms_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "pt.txt").write_text("".join(f"GO:{k:07d}\n" for k in range(5)))
    path = write_hu(tmp_path / "data.pt", hu_arrays())
    data = read_source("hu", path, pretrain_terms=str(tmp_path / "pt.txt"))
    store = store_of(data, tmp_path / "store")
    assert store.pretrain_terms[0] == "GO:0000000"
    assert store.finetune_terms == ("finetune 0", "finetune 1", "finetune 2")
    with pytest.raises(InputError, match="finetune terms: found 5, expected 3"):
        read_source("hu", path, finetune_terms=str(tmp_path / "pt.txt"))
