"""Writing a store: ego graphs and labels block by block, so that memory holds one block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.ego import MOST_CHANNELS, MOST_NODES, Egos
from ppi_extension.data.folder import FolderWriter
from ppi_extension.data.store import FORMAT, WHICH, EgoStore

_BYTE = 256  # local positions fit one byte up to this many nodes


class EgoWriter:
    """``with EgoWriter(...) as writer: writer.add(...); store = writer.finish(settings)``.

    Args:
        folder: of the store, where nothing may stand yet.
        graphs: species or tissue -> NCBI taxon.
        channel_names: evidence of an edge, at most 8.
        pretrain_terms, finetune_terms: the tasks, each in the order of its label columns.
        term_names: term -> what it is called; others than the tasks' are left out.
        most_nodes: no ego graph has more; above 256 each edge takes a byte more.

    Raises:
        InputError: something stands there, it cannot be written, too many channels, a term twice.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        graphs: Mapping[str, int],
        channel_names: Sequence[str],
        pretrain_terms: Sequence[str],
        finetune_terms: Sequence[str],
        term_names: Mapping[str, str] | None = None,
        most_nodes: int = _BYTE,
    ) -> None:
        if len(channel_names) > MOST_CHANNELS:
            raise InputError(folder, "channels", len(channel_names), f"at most {MOST_CHANNELS}")
        terms = [*pretrain_terms, *finetune_terms]
        if len(set(terms)) < len(terms):
            twice = next(term for term in terms if terms.count(term) > 1)
            raise InputError(folder, "terms", f"{twice} twice", "each once, in one of the two lists")
        self.folder = Path(folder)
        self._graphs, self._numbers = dict(graphs), {name: number for number, name in enumerate(graphs)}
        self._channel_names = tuple(channel_names)
        self._terms = dict(zip(WHICH, (tuple(pretrain_terms), tuple(finetune_terms)), strict=True))
        names = term_names or {}
        self._term_names = {term: names[term] for term in terms if term in names}
        self._most_nodes = min(most_nodes, MOST_NODES)
        self._edges = self._count = 0
        self._genes: list[NDArray[np.bytes_]] = []  # written last: only then it is known how long they are
        self._unlabelled = dict.fromkeys(WHICH, False)
        self._files = FolderWriter(self.folder)

    def __enter__(self) -> EgoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)

    def add(
        self,
        egos: Egos,
        *,
        genes: NDArray[np.str_],
        graph: str,
        pretrain: NDArray[np.int8],
        finetune: NDArray[np.int8],
    ) -> None:
        """A block of B ego graphs of one species or tissue.

        Args:
            genes: (B,) their centres.
            graph: which; one of `graphs`.
            pretrain, finetune: (B, T) 1 positive, 0 negative, -1 unlabelled.

        Raises:
            InputError: shapes that do not fit, an unknown graph, a graph with too many nodes, the disk is full.
        """
        labels = dict(zip(WHICH, (pretrain, finetune), strict=True))
        self._check(egos, genes, graph, labels)
        local = np.uint8 if self._most_nodes <= _BYTE else np.uint16
        append = self._files.append
        if not self._count:
            append("edge_starts", np.zeros(1), np.int64)
        append("edge_starts", self._edges + np.cumsum(egos.edges), np.int64)
        append("nodes", egos.nodes, np.uint32)  # 65,536 nodes do not fit 16 bits; their positions do
        append("centers", egos.centers, local)
        append("higher", egos.higher, local)
        append("targets", egos.targets, local)
        append("channels", egos.channels, np.uint8)
        self._genes.append(np.char.encode(genes, "utf-8"))
        append("graph", np.full(len(egos), self._numbers[graph]), np.uint16)
        for which, values in labels.items():
            append(which, np.packbits(values == 1, axis=1), np.uint8)
            append(f"{which}_labelled", np.packbits(values >= 0, axis=1), np.uint8)
            self._unlabelled[which] |= bool((values < 0).any())
        self._count += len(egos)
        self._edges += len(egos.targets)

    def finish(
        self, settings: Mapping[str, Any] | None = None, notes: Mapping[str, Any] | None = None
    ) -> EgoStore:
        """Put the store in its place and open it.

        Args:
            settings: how it was built, for `info.json`.
            notes: what else is known of it, likewise.

        Raises:
            InputError: no graph was added; it cannot be written.
        """
        if not self._count:
            raise InputError(self.folder, "graphs", "none", "at least one ego graph")
        genes = np.concatenate(self._genes)
        self._files.append("genes", genes, genes.dtype)
        for which, unlabelled in self._unlabelled.items():
            if not unlabelled:
                self._files.drop(f"{which}_labelled")
        info = {
            "graphs": self._graphs,
            "channel_names": self._channel_names,
            "pretrain_terms": self._terms["pretrain"],
            "finetune_terms": self._terms["finetune"],
            "term_names": self._term_names,
            "ego_graphs": self._count,
            "settings": dict(settings or {}),
            "notes": dict(notes or {}),
        }
        self._files.finish(info, FORMAT)
        return EgoStore.open(self.folder)

    def _check(
        self,
        egos: Egos,
        genes: NDArray[np.str_],
        graph: str,
        labels: Mapping[Any, NDArray[np.int8]],
    ) -> None:
        if graph not in self._numbers:
            raise InputError(self.folder, "graph", graph, f"one of {list(self._numbers)[:5]}")
        if len(genes) != len(egos):
            raise InputError(self.folder, "genes", len(genes), f"{len(egos)}, one an ego graph")
        for which, values in labels.items():
            shape = (len(egos), len(self._terms[which]))
            if values.shape != shape:
                raise InputError(self.folder, f"{which} labels", f"shape {values.shape}", shape)
        if len(egos) and egos.nodes.max() > self._most_nodes:
            raise InputError(
                self.folder, "nodes of an ego graph", egos.nodes.max(), f"at most {self._most_nodes}"
            )
