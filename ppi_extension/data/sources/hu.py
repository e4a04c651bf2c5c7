"""The ego graphs that Hu et al. published: *Strategies for Pre-training Graph Neural Networks*, ICLR 2020 (biology).

``geometric_data_processed.pt`` is a pickle of torch and an early PyG: (data, slices), all graphs end to end. It is read
without executing anything: tensors, plain containers, and the one class `Data`, whose place a bare one takes. The graphs are
ready-made, so they go into a store as they are; what they were cut from is not there.

Attributes 0 to 6 of an edge are evidence channels, 7 marks self-loops and 8 masked edges: ``bio/loader.py`` of the released
code writes them so (github.com/snap-stanford/pretrain-gnns). It calls the channels w1 to w7; no part of that code names them,
and what made the ego graphs was not released (issue 15 there). That their order is that of STRING's columns is read off the
thresholds in ``bio/util.py`` (266, 1, 777, 652, 300, 900, 670): a 1 for the rare fusions, a 900 for curated databases. A store
of these graphs bears those names; no number depends on them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ppi_extension.data.ego import Egos, bits
from ppi_extension.data.sources.string import CHANNELS
from ppi_extension.data.species import SourceData
from ppi_extension.data.tables import read_lines

if TYPE_CHECKING:
    from torch import Tensor

    from ppi_extension.data.store import EgoStore

_NEEDED = (
    "x",
    "edge_index",
    "edge_attr",
    "center_node_idx",
    "species_id",
    "go_target_pretrain",
    "go_target_downstream",
)
_WHOLE = (
    "edge_index",
    "center_node_idx",
    "species_id",
)  # what indexes or names, and would be cut off at the point
_ATTRIBUTES = len(CHANNELS) + 2  # self-loop and mask, both 0 on disk
_BLOCK = 2048  # graphs converted at a time; their labels are 8 bytes each in the file


@dataclass
class Options:
    """Attributes:
    pretrain_terms, finetune_terms: files with a term a line, in the order of the labels' columns, which the processed file
        does not name; None: they are called "pretrain 0" and so on.
    """

    pretrain_terms: str | None = None
    finetune_terms: str | None = None


class LegacyData:
    """Stands for the early ``torch_geometric.data.Data``, whose pickle is its attributes."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some graphs of one species, as `EgoWriter.add` takes them.

    Attributes:
        species: NCBI taxon.
        genes: (G,) "graph 17": the file names no proteins; each graph has another centre.
        pretrain, finetune: (G, T) of 0 and 1; 0 is negative or no data.
    """

    species: int
    egos: Egos
    genes: NDArray[np.str_]
    pretrain: NDArray[np.int8]
    finetune: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class HuGraphs(SourceData):
    """Ego graphs instead of graphs to cut them from: `graphs` and `labels` are empty; see `blocks` and `write`.

    Attributes:
        path: the file.
        tensors: what it holds, all graphs end to end.
        starts: name -> (G + 1,) where the part of each graph begins in its tensor.
        pretrain_terms, finetune_terms: of the labels' columns.
    """

    path: Path = Path()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    starts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    pretrain_terms: tuple[str, ...] = ()
    finetune_terms: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.starts["x"]) - 1

    @property
    def channel_names(self) -> tuple[str, ...]:
        return CHANNELS

    @property
    def species(self) -> NDArray[np.int64]:
        """(G,) NCBI taxon of each graph."""
        return self.tensors["species_id"].numpy().astype(np.int64)

    def blocks(self) -> Iterator[Block]:
        """All graphs in the order of the file, some of one species at a time.

        Raises:
            InputError: a graph that is not symmetric, an edge twice, a node, centre, label or channel out of range.
        """
        species = self.species
        changes = np.flatnonzero(np.diff(species)) + 1
        for begin, end in zip([0, *changes], [*changes, len(self)], strict=True):
            for first in range(begin, end, _BLOCK):
                last = min(first + _BLOCK, end)
                labels = (
                    self._labels(name, first, last) for name in ("go_target_pretrain", "go_target_downstream")
                )
                genes = np.array([f"graph {number}" for number in range(first, last)])
                yield Block(int(species[first]), self._egos(first, last), genes, *labels)

    def write(
        self, folder: Path | str, notes: Mapping[str, Any] | None = None, report: Report | None = None
    ) -> EgoStore:
        """The store of these graphs, in their order; ``notes`` are kept with it.

        Raises:
            InputError: see `blocks`; the folder cannot be written.
        """
        from ppi_extension.data.writer import EgoWriter

        with EgoWriter(
            folder,
            graphs={str(taxon): taxon for taxon in dict.fromkeys(self.species.tolist())},
            channel_names=CHANNELS,
            pretrain_terms=self.pretrain_terms,
            finetune_terms=self.finetune_terms,
            most_nodes=int(np.diff(self.starts["x"]).max()),
        ) as writer:
            done = 0
            for block in self.blocks():
                writer.add(
                    block.egos,
                    genes=block.genes,
                    graph=str(block.species),
                    pretrain=block.pretrain,
                    finetune=block.finetune,
                )
                done += len(block.egos)
                if report is not None:
                    report(done, len(self), "graphs of Hu et al.")
            return writer.finish({}, notes)

    def _labels(self, name: str, first: int, last: int) -> NDArray[np.int8]:
        """(last - first, T) of 0 and 1."""
        starts = self.starts[name]
        values = self.tensors[name][starts[first] : starts[last]].numpy().reshape(last - first, -1)
        wrong = ~((values == 0) | (values == 1)).all(axis=1)
        self._refuse(wrong, first, name, "others than 0 and 1", "0 and 1")
        return values.astype(np.int8)

    def _egos(self, first: int, last: int) -> Egos:
        """Graphs ``first`` to ``last``, packed; self-loops are left out."""
        begin = self.starts["x"][first : last + 1]
        nodes, begin = np.diff(begin), begin - begin[0]
        centers = self.tensors["center_node_idx"][first:last].numpy().astype(np.int64)
        self._refuse((centers < 0) | (centers >= nodes), first, "center_node_idx", "no node of it", "one")
        graph, ends, code = self._edges(first, last, nodes)
        width = int(nodes.max())
        key = (begin[graph] + ends.min(axis=0)) * width + ends.max(axis=0)  # by graph, lower, higher end
        order = np.argsort(key, kind="stable")
        up, down = (order[side[order]] for side in (ends[0] < ends[1], ends[0] > ends[1]))
        odd = _first_odd((key[up], code[up]), (key[down], code[down]))
        if odd is not None:
            at = np.arange(last - first) == np.searchsorted(begin, odd // width, side="right") - 1
            expected = "each edge once in both directions, with the same channels"
            self._refuse(at, first, "edge_index", "an edge that is not so", expected)
        low, high = np.divmod(key[up], width)
        higher = np.bincount(low, minlength=int(nodes.sum())).astype(np.uint16)
        return Egos(nodes, centers, higher, high.astype(np.uint16), code[up])

    def _edges(
        self, first: int, last: int, nodes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """(E,) graph, from 0; (2, E) ends; (E,) channels as bits, of all directed edges of graphs ``first`` to ``last``."""
        starts = self.starts["edge_index"][first : last + 1]
        graph = np.repeat(np.arange(last - first), np.diff(starts))
        ends = self.tensors["edge_index"][:, starts[0] : starts[-1]].numpy()
        outside = (ends.min(axis=0) < 0) | (ends.max(axis=0) >= nodes[graph])
        self._refuse(_any(outside, graph, last - first), first, "edge_index", "nodes it has not", "its own")
        attributes = self.tensors["edge_attr"][starts[0] : starts[-1]].numpy()
        evidence, others = attributes[:, : len(CHANNELS)], attributes[:, len(CHANNELS) :]
        wrong = ~((evidence == 0) | (evidence == 1)).all(axis=1) | (others != 0).any(axis=1)
        expected = "7 channels of 0 and 1, self-loop and mask 0"
        self._refuse(_any(wrong, graph, last - first), first, "edge_attr", "others", expected)
        return graph, ends, bits(evidence.astype(np.uint8))

    def _refuse(self, wrong: NDArray[np.bool_], first: int, name: str, found: str, expected: str) -> None:
        if wrong.any():
            raise InputError(f"{self.path}, graph {first + int(wrong.argmax())}", name, found, expected)


def _first_odd(
    up: tuple[NDArray[np.int64], NDArray[np.uint8]], down: tuple[NDArray[np.int64], NDArray[np.uint8]]
) -> int | None:
    """The first edge that is not once in ``up`` and once in ``down`` with the same channels; None where there is none.

    Args:
        up, down: (edges ascending as numbers, their channels) of the two directions.
    """
    n = min(len(up[0]), len(down[0]))
    forth, back = up[0][:n], down[0][:n]
    odd = (forth != back) | (up[1][:n] != down[1][:n])
    odd[1:] |= (np.diff(forth) == 0) | (np.diff(back) == 0)
    at = int(odd.argmax()) if odd.any() else n
    there = [int(edges[at]) for edges, _ in (up, down) if at < len(edges)]
    return min(there, default=None)


def _any(flags: NDArray[np.bool_], graph: NDArray[np.int64], graphs: int) -> NDArray[np.bool_]:
    """(graphs,) whether any edge of a graph has the flag."""
    return np.bincount(graph[flags], minlength=graphs) > 0


def read(path: Path, options: Options, report: Report | None = None) -> HuGraphs:
    """Load the file: 7.6 GB for the labelled graphs, in memory where it is in torch's format before 1.6, else mapped.

    Raises:
        InputError: no such file, a cut-off or foreign one, parts that are missing or do not fit each other.
    """
    tensors, slices = _load(path)
    for name in _NEEDED:
        if name not in tensors or name not in slices:
            expected = "the labelled graphs (supervised/processed)" if name.startswith("go_") else "one"
            raise InputError(path, name, "nothing", expected)
        _check_numbers(path, name, tensors[name])
    starts = {name: _starts(path, name, tensors[name], slices[name]) for name in _NEEDED}
    graphs = len(starts["x"]) - 1
    for name in _NEEDED:
        if len(starts[name]) != graphs + 1:
            raise InputError(
                path, f"slices of {name}", f"{len(starts[name]) - 1} graphs", f"{graphs}, as of x"
            )
    edges = (starts["edge_index"], starts["edge_attr"])
    if tensors["edge_attr"].shape[1:] != (_ATTRIBUTES,) or not np.array_equal(*edges):
        found = tuple(tensors["edge_attr"].shape)
        raise InputError(path, "edge_attr", f"shape {found}", f"{_ATTRIBUTES} attributes of every edge")
    for name in ("center_node_idx", "species_id"):
        if tensors[name].dim() != 1 or not np.array_equal(starts[name], np.arange(graphs + 1)):
            raise InputError(path, name, "none or several of a graph", "one of each")
    taxa = tensors["species_id"].numpy()
    if (taxa < 1).any():
        graph = int((taxa < 1).argmax())
        raise InputError(f"{path}, graph {graph}", "species_id", taxa[graph], "an NCBI taxon")
    terms = {
        kind: _terms(path, kind, starts[name], given)
        for kind, name, given in (
            ("pretrain", "go_target_pretrain", options.pretrain_terms),
            ("finetune", "go_target_downstream", options.finetune_terms),
        )
    }
    return HuGraphs([], [], None, (), path, tensors, starts, terms["pretrain"], terms["finetune"])


def _load(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """(attributes, slices) of the pickle."""
    import torch

    if not path.is_file():
        raise InputError(path, "file", "no such file", "geometric_data_processed.pt")
    try:
        with _only_legacy_data():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever its zip, pickle and storage readers raise
        found = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(path, "content", found[:200], "(data, slices) of Hu et al., whole") from None
    if not (isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], LegacyData)):
        raise InputError(path, "content", type(content).__name__, "(data, slices) of Hu et al.")
    tensors = {name: part for name, part in vars(content[0]).items() if isinstance(part, torch.Tensor)}
    return tensors, content[1] if isinstance(content[1], dict) else {}


@contextmanager
def _only_legacy_data() -> Iterator[None]:
    """`Data` is `LegacyData` while a file is read. PyG, once imported, lets its own class in under that name, and which of
    the two torch takes would be chance."""
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(LegacyData, "torch_geometric.data.data.Data")])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _check_numbers(path: Path, name: str, tensor: Tensor) -> None:
    """Raise InputError unless NumPy can read the tensor where it lies, and it holds numbers of the right kind."""
    kinds, expected = ("iu", "whole numbers") if name in _WHOLE else ("biuf", "real numbers")
    try:
        if tensor.numpy().dtype.kind in kinds:
            return
        found = str(tensor.dtype)
    except (RuntimeError, TypeError):  # sparse, bfloat16, quantised, with gradients
        found = f"{tensor.dtype}, {tensor.layout}" + (", with gradients" if tensor.requires_grad else "")
    raise InputError(path, name, found, f"a plain tensor of {expected}")


def _starts(path: Path, name: str, tensor: Tensor, slices: Any) -> NDArray[np.int64]:
    """(G + 1,) where the part of each graph begins.

    Raises:
        InputError: they do not ascend from 0 to the end of the tensor.
    """
    try:
        found = np.asarray(slices)
    except (RuntimeError, TypeError, ValueError):
        found = np.array(None)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise InputError(path, f"slices of {name}", type(slices).__name__, "a list of whole numbers")
    starts = found.astype(np.int64)
    ends = tensor.dim() == 2 and tensor.shape[0] == 2 if name == "edge_index" else tensor.dim() >= 1
    length = tensor.shape[1 if name == "edge_index" else 0] if ends else -1
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != length or (np.diff(starts) < 0).any():
        expected = f"starts from 0 to {length} for a tensor of shape {tuple(tensor.shape)}"
        raise InputError(path, f"slices of {name}", f"{len(starts)} numbers", expected)
    return starts


def _terms(path: Path, kind: str, starts: NDArray[np.int64], given: str | None) -> tuple[str, ...]:
    """Names of the label columns."""
    counts = np.diff(starts)
    if (counts != counts[0]).any():
        graph = int((counts != counts[0]).argmax())
        raise InputError(
            f"{path}, graph {graph}", f"{kind} labels", counts[graph], f"{counts[0]}, as graph 0"
        )
    if given is None:
        return tuple(f"{kind} {number}" for number in range(counts[0]))
    terms = tuple(text.strip() for _, text in read_lines(Path(given)) if text.strip())
    if len(terms) != counts[0]:
        raise InputError(given, f"{kind} terms", len(terms), f"{counts[0]}, one a label column")
    return terms
