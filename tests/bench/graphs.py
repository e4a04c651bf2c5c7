"""What protein graphs cost: cutting ego graphs, and batches from the store beside PyG's in-memory data set.

Generated data of Hu et al.'s sizes: ego graphs of about 49 nodes and 891 directed edges, 5,000 and 40 tasks. One thread, in
turns; the peer is a new data set in each turn, since PyG keeps single graphs after their first use.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.data import InMemoryDataset
from torch_geometric.loader import DataLoader

from ppi_extension.data.ego import Egos, EgoSampler
from ppi_extension.data.species import SpeciesGraph
from ppi_extension.data.store import EgoData, EgoStore
from ppi_extension.data.writer import EgoWriter

GRAPHS, BATCH, ROUNDS = 1600, 32, 5
PRETRAIN, FINETUNE = 5000, 40
CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experimental", "database", "textmining")
COMMUNITY, INSIDE, OUTSIDE = 50, 0.43, 0.02  # these give ego graphs of Hu's mean sizes


def species(genes: int, rng: np.random.Generator) -> SpeciesGraph:
    """Dense communities and a few edges between them."""
    low, high = np.triu_indices(COMMUNITY, 1)
    pairs = []
    for start in range(0, genes, COMMUNITY):
        inside = rng.random(len(low)) < INSIDE
        pairs.append(start + np.stack([low[inside], high[inside]], axis=1))
    inner = np.concatenate(pairs)
    outer = rng.integers(0, genes, (int(OUTSIDE * len(inner)), 2))
    edges = np.concatenate([inner, outer])
    evidence = (rng.random((len(edges), len(CHANNELS))) < 0.3).astype(np.uint8)
    return SpeciesGraph.from_edges("9606", 9606, [f"g{i}" for i in range(genes)], edges, evidence, CHANNELS)


def write(folder: Path, graph: SpeciesGraph, rng: np.random.Generator) -> EgoStore:
    """The store of the first `GRAPHS` genes, one in a hundred of its labels positive."""
    with EgoWriter(
        folder,
        graphs={graph.name: graph.species_id},
        channel_names=CHANNELS,
        pretrain_terms=[f"p{i}" for i in range(PRETRAIN)],
        finetune_terms=[f"f{i}" for i in range(FINETUNE)],
    ) as writer:
        writer.add(
            Egos.join(map(EgoSampler(graph), range(GRAPHS))),
            genes=graph.genes[:GRAPHS],
            graph=graph.name,
            pretrain=(rng.random((GRAPHS, PRETRAIN)) < 0.01).astype(np.int8),
            finetune=(rng.random((GRAPHS, FINETUNE)) < 0.01).astype(np.int8),
        )
        return writer.finish()


class InMemory(InMemoryDataset):
    """What PyG keeps of a list of graphs: one tensor an attribute, and where each graph's slice is."""

    def __init__(self, stored: tuple[EgoData, dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self._data, self.slices = stored


def tensor_bytes(stored: EgoData) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in stored)


def run(rounds: int = ROUNDS) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    rng = np.random.default_rng(0)
    console.print("generating graphs")
    graph = species(4 * GRAPHS, rng)
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "store", graph, rng)
        console.print(
            f"ego graphs: {store.nodes.mean():.0f} nodes, {2 * store.edges.mean():.0f} directed edges in the mean"
        )
        stored = InMemoryDataset.collate(list(store))
        console.print("measuring")
        shown = _rows(graph, store, stored, rng, rounds)
    table = Table(title=f"{GRAPHS} ego graphs, batches of {BATCH}, one thread")
    for column in ("what", "peer", "ours", "ratio (lowest, highest)", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in shown:
        table.add_row(*row)
    console.print(table)


def _rows(
    graph: SpeciesGraph,
    store: EgoStore,
    stored: tuple[EgoData, dict[str, torch.Tensor]],
    rng: np.random.Generator,
    rounds: int,
) -> list[tuple[str, ...]]:
    sampler, centers = EgoSampler(graph), rng.integers(0, graph.num_nodes, 500).tolist()

    def ours() -> None:
        order = rng.permutation(GRAPHS)
        for start in range(0, GRAPHS, BATCH):
            store.collate(order[start : start + BATCH])

    def theirs() -> None:
        for _ in DataLoader(InMemory(stored), batch_size=BATCH, shuffle=True):
            pass

    times = _turns((lambda: [sampler(center) for center in centers], theirs, ours), rounds)
    cut, peer, own = (median(side) for side in zip(*times, strict=True))
    ratios = sorted(b / c for _, b, c in times)
    batches = GRAPHS / BATCH
    disk = sum(path.stat().st_size for path in store.folder.iterdir()) / GRAPHS
    memory = tensor_bytes(stored[0]) / GRAPHS
    return [
        ("cutting an ego graph, ms", "", f"{cut / len(centers) * 1e3:.2f}", "", "under 0.5"),
        (
            "a batch, first epoch, ms",
            f"{peer / batches * 1e3:.2f}",
            f"{own / batches * 1e3:.2f}",
            f"{peer / own:.1f} ({ratios[0]:.1f}, {ratios[-1]:.1f})",
            "3",
        ),
        ("bytes a graph", f"{memory:.0f}", f"{disk:.0f}", f"{memory / disk:.1f}", "20"),
    ]


def _turns(works: tuple[Callable[[], object], ...], rounds: int) -> list[tuple[float, ...]]:
    """Seconds of each work, in turns, after one turn that warms up."""
    turns = []
    for _ in range(rounds + 1):
        turn = []
        for work in works:
            start = time.perf_counter()
            work()
            turn.append(time.perf_counter() - start)
        turns.append(tuple(turn))
    return turns[1:]
