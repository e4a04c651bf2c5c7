"""Half the memory for a graph that will be differentiated again.

What a gradient's own graph saves is read in full precision once at most, by the pass that computes the gradient. After that
only the products read it, and where those run in a lower precision anyway, it may lie in memory in that precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 4096
"""Numbers in the smallest tensor that is worth it; sums a channel and other small things stay exact."""

_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass
class _Kept:
    """One saved tensor, whoever saves it."""

    value: Tensor
    storage: StorageWeakRef
    readers: int = 0  # of the first pass, still to come


class CompactGraph:
    """Hooks under which a loss and then its gradient are evaluated; see :func:`torch.autograd.graph.saved_tensors_hooks`.

    Args:
        dtype: to keep float32 tensors in after the first pass has read them.
        constants: tensors that live anyway (parameters), and are never copied.
    """

    def __init__(self, dtype: torch.dtype, constants: Iterable[Tensor]) -> None:
        self._dtype = dtype
        self._constants = {value.untyped_storage().data_ptr() for value in constants}
        self._kept: dict[_Key, _Kept] = {}
        self._first = True

    @contextmanager
    def loss(self) -> Iterator[None]:
        """Around the evaluation of the loss."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    @contextmanager
    def gradient(self) -> Iterator[None]:
        """Around the gradient of it that creates a graph."""
        self._first = False
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield
        # What the first pass had no use for, as everything between φ and the network's input.
        for kept in self._kept.values():
            kept.value = kept.value.to(self._dtype)
        self._kept.clear()

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        tensor = tensor.detach()  # a tensor that held its own graph would never be freed
        if tensor.dtype != torch.float32 or tensor.numel() < SMALLEST:
            return tensor
        if tensor.untyped_storage().data_ptr() in self._constants:
            return tensor
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        kept = self._kept.get(key)
        if kept is None or kept.storage.expired():  # an address is used again
            value = tensor if self._first else tensor.to(self._dtype)
            kept = self._kept[key] = _Kept(value, StorageWeakRef(tensor.untyped_storage()))
        kept.readers += self._first
        return kept

    def _unpack(self, packed: Tensor | _Kept) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        value = packed.value
        if value.dtype != torch.float32:
            return value.float()
        packed.readers -= 1
        if packed.readers == 0:
            packed.value = value.to(self._dtype)
        return value
