"""STRING: protein links with their kinds of evidence, and functions without any mapping of identifiers.

Szklarczyk et al., The STRING database in 2023, Nucleic Acids Research 51, D638. Per species two files:

    <taxon>.protein.links.detailed.v12.0.txt.gz    space-separated: two proteins, a score 0 to 1000 a channel, the combined one;
                                                   each link stands in both directions
    <taxon>.protein.enrichment.terms.v12.0.txt.gz  tab-separated: protein, category, term, description; a protein has every
                                                   term that its terms imply
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ppi_extension.data.sources.annotations import (
    ASPECTS,
    Annotations,
    annotations_of,
    check_labelling,
    find_ontology,
    source_data,
    to_labels,
)
from ppi_extension.data.species import SourceData, SpeciesGraph
from ppi_extension.data.tables import Chunk, Column, Numbering, read_table

CHANNELS = (
    "neighborhood",
    "fusion",
    "cooccurence",
    "coexpression",
    "experimental",
    "database",
    "textmining",
)
HU_THRESHOLDS = (266, 1, 777, 652, 300, 900, 670)
"""Smallest score with which a channel counts, in the order of `CHANNELS`. Hu et al. call the channels w1 to w7 and name none;
the order of the file is the one that fits: "database" is the channel whose scores are 900 by curation."""

LINKS = (
    Column("protein1"),
    Column("protein2"),
    *(Column(name, int, 0, 1000) for name in (*CHANNELS, "combined_score")),
)
TERMS = (Column("string_protein_id"), Column("category"), Column("term"), Column("description", empty=True))
CATEGORIES = {
    "Biological Process (Gene Ontology)": "process",
    "Molecular Function (Gene Ontology)": "function",
    "Cellular Component (Gene Ontology)": "component",
}
_NAME = re.compile(r"(?P<taxon>\d+)\.protein\.(?P<kind>[a-z.]+)\.v[\d.]+\.txt(\.gz)?")


@dataclass
class Options:
    """Attributes:
    taxa: NCBI taxa to read, in this order; empty: every one of which there is a links file.
    thresholds: smallest score that counts, a channel each; see `HU_THRESHOLDS`. A link without any is none.
    aspects: of the Gene Ontology: process, function, component.
    min_genes: terms that fewer genes have, all species together, are left out.
    unannotated: a gene without any function is "unlabelled", or "negative" as in Hu et al.
    obo: go-basic.obo for the leak rule; None: the one in the folder, if there is one.
    """

    taxa: list[int] = field(default_factory=list)
    thresholds: list[int] = field(default_factory=lambda: list(HU_THRESHOLDS))
    aspects: list[str] = field(default_factory=lambda: list(ASPECTS))
    min_genes: int = 50
    unannotated: str = "unlabelled"
    obo: str | None = None


def read(path: Path, options: Options, report: Report | None = None) -> SourceData:
    """Graphs and functions of one or more species; `path` is the folder of the files.

    A protein without a link that counts is left out. Without an OBO file the hierarchy is unknown, and the leak rule sees
    equal terms only.
    """
    check_labelling("string", options.min_genes, options.unannotated, options.aspects)
    links = links_files(path, options.taxa)
    terms = {taxon: companion(file, "enrichment.terms") for taxon, file in links.items()}
    ontology = find_ontology(path, options.obo)
    found: list[Annotations] = []
    names: dict[str, str] = {}
    for taxon, file in links.items():
        graph = read_links(file, taxon, options.thresholds, report)
        annotations, said = _read_terms(terms[taxon], graph, options.aspects, report)
        found.append(annotations)
        names |= said
    labels = to_labels(found, names, options.min_genes, options.unannotated)
    return source_data([part.graph for part in found], labels, ontology)


def links_files(folder: Path, taxa: Sequence[int]) -> dict[int, Path]:
    """Taxon -> its links.detailed file, as asked for; all of the folder, ascending, where nothing is asked for.

    Raises:
        InputError: no such folder, no file of a taxon, or two.
    """
    if not folder.is_dir():
        raise InputError(folder, "folder", "no such folder", "a folder of STRING's files")
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = _NAME.fullmatch(file.name)
        if match is None or match["kind"] != "links.detailed":
            continue
        taxon = int(match["taxon"])
        if taxon in files:
            raise InputError(folder, f"taxon {taxon}", f"{files[taxon].name} and {file.name}", "one of them")
        files[taxon] = file
    wanted = list(taxa) or sorted(files)
    missing = [taxon for taxon in wanted if taxon not in files]
    if missing or not wanted:
        name = f"{missing[0] if missing else '<taxon>'}.protein.links.detailed.v12.0.txt.gz"
        raise InputError(folder, "links", f"files of {sorted(files) or 'no taxon'}", name)
    if len(set(wanted)) < len(wanted):
        raise InputError("string", "taxa", wanted, "each once")
    return {taxon: files[taxon] for taxon in wanted}


def companion(links: Path, kind: str) -> Path:
    """The file of another kind, beside a links file, of its species and version; packed as that one is, or not.

    Raises:
        InputError: there is none.
    """
    name = links.name.replace(".links.detailed.", f".{kind}.")
    plain = name.removesuffix(".gz")
    for other in (name, f"{plain}.gz", plain):
        if links.with_name(other).is_file():
            return links.with_name(other)
    raise InputError(links.parent, kind, "no such file", name)


def read_links(
    path: Path, taxon: int, thresholds: Sequence[int], report: Report | None = None
) -> SpeciesGraph:
    """The graph of a links.detailed file: an edge where a channel reaches its threshold, proteins sorted by identifier.

    Raises:
        InputError: a malformed row, a protein of another species, a threshold too many, no link left.
    """
    if len(thresholds) != len(CHANNELS) or not all(1 <= score <= 1000 for score in thresholds):
        raise InputError("string", "thresholds", list(thresholds), f"{len(CHANNELS)} scores from 1 to 1000")
    least = np.array(thresholds)
    number = Numbering()
    pairs: list[NDArray[np.int64]] = []
    channels: list[NDArray[np.uint8]] = []
    for part in read_table(path, LINKS, separator=" ", progress=report):
        check_taxon(part, "protein1", taxon)
        check_taxon(part, "protein2", taxon)
        evidence = part.rows[list(CHANNELS)].to_numpy() >= least
        counts = evidence.any(axis=1)
        ends = [number(part.rows[column])[counts] for column in ("protein1", "protein2")]
        pairs.append(np.stack(ends, axis=1))
        channels.append(evidence[counts].view(np.uint8))
    return compact(str(taxon), taxon, number.names(), np.concatenate(pairs), np.concatenate(channels), path)


def compact(
    name: str,
    taxon: int,
    genes: NDArray[np.str_],
    pairs: NDArray[np.int64],
    channels: NDArray[np.uint8],
    path: Path,
    channel_names: tuple[str, ...] = CHANNELS,
) -> SpeciesGraph:
    """A graph of the genes that have an edge, sorted.

    Raises:
        InputError: no edge.
    """
    used = np.unique(pairs[pairs[:, 0] != pairs[:, 1]])
    if not len(used):
        raise InputError(path, "links", f"none of {name} that counts", "one that reaches a threshold")
    order = used[np.argsort(genes[used])]
    place = np.full(len(genes), -1)
    place[order] = np.arange(len(order))
    inside = place[pairs[:, 0]] >= 0  # a protein whose only link is to itself has no place
    inside &= place[pairs[:, 1]] >= 0
    return SpeciesGraph.from_edges(
        name, taxon, genes[order], place[pairs[inside]], channels[inside], channel_names
    )


def check_taxon(part: Chunk, column: str, taxon: int) -> None:
    """Raise InputError for the first protein that is not called ``<taxon>.<identifier>``."""
    names = part.rows[column].cat
    wrong = np.array([not name.startswith(f"{taxon}.") for name in names.categories], dtype=bool)
    if wrong.any():
        part.refuse(wrong[names.codes.to_numpy()], column, f"a protein of taxon {taxon}, {taxon}.IDENTIFIER")


def positions(column: Any, genes: NDArray[np.str_]) -> NDArray[np.int64]:
    """(rows,) where each name of a categorical column stands among sorted ``genes``; -1 where it does not."""
    names = column.cat.categories.to_numpy().astype(np.str_)
    at = np.minimum(np.searchsorted(genes, names), len(genes) - 1)
    return np.where(genes[at] == names, at, -1)[column.cat.codes.to_numpy()]


def _read_terms(
    path: Path, graph: SpeciesGraph, aspects: Sequence[str], report: Report | None
) -> tuple[Annotations, dict[str, str]]:
    """Functions of the graph's proteins, and what the terms are called."""
    wanted = [name for name, aspect in CATEGORIES.items() if aspect in aspects]
    number = Numbering()
    names: dict[str, str] = {}
    genes: list[NDArray[np.int64]] = []
    terms: list[NDArray[np.int64]] = []
    for part in read_table(path, TERMS, progress=report):
        check_taxon(part, "string_protein_id", graph.species_id)
        chosen = part.rows["category"].isin(wanted).to_numpy()
        check_go(part, "term", chosen)
        at = positions(part.rows["string_protein_id"], graph.genes)
        chosen = chosen & (at >= 0)  # pandas may lend its memory, to be read alone
        rows = part.rows[chosen]
        rows = rows.assign(term=rows["term"].cat.remove_unused_categories())
        genes.append(at[chosen])
        terms.append(number(rows["term"]))
        said = rows.drop_duplicates("term")
        names |= {t: d for t, d in zip(said["term"], said["description"], strict=True) if d}
    found = annotations_of(graph, np.concatenate(genes), np.concatenate(terms), number.names().tolist())
    if not found.terms:
        raise InputError(path, "category", f"no row of {' or '.join(wanted)}", "functions of the proteins")
    return found, names


def check_go(part: Chunk, column: str, rows: NDArray[np.bool_]) -> None:
    """Raise InputError for the first of ``rows`` (a mask) whose term is not GO:0000000."""
    names = part.rows[column].cat
    wrong = np.array([re.fullmatch(r"GO:\d{7}", name) is None for name in names.categories], dtype=bool)
    if wrong.any():
        part.refuse(rows & wrong[names.codes.to_numpy()], column, "GO: and seven digits")
