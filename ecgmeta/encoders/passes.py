"""What a backward pass of the encoders' own layers asks of torch's engine, some of it beyond the public interface.

Whether this pass runs a node, which pass this is, and to save a tensor where another node can read it. Where torch keeps the
answer to itself there is a fallback, which costs time or memory and changes no number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def wanted_by_pass(ctx: Any, index: int) -> bool:
    """Whether this pass needs the derivative with respect to an input.

    ``ctx.needs_input_grad`` says only whether anybody could. A mixed product asks for φ alone, and the weight gradients that it
    would throw away are a third of its time; the engine knows, except of leaves.
    """
    if not ctx.needs_input_grad[index]:
        return False
    return will_run(ctx.next_functions[index][0]) is not False


def will_run(node: Any) -> bool | None:
    """Whether this pass runs a node; None where the engine does not say: of a leaf, or in a torch that keeps it to itself."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (RuntimeError, AttributeError):
        return None


def lowered(tensor: Tensor) -> Tensor | None:
    """In autocast's precision, or None where none lower than its own is asked for."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:  # which autocast leaves alone
        return None
    return tensor.to(torch.get_autocast_dtype(kind))


def cast(*tensors: Tensor) -> list[Tensor]:
    """In the precision of the arithmetic: autocast's where it is on, in any pass and at any order; else the first one's."""
    lows = [lowered(tensor) for tensor in tensors]
    return [
        tensor.to(tensors[0].dtype) if low is None else low for low, tensor in zip(lows, tensors, strict=True)
    ]


Debt = Callable[[Tensor, Tensor | None], Tensor]
"""Of a layer's input and of the gradient so far: that gradient and what is owed to it, in place; alone where there is none."""


class Debts:
    """What second derivatives owe the gradient of a layer's input, paid when the layer's own backward runs.

    A product passes through all gradients of a network before it comes back through the network itself. Contributions to
    the gradient of every layer's input would wait for that in memory, as large as the network's activations. Most of them can
    be computed as late as they are wanted.
    """

    def __init__(self) -> None:
        self._open: list[tuple[int, Debt]] = []
        self._paid = -1

    def owe(self, node: Any, debt: Debt) -> bool:
        """Whether ``debt`` will be paid by the backward pass of ``node`` later in this very pass."""
        task = torch._C._current_graph_task_id()
        if self._paid == task or not will_run(node):
            return False
        self._open.append((task, debt))
        return True

    def pay(self, x: Tensor, dx: Tensor | None) -> Tensor | None:
        """The gradient of x with what is owed to it. Debts of a pass that was broken off are forgotten."""
        task = self._paid = torch._C._current_graph_task_id()
        debts, self._open = self._open, []
        for number, debt in debts:
            if number == task and dx is not None:
                dx = debt(x, dx)
        return dx


@dataclass(frozen=True)
class _Plain:
    """A tensor kept as it is, in a torch that does not let others save as it does."""

    tensor: Tensor

    def unpack(self) -> Tensor:
        return self.tensor


def keep(tensor: Tensor) -> Any:
    """Saved as ``save_for_backward`` does it, under the same hooks, but readable by any node; ``unpack()`` gives it back."""
    save = getattr(torch._C._autograd, "_make_saved_tensor", None)
    return _Plain(tensor) if save is None else save(tensor, False)
