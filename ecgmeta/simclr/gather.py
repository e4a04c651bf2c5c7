"""Views gathered across data-parallel ranks, with derivatives of every order: negatives come from the global batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The ranks' tensors (batch, ...) one after another, (ranks · batch, ...), on every rank; x itself in one process.

    Its adjoint sums over ranks what reaches each part and keeps the own one; the adjoint of that is a gather again. So where
    every rank takes a loss of the gathered tensor, and gradients are means over ranks, they are those of the mean of the
    ranks' losses, and so are Hessian-vector and mixed products. All ranks must take the same derivatives in the same order.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return x
    result: Tensor = _Gather.apply(x, group)
    return result


def tie(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """x, as a function of ``others`` too, with derivative 0; x itself in a single process.

    A rank whose records got no operation of a policy would have a graph without φ, and a φ step's derivatives would skip there
    the collectives that the other ranks wait in.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    result: Tensor = _Tie.apply(x, *others)
    return result


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *others: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.others = [(other.shape, other.dtype, other.device) for other in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.others)
        return gradients[0], *zeros

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        found: Tensor = tangents[0].view_as(tangents[0])
        return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(_size(group))]
        dist.all_gather(parts, x.detach().contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Collect.apply(gradients[0], ctx.group), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Gather.apply(tangents[0], ctx.group)
        return result


class _Collect(torch.autograd.Function):
    """The own part of the sum over ranks."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.chunk(_size(group))[dist.get_rank(group)].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(gradients[0], ctx.group), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Collect.apply(tangents[0], ctx.group)
        return result


def _size(group: Any) -> int:
    return dist.get_world_size(group)
