"""Convolution, batch normalisation and rectifier whose second derivatives cost about what their first do, in time and memory.

torch builds the double backward of a convolution from convolutions with swapped axes (the batch as channels), and that of
batch normalisation from slow reductions; on a CPU they take three times as long as they need to. Here both are written with
the kernels of the first derivatives. Values, derivatives, parameters and state are those of the torch layers, which themselves
run under forward-mode differentiation; derivatives beyond the second are right as well, at no particular speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    return _will_run(ctx.next_functions[index][0]) is not False


def _will_run(node: Any) -> bool | None:
    """Whether this pass runs a node; None where the engine does not say: of a leaf, or in a torch that keeps it to itself."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (RuntimeError, AttributeError):
        return None


def _low(tensor: Tensor) -> Tensor | None:
    """In autocast's precision, or None where none lower than its own is asked for."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:  # which autocast leaves alone
        return None
    return tensor.to(torch.get_autocast_dtype(kind))


class _Debts:
    """What second derivatives owe the gradient of a layer's input, paid when the layer's own backward runs.

    A product passes through all gradients of a network before it comes back through the network itself. Contributions to
    the gradient of every layer's input would wait for that in memory, as large as the network's activations. Most of them can
    be computed as late as they are wanted.
    """

    def __init__(self) -> None:
        self._open: list[tuple[int, Callable[[Tensor], Tensor]]] = []
        self._paid = -1

    def owe(self, node: Any, debt: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``debt``, a function of the input, will be paid by the backward pass of ``node`` later in this very pass."""
        task = torch._C._current_graph_task_id()
        if self._paid == task or not _will_run(node):
            return False
        self._open.append((task, debt))
        return True

    def pay(self, x: Tensor, dx: Tensor | None) -> Tensor | None:
        """The gradient of x with what is owed to it. Debts of a pass that was broken off are forgotten."""
        task = self._paid = torch._C._current_graph_task_id()
        debts, self._open = self._open, []
        for number, debt in debts:
            if number == task and dx is not None:
                dx.add_(debt(x))
        return dx


@dataclass(frozen=True)
class _Plain:
    """A tensor kept as it is, in a torch that does not let others save as it does."""

    tensor: Tensor

    def unpack(self) -> Tensor:
        return self.tensor


def _keep(tensor: Tensor) -> Any:
    """Saved as ``save_for_backward`` does it, under the same hooks, but readable by any node; ``unpack()`` gives it back."""
    save = getattr(torch._C._autograd, "_make_saved_tensor", None)
    return _Plain(tensor) if save is None else save(tensor, False)


def _cast(*tensors: Tensor) -> list[Tensor]:
    """In the precision of the arithmetic: autocast's where it is on, in any pass and at any order; else the first one's."""
    low = [_low(tensor) for tensor in tensors]
    return [
        tensor.to(tensors[0].dtype) if cast is None else cast
        for cast, tensor in zip(low, tensors, strict=True)
    ]


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
        ctx.debts = _Debts()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        wanted = _wanted(ctx, 0), _wanted(ctx, 1)
        if torch.is_grad_enabled():
            dx, dw = _ConvolutionBackward.apply(grads[0], x, w, ctx.geometry, *wanted, ctx)
        else:
            dx, dw = _convolution_backward(grads[0], x, w, ctx.geometry, *wanted)
            dx = ctx.debts.pay(x, dx)
        return dx, dw, None


class _ConvolutionBackward(torch.autograd.Function):
    """``(∂/∂x, ∂/∂w) ⟨C(x, w), g⟩``."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, w: Tensor, geometry: Geometry, of_x: bool, of_w: bool, layer: Any = None
    ) -> tuple[Tensor | None, Tensor | None]:
        return _convolution_backward(g, x, w, geometry, of_x, of_w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, w, ctx.geometry, _, _, ctx.layer = inputs
        ctx.g, ctx.x = (
            _keep(g),
            _keep(x),
        )  # each read when it is its turn, because a copy in full precision may be made
        ctx.save_for_backward(w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """With a and u the cotangents of the gradients of x and w."""
        (a, u), (w,), geometry = grads, ctx.saved_tensors, ctx.geometry
        wanted = [_wanted(ctx, i) for i in range(3)]
        dg = dx = dw = None
        if torch.is_grad_enabled():
            g, x = ctx.g.unpack(), ctx.x.unpack()
            if a is not None:
                dg = _Convolution.apply(a, w, geometry)
                dw = _ConvolutionBackward.apply(g, a, w, geometry, False, wanted[2], None)[1]
            if u is not None:
                own = _Convolution.apply(x, u, geometry)
                dg = own if dg is None else dg + own
                dx = _ConvolutionBackward.apply(g, x, u, geometry, wanted[1], False, None)[0]
            return dg, dx, dw, None, None, None, None
        if a is not None:
            a = a.contiguous(memory_format=torch.channels_last)
            if wanted[2]:
                dw = _convolution_backward(ctx.g.unpack(), a, w, geometry, False, True)[1]
            if wanted[0]:
                dg = _convolve(a, w, geometry).to(a.dtype)
        if u is not None:
            # A weight in another layout than x's would take the slow kernels.
            u = u.contiguous(memory_format=torch.channels_last)
            if wanted[0]:
                own = _convolve(ctx.x.unpack(), u, geometry)
                dg = own.to(u.dtype) if dg is None else dg.add_(own)
            if wanted[1]:

                def debt(x: Tensor) -> Tensor:
                    dx = _convolution_backward(ctx.g.unpack(), x, u, geometry, True, False)[0]
                    assert dx is not None
                    return dx

                if ctx.layer is None or not ctx.layer.debts.owe(ctx.layer, debt):
                    dx = debt(ctx.x.unpack())
        return dg, dx, dw, None, None, None, None


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


class _Rectify(torch.autograd.Function):
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


class Rectifier(nn.Module):
    """:func:`rectify` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return rectify(input)


def rectify(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return torch.relu(x) if _has_tangent(x) else _Rectify.apply(x)


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
        ctx.debts = _Debts()
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, w, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, w, mean, rstd = ctx.saved_tensors
        of_x = _wanted(ctx, 0)
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
        ctx.g = _keep(g)
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
        if _wanted(ctx, 0):
            dg = _combine(ab - w * r * a_mean - cross * mean, (w * r, a), (cross, x))
        if _wanted(ctx, 1):
            of_a, of_x = -w * r * r * q, -r * r * (w * r * (s - 2 * p * q) + aw * q)
            constant = -of_a * a_mean - cross * g_mean - of_x * mean
            # Only a has to wait for the debt, and it may wait in a lower precision where the pass has one.
            waiting = None if a is None else _low(a)

            def debt(x: Tensor, a: Tensor | None = waiting) -> Tensor:
                a = None if a is None else a.to(x.dtype)
                return _combine(constant, (of_a, a), (cross, ctx.g.unpack()), (of_x, x))

            late = a is None or waiting is not None
            if not (late and ctx.layer.debts.owe(ctx.layer, debt)):
                dx = debt(x, a)
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
