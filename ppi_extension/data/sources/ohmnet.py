"""OhmNet's human tissues: one graph a tissue, functions of genes in their tissues. Zitnik & Leskovec, Bioinformatics 33, 2017.

Two forms are read:

- an archive ``*.npz`` (24 tissues): ``genes`` (Entrez), ``tissue``, ``nodes/<tissue>`` and ``edges/<tissue>`` (positions),
  ``go``, ``Y_union`` (genes, functions), ``tissue_label_keys`` ("heart|GO:0003151"), ``lab/<tissue>/<number>`` (bits);
- the published files: a folder with ``bio-tissue-networks`` and ``bio-tissue-labels``, as ``.tar.gz`` or unpacked: a
  ``<tissue>.edgelist`` a tissue (two Entrez identifiers a line) and a ``<tissue>_<term>.lab`` a function (identifier, 0 or 1).

The union of a function's labels: positive in some tissue, else negative in some, else unlabelled.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ppi_extension.data.sources.annotations import find_ontology, source_data
from ppi_extension.data.species import UNLABELLED, Labels, SourceData, SpeciesGraph
from ppi_extension.data.tables import read_lines

HUMAN = 9606
_LABELS = ("union", "tissue", "both")
_GRAPHS = ("tissue", "union")


@dataclass
class Options:
    """Attributes:
    tissues: to read, in this order; empty: all.
    labels: "union" holds in every tissue; "tissue": each tissue its own, few; "both": its own where there are any.
    obo: go-basic.obo for the leak rule; None: the one in the folder, if there is one.
    graphs: "tissue": one graph a tissue; "union": one graph, whose edges are those of any of the tissues.
    channels: tissues, at most 8, each of which is a kind of evidence of the union's edges: that they are in this tissue.
    descent: without go-basic.obo, a function of whose genes (those labelled for both) at least this share have another, wider
        function is taken to descend from that one; 0: nothing is known of descent, and the leak rule sees equal terms only.
    """

    tissues: list[str] = field(default_factory=list)
    labels: str = "union"
    obo: str | None = None
    graphs: str = "tissue"
    channels: list[str] = field(default_factory=list)
    descent: float = 0.0


def read(path: Path, options: Options, report: Report | None = None) -> SourceData:
    """Graphs and labels; `path` is the archive, the folder it is in, or the folder of the published files."""
    if options.labels not in _LABELS:
        raise InputError("ohmnet", "labels", repr(options.labels), ", ".join(_LABELS))
    if options.graphs not in _GRAPHS:
        raise InputError("ohmnet", "graphs", repr(options.graphs), ", ".join(_GRAPHS))
    if options.graphs == "union" and options.labels != "union":
        raise InputError("ohmnet", "labels", options.labels, "union: the union of the graphs has no tissue")
    if options.graphs != "union" and options.channels:
        raise InputError("ohmnet", "channels", f"{options.channels}", "none, or graphs=union")
    if not 0 <= options.descent <= 1:
        raise InputError("ohmnet", "descent", options.descent, "0 to 1")
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        published = _part(path, "bio-tissue-networks")
        if published is None and len(archives) != 1:
            found = ", ".join(file.name for file in archives) or "neither"
            raise InputError(path, "networks", found, "bio-tissue-networks(.tar.gz), or one *.npz")
        graphs, union, own = _published(path, options) if published else _archive(archives[0], options)
    elif path.is_file():
        graphs, union, own = _archive(path, options)
    else:
        raise InputError(path, "file", "no such file or folder", "*.npz, or a folder of OhmNet's files")
    labels = [*([union] if options.labels != "tissue" else []), *(own if options.labels != "union" else [])]
    folder = path if path.is_dir() else path.parent
    if options.graphs == "union":
        graphs = [merged(graphs, _known(path, [graph.name for graph in graphs], options.channels))]
    ontology = find_ontology(folder, options.obo)
    if ontology is None and options.descent:
        note = (
            f"no ontology: a function descends from a wider one that {options.descent:.0%} of its genes have"
        )
        return SourceData(graphs, labels, descent(union, options.descent), (note,))
    return source_data(graphs, labels, ontology)


def merged(graphs: Sequence[SpeciesGraph], channels: Sequence[str] = ()) -> SpeciesGraph:
    """One graph of all genes, with the edges of any of ``graphs``; it is called "union".

    Args:
        channels: names of graphs; channel c of an edge is 1 where it is an edge of graph c.
    """
    genes = np.unique(np.concatenate([graph.genes for graph in graphs]))
    pairs = [np.searchsorted(genes, graph.genes)[graph.pairs()] for graph in graphs]
    evidence = [
        np.tile(np.array([name == graph.name for name in channels], np.uint8), (graph.num_edges, 1))
        for graph in graphs
    ]
    return SpeciesGraph.from_edges(
        "union", HUMAN, genes, np.concatenate(pairs), np.concatenate(evidence), tuple(channels)
    )


def descent(labels: Labels, share: float) -> dict[str, tuple[str, ...]]:
    """Each function -> the wider ones that at least ``share`` of its genes, of those labelled for both, have."""
    has = (labels.values == 1).astype(np.float64)
    known = (labels.values != UNLABELLED).astype(np.float64)
    both, labelled, size = has.T @ has, has.T @ known, has.sum(axis=0)
    wider = size[:, None] < size[None, :]
    above = wider & (labelled > 0) & (both >= share * labelled)
    terms = labels.terms
    return {
        term: tuple(terms[up] for up in np.flatnonzero(row)) for term, row in zip(terms, above, strict=True)
    }


Parts = tuple[list[SpeciesGraph], Labels, list[Labels]]


def _chosen(where: Path, known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The tissues to read.

    Raises:
        InputError: one that is not there.
    """
    return _known(where, known, wanted) or list(known)


def _known(where: Path, known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    for tissue in wanted:
        if tissue not in known:
            raise InputError(where, "tissues", repr(tissue), f"some of {', '.join(sorted(known))}")
    return list(wanted)


def _archive(path: Path, options: Options) -> Parts:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(path, "archive", "one array", "an .npz of several")
        with archive:
            return _unpacked(path, archive, options)
    except KeyError as error:
        raise InputError(path, "arrays", f"no {error.args[0]}", "those of ppi_ohmnet24.npz") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, "archive", str(error)[:200], "a whole .npz of plain arrays") from None


def _unpacked(path: Path, archive: Mapping[str, NDArray[Any]], options: Options) -> Parts:
    genes = _array(path, archive, "genes", 1, "iuU").astype(np.str_)
    known = _array(path, archive, "tissue", 1, "U").tolist()
    graphs = []
    for tissue in _chosen(path, known, options.tissues):
        nodes = _array(path, archive, f"nodes/{tissue}", 1, "iu")
        edges = _array(path, archive, f"edges/{tissue}", 2, "iu")
        if nodes.size == 0 or nodes.min() < 0 or nodes.max() >= len(genes):
            raise InputError(path, f"nodes/{tissue}", f"{nodes.shape}", f"positions in {len(genes)} genes")
        if edges.shape[0] != 2:
            raise InputError(path, f"edges/{tissue}", f"shape {edges.shape}", "(2, edges)")
        graphs.append(SpeciesGraph.from_edges(tissue, HUMAN, genes[nodes], edges.T))
    values = _array(path, archive, "Y_union", 2, "iu")
    if not np.isin(values, (0, 1, UNLABELLED)).all():
        raise InputError(path, "Y_union", "other values", f"1, 0 and {UNLABELLED} (unlabelled)")
    union = Labels(genes, tuple(_array(path, archive, "go", 1, "U").tolist()), values.astype(np.int8))
    kept = {graph.name: graph for graph in graphs}
    own: dict[str, dict[str, NDArray[np.int8]]] = {}
    for key in _array(path, archive, "tissue_label_keys", 1, "U").tolist():
        tissue, _, term = key.partition("|")
        if tissue not in known or not term.startswith("GO:"):
            raise InputError(path, "tissue_label_keys", repr(key), "a tissue of the archive, |, GO:NUMBER")
        if tissue not in kept:
            continue
        bits, n = archive[f"lab/{tissue}/{term.removeprefix('GO:')}"], kept[tissue].num_nodes
        if bits.dtype != np.uint8 or bits.shape != (-(-n // 8),):
            raise InputError(path, f"labels {key}", f"{bits.dtype} {bits.shape}", f"{n} packed bits")
        own.setdefault(tissue, {})[term] = np.unpackbits(bits, count=n).view(np.int8)
    labels = [
        Labels(
            kept[tissue].genes,
            tuple(sorted(columns)),
            np.stack([columns[term] for term in sorted(columns)], axis=1),
            {},
            tissue,
        )
        for tissue, columns in own.items()
    ]
    return graphs, union, labels


_KINDS = {"iu": "whole numbers", "U": "texts", "iuU": "whole numbers or texts"}


def _array(
    path: Path, archive: Mapping[str, NDArray[Any]], name: str, dimensions: int, kinds: str
) -> NDArray[Any]:
    """One of the archive's arrays.

    Raises:
        InputError: another number of dimensions, or of a kind (NumPy's letters) that is not among ``kinds``.
    """
    values = archive[name]
    if values.ndim != dimensions or values.dtype.kind not in kinds:
        expected = f"{_KINDS[kinds]} in {dimensions} dimension{'s' if dimensions > 1 else ''}"
        raise InputError(path, name, f"{values.dtype} of shape {values.shape}", expected)
    return values


def _part(folder: Path, name: str) -> Path | None:
    """The unpacked folder, or the archive of it."""
    return next((p for p in (folder / name, folder / f"{name}.tar.gz") if p.exists()), None)


def _published(folder: Path, options: Options) -> Parts:
    networks, labels = _part(folder, "bio-tissue-networks"), _part(folder, "bio-tissue-labels")
    if networks is None or labels is None:
        raise InputError(
            folder, "labels", "no bio-tissue-labels", "bio-tissue-labels(.tar.gz) beside the networks"
        )
    pairs = {
        name.removesuffix(".edgelist"): _integers(where, lines)
        for name, where, lines in _files(networks, ".edgelist")
    }
    graphs = []
    for tissue in _chosen(networks, sorted(pairs), options.tissues):
        genes, places = np.unique(pairs[tissue], return_inverse=True)
        graphs.append(SpeciesGraph.from_edges(tissue, HUMAN, genes.astype(np.str_), places.reshape(-1, 2)))
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    for name, where, lines in _files(labels, ".lab"):
        tissue, _, term = name.removesuffix(".lab").rpartition("_")
        if not tissue or not term.startswith("GO:"):
            raise InputError(where, "name", name, "TISSUE_GO:NUMBER.lab")
        found.setdefault(tissue, {})[term] = _integers(where, lines, (0, 1))
    everything = [(term, pairs) for terms in found.values() for term, pairs in terms.items()]
    names = {graph.name for graph in graphs}
    own = [_labels(terms.items(), tissue) for tissue, terms in found.items() if tissue in names]
    return graphs, _labels(everything, None), own


def _labels(columns: Iterable[tuple[str, NDArray[np.int64]]], graph: str | None) -> Labels:
    """From (gene, 0 or 1) pairs of terms; 1 wins over 0, and either over unlabelled."""
    parts = sorted(columns, key=lambda part: part[0])
    genes = np.unique(np.concatenate([pairs[:, 0] for _, pairs in parts]))
    terms = sorted({term for term, _ in parts})
    values = np.full((len(genes), len(terms)), UNLABELLED, np.int8)
    for term, pairs in parts:
        at, column = np.searchsorted(genes, pairs[:, 0]), terms.index(term)
        np.maximum.at(values[:, column], at, pairs[:, 1].astype(np.int8))
    return Labels(genes.astype(np.str_), tuple(terms), values, {}, graph)


Lines = Iterable[tuple[int, str]]


def _files(place: Path, suffix: str) -> Iterator[tuple[str, str, Lines]]:
    """(name, where it lies, its numbered lines) of every file of a folder or a tar archive.

    Raises:
        InputError: no file of that kind, an archive that is cut off or is none.
    """
    some = False
    for part in _walk(place, suffix) if place.is_dir() else _unpack(place, suffix):
        some = True
        yield part
    if not some:
        raise InputError(place, "files", f"no *{suffix}", f"at least one *{suffix}")


def _walk(folder: Path, suffix: str) -> Iterator[tuple[str, str, Lines]]:
    for file in sorted(folder.rglob(f"*{suffix}")):
        yield file.name, str(file), read_lines(file)


def _unpack(archive: Path, suffix: str) -> Iterator[tuple[str, str, Lines]]:
    """In the order of the archive: going back in a gzip means to begin anew."""
    try:
        with tarfile.open(archive, "r|*") as stream:
            for member in stream:
                if not (member.isfile() and member.name.endswith(suffix)):
                    continue
                content = stream.extractfile(member)
                if content is not None:
                    lines = content.read().decode("utf-8", errors="replace").splitlines()
                    yield Path(member.name).name, f"{archive}: {member.name}", enumerate(lines, start=1)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(archive, "archive", str(error)[:200], "a whole .tar.gz: fetch it again") from None


def _integers(where: str, lines: Lines, second: tuple[int, ...] | None = None) -> NDArray[np.int64]:
    """(rows, 2) whole numbers; lines that begin with # say nothing.

    Raises:
        InputError: another line, a second number that is not one of ``second``.
    """
    rows = []
    for number, line in lines:
        if line.startswith("#"):
            continue
        cells = line.split()
        if len(cells) != 2 or not (cells[0].isdecimal() and cells[1].isdecimal()):
            raise InputError(f"{where}, line {number}", "row", repr(line[:80]), "two whole numbers")
        rows.append((int(cells[0]), int(cells[1])))
        if second is not None and rows[-1][1] not in second:
            raise InputError(f"{where}, line {number}", "label", repr(cells[1]), f"one of {second}")
    if not rows:
        raise InputError(where, "rows", "none", "at least one")
    return np.array(rows, np.int64)
