"""Convolution, batch normalisation and rectifier as functions with second derivatives of their own.

torch builds the double backward of a convolution from convolutions with swapped axes (the batch as channels), and that of
batch normalisation from slow reductions; on a CPU they take three times as long as they need to. Here both are written with
the kernels of the first derivatives. Derivatives beyond the second are right as well, at no particular speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ecgmeta.encoders.passes import Debts, cast, keep, lowered, wanted_by_pass

Geometry = tuple[int, int]
"""Stride and padding along time."""

Term = tuple[Tensor, Tensor | None]
"""A coefficient a channel and what it multiplies."""


def _convolve(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    stride, padding = geometry
    x, w = cast(x, w)
    return torch.ops.aten.convolution(x, w, None, [1, stride], [0, padding], [1, 1], False, [0, 0], 1)


def _convolution_backward(
    g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and w, in the precision of the arithmetic. x serves as a shape where only its own is asked for."""
    if not (of_x or of_w):
        return None, None
    stride, padding = geometry
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *cast(g, x, w), None, [1, stride], [0, padding], [1, 1], False, [0, 0], 1, [of_x, of_w, False]
    )
    return (dx if of_x else None), (dw if of_w else None)


def _to(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


class Convolution(torch.autograd.Function):
    """``C(x, w)``. ``⟨C(x, w), g⟩`` is linear in x, w and g, so C and its two gradients give derivatives of any order."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return _convolve(x, w, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, ctx.geometry = inputs
        ctx.save_for_backward(x, w)
        ctx.debts = Debts()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        wanted = wanted_by_pass(ctx, 0), wanted_by_pass(ctx, 1)
        if torch.is_grad_enabled():
            return *_ConvolutionBackward.apply(grads[0], x, w, ctx.geometry, *wanted, ctx), None
        (x,) = cast(x)  # from here on it is not needed in full
        dx, dw = _convolution_backward(grads[0], x, w, ctx.geometry, *wanted)
        return ctx.debts.pay(x, _to(w.dtype, dx)), _to(w.dtype, dw), None


class _ConvolutionBackward(torch.autograd.Function):
    """``(∂/∂x, ∂/∂w) ⟨C(x, w), g⟩``."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool, layer: Any = None
    ) -> tuple[Tensor | None, Tensor | None]:
        dx, dw = _convolution_backward(g, x, w, geometry, of_x, of_w)
        return _to(x.dtype, dx), _to(w.dtype, dw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, w, ctx.geometry, _, _, ctx.layer = inputs
        ctx.g, ctx.x = (
            keep(g),
            keep(x),
        )  # each read when it is its turn, because a copy in full precision may be made
        ctx.save_for_backward(w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """With a and u the cotangents of the gradients of x and w."""
        (a, u), (w,), geometry = grads, ctx.saved_tensors, ctx.geometry
        wanted = [wanted_by_pass(ctx, i) for i in range(3)]
        dg = dx = dw = None
        if torch.is_grad_enabled():
            g, x = ctx.g.unpack(), ctx.x.unpack()
            if a is not None:
                dg = Convolution.apply(a, w, geometry)
                dw = _ConvolutionBackward.apply(g, a, w, geometry, False, wanted[2], None)[1]
            if u is not None:
                own = Convolution.apply(x, u, geometry)
                dg = own if dg is None else dg + own
                dx = _ConvolutionBackward.apply(g, x, u, geometry, wanted[1], False, None)[0]
            return dg, dx, dw, None, None, None, None
        if a is not None:
            a = a.contiguous(memory_format=torch.channels_last)
            if wanted[2]:
                dw = _to(w.dtype, _convolution_backward(ctx.g.unpack(), a, w, geometry, False, True)[1])
            if wanted[0]:
                dg = _convolve(a, w, geometry).to(a.dtype)
        if u is not None:
            # A weight in another layout than x's would take the slow kernels.
            u = u.contiguous(memory_format=torch.channels_last)
            if wanted[0]:
                own = _convolve(cast(ctx.x.unpack())[0], u, geometry)
                dg = own.to(u.dtype) if dg is None else dg.add_(own)
            if wanted[1]:

                def debt(x: Tensor, dx: Tensor | None) -> Tensor:
                    own = _convolution_backward(cast(ctx.g.unpack())[0], x, u, geometry, True, False)[0]
                    assert own is not None
                    return own.to(w.dtype) if dx is None else dx.add_(own)

                if ctx.layer is None or not ctx.layer.debts.owe(ctx.layer, debt):
                    dx = debt(ctx.x.unpack(), None)
        return dg, dx, dw, None, None, None, None


class Rectify(torch.autograd.Function):
    """``max(x, 0)``. torch's second derivative fills a tensor of zeros for every output, and keeps it through a product."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        # Cut off, because the slope is a constant wherever it has a derivative.
        return torch.ops.aten.threshold_backward(grads[0], y.detach(), 0.0)


def _norm_backward(
    g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, of_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``(dx, Σ g·x̂, Σ g)`` with ``x̂ = (x − mean)·rstd``, sums a channel, by the one fused kernel there is."""
    dx, dw, db = torch.ops.aten.native_batch_norm_backward(
        g, x, w, None, None, mean, rstd, True, 0.0, [of_x, True, True]
    )
    return (dx if of_x else None), dw, db


class Norm(torch.autograd.Function):
    """``y = w·x̂ + b`` with the batch's own moments; also returns mean and 1/SD a channel (not differentiable)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = torch.ops.aten.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        return y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, _, ctx.eps = inputs
        _, mean, rstd = output
        ctx.debts = Debts()
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, w, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, w, mean, rstd = ctx.saved_tensors
        of_x = wanted_by_pass(ctx, 0)
        if torch.is_grad_enabled():
            return *_NormBackward.apply(grads[0], x, w, mean, rstd, ctx.eps, of_x, ctx), None
        dx, dw, db = _norm_backward(grads[0], x, w, mean, rstd, of_x)
        return ctx.debts.pay(x, dx), dw, db, None


class _NormBackward(torch.autograd.Function):
    """``dx = w·r·(g − ḡ − x̂·q)``, ``dw = n·q``, ``db = n·ḡ`` with r = 1/SD and ``q = mean(g·x̂)`` over a channel's n values."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor, eps: float, of_x: bool, layer: Any
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        return _norm_backward(g, x, w, mean, rstd, of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, w, mean, rstd, ctx.eps, _, ctx.layer = inputs
        _, dw, db = output
        ctx.g = keep(g)
        ctx.save_for_backward(x, w, mean, rstd, dw, db)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """With cotangents a, a_w, a_b of (dx, dw, db), ``p = mean(a·x̂)`` and ``s = mean(a·g) − ā·ḡ − p·q``:

            ∂/∂g = w·r·(a − ā − x̂·p) + a_w·x̂ + a_b
            ∂/∂x = r·[(a_w − w·r·p)·(g − ḡ) − w·r·q·(a − ā) − (w·r·(s − 2pq) + a_w·q)·x̂]
            ∂/∂w = n·r·s

        Each is a sum of a, g and x with one coefficient a channel.
        """
        (a, aw, ab), (x, w, mean, r, dw, db), g = grads, ctx.saved_tensors, ctx.g.unpack()
        if torch.is_grad_enabled():
            return *_norm_backward_again(g, x, w, ctx.eps, grads), None, None, None, None, None
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
        del g  # read again where it is needed
        cross = r * (aw - w * r * p)
        dg = dx = None
        if wanted_by_pass(ctx, 0):
            dg = _combine(ab - w * r * a_mean - cross * mean, [(w * r, a), (cross, x)])
        if wanted_by_pass(ctx, 1):
            of_a, of_x = -w * r * r * q, -r * r * (w * r * (s - 2 * p * q) + aw * q)
            constant = -of_a * a_mean - cross * g_mean - of_x * mean
            # Only a has to wait for the debt, and it may wait in a lower precision where the pass has one.
            waiting = None if a is None else lowered(a)

            def debt(x: Tensor, dx: Tensor | None, a: Tensor | None = waiting) -> Tensor:
                def terms() -> Iterator[Term]:  # one at a time, because each is a copy in full precision
                    yield of_x, x
                    yield cross, ctx.g.unpack()
                    yield of_a, None if a is None else a.to(x.dtype)

                return _combine(constant, terms(), dx)

            late = a is None or waiting is not None
            if not (late and ctx.layer.debts.owe(ctx.layer, debt)):
                dx = debt(x, None, a)
        return dg, dx, n * r * s, None, None, None, None, None


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


def _combine(constant: Tensor, terms: Iterable[Term], onto: Tensor | None = None) -> Tensor:
    """``constant + Σ coefficient·tensor``, added in place to ``onto`` where that is given.

    Coefficients (channels,), tensors (batch, channels, 1, samples).
    """

    def channelwise(value: Tensor) -> Tensor:
        return value.view(1, -1, 1, 1)

    total = None if onto is None else onto.add_(channelwise(constant))
    for coefficient, tensor in terms:
        if tensor is None:
            continue
        if total is None:
            total = torch.addcmul(channelwise(constant), tensor, channelwise(coefficient))
        else:
            total.addcmul_(tensor, channelwise(coefficient))
        del tensor  # before the next one is made
    assert total is not None  # g and x are always there
    return total
