"""The Gene Ontology's hierarchy: what a term implies, annotations carried upwards, and which tasks would give others away.

A gene that has a function has every function above it (the ontology's true-path rule), over the relations ``is_a`` and
``part_of``; over these go-basic.obo has no cycle. Ashburner et al., Nature Genetics 25, 2000.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.tables import read_lines

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Hierarchy = Mapping[str, tuple[str, ...]]
"""A term -> the terms directly above it; a term that is not in it has none."""

UPWARD = ("is_a", "part_of")


@dataclass(frozen=True, eq=False)
class Ontology:
    """What an OBO file says of its terms, obsolete ones left out.

    Attributes:
        hierarchy: every term of the file -> the terms directly above it, sorted.
        names: term -> what it is called.
        aspects: term -> its namespace, such as "biological_process".
        current: an alternative identifier -> the term that it stands for today.
    """

    hierarchy: dict[str, tuple[str, ...]]
    names: dict[str, str]
    aspects: dict[str, str]
    current: dict[str, str]


def read_obo(path: str | Path) -> Ontology:
    """An ontology in OBO format, such as go-basic.obo, plain or gzipped.

    Raises:
        InputError: no such file, a line that is not OBO, a term without identifier or below one that the file lacks (a file cut
            off in the middle), no term at all; with the line where there is one.
    """
    import obonet

    path = Path(path)
    lines = [text for _, text in read_lines(path)]
    try:
        graph = obonet.read_obo(io.StringIO("\n".join(lines)))
    except (ValueError, KeyError) as error:
        raise _wrong_line(path, lines, error) from None
    if not graph:
        raise InputError(path, "terms", "none", "an OBO file with [Term] stanzas")
    for term in graph:
        if "name" not in graph.nodes[term]:  # only named by others: it is above them, and nowhere described
            raise _undescribed(path, lines, term)
    above = {
        term: tuple(sorted({up for _, up, kind in graph.out_edges(term, keys=True) if kind in UPWARD}))
        for term in graph
    }
    facts = graph.nodes(data=True)
    return Ontology(
        above,
        {term: str(said["name"]) for term, said in facts},
        {term: str(said.get("namespace", "")) for term, said in facts},
        {other: term for term, said in facts for other in said.get("alt_id", ())},
    )


def _wrong_line(path: Path, lines: Sequence[str], error: Exception) -> InputError:
    """The line over which obonet stumbled; it says which, not where."""
    stanza, identified = 0, True
    for number, text in enumerate([*lines, ""], start=1):
        if text.startswith("[Term]"):
            stanza, identified = number, False
        elif text.startswith("id:"):
            identified = True
        elif not text.strip():
            if not identified:
                return InputError(f"{path}, line {stanza}", "term", "no id line", "id: GO:...")
            identified = True
        elif not text.startswith(("!", "[Typedef]", "[Instance]")) and ":" not in text:
            return InputError(f"{path}, line {number}", "line", repr(text[:80]), "tag: value")
        elif text.startswith("relationship:") and len(text.partition("!")[0].split("{")[0].split()) != 3:
            expected = "relationship: KIND TERM"
            return InputError(f"{path}, line {number}", "relationship", repr(text[:80]), expected)
    return InputError(path, "ontology", f"{type(error).__name__}: {error}"[:200], "an OBO file")


def _undescribed(path: Path, lines: Sequence[str], term: str) -> InputError:
    number = next((n for n, text in enumerate(lines, start=1) if term in text.split()), 0)
    found = "no name, or no stanza of its own"
    return InputError(f"{path}, line {number}", term, found, "every term described: is the file whole?")


def ancestors(hierarchy: Hierarchy, term: str) -> frozenset[str]:
    """Every term above ``term``, at any distance, itself left out."""
    found: set[str] = set()
    ahead = list(hierarchy.get(term, ()))
    while ahead:
        up = ahead.pop()
        if up not in found:
            found.add(up)
            ahead += hierarchy.get(up, ())
    return frozenset(found - {term})


def leaking(pretrain_terms: Iterable[str], finetune_terms: Iterable[str], hierarchy: Hierarchy) -> set[str]:
    """The pre-training terms that must go: who has one of them has a fine-tuning term, for it equals or descends from that.

    A term above a fine-tuning term may stay: who has it need not have the function below.
    """
    targets = set(finetune_terms)
    return {
        term
        for term in pretrain_terms
        if term in targets or not targets.isdisjoint(ancestors(hierarchy, term))
    }


def propagate(
    annotations: csr_array, terms: Sequence[str], hierarchy: Hierarchy
) -> tuple[csr_array, tuple[str, ...]]:
    """Annotations carried upwards: whoever has a term has every term above it.

    Args:
        annotations: (genes, T) 1 where a gene is annotated with a term.
        terms: T terms.
        hierarchy: may name further terms.

    Returns:
        (genes, T') of 0 and 1, and T' terms: those given and all above them, sorted.
    """
    from scipy.sparse import csr_array

    implied = {term: ancestors(hierarchy, term) | {term} for term in terms}
    every = tuple(sorted(set().union(*implied.values())))
    place = {term: column for column, term in enumerate(every)}
    rows = np.repeat(np.arange(len(terms)), [len(implied[term]) for term in terms])
    columns = np.array([place[up] for term in terms for up in sorted(implied[term])], dtype=np.int64)
    carry = csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(terms), len(every)))
    carried = csr_array(annotations.astype(np.int32) @ carry)
    carried.data = np.minimum(carried.data, 1)
    carried.sort_indices()
    return carried.astype(np.int8), every
