"""Ego graphs on disk, 2 kB each, read as memory maps and handed out in Hu et al.'s schema or as ready batches.

A store is a folder. `info.json` says what it holds and how it was built, with size and checksum of every array:

    nodes, centers                (G,)      nodes of each graph, local position of its centre
    higher                        (N,)      how many neighbours of a higher position each node has
    edge_starts                   (G + 1,)  where the edges of each graph begin
    targets, channels             (E,)      each edge once: its higher position; its evidence, channel c at bit c
    genes, graph                  (G,)      centre gene; number of the species or tissue it was cut from
    pretrain, finetune            (G, ⌈T / 8⌉) 1 where the centre gene has the function, packed
    pretrain_labelled, ...        the same: 1 where a label is known; only where any is not
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.ego import ranges
from ppi_extension.data.folder import INFO, checked_info, mapped
from ppi_extension.data.pyg import Data

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
Rows = NDArray[np.int64]
Which = Literal["pretrain", "finetune"]
WHICH: tuple[Which, Which] = ("pretrain", "finetune")
HU_CHANNELS, HU_WIDTH = 7, 9  # columns of Hu et al.'s edge_attr: evidence, and with self-loop and mask
_PARTS: dict[str, type] = {
    **dict.fromkeys(("pretrain_terms", "finetune_terms", "channel_names"), list),
    **dict.fromkeys(("graphs", "term_names", "settings", "notes"), dict),
}  # of `info.json`, beside the arrays
_BLOCK = 4096  # rows whose labels are unpacked at a time


class EgoData(Data):
    """A graph, or several end to end, in Hu et al.'s schema.

    One graph, ``store[i]``: x float [n, 1] of ones; edge_index long [2, E], both directions as adjacent pairs; edge_attr float
    [E, 9], 7 evidence channels, self-loop (set in the convolution), mask, and in a store with 8 channels the eighth;
    center_node_idx and species_id long [1]; go_target_pretrain and go_target_downstream long [T], 1 positive, 0 negative, -1
    unlabelled.

    A batch, ``store.collate(rows)``: the same without the targets, and batch long [nodes], ptr long [B + 1],
    pretrain_labels and finetune_labels int8 [B, T].
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        # PyG adds the nodes before a graph to whatever is called *index; the centre has another ending.
        return self.num_nodes if key == "center_node_idx" else super().__inc__(key, value, *args, **kwargs)

    @property
    def graphs(self) -> int:
        """How many graphs this is."""
        return len(self.center_node_idx)


class EgoStore:
    """See the module; `EgoStore.open(folder)`. Rows are positions of graphs.

    Attributes:
        folder: where it lies.
        info: what `info.json` says; ``info["settings"]`` is how it was built.
        pretrain_terms, finetune_terms: the tasks, in the order of the labels' columns.
        term_names: term -> what it is called, where that is known.
        channel_names: evidence of an edge; without any each edge has the first channel on, so that a network that looks at
            edges only sees them.
        graph_names: of the species or tissues.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        self.folder, self.info = folder, info
        self.pretrain_terms: tuple[str, ...] = tuple(info["pretrain_terms"])
        self.finetune_terms: tuple[str, ...] = tuple(info["finetune_terms"])
        self.term_names: dict[str, str] = dict(info["term_names"])
        self.channel_names: tuple[str, ...] = tuple(info["channel_names"])
        self.graph_names: tuple[str, ...] = tuple(info["graphs"])
        arrays = {name: mapped(folder, name) for name in info["arrays"]}
        self._nodes = arrays["nodes"].astype(np.int64)
        self._centers = arrays["centers"].astype(np.int64)
        self._higher, self._targets, self._channels = (arrays[n] for n in ("higher", "targets", "channels"))
        self._node_starts = np.concatenate([[0], np.cumsum(self._nodes)])
        self._edge_starts = arrays["edge_starts"]
        self._genes, self._graph = arrays["genes"], arrays["graph"]
        self._taxa = np.array(list(info["graphs"].values()), np.int64)
        self._labels = {which: (arrays[which], arrays.get(f"{which}_labelled")) for which in WHICH}
        self._attributes = _edge_attributes(len(self.channel_names))

    @classmethod
    def open(cls, folder: Path | str) -> EgoStore:
        """Raises InputError where there is no store, it is of another version, or a file of it is missing or has changed."""
        folder = Path(folder)
        info = checked_info(folder, FORMAT)
        for name, kind in _PARTS.items():
            if not isinstance(info.get(name, kind() if name == "notes" else None), kind):
                expected = "a list" if kind is list else "names and values"
                raise InputError(folder / INFO, name, type(info.get(name)).__name__, expected)
        try:
            store = cls(folder, info)
        except KeyError as error:
            expected = "what `ppi-extension data build` writes"
            raise InputError(folder / INFO, "content", f"no {error}", expected) from None
        store._check_info()
        return store

    def _check_info(self) -> None:
        """Raise InputError where the names in `info.json` are others than the arrays were written with."""
        where, graphs = self.folder / INFO, int(self._graph.max(initial=0)) + 1
        if graphs > len(self.graph_names):
            raise InputError(where, "graphs", f"{len(self.graph_names)}", f"{graphs}, as the arrays have")
        for which in WHICH:
            count = len(self.terms(which))
            for packed in self._labels[which]:
                if packed is None:
                    continue
                # Tasks share bytes, whose last bits are 0. A term that is missing is missing in every row: some tell.
                spare = np.unpackbits(packed[:_BLOCK], axis=1)[:, count:]
                if packed.shape != (len(self), -(-count // 8)) or spare.any():
                    raise InputError(where, f"{which}_terms", count, "as many as there are labels of")

    def __reduce__(self) -> tuple[Any, ...]:
        return EgoStore.open, (self.folder,)

    def __len__(self) -> int:
        return len(self._nodes)

    def terms(self, which: Which) -> tuple[str, ...]:
        return self.pretrain_terms if which == "pretrain" else self.finetune_terms

    @cached_property
    def genes(self) -> NDArray[np.str_]:
        """(G,) centre gene of each graph."""
        return np.char.decode(self._genes, "utf-8")

    @cached_property
    def graph(self) -> NDArray[np.str_]:
        """(G,) species or tissue each was cut from."""
        return np.array(self.graph_names, dtype=np.str_)[self._graph]

    @cached_property
    def species(self) -> NDArray[np.int64]:
        """(G,) NCBI taxon of each."""
        return self._taxa[self._graph]

    @property
    def nodes(self) -> NDArray[np.int64]:
        """(G,) nodes of each graph."""
        return self._nodes

    @property
    def edges(self) -> NDArray[np.int64]:
        """(G,) undirected edges of each graph; edge_index has twice as many."""
        return np.diff(self._edge_starts)

    def labels(self, which: Which, rows: Rows | None = None) -> NDArray[np.int8]:
        """(rows, T) 1 positive, 0 negative, -1 unlabelled; all rows for None."""
        chosen = slice(None) if rows is None else self._checked(rows)
        positive, labelled = self._labels[which]
        count = len(self.terms(which))
        out = np.unpackbits(positive[chosen], axis=1, count=count).view(np.int8)
        if labelled is not None:
            # 1 - 0 = 1, 0 - 0 = 0, 0 - 1 = -1
            out -= 1 - np.unpackbits(labelled[chosen], axis=1, count=count).view(np.int8)
        return out

    def counts(self, which: Which, rows: Rows | None = None) -> tuple[Rows, Rows]:
        """(T,) positive and (T,) negative examples of each task among the rows; all rows for None."""
        chosen = np.arange(len(self)) if rows is None else rows
        positive, negative = np.zeros((2, len(self.terms(which))), np.int64)
        for start in range(0, len(chosen), _BLOCK):
            labels = self.labels(which, chosen[start : start + _BLOCK])
            positive += (labels == 1).sum(axis=0)
            negative += (labels == 0).sum(axis=0)
        return positive, negative

    def __getitem__(self, row: int) -> EgoData:
        if not -len(self) <= row < len(self):
            raise IndexError(f"graph {row} of {len(self)}")
        rows = np.array([row % len(self)])
        data = self.collate(rows, labels=())
        del data.batch, data.ptr
        data.go_target_pretrain = torch.from_numpy(self.labels("pretrain", rows)[0].astype(np.int64))
        data.go_target_downstream = torch.from_numpy(self.labels("finetune", rows)[0].astype(np.int64))
        return data

    def __iter__(self) -> Iterator[EgoData]:
        return (self[row] for row in range(len(self)))

    def collate(
        self, rows: Rows, *, labels: Sequence[Which] = WHICH, legacy_center_index: bool = False
    ) -> EgoData:
        """One batch, straight from the maps; in structure what PyG's ``Batch.from_data_list`` makes of the single graphs.

        Args:
            rows: (B,) which graphs, in this order; one may stand there twice.
            labels: which of the two label matrices to add.
            legacy_center_index: do not offset center_node_idx by the nodes of the graphs before, as the released code
                of meta-parameterised pre-training does not; then it names nodes of the wrong graphs.

        Raises:
            InputError: no rows, or one that is not there.
        """
        rows = self._checked(rows)
        if not len(rows):
            raise InputError(self.folder, "rows", "none", "at least one graph")
        nodes = self._nodes[rows]
        ptr = np.concatenate([[0], np.cumsum(nodes)])
        starts = self._edge_starts[rows]
        edges = self._edge_starts[rows + 1] - starts
        at = ranges(starts, edges)
        higher = self._higher[ranges(self._node_starts[rows], nodes)]
        ends = np.empty((2, len(at)), np.int64)
        ends[0] = np.repeat(np.arange(ptr[-1]), higher)
        np.add(self._targets[at], np.repeat(ptr[:-1], edges), out=ends[1])
        centers = self._centers[rows]
        data = EgoData(
            x=torch.ones(int(ptr[-1]), 1),
            edge_index=_both_directions(torch.from_numpy(ends)),
            edge_attr=self._attributes[torch.from_numpy(np.repeat(self._channels[at], 2)).int()],
            center_node_idx=torch.from_numpy(centers if legacy_center_index else centers + ptr[:-1]),
            species_id=torch.from_numpy(self._taxa[self._graph[rows]]),
            batch=torch.from_numpy(np.repeat(np.arange(len(rows)), nodes)),
            ptr=torch.from_numpy(ptr),
        )
        for which in labels:
            data[f"{which}_labels"] = torch.from_numpy(self.labels(which, rows))
        return data

    def _checked(self, rows: Rows) -> Rows:
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise InputError(self.folder, "rows", f"{rows.min()} to {rows.max()}", f"0 to {len(self) - 1}")
        return rows


def _both_directions(ends: Tensor) -> Tensor:
    """(2, 2E) from (2, E): each edge followed by its reverse."""
    return torch.stack([ends, ends.flip(0)], dim=2).view(2, -1)


def _edge_attributes(channels: int) -> Tensor:
    """(256, 9 or 10) edge_attr of every byte of evidence; self-loop and mask are 0. An eighth channel follows the mask, so that
    the columns mean the same in every store."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")[:, :channels]
    table = torch.zeros(256, HU_WIDTH + max(0, channels - HU_CHANNELS))
    table[:, : min(channels, HU_CHANNELS)] = torch.from_numpy(bits[:, :HU_CHANNELS]).float()
    table[:, HU_WIDTH:] = torch.from_numpy(bits[:, HU_CHANNELS:]).float()
    if not channels:
        table[:, 0] = 1
    return table
