"""Which rows of a store do what: pre-train, guide φ, fine-tune, validate, test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import derive
from ppi_extension.data.distractors import FUNCTION
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.config import Experiment
from ppi_extension.splits import (
    Rows,
    TaskFold,
    check_genes_apart,
    gene_split,
    gene_subset,
    metaft_split,
    task_folds,
    without_genes,
)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The parts of a store for one seed. No gene is in two of pretrain, validation and test.

    Attributes:
        store: the graphs.
        pretrain: rows that pre-training sees, with the labels of its own tasks. They are those of the training genes, of
            which ``train`` are some, and of a test species or tissue the genes that do not test.
        train, validation, test: rows whose fine-tuning labels train, choose, and test.
        metaft_train, metaft_validation: the rows among ``train`` whose fine-tuning labels pre-training may see.
        seen: fine-tuning tasks that pre-training may see, by position.
        scored: those that are scored: all of them, or under partial access the ones it has not seen.
    """

    store: EgoStore
    pretrain: Rows
    train: Rows
    validation: Rows
    test: Rows
    metaft_train: Rows
    metaft_validation: Rows
    seen: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def metaft(self) -> Rows:
        """All rows whose fine-tuning labels pre-training may see: first those to train on."""
        return np.concatenate([self.metaft_train, self.metaft_validation])

    def summary(self) -> str:
        sizes = f"{len(self.pretrain):,} graphs to pre-train on, {len(self.train):,} with fine-tuning labels"
        tasks = f"{len(self.store.pretrain_terms):,} pre-training tasks, {len(self.store.finetune_terms)} fine-tuning tasks"
        return f"{sizes}, {len(self.validation):,} to validate, {len(self.test):,} to test; {tasks}"


USEFUL = ("useful", FUNCTION)  # kinds of tasks that serve fine-tuning


def kinds_of(store: EgoStore) -> dict[str, str]:
    """Pre-training term -> its kind, of a planted problem or planted distractors; empty where nobody knows."""
    kinds: dict[str, str] = store.info.get("notes", {}).get("kinds", {})
    return kinds


def useful_tasks(store: EgoStore) -> list[bool]:
    """(T,) which pre-training tasks serve fine-tuning.

    Raises:
        InputError: a store of which it is not known.
    """
    kinds = kinds_of(store)
    if not kinds:
        raise InputError(store.folder, "kinds", "none", "a planted problem, or a store with distractors")
    return [kinds[term] in USEFUL for term in store.pretrain_terms]


def divide(store: EgoStore, config: Experiment, seed: int) -> Cohort:
    """The parts for one seed of an experiment.

    Raises:
        InputError: a part without rows, or none of whose tasks that are scored has both classes; tasks that cannot be folded.
    """
    data, genes = config.data, store.genes
    draw = derive(data.seed, "split", seed if data.resplit else "all") % 2**31
    train_fraction = 1 - data.test_fraction - data.validation_fraction
    fractions = {"train": train_fraction, "validation": data.validation_fraction, "test": data.test_fraction}
    parts = gene_split(genes, fractions, draw)
    if data.test_graphs:
        parts = _by_graph(store, parts, data.test_graphs)
    pretrain = parts["train"]
    if data.test_graphs_seen:
        seen, parts["test"] = _halved(store, parts["test"], data.test_graphs_seen, draw)
        pretrain = np.sort(np.concatenate([pretrain, seen]))
    check_genes_apart(genes, parts | {"train": pretrain})
    train = gene_subset(parts["train"], genes, data.finetune_share, draw)
    train = train[(store.labels("finetune", train) >= 0).any(axis=1)]
    visible = gene_subset(train, genes, config.meta.share, derive(draw, "metaft") % 2**31)
    metaft_train, metaft_validation = metaft_split(visible, genes, draw)
    fold = _fold(len(store.finetune_terms), config, seed)
    everything = tuple(range(len(store.finetune_terms)))
    cohort = Cohort(
        store,
        pretrain,
        train,
        parts["validation"],
        parts["test"],
        metaft_train,
        metaft_validation,
        everything if fold is None else fold.seen,
        everything if fold is None else fold.held_out,
    )
    _check(cohort)
    return cohort


def _by_graph(store: EgoStore, parts: dict[str, Rows], test_graphs: list[str]) -> dict[str, Rows]:
    """Train and validate on other graphs; test on all rows of these that have a gene of their own."""
    unknown = [name for name in test_graphs if name not in store.graph_names]
    if unknown:
        raise InputError(
            store.folder, "data.test_graphs", unknown[0], f"some of {list(store.graph_names)[:8]}"
        )
    here = np.isin(store.graph, test_graphs)
    train, validation, free = (parts[name][~here[parts[name]]] for name in ("train", "validation", "test"))
    # Genes drawn to test that the test graphs do not have may train: whole species, where each has its own.
    free = without_genes(free, store.genes, np.flatnonzero(here))
    train = np.sort(np.concatenate([train, free]))
    held = np.concatenate([train, validation])
    test = without_genes(np.flatnonzero(here), store.genes, held)
    return {"train": train, "validation": validation, "test": test}


def _halved(store: EgoStore, test: Rows, seen: float, draw: int) -> tuple[Rows, Rows]:
    """The rows of the test graphs that pre-training sees, and those that still test: whole genes each."""
    halves = gene_split(
        store.genes[test], {"seen": seen, "test": 1 - seen}, derive(draw, "test graphs") % 2**31
    )
    return test[halves["seen"]], test[halves["test"]]


def _fold(tasks: int, config: Experiment, seed: int) -> TaskFold | None:
    meta = config.meta
    if not meta.folds:
        return None
    return task_folds(tasks, folds=meta.folds, held_out=meta.held_out or None)[seed % meta.folds]


def _check(cohort: Cohort) -> None:
    store = cohort.store
    if not store.pretrain_terms or not store.finetune_terms:
        found = f"{len(store.pretrain_terms)} pre-training and {len(store.finetune_terms)} fine-tuning tasks"
        raise InputError(store.folder, "tasks", found, "some of both kinds")
    for name in ("pretrain", "train", "validation", "test", "metaft_train", "metaft_validation"):
        if not len(getattr(cohort, name)):
            raise InputError(store.folder, f"{name} rows", "none", "at least one")
    for part in ("train", "validation", "test"):
        positive, negative = store.counts("finetune", getattr(cohort, part))
        if not ((positive > 0) & (negative > 0))[list(cohort.scored)].any():
            expected = "both classes in at least one of the tasks that are scored"
            raise InputError(store.folder, f"{part} labels", "one class only in every task", expected)
