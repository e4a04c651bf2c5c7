"""The encoders' layers: torch's own in values, parameters and state, with second derivatives that cost about what the first do.

Under forward-mode differentiation torch's layers themselves run.
"""

from __future__ import annotations

import math

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from ecgmeta.encoders.second_order import Convolution, Norm, Rectify
from ecgmeta.runtime.errors import InputError


def _has_tangent(*tensors: Tensor) -> bool:
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _plain(*tensors: Tensor) -> bool:
    """Whether torch's own operation serves: in forward mode, and where no graph is built (so exporters see only those)."""
    return not torch.is_grad_enabled() or _has_tangent(*tensors)


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
        if _plain(input, self.weight):
            return super().forward(input)
        # A view, because the engine answers for inner nodes only (see ``passes.wanted_by_pass``).
        return Convolution.apply(input, self.weight.view_as(self.weight), self.geometry)


class TimeBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d``; the layers' own derivatives serve in train mode on a CPU, where they are measured."""

    def forward(self, input: Tensor) -> Tensor:
        values = input.numel() // input.shape[1]  # a channel; torch's layer says what is wrong with one
        slow = input.device.type != "cpu" or values < 2
        if slow or not self.training or _has_tangent(input, self.weight, self.bias):
            return super().forward(input)
        weight, bias = (value.view_as(value) for value in (self.weight, self.bias))
        y, mean, rstd = Norm.apply(input, weight, bias, self.eps)
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


class Rectifier(nn.Module):
    """:func:`rectify` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return rectify(input)


def rectify(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return torch.relu(x) if _plain(x) else Rectify.apply(x)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """``"batch"``, or ``"group"``: eight groups, or as many as divide the channels.

    Raises:
        InputError: another kind.
    """
    if kind not in ("batch", "group"):
        raise InputError("encoder", "norm", repr(kind), "'batch' or 'group'")
    return TimeBatchNorm(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)
