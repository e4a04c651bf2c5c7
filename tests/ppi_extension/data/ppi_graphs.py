"""Small graphs and stores for the tests of the protein package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppi_extension.data.ego import Egos, EgoSampler
from ppi_extension.data.species import SpeciesGraph
from ppi_extension.data.store import EgoStore
from ppi_extension.data.writer import EgoWriter

CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experimental", "database", "textmining")


def random_graph(
    name: str, n: int = 60, edges: int = 240, channels: int = 7, seed: int = 0, prefix: str = ""
) -> SpeciesGraph:
    """Random pairs and evidence; gene g3 of one graph is gene g3 of another with the same prefix."""
    rng = np.random.default_rng(seed)
    evidence = rng.integers(0, 2, (edges, channels))
    names = (*CHANNELS, "homology")[:channels]
    genes = [f"{prefix}g{i}" for i in range(n)]
    return SpeciesGraph.from_edges(name, 9606, genes, rng.integers(0, n, (edges, 2)), evidence, names)


def egos_of(graph: SpeciesGraph, fanout: int = 4) -> Egos:
    """An ego graph for each gene."""
    return Egos.join(map(EgoSampler(graph, fanout=fanout), range(graph.num_nodes)))


def small_store(
    folder: Path,
    channels: int = 7,
    values: tuple[int, ...] = (0, 1),
    names: tuple[str, str] = ("one", "two"),
    prefixes: tuple[str, str] = ("", ""),
) -> tuple[EgoStore, dict[str, NDArray[np.int8]]]:
    """Two graphs of 60 and 50 genes, the first human, 21 and 3 tasks with labels drawn from `values`; and those labels."""
    rng = np.random.default_rng(1)
    labels = {
        which: rng.choice(np.array(values, np.int8), (110, tasks))
        for which, tasks in (("pretrain", 21), ("finetune", 3))
    }
    graphs = [
        random_graph(names[0], 60, 240, channels, prefix=prefixes[0]),
        random_graph(names[1], 50, 400, channels, seed=1, prefix=prefixes[1]),
    ]
    with EgoWriter(
        folder,
        graphs=dict(zip(names, (9606, 4932), strict=True)),
        channel_names=graphs[0].channel_names,
        pretrain_terms=[f"p{i}" for i in range(21)],
        finetune_terms=["f0", "f1", "f2"],
        term_names={"p1": "a name", "other": "of no task"},
    ) as writer:
        for graph, rows in zip(graphs, (slice(0, 60), slice(60, 110)), strict=True):
            writer.add(
                egos_of(graph),
                genes=graph.genes,
                graph=graph.name,
                pretrain=labels["pretrain"][rows],
                finetune=labels["finetune"][rows],
            )
        return writer.finish({"seed": 1}), labels
