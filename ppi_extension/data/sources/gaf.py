"""STRING's links with functions from annotation files (GAF 2.x) and the ontology (go-basic.obo).

The GO annotation file format: https://geneontology.org/docs/go-annotation-file-gaf-format-2.2. A row that says NOT is left out,
rows are chosen by evidence, what a term implies is added (`terms.propagate`). GAF names genes in its own way; STRING's
``<taxon>.protein.aliases.v12.0.txt.gz`` says which protein that is:

1. by the identifier (column 2), where one protein of the graph alone has that alias;
2. else by the symbol (column 3) as STRING's preferred name, where ``<taxon>.protein.info.v12.0.txt.gz`` is there;
3. else by the symbol as an alias, where one protein alone has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ppi_extension.data.sources import string
from ppi_extension.data.sources.annotations import (
    Annotations,
    annotations_of,
    check_labelling,
    find_ontology,
    to_labels,
)
from ppi_extension.data.species import SourceData, SpeciesGraph
from ppi_extension.data.tables import Column, read_lines, read_table
from ppi_extension.data.terms import Ontology, propagate

if TYPE_CHECKING:
    import pandas as pd

GAF = (
    *(Column(name) for name in ("DB", "DB_Object_ID", "DB_Object_Symbol")),
    Column("Qualifier", empty=True),
    *(Column(name) for name in ("GO_ID", "DB_Reference", "Evidence_Code")),
    Column("With_From", empty=True),
    Column("Aspect"),
    *(Column(name, empty=True) for name in ("DB_Object_Name", "DB_Object_Synonym")),
    *(Column(name) for name in ("DB_Object_Type", "Taxon", "Date", "Assigned_By")),
    *(Column(name, empty=True) for name in ("Annotation_Extension", "Gene_Product_Form_ID")),
)
ALIASES = (Column("string_protein_id"), Column("alias", empty=True), Column("source", empty=True))
INFO = (
    Column("string_protein_id"),
    Column("preferred_name"),
    Column("protein_size", empty=True),
    Column("annotation", empty=True),
)
_ASPECT = {"P": "process", "F": "function", "C": "component"}
_CHUNK = 200_000  # all of 17 text columns


@dataclass
class Options(string.Options):
    """Those of `string.Options`, and

    Attributes:
        without: evidence codes whose rows are left out: by default IEA (electronic, seen by no one) and ND (no data).
        strains: taxon in the GAF file -> STRING's, where they differ.
    """

    without: list[str] = field(default_factory=lambda: ["IEA", "ND"])
    strains: dict[int, int] = field(default_factory=lambda: {559292: 4932, 83333: 511145})


def read(path: Path, options: Options, report: Report | None = None) -> SourceData:
    """Graphs and functions of one or more species; `path` is the folder of all files.

    Raises:
        InputError: beside broken files: no GAF or no OBO file, a species of which no annotation could be joined.
    """
    check_labelling("gaf", options.min_genes, options.unannotated, options.aspects)
    links = string.links_files(path, options.taxa)
    aliases = {taxon: string.companion(file, "aliases") for taxon, file in links.items()}
    files = sorted(file for file in path.iterdir() if re.search(r"\.gaf(\.gz)?$", file.name))
    if not files:
        raise InputError(path, "annotations", "no *.gaf or *.gaf.gz file", "a GAF 2.x file a species")
    ontology = find_ontology(path, options.obo)
    if ontology is None:
        raise InputError(path, "ontology", "no *.obo file", "go-basic.obo; or name it with obo=FILE")
    rows = _read_gaf(files, set(links), ontology, options, report)
    found = []
    notes = []
    for taxon, file in links.items():
        if not (rows["taxon"] == taxon).any():
            wanted = f"rows of taxon:{taxon} in {', '.join(file.name for file in files)}"
            raise InputError(path, f"taxon {taxon}", "no annotation that counts", wanted)
        graph = string.read_links(file, taxon, options.thresholds, report)
        annotations, note = _joined(rows[rows["taxon"] == taxon], graph, aliases[taxon], ontology, report)
        found.append(annotations)
        notes.append(note)
    labels = to_labels(found, ontology.names, options.min_genes, options.unannotated)
    return SourceData([part.graph for part in found], labels, ontology.hierarchy, notes=tuple(notes))


def _read_gaf(
    files: list[Path], taxa: set[int], ontology: Ontology, options: Options, report: Report | None
) -> pd.DataFrame:
    """The rows that count, each once: taxon, identifier, symbol, term (as the ontology calls it today)."""
    import pandas as pd

    current = {term: term for term in ontology.hierarchy} | ontology.current
    parts = []
    for path in files:
        skip = _header_lines(path)
        for part in read_table(path, GAF, header=False, skip=skip, chunk=_CHUNK, progress=report):
            everything = np.ones(len(part.rows), bool)
            string.check_go(part, "GO_ID", everything)
            part.refuse(~part.rows["Aspect"].isin(list(_ASPECT)).to_numpy(), "Aspect", "P, F or C")
            taxon = part.rows["Taxon"].astype(str).str.extract(r"^taxon:(\d+)", expand=False)
            part.refuse(taxon.isna().to_numpy(), "Taxon", "taxon:NUMBER")
            rows = pd.DataFrame(
                {
                    "taxon": taxon.astype(np.int64).replace(options.strains),
                    "identifier": part.rows["DB_Object_ID"].astype(str),
                    "symbol": part.rows["DB_Object_Symbol"].astype(str),
                    "term": part.rows["GO_ID"].astype(str).map(current),  # missing: obsolete
                }
            )
            counts = rows["taxon"].isin(taxa) & rows["term"].notna()
            counts &= ~part.rows["Evidence_Code"].isin(options.without)
            counts &= part.rows["Aspect"].astype(str).map(_ASPECT).isin(options.aspects)
            counts &= ~part.rows["Qualifier"].astype(str).str.contains(r"(?:^|\|)NOT(?:\||$)")
            parts.append(rows[counts].drop_duplicates())
    return pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)


def _header_lines(path: Path) -> int:
    """How many lines stand before the first row; the version is among them.

    Raises:
        InputError: none says that this is GAF 2.
    """
    lines = [text for _, text in takewhile(lambda line: line[1].startswith("!"), read_lines(path))]
    version = [text for text in lines if text.lower().startswith("!gaf-version:")]
    if not version or not version[0].partition(":")[2].strip().startswith("2"):
        found = repr(version[0]) if version else "no version"
        raise InputError(f"{path}, line 1", "version", found, "!gaf-version: 2.0, 2.1 or 2.2")
    return len(lines)


def _joined(
    rows: pd.DataFrame, graph: SpeciesGraph, aliases: Path, ontology: Ontology, report: Report | None
) -> tuple[Annotations, str]:
    """The rows of one species as annotations of its proteins, and how many genes found theirs."""
    genes = rows[["identifier", "symbol"]].drop_duplicates()
    wanted = set(genes["identifier"]) | set(genes["symbol"])
    alias = _unique(aliases, ALIASES, "alias", graph, wanted, report)
    info = aliases.with_name(aliases.name.replace(".aliases.", ".info."))
    preferred = _unique(info, INFO, "preferred_name", graph, wanted, report) if info.is_file() else {}
    identifiers, symbols = rows["identifier"], rows["symbol"]
    at = identifiers.map(alias).fillna(symbols.map(preferred)).fillna(symbols.map(alias))
    joined = at.notna().to_numpy()
    if not joined.any():
        found = f"none of {len(genes)} annotated genes of taxon {graph.species_id}"
        raise InputError(aliases, "alias", found, "identifiers or symbols of the GAF files")
    terms = sorted(set(rows["term"][joined]))
    place = {term: number for number, term in enumerate(terms)}
    direct = annotations_of(
        graph,
        np.array(at[joined], np.int64),
        np.array([place[term] for term in rows["term"][joined]], np.int64),
        terms,
    )
    has, every = propagate(direct.has, terms, ontology.hierarchy)
    met = len(rows.loc[joined, ["identifier", "symbol"]].drop_duplicates())
    note = f"{graph.name}: {met} of {len(genes)} annotated genes found among {graph.num_nodes} proteins"
    return Annotations(graph, every, has), note


def _unique(
    path: Path,
    columns: tuple[Column, ...],
    column: str,
    graph: SpeciesGraph,
    wanted: set[str],
    report: Report | None,
) -> Mapping[str, int]:
    """Name -> position of the protein of the graph that alone has it."""
    owner: dict[str, int] = {}
    for part in read_table(path, columns, progress=report):
        string.check_taxon(part, "string_protein_id", graph.species_id)
        at: NDArray[np.int64] = string.positions(part.rows["string_protein_id"], graph.genes)
        chosen = part.rows[column].isin(wanted).to_numpy() & (at >= 0)
        for name, place in zip(part.rows[column][chosen], at[chosen].tolist(), strict=True):
            owner[name] = place if owner.get(name, place) == place else -1
    return {name: place for name, place in owner.items() if place >= 0}
