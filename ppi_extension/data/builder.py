"""From what a source read to a store: which functions are tasks of which kind, and an ego graph for each labelled gene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.processes import MOST_PIECES, processors, share
from ecgmeta.runtime.progress import Report
from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.distractors import (
    DISTRACTOR,
    FUNCTION,
    distractor_terms,
    distractors,
    positions,
    with_evidence,
)
from ppi_extension.data.ego import Egos, EgoSampler, largest
from ppi_extension.data.species import UNLABELLED, SourceData, SpeciesGraph
from ppi_extension.data.terms import leaking

if TYPE_CHECKING:
    from ppi_extension.data.store import EgoStore

_BLOCK = 512  # ego graphs that are sampled and written at a time


@dataclass(frozen=True)
class BuildSettings:
    """How a store is built; saved with it.

    Attributes:
        depth, fanout: of the ego graphs (`EgoSampler`).
        seed: of every draw.
        pretrain_terms: the pre-training tasks; None: every term with enough examples that is not a fine-tuning task.
        finetune_terms: the fine-tuning tasks; None: a drawn share of the terms with enough examples.
        finetune_fraction: that share.
        min_positives, min_negatives: examples that a term needs to be chosen; lists that are given are taken as they are.
        limit: most ego graphs of one graph, drawn among its labelled genes; None: all of them.
        distractors: a control: so many more pre-training tasks for each, which are known to be of no use (`distractors`).
        distractor_channels: kinds of evidence that are planted for them, beside those of the source.
    """

    depth: int = 2
    fanout: int = 10
    seed: int = 0
    pretrain_terms: tuple[str, ...] | None = None
    finetune_terms: tuple[str, ...] | None = None
    finetune_fraction: float = 0.1
    min_positives: int = 10
    min_negatives: int = 10
    limit: int | None = None
    distractors: int = 0
    distractor_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("depth", "fanout"):
            if getattr(self, name) < 1:
                raise InputError("build", name, getattr(self, name), "at least 1")
        if not 0 <= self.finetune_fraction < 1:
            raise InputError("build", "finetune_fraction", self.finetune_fraction, "0 to less than 1")
        if self.limit is not None and self.limit < 1:
            raise InputError("build", "limit", self.limit, "at least 1, or none")
        if self.distractors < 0:
            raise InputError("build", "distractors", self.distractors, "0 or more for each task")
        if self.distractor_channels < 1:
            raise InputError("build", "distractor_channels", self.distractor_channels, "at least 1")


@dataclass(frozen=True)
class Tasks:
    """The terms of both kinds, sorted where they were chosen, and the pre-training terms that the leak rule took away."""

    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    dropped: tuple[str, ...]


def build(
    data: SourceData,
    folder: Path | str,
    settings: BuildSettings | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
    processes: int | None = None,
    report: Report | None = None,
) -> EgoStore:
    """Write the store of a source: graphs in its order, genes in the order of their graph.

    Args:
        folder: where nothing may stand yet; a kill leaves nothing there.
        notes: whatever else is to be saved with the store, as ``store.info["notes"]``.
        processes: that sample, this one among them; None: as many as there are processors. The store does not depend on it.
        report: is told how far it is.

    Raises:
        InputError: a term that no labels have, no term or gene left, the folder.
    """
    from ppi_extension.data.writer import EgoWriter

    settings = settings or BuildSettings()
    tasks = choose_tasks(data, settings)
    pretrain = tasks.pretrain + distractor_terms(tasks.pretrain, settings.distractors)
    tables = {graph.name: _table(data, graph, tasks, settings) for graph in data.graphs}
    if settings.distractors:
        shown = [with_evidence(graph, *_hidden(graph, settings)) for graph in data.graphs]
        data = replace(data, graphs=shown)
    blocks = [block for graph in data.graphs for block in _blocks(graph, tables[graph.name], settings)]
    if not blocks:
        raise InputError(folder, "genes", "none with a label", "genes that graphs and labels both have")
    saved = {**asdict(settings), "dropped_terms": tasks.dropped}
    if settings.distractors:
        kinds = {term: FUNCTION if term in tasks.pretrain else DISTRACTOR for term in pretrain}
        notes = {**(notes or {}), "kinds": kinds}
    with EgoWriter(
        folder,
        graphs={graph.name: graph.species_id for graph in data.graphs},
        channel_names=data.channel_names,
        pretrain_terms=pretrain,
        finetune_terms=tasks.finetune,
        term_names={term: name for labels in data.labels for term, name in labels.names.items()},
        most_nodes=min(
            largest(settings.depth, settings.fanout), max(graph.num_nodes for graph in data.graphs)
        ),
    ) as writer:
        cut = len(pretrain)
        for (graph, centers), egos in _sampled(blocks, settings, processes or processors(), report):
            labels = tables[graph.name][centers]
            writer.add(
                egos,
                genes=graph.genes[centers],
                graph=graph.name,
                pretrain=labels[:, :cut],
                finetune=labels[:, cut:],
            )
        return writer.finish(saved, notes)


def _table(data: SourceData, graph: SpeciesGraph, tasks: Tasks, settings: BuildSettings) -> NDArray[np.int8]:
    """(n, T) labels of the genes of a graph: pre-training tasks, their distractors, fine-tuning tasks."""
    labels = joined(data, graph, tasks.pretrain + tasks.finetune)
    if not settings.distractors:
        return labels
    functions, finetune = np.split(labels, [len(tasks.pretrain)], axis=1)
    where, seed = _hidden(graph, settings)
    planted = distractors(where, functions, tasks.pretrain, settings.distractors, seed)
    return np.concatenate([functions, planted, finetune], axis=1)


def _hidden(graph: SpeciesGraph, settings: BuildSettings) -> tuple[NDArray[np.float64], int]:
    """What distractors ask for in a graph, and the seed of all that is drawn for them."""
    return positions(graph, settings.distractor_channels, settings.seed), settings.seed


def choose_tasks(data: SourceData, settings: BuildSettings) -> Tasks:
    """Which terms are tasks of which kind.

    A pre-training term that is a fine-tuning term or descends from one is dropped: who has it has that, and the weights
    would only find the copy.

    Raises:
        InputError: a given term that no labels have, or that is given twice; nothing left of either kind.
    """
    known = _enough(data, settings)
    given = [term for terms in (settings.pretrain_terms, settings.finetune_terms) for term in terms or ()]
    for term in given:
        if term not in known:
            raise InputError("build", "terms", f"{term}, which no labels have", "terms of the source")
    enough = sorted(term for term, is_enough in known.items() if is_enough)
    finetune = settings.finetune_terms
    if finetune is None:
        chosen = [term for term in enough if term not in set(settings.pretrain_terms or ())]
        rng = numpy_generator(settings.seed, "finetune terms")
        count = max(1, round(settings.finetune_fraction * len(chosen))) if settings.finetune_fraction else 0
        finetune = tuple(sorted(rng.permutation(chosen)[:count].tolist()))
    pretrain = settings.pretrain_terms
    if pretrain is None:
        pretrain = tuple(term for term in enough if term not in set(finetune))
    gone = leaking(pretrain, finetune, data.hierarchy or {})
    tasks = Tasks(tuple(term for term in pretrain if term not in gone), tuple(finetune), tuple(sorted(gone)))
    if not tasks.pretrain and not tasks.finetune:
        wanted = f"a term with {settings.min_positives} positive and {settings.min_negatives} negative genes"
        raise InputError("build", "terms", f"none of {len(known)} to use", wanted)
    return tasks


def _enough(data: SourceData, settings: BuildSettings) -> dict[str, bool]:
    """Whether each term has enough positive and negative examples among the genes of the graphs."""
    terms = tuple(dict.fromkeys(term for labels in data.labels for term in labels.terms))
    positive, negative = np.zeros((2, len(terms)), np.int64)
    for graph in data.graphs:
        table = joined(data, graph, terms)
        positive += (table == 1).sum(axis=0)
        negative += (table == 0).sum(axis=0)
    enough = (positive >= settings.min_positives) & (negative >= settings.min_negatives)
    return dict(zip(terms, enough.tolist(), strict=True))


def joined(data: SourceData, graph: SpeciesGraph, terms: Sequence[str]) -> NDArray[np.int8]:
    """(n, T) labels of the genes of one graph: 1, 0, or -1 where no labels know gene and term."""
    table = np.full((graph.num_nodes, len(terms)), UNLABELLED, np.int8)
    column = {term: number for number, term in enumerate(terms)}
    row = {gene: number for number, gene in enumerate(graph.genes.tolist())}
    for labels in data.labels:
        if labels.graph not in (None, graph.name):
            continue
        here = [(number, row[gene]) for number, gene in enumerate(labels.genes.tolist()) if gene in row]
        wanted = [(number, column[term]) for number, term in enumerate(labels.terms) if term in column]
        if here and wanted:
            (theirs, ours), (from_, to) = zip(*here, strict=True), zip(*wanted, strict=True)
            values = labels.values[np.ix_(theirs, from_)]
            at = np.ix_(ours, to)
            table[at] = np.where(values == UNLABELLED, table[at], values)
    return table


Block = tuple[SpeciesGraph, NDArray[np.int64]]


def _blocks(graph: SpeciesGraph, labels: NDArray[np.int8], settings: BuildSettings) -> list[Block]:
    """The centres of one graph, ascending, a block of them at a time."""
    centers = np.flatnonzero((labels != UNLABELLED).any(axis=1))
    if settings.limit is not None and len(centers) > settings.limit:
        rng = numpy_generator(settings.seed, "centers", graph.name)
        centers = np.sort(rng.choice(centers, settings.limit, replace=False))
    return [(graph, centers[start : start + _BLOCK]) for start in range(0, len(centers), _BLOCK)]


def _sampled(
    blocks: Sequence[Block], settings: BuildSettings, processes: int, report: Report | None
) -> Iterator[tuple[Block, Egos]]:
    """Every block with its ego graphs, in order."""
    samplers: dict[str, EgoSampler] = {}

    def sample(block: Block) -> Egos:
        graph, centers = block
        if graph.name not in samplers:
            samplers[graph.name] = EgoSampler(
                graph, depth=settings.depth, fanout=settings.fanout, seed=settings.seed
            )
        return Egos.join(map(samplers[graph.name], centers.tolist()))

    def tell(done: int) -> None:
        if report is not None:
            report(done, len(blocks), f"ego graphs: {len(blocks)} blocks of {_BLOCK}")

    shared = _shared(sample, blocks, processes, tell)
    for number, block in enumerate(blocks):
        tell(number if shared is None else len(blocks) - 1)
        yield block, sample(block) if shared is None else shared[number]
    tell(len(blocks))


def _shared(
    sample: Callable[[Block], Egos],
    blocks: Sequence[Block],
    processes: int,
    tell: Callable[[int], None],
) -> list[Egos] | None:
    """All ego graphs by several processes; None where that is not possible."""
    length = -(-len(blocks) // MOST_PIECES)
    pieces = -(-len(blocks) // length)

    def piece(number: int) -> list[Egos]:
        return [sample(block) for block in blocks[number * length : (number + 1) * length]]

    done = share(piece, pieces, min(processes, pieces), lambda number: tell(number * length))
    return None if done is None else [egos for part in done for egos in part]
