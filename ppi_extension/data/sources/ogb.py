"""ogbn-proteins: 132,534 proteins of 8 species, 39.6 million links, 112 functions, as raw CSV files.

Hu et al., Open Graph Benchmark, NeurIPS 2020. No raw file has a header; each may be gzipped:

    raw/edge.csv            two nodes, each link once
    raw/edge-feat.csv       8 scores 0 to 1 a link: homology, then STRING's 7 channels (so says mapping/README.md)
    raw/node_species.csv    NCBI taxon of each node
    raw/node-label.csv      112 of 0 and 1 of each node
    raw/num-node-list.csv, raw/num-edge-list.csv    how many there are
    mapping/nodeidx2proteinid.csv, mapping/labelidx2GO.csv    what nodes and labels are called, with a header; may be missing
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ppi_extension.data.sources.annotations import find_ontology, source_data
from ppi_extension.data.sources.string import CHANNELS, HU_THRESHOLDS, compact
from ppi_extension.data.species import Labels, SourceData
from ppi_extension.data.tables import Chunk, Column, read_lines, read_table

_LARGEST = 2**31 - 1
_NODES = (Column("node 1", int, 0, _LARGEST), Column("node 2", int, 0, _LARGEST))
_SCORES = tuple(Column(name, float, 0, 1) for name in ("homology", *CHANNELS))


@dataclass
class Options:
    """Attributes:
    taxa: NCBI taxa to read; empty: all.
    thresholds: smallest score (of 1000) that counts, for each of STRING's channels; see `string.HU_THRESHOLDS`.
    homology: the same for OGB's further channel, which then comes last; None: it is left out, as Hu et al. have none.
    obo: go-basic.obo for the leak rule; None: the one in the folder, if there is one.
    """

    taxa: list[int] = field(default_factory=list)
    thresholds: list[int] = field(default_factory=lambda: list(HU_THRESHOLDS))
    homology: int | None = None
    obo: str | None = None


def read(path: Path, options: Options, report: Report | None = None) -> SourceData:
    """One graph a species, in the order of their taxa; `path` is ``ogbn_proteins`` or its folder ``raw``."""
    thresholds = _thresholds(options)
    raw = path / "raw" if (path / "raw").is_dir() else path
    nodes, edges = (_count(_find(raw, name)) for name in ("num-node-list", "num-edge-list"))
    species = _column(_find(raw, "node_species"), nodes)
    genes = _names(raw.parent / "mapping", "nodeidx2proteinid", nodes, "node")
    values = _labels(_find(raw, "node-label"), nodes)
    terms = tuple(_names(raw.parent / "mapping", "labelidx2GO", values.shape[1], "label").tolist())
    taxa = options.taxa or np.unique(species).tolist()
    pairs, channels = _edges(raw, species, edges, thresholds, report)
    names = (*CHANNELS, "homology") if options.homology is not None else CHANNELS
    graphs, labels = [], []
    for taxon in taxa:
        inside = species == taxon
        if not inside.any():
            raise InputError(raw, "taxa", taxon, f"some of {np.unique(species).tolist()}")
        here = inside[pairs[:, 0]]
        graph = compact(str(taxon), taxon, genes, pairs[here], channels[here], raw, names)
        rows = np.flatnonzero(inside)
        graphs.append(graph)
        labels.append(Labels(genes[rows], terms, values[rows], {}, graph.name))
    return source_data(graphs, labels, find_ontology(path, options.obo))


def _thresholds(options: Options) -> NDArray[np.int64]:
    """(8,) in the order of the file; above any score where a channel is left out."""
    given = [*options.thresholds, *([] if options.homology is None else [options.homology])]
    if len(options.thresholds) != len(CHANNELS) or not all(1 <= score <= 1000 for score in given):
        raise InputError(
            "ogb", "thresholds, homology", given, f"{len(CHANNELS)} and one score from 1 to 1000"
        )
    return np.array([1001 if options.homology is None else options.homology, *options.thresholds])


def _find(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.csv.gz", folder / f"{name}.csv"):
        if file.is_file():
            return file
    raise InputError(folder, name, "no such file", f"{name}.csv.gz, as ogbn-proteins has it")


def _count(path: Path) -> int:
    values = _column(path, 1)
    return int(values[0])


def _column(path: Path, rows: int) -> NDArray[np.int64]:
    """(rows,) whole numbers from 1."""
    column = (Column("number", int, 1, _LARGEST),)
    found = [part.rows["number"].to_numpy() for part in read_table(path, column, separator=",", header=False)]
    _check_rows(path, sum(map(len, found)), rows)
    return np.concatenate(found).astype(np.int64)


def _labels(path: Path, nodes: int) -> NDArray[np.int8]:
    """(nodes, T) of 0 and 1."""
    width = len(next(read_lines(path), (1, ""))[1].split(","))
    columns = tuple(Column(f"label {number}", int, 0, 1) for number in range(width))
    found = [
        part.rows.to_numpy(np.int8)
        for part in read_table(path, columns, separator=",", header=False, chunk=50_000)
    ]
    _check_rows(path, sum(map(len, found)), nodes)
    return np.concatenate(found)


def _check_rows(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise InputError(f"{path}, line {found}", "rows", found, f"{wanted} lines")


def _names(folder: Path, name: str, count: int, kind: str) -> NDArray[np.str_]:
    """(count,) the second column of a mapping file, or "node 0", "node 1" and so on where it is missing."""
    files = [file for file in (folder / f"{name}.csv.gz", folder / f"{name}.csv") if file.is_file()]
    if not files:
        return np.array([f"{kind} {number}" for number in range(count)])
    columns = (Column("index", int, 0, count - 1), Column("name"))
    names = np.full(count, "", dtype=object)
    for part in read_table(files[0], columns, separator=",", header=False, skip=1):
        names[part.rows["index"].to_numpy()] = part.rows["name"].astype(str).to_numpy()
    if (names == "").any():
        raise InputError(files[0], kind, f"no name of {int((names == '').argmax())}", f"{count} names")
    return names.astype(np.str_)


def _edges(
    raw: Path, species: NDArray[np.int64], edges: int, thresholds: NDArray[np.int64], report: Report | None
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(E, 2) nodes and (E, C) channels of the links that count."""
    ends, scores = _find(raw, "edge"), _find(raw, "edge-feat")
    pairs: list[NDArray[np.int64]] = []
    channels: list[NDArray[np.uint8]] = []
    rows = 0
    for part, evidence in _together(ends, scores, report):
        both = part.rows.to_numpy(np.int64)
        for column, name in enumerate(part.rows):
            part.refuse(both[:, column] >= len(species), str(name), f"a node from 0 to {len(species) - 1}")
        part.refuse(
            species[both[:, 0]] != species[both[:, 1]], "node 2", "a node of the same species as node 1"
        )
        # float32 of 0.266 times 1000 is not quite 266
        passed = np.rint(evidence.rows.to_numpy() * 1000) >= thresholds
        counts = passed.any(axis=1)
        pairs.append(both[counts])
        channels.append(np.roll(passed[counts], -1, axis=1).view(np.uint8))  # homology to the end
        rows += len(both)
    if rows != edges:
        raise InputError(f"{ends}, line {rows}", "rows", rows, f"{edges} lines, as num-edge-list says")
    kept = np.concatenate(channels)
    return np.concatenate(pairs), kept if thresholds[0] <= 1000 else kept[:, :-1]


def _together(ends: Path, scores: Path, report: Report | None) -> Iterator[tuple[Chunk, Chunk]]:
    """Chunks of links and of their scores, row by row alike."""
    first = read_table(ends, _NODES, separator=",", header=False)
    second = read_table(scores, _SCORES, separator=",", header=False, progress=report)
    while True:
        part, evidence = next(first, None), next(second, None)
        if part is None and evidence is None:
            return
        sizes = [0 if each is None else len(each.rows) for each in (part, evidence)]
        if part is None or evidence is None or sizes[0] != sizes[1]:
            shorter, rows = (ends, sizes[0]) if sizes[0] < sizes[1] else (scores, sizes[1])
            last = next(each.first for each in (part, evidence) if each is not None) + rows - 1
            raise InputError(f"{shorter}, line {last}", "rows", "the last one", "as many links as scores")
        yield part, evidence
