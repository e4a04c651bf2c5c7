"""Is a store fit to train on: its graphs, its labels, the leak rule, splits by gene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.terms import leaking, read_obo
from ppi_extension.splits import Parts, gene_split, load_parts, shared_genes

if TYPE_CHECKING:
    from ppi_extension.data.store import EgoStore

_BLOCK = 1024  # graphs looked at a time
_FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}  # as an experiment divides the genes by default


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found."""

    ok: bool
    what: str
    said: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'WRONG'} {self.what}: {self.said}"


def check_store(store: EgoStore, obo: Path | None = None, splits: Path | None = None) -> Iterator[Finding]:
    """One finding a check. That the files are whole was checked when the store was opened.

    Args:
        obo: ontology for the leak rule; None: only equal terms are looked for.
        splits: parts to check (`splits.save_parts`); None: a split by gene is drawn.

    Raises:
        InputError: a broken ontology, broken parts, or rows that the store does not have.
    """
    arrays = store.info["arrays"]
    yield Finding(True, "files", f"{len(arrays)} arrays of the size and checksum that info.json says")
    yield _graphs(store)
    yield from _labels(store)
    yield _leak(store, obo)
    yield from _splits(store, _parts(store, splits))


def _graphs(store: EgoStore) -> Finding:
    """No edge leaves its graph, none is a loop or stands twice, every centre is a node."""
    for start in range(0, len(store), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(store)))
        batch = store.collate(rows, labels=())
        ends, graph = batch.edge_index.numpy()[:, ::2], batch.batch.numpy()
        first, last = batch.ptr.numpy()[:-1], batch.ptr.numpy()[1:]
        centers = batch.center_node_idx.numpy()
        if (centers >= last).any() or (centers < first).any():
            row = rows[((centers >= last) | (centers < first)).argmax()]
            return Finding(False, "graphs", f"graph {row}: its centre is no node of it")
        owner = graph[np.minimum(ends, len(graph) - 1)]
        wrong = (ends[1] >= len(graph)) | (owner[0] != owner[1]) | (ends[0] >= ends[1])
        key = ends[0] * len(graph) + ends[1]
        wrong[1:] |= np.diff(key) <= 0
        if wrong.any():
            row = rows[owner[0][wrong.argmax()]]
            return Finding(
                False, "graphs", f"graph {row}: an edge that leaves it, is a loop, or stands twice"
            )
    mean = f"{store.nodes.mean():.1f} nodes and {store.edges.mean():.1f} edges on average"
    return Finding(True, "graphs", f"{len(store):,}, {mean}")


def _labels(store: EgoStore) -> Iterator[Finding]:
    for which in ("pretrain", "finetune"):
        positive, negative = store.counts(which)
        single = np.flatnonzero((positive == 0) | (negative == 0))
        tasks = f"{len(positive):,} tasks"
        if len(single):
            names = ", ".join(store.terms(which)[task] for task in single[:3])
            yield Finding(False, f"{which} labels", f"{len(single)} of {tasks} with one class only: {names}")
        else:
            yield Finding(bool(len(positive)), f"{which} labels", f"{tasks}, both classes in each")


def _leak(store: EgoStore, obo: Path | None) -> Finding:
    hierarchy = read_obo(obo).hierarchy if obo is not None else {}
    gone = sorted(leaking(store.pretrain_terms, store.finetune_terms, hierarchy))
    if gone:
        below = (
            f"{len(gone)} pre-training tasks equal or descend from a fine-tuning task: {', '.join(gone[:3])}"
        )
        return Finding(False, "leak rule", below)
    looked = (
        "equals or descends from" if obo is not None else "equals (descent: name the ontology with --obo)"
    )
    return Finding(True, "leak rule", f"no pre-training task {looked} a fine-tuning task")


def _parts(store: EgoStore, file: Path | None) -> Parts:
    if file is None:
        return gene_split(store.genes, _FRACTIONS, seed=0)
    parts = load_parts(file)
    for name, rows in parts.items():
        if rows.size and rows.max() >= len(store):
            raise InputError(file, name, f"row {rows.max()}", f"rows 0 to {len(store) - 1}")
    return parts


def _splits(store: EgoStore, parts: Parts) -> Iterator[Finding]:
    shared = shared_genes(store.genes, parts)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in parts.items())
    if shared:
        gene, (one, other) = next(iter(shared.items()))
        yield Finding(
            False, "split", f"{len(shared)} genes on two sides, such as {gene}: in {one} and {other}"
        )
    else:
        yield Finding(True, "split", f"no gene on two sides ({sizes})")
    for name, rows in parts.items():
        positive, negative = store.counts("finetune", rows)
        both = int(((positive > 0) & (negative > 0)).sum())
        yield Finding(
            both > 0, f"split {name}", f"{both} of {len(positive)} fine-tuning tasks with both classes"
        )
