"""Who is trained on and who is tested: by species or tissue, by gene, and by task.

A part is a sorted array of rows of a store. One gene stands in many tissues, so rows are divided by gene: no gene is on two
sides, in whatever graph it stands. Parts by gene and parts by graph are combined with `both`: a test species then holds only
genes that no training row has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import read_json, write_json
from ecgmeta.runtime.seeds import numpy_generator

Rows = NDArray[np.int64]
Parts = dict[str, Rows]

METAFT_FRACTION = (
    0.85  # of the examples that the φ step sees: to fine-tune on; the others validate (METHOD.md)
)


def gene_split(genes: NDArray[np.str_], fractions: Mapping[str, float], seed: int) -> Parts:
    """Parts of about the given fractions of the *genes*, all rows of a gene in one part.

    The part of a gene depends on the seed and on the set of genes, not on the order of the rows.

    Args:
        genes: (G,) gene of each row.
        fractions: part -> its share; positive, adding up to 1.
        seed: of the draw.

    Raises:
        InputError: bad fractions; fewer genes than parts.
    """
    shares = np.array(list(fractions.values()), dtype=float)
    if not shares.size or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError("splits", "fractions", dict(fractions), "positive numbers that add up to 1")
    names, owner = np.unique(genes, return_inverse=True)
    if len(names) < len(shares):
        raise InputError("splits", "genes", len(names), f"at least {len(shares)}, one for each part")
    ends = np.rint(np.cumsum(shares) * len(names)).astype(int)
    ends = np.maximum(ends, np.arange(1, len(shares) + 1))  # a small share is not an empty one
    ends = np.minimum(ends, len(names) - np.arange(len(shares))[::-1])
    place = np.empty(len(names), np.int64)
    place[numpy_generator(seed, "gene split").permutation(len(names))] = np.arange(len(names))
    part = np.searchsorted(ends, place, side="right")
    return {name: np.flatnonzero(part[owner] == number) for number, name in enumerate(fractions)}


def group_split(groups: NDArray[Any], members: Mapping[str, Sequence[Any]]) -> Parts:
    """Parts by the species (``store.species``) or tissue (``store.graph``) that a row was cut from; other rows are in none.

    Raises:
        InputError: a group that no row has, or that is in two parts.
    """
    known = set(np.unique(groups).tolist())
    named = [group for chosen in members.values() for group in chosen]
    for group in named:
        if group not in known:
            shown = ", ".join(map(str, sorted(known)[:8]))
            raise InputError("splits", "species or tissue", group, f"one that the store has: {shown}")
        if named.count(group) > 1:
            raise InputError("splits", "species or tissue", f"{group} twice", "each in one part")
    return {part: np.flatnonzero(np.isin(groups, list(chosen))) for part, chosen in members.items()}


def both(first: Parts, second: Parts) -> Parts:
    """Rows that are in the part of the same name in both."""
    return {name: np.intersect1d(rows, second[name]) for name, rows in first.items() if name in second}


def without_genes(rows: Rows, genes: NDArray[np.str_], of: Rows) -> Rows:
    """Those of `rows` whose gene none of the rows `of` has."""
    return rows[~np.isin(genes[rows], genes[of])]


def shared_genes(genes: NDArray[np.str_], parts: Mapping[str, Rows]) -> dict[str, tuple[str, str]]:
    """Genes with rows in two of the parts, and in which."""
    found: dict[str, tuple[str, str]] = {}
    for one, other in combinations(parts, 2):
        for gene in np.intersect1d(genes[parts[one]], genes[parts[other]]).tolist():
            found.setdefault(gene, (one, other))
    return found


def check_genes_apart(genes: NDArray[np.str_], parts: Mapping[str, Rows]) -> None:
    """Raise InputError where a gene stands on two sides."""
    for gene, (one, other) in shared_genes(genes, parts).items():
        raise InputError("splits", f"gene {gene}", f"in {one} and in {other}", "one part")


def metaft_split(
    rows: Rows, genes: NDArray[np.str_], seed: int, fraction: float = METAFT_FRACTION
) -> tuple[Rows, Rows]:
    """The examples that the φ step may see: a share to fine-tune on, the others to validate; whole genes each.

    Raises:
        InputError: a fraction that is not between 0 and 1; fewer than two genes.
    """
    parts = gene_split(genes[rows], {"train": fraction, "val": 1 - fraction}, seed)
    return rows[parts["train"]], rows[parts["val"]]


def gene_subset(rows: Rows, genes: NDArray[np.str_], share: float, seed: int) -> Rows:
    """About that share of the genes of `rows`, all their rows; nested: with one seed the smaller is in the larger.

    Raises:
        InputError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError("splits", "share of genes", share, "above 0, at most 1")
    names, owner = np.unique(genes[rows], return_inverse=True)
    order = numpy_generator(seed, "gene subset").permutation(len(names))
    chosen = np.zeros(len(names), bool)
    chosen[order[: max(1, round(share * len(names)))]] = True
    return rows[chosen[owner]]


@dataclass(frozen=True)
class TaskFold:
    """Partial access: tasks that the φ step may see, and tasks that it may not, by position.

    Attributes:
        number: of the fold.
        seen: all but the held-out ones.
        held_out: as declared by `task_folds`: fold k starts at task ``k * stride``.
    """

    number: int
    seen: tuple[int, ...]
    held_out: tuple[int, ...]

    def describe(self, terms: Sequence[str]) -> str:
        """One line that says which tasks this fold holds out."""
        return f"fold {self.number} holds out {', '.join(terms[task] for task in self.held_out)}"


def task_folds(tasks: int, *, folds: int = 10, held_out: int | None = None) -> list[TaskFold]:
    """Fold k holds out the ``held_out`` tasks from ``⌊k * tasks / folds⌋`` on, counted in a circle.

    So fold 0 holds out the *first* tasks. The paper's partial-access experiment says that its fold 0 holds out tasks 30 to 39;
    its code holds out 0 to 9, as ``task_folds(40, folds=4)[0]`` does. Blocks overlap where ``folds * held_out`` exceeds the
    number of tasks.

    Args:
        tasks: how many fine-tuning tasks there are.
        folds: how many folds, at most one a task.
        held_out: tasks a fold; None: blocks side by side, which hold out each task once.

    Raises:
        InputError: fewer tasks than folds, or a block that leaves no task to see.
    """
    if not 2 <= folds <= tasks:
        raise InputError("splits", "task folds", folds, f"2 to {tasks}, the number of tasks")
    if held_out is not None and not 1 <= held_out < tasks:
        raise InputError("splits", "held-out tasks", held_out, f"1 to {tasks - 1}")
    out = []
    for number in range(folds):
        start, following = number * tasks // folds, (number + 1) * tasks // folds
        block = tuple((start + i) % tasks for i in range(held_out or following - start))
        out.append(TaskFold(number, tuple(task for task in range(tasks) if task not in block), block))
    return out


def save_parts(path: Path, parts: Mapping[str, Rows]) -> None:
    """Rows of every part as JSON, beside the run that uses them."""
    write_json(path, {name: rows.tolist() for name, rows in parts.items()})


def load_parts(path: Path) -> Parts:
    """Raises InputError where the file is missing or holds anything but lists of row numbers."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(path, "content", type(found).__name__, "an object of lists of rows")
    for name, rows in found.items():
        if not (isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)):
            raise InputError(path, name, str(rows)[:60], "a list of row numbers")
    return {name: np.array(rows, np.int64) for name, rows in found.items()}
