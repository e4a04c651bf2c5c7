"""A convolution and a batch normalisation whose second derivatives cost about what their first do.

torch builds the double backward of a convolution from convolutions with swapped axes (the batch as channels), and that of
batch normalisation from slow reductions; on a CPU they take three times as long as they need to. Here both are written with
the kernels of the first derivatives. Values, derivatives, parameters and state are those of the torch layers, which themselves
run under forward-mode differentiation; derivatives beyond the second are right as well, at no particular speed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

Geometry = tuple[int, int]
"""Stride and padding along time."""


def _has_tangent(*tensors: Tensor) -> bool:
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _wanted(ctx: Any, index: int) -> bool:
    """Whether this pass needs the derivative with respect to an input.

    ``ctx.needs_input_grad`` says only whether anybody could. A mixed product asks for φ alone, and the weight gradients that it
    would throw away are a third of its time; the engine knows, except of leaves.
    """
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[index][0]
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (RuntimeError, AttributeError):
        return True


def _cast(*tensors: Tensor) -> list[Tensor]:
    """In the precision of the arithmetic: autocast's where it is on, in any pass and at any order; else the first one's."""
    kind, dtype = tensors[0].device.type, tensors[0].dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(kind)
    return [tensor.to(dtype) for tensor in tensors]


def _convolve(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    stride, padding = geometry
    x, w = _cast(x, w)
    return torch.ops.aten.convolution(x, w, None, [1, stride], [0, padding], [1, 1], False, [0, 0], 1)


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and w, each in its own precision."""
    if not (of_x or of_w):
        return None, None
    stride, padding = geometry
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *_cast(g, x, w), None, [1, stride], [0, padding], [1, 1], False, [0, 0], 1, [of_x, of_w, False]
    )
    return (dx.to(x.dtype) if of_x else None), (dw.to(w.dtype) if of_w else None)


class _Convolution(torch.autograd.Function):
    """``C(x, w)``. ``⟨C(x, w), g⟩`` is linear in x, w and g, so C and its two gradients give derivatives of any order."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return _convolve(x, w, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, ctx.geometry = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        wanted = _wanted(ctx, 0), _wanted(ctx, 1)
        if torch.is_grad_enabled():
            dx, dw = _ConvolutionBackward.apply(grads[0], x, w, ctx.geometry, *wanted)
        else:
            dx, dw = _convolution_backward(grads[0], x, w, ctx.geometry, *wanted)
        return dx, dw, None


class _ConvolutionBackward(torch.autograd.Function):
    """``(∂/∂x, ∂/∂w) ⟨C(x, w), g⟩``."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return _convolution_backward(g, x, w, geometry, of_x, of_w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, w, ctx.geometry, _, _ = inputs
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """With a and u the cotangents of the gradients of x and w."""
        (a, u), (g, x, w), geometry = grads, ctx.saved_tensors, ctx.geometry
        wanted = [_wanted(ctx, i) for i in range(3)]
        dg = dx = dw = None
        if torch.is_grad_enabled():
            if a is not None:
                dg = _Convolution.apply(a, w, geometry)
                dw = _ConvolutionBackward.apply(g, a, w, geometry, False, wanted[2])[1]
            if u is not None:
                own = _Convolution.apply(x, u, geometry)
                dg = own if dg is None else dg + own
                dx = _ConvolutionBackward.apply(g, x, u, geometry, wanted[1], False)[0]
            return dg, dx, dw, None, None, None
        if a is not None:
            a = a.contiguous(memory_format=torch.channels_last)
            dg = _convolve(a, w, geometry).to(g.dtype) if wanted[0] else None
            dw = _convolution_backward(g, a, w, geometry, False, wanted[2])[1]
        if u is not None:
            # A weight in another layout than x's would take the slow kernels.
            u = u.contiguous(memory_format=torch.channels_last)
            if wanted[0]:
                own = _convolve(x, u, geometry)
                dg = own.to(g.dtype) if dg is None else dg.add_(own)
            dx = _convolution_backward(g, x, u, geometry, wanted[1], False)[0]
        return dg, dx, dw, None, None, None


class TimeConv(nn.Conv2d):
    """A bias-free convolution along the second of two spatial axes.

    Shapes: (batch, channels_in, 1, samples) -> (batch, channels, 1, ⌈samples / stride⌉) for an odd kernel.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels_in, channels, (1, kernel), stride=(1, stride), padding=(0, kernel // 2), bias=False
        )
        self.geometry = (stride, kernel // 2)

    def forward(self, input: Tensor) -> Tensor:
        if _has_tangent(input, self.weight):
            return super().forward(input)
        # A view, because the engine answers for inner nodes only (see _wanted).
        return _Convolution.apply(input, self.weight.view_as(self.weight), self.geometry)


def _norm_backward(
    g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``(dx, Σ g·x̂, Σ g)`` with ``x̂ = (x − mean)·rstd``, sums a channel, by the one fused kernel there is."""
    dx, dw, db = torch.ops.aten.native_batch_norm_backward(
        g, x, w, None, None, mean, rstd, True, 0.0, [of_x, True, True]
    )
    return (dx if of_x else None), dw, db


class _Norm(torch.autograd.Function):
    """``y = w·x̂ + b`` with the batch's own moments; also returns mean and 1/SD a channel (not differentiable)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = torch.ops.aten.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        return y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, _, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, w, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, w, mean, rstd = ctx.saved_tensors
        of_x = _wanted(ctx, 0)
        if torch.is_grad_enabled():
            return *_NormBackward.apply(grads[0], x, w, mean, rstd, ctx.eps, of_x), None
        return *_norm_backward(grads[0], x, w, mean, rstd, of_x), None


class _NormBackward(torch.autograd.Function):
    """``dx = w·r·(g − ḡ − x̂·q)``, ``dw = n·q``, ``db = n·ḡ`` with r = 1/SD and ``q = mean(g·x̂)`` over a channel's n values."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, eps: float, of_x: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        return _norm_backward(g, x, w, mean, rstd, of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, w, mean, rstd, ctx.eps, _ = inputs
        _, dw, db = output
        ctx.save_for_backward(g, x, w, mean, rstd, dw, db)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """With cotangents a, a_w, a_b of (dx, dw, db), ``p = mean(a·x̂)`` and ``s = mean(a·g) − ā·ḡ − p·q``:

            ∂/∂g = w·r·(a − ā − x̂·p) + a_w·x̂ + a_b
            ∂/∂x = r·[(a_w − w·r·p)·(g − ḡ) − w·r·q·(a − ā) − (w·r·(s − 2pq) + a_w·q)·x̂]
            ∂/∂w = n·r·s

        Each is a sum of a, g and x with one coefficient a channel.
        """
        (a, aw, ab), (g, x, w, mean, r, dw, db) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_norm_backward_again(g, x, w, ctx.eps, grads), None, None, None, None
        n = x.numel() // x.shape[1]
        q, g_mean = dw / n, db / n
        aw = torch.zeros_like(w) if aw is None else aw
        ab = torch.zeros_like(w) if ab is None else ab
        if a is None:
            p = a_mean = s = torch.zeros_like(w)
        else:
            one, zero = torch.ones_like(w), torch.zeros_like(w)
            p, a_mean = (total / n for total in _norm_backward(a, x, w, mean, r, False)[1:])
            s = _norm_backward(a, g, w, zero, one, False)[1] / n - a_mean * g_mean - p * q
        cross = r * (aw - w * r * p)
        dg = dx = None
        if _wanted(ctx, 0):
            dg = _combine(ab - w * r * a_mean - cross * mean, (w * r, a), (cross, x))
        if _wanted(ctx, 1):
            of_a, of_x = -w * r * r * q, -r * r * (w * r * (s - 2 * p * q) + aw * q)
            constant = -of_a * a_mean - cross * g_mean - of_x * mean
            dx = _combine(constant, (of_a, a), (cross, g), (of_x, x))
        return dg, dx, n * r * s, None, None, None, None


def _norm_backward_again(
    g: Tensor, x: Tensor, w: Tensor, eps: float, cotangents: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """What ``_NormBackward.backward`` returns, out of torch's own operations, for derivatives beyond the second."""
    # Views: g is itself a function of x and w, and these are to be partial derivatives.
    g, x, w = (v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for v in (g, x, w))
    x_hat = (x - _mean(x)) * (_mean((x - _mean(x)).square()) + eps).rsqrt()
    value = w.view(1, -1, 1, 1) * x_hat
    outputs = [
        *torch.autograd.grad(value, [x, w], g, create_graph=True, materialize_grads=True),
        g.sum((0, 2, 3)),
    ]
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
    return torch.autograd.grad(
        [o for o, _ in pairs],
        [g, x, w],
        [c for _, c in pairs],
        create_graph=True,
        materialize_grads=True,
        allow_unused=True,
    )


def _mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


def _combine(constant: Tensor, *terms: tuple[Tensor, Tensor | None]) -> Tensor:
    """``constant + Σ coefficient·tensor``, coefficients (channels,), tensors (batch, channels, 1, samples)."""

    def channelwise(value: Tensor) -> Tensor:
        return value.view(1, -1, 1, 1)

    total: Tensor | None = None
    for coefficient, tensor in terms:
        if tensor is None:
            continue
        if total is None:
            total = torch.addcmul(channelwise(constant), tensor, channelwise(coefficient))
        else:
            total.addcmul_(tensor, channelwise(coefficient))
    assert total is not None  # g and x are always there
    return total


class TimeBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d``; the layers' own derivatives serve in train mode on a CPU, where they are measured."""

    def forward(self, input: Tensor) -> Tensor:
        values = input.numel() // input.shape[1]  # a channel; torch's layer says what is wrong with one
        slow = input.device.type != "cpu" or values < 2
        if slow or not self.training or _has_tangent(input, self.weight, self.bias):
            return super().forward(input)
        weight, bias = (value.view_as(value) for value in (self.weight, self.bias))
        y, mean, rstd = _Norm.apply(input, weight, bias, self.eps)
        self._record(mean, rstd, values)
        return y

    @torch.no_grad()
    def _record(self, mean: Tensor, rstd: Tensor, n: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = (rstd.square().reciprocal() - self.eps) * (n / max(n - 1, 1))
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)
