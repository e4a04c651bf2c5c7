"""Batch normalisation of rows of features, whose second and forward derivatives are made of the kernels of the first.

Over n rows let x̂ = (x − mean)·r with r = 1/SD, and for any rows a

    N(a) = r·(a − ā − x̂·p),    n·p = Σ a·x̂,    n·ā = Σ a,

which one fused kernel gives, sums included. Of ``y = w·x̂ + b`` the derivative back along g is ``w·N(g)``, and ``N(ẋ)`` is how x̂ moves
with x. torch's own second and forward derivatives make ten to twenty passes over the rows, which on a CPU takes three to four
times as long. Values and first derivatives here are torch's to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RowNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` of (rows, features)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) < 2:  # torch says what is wrong with a single row
            return super().forward(input)
        running = self.running_mean, self.running_var, self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normed: Tensor = _Norm.apply(input, self.weight, self.bias, running, self.eps)[0]
        return normed


def _fused(
    g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(w·N(g), Σ g·x̂, Σ g)``."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        g, x, w, None, None, mean, r, True, 0.0, [True, True, True]
    )
    return found


def _tangent(
    normal: Tensor, x: Tensor, w: Tensor, dw: Tensor, db: Tensor, mean: Tensor, r: Tensor
) -> Tensor:
    """``w·N(ẋ) + ẇ·x̂ + ḃ``: how y moves; in place of N(ẋ)."""
    slope = dw * r
    return normal.mul_(w).addcmul_(x, slope).add_(db - slope * mean)


class _Norm(torch.autograd.Function):
    """``(y, mean, r)``, the last two without derivatives of their own; moves the running statistics."""

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor, running: tuple[Tensor, Tensor, float], eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var, momentum = running
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm(
            x, w, b, mean, var, True, momentum, eps
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        (x, w, *_), (_, mean, r) = inputs, output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, w, mean, r)
        ctx.save_for_forward(x, w, mean, r)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormBackward.apply(grads[0], *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dw: Tensor, db: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, w, mean, r = ctx.saved_tensors
        normal = _fused(dx, x, torch.ones_like(w), mean, r)[0]
        return _tangent(normal, x, w, dw, db, mean, r), None, None


class _NormBackward(torch.autograd.Function):
    """``(w·N(g), Σ g·x̂, Σ g)``: the derivatives with respect to x, w and b."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _fused(g, x, w, mean, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor, aw: Tensor, ab: Tensor) -> tuple[Tensor | None, ...]:
        g, x, w, mean, r = ctx.saved_tensors
        normal, *sums = _fused(a, x, torch.ones_like(w), mean, r)
        of_x, of_w = _curved(normal, sums, aw, g, x, w, mean, r)
        return _tangent(normal, x, w, aw, ab, mean, r), of_x, of_w, None, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor, dx: Tensor, dw: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        g, x, w, mean, r = ctx.saved_tensors
        normal, *sums = _fused(dx, x, torch.ones_like(w), mean, r)
        of_x, of_w = _curved(normal, sums, dw, g, x, w, mean, r)
        own = _fused(dg, x, w, mean, r)
        return own[0].add_(of_x), own[1] + of_w, own[2]


def _curved(
    normal: Tensor, sums: list[Tensor], aw: Tensor, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    """Second derivatives of ``⟨y, g⟩`` along (a, aw) in (x, w), with respect to x and w.

    With q, ḡ of g as p, ā are of a, ``s = mean(a·g) − ā·ḡ − p·q``, which is ``mean(N(a)·g)/r``:

        ∂/∂w = n·r·s,    ∂/∂x = (aw − w·r·p)·N(g) − w·r·q·N(a) − w·r²·s·x̂

    Args:
        normal: N(a).
        sums: ``n·p`` and ``n·ā``.
    """
    n = len(x)
    of_g, nq, _ = _fused(g, x, aw - w * r * sums[0] / n, mean, r)
    of_w = (normal * g).sum(0)
    slope = -w * r * r * of_w / n
    return of_g.addcmul_(normal, -w * r * nq / n).addcmul_(x, slope).sub_(slope * mean), of_w
