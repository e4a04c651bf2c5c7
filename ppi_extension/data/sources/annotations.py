"""From pairs of a protein and a function to labels: what the readers of STRING and of GAF files share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.species import UNLABELLED, Labels, SourceData, SpeciesGraph
from ppi_extension.data.terms import Ontology, read_obo

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ASPECTS = ("process", "function", "component")
NO_ONTOLOGY = (
    "no ontology: pre-training tasks that equal a fine-tuning task are left out, but which ones descend from it is not known, "
    "and those stay; name go-basic.obo with obo=FILE"
)


@dataclass(frozen=True, eq=False)
class Annotations:
    """Which functions the genes of one graph have.

    Attributes:
        graph: whose genes.
        terms: T of them.
        has: (n, T) 1 where a gene has the function, over the genes of the graph in its order.
    """

    graph: SpeciesGraph
    terms: tuple[str, ...]
    has: csr_array


def annotations_of(
    graph: SpeciesGraph, genes: NDArray[np.int64], terms: NDArray[np.int64], names: Sequence[str]
) -> Annotations:
    """From pairs, which may stand there more than once.

    Args:
        genes, terms: (P,) positions in the graph's genes and in ``names``.
    """
    from scipy.sparse import csr_array

    pairs = np.unique(genes * len(names) + terms)
    rows, columns = np.divmod(pairs, max(len(names), 1))
    has = csr_array((np.ones(len(pairs), np.int8), (rows, columns)), shape=(graph.num_nodes, len(names)))
    return Annotations(graph, tuple(names), has)


def to_labels(
    found: Sequence[Annotations], names: Mapping[str, str], min_genes: int, unannotated: str
) -> list[Labels]:
    """One `Labels` a graph, all over the same terms, sorted: those that ``min_genes`` genes of all graphs together have.

    Args:
        names: term -> what it is called.
        unannotated: what a gene without any function is, "unlabelled" or "negative" (as in Hu et al., where 0 is negative
            or no data). A gene that has some function is negative for the others.

    Raises:
        InputError: no term is left.
    """
    counts: dict[str, int] = {}
    for part in found:
        for term, count in zip(part.terms, part.has.sum(axis=0).tolist(), strict=True):
            counts[term] = counts.get(term, 0) + count
    kept = tuple(sorted(term for term, count in counts.items() if count >= min_genes))
    if not kept:
        most = max(counts.values(), default=0)
        raise InputError("annotations", "min_genes", f"no term with {min_genes} genes", f"at most {most}")
    shown = {term: names[term] for term in kept if term in names}
    return [Labels(p.graph.genes, kept, _values(p, kept, unannotated), shown, p.graph.name) for p in found]


def _values(part: Annotations, kept: tuple[str, ...], unannotated: str) -> NDArray[np.int8]:
    """(n, kept) 1, 0 and -1."""
    values = np.zeros((part.graph.num_nodes, len(kept)), np.int8)
    column = {term: number for number, term in enumerate(kept)}
    place = np.array([column.get(term, -1) for term in part.terms], np.int64)
    pairs = part.has.tocoo()
    to = place[pairs.col]
    values[pairs.row[to >= 0], to[to >= 0]] = 1
    if unannotated == "unlabelled":
        values[np.diff(part.has.indptr) == 0] = UNLABELLED
    return values


def check_labelling(where: str, min_genes: int, unannotated: str, aspects: Sequence[str]) -> None:
    """Raise InputError for options that `to_labels` and the readers do not know."""
    if min_genes < 1:
        raise InputError(where, "min_genes", min_genes, "at least 1")
    if unannotated not in ("unlabelled", "negative"):
        raise InputError(where, "unannotated", repr(unannotated), "unlabelled or negative")
    if not aspects or not set(aspects) <= set(ASPECTS):
        raise InputError(where, "aspects", list(aspects), f"some of {', '.join(ASPECTS)}")


def find_ontology(folder: Path, given: str | None) -> Ontology | None:
    """The ontology at ``given``, else the OBO file of the folder, else None.

    Raises:
        InputError: no such file, or a broken one; several in the folder.
    """
    if given is not None:
        return read_obo(given)
    files = sorted([*folder.glob("*.obo"), *folder.glob("*.obo.gz")])
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise InputError(folder, "ontology", found, "one of them; name it with obo=FILE")
    return read_obo(files[0]) if files else None


def source_data(graphs: list[SpeciesGraph], labels: list[Labels], ontology: Ontology | None) -> SourceData:
    """What a source read, its terms named and ordered by the ontology; where there is none, a note says what follows."""
    if ontology is None:
        return SourceData(graphs, labels, None, (NO_ONTOLOGY,))
    known = [{term: ontology.names[term] for term in part.terms if term in ontology.names} for part in labels]
    named = [replace(part, names={**names, **part.names}) for part, names in zip(labels, known, strict=True)]
    return SourceData(graphs, named, ontology.hierarchy)
