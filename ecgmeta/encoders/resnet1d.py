"""One-dimensional residual networks for multi-lead ECG."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ecgmeta.encoders.layers import Rectifier, TimeBatchNorm, TimeConv, rectify
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained


class Normalize(nn.Module):
    """``(x − mean) / sd`` with one mean and SD for all leads, or one a lead: constants of the training records.

    They are buffers of the encoder, so they are saved with it and can never be fitted again on test data.

    Shapes: (batch, leads, samples) in mV -> the same, without unit.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, leads: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(leads, 1))
        self.register_buffer("sd", torch.ones(leads, 1))

    def set(self, mean: Tensor | float, sd: Tensor | float) -> None:
        """Fix the constants: scalars, or (leads,) tensors; ``sd`` must be positive and finite."""
        mean, sd = torch.as_tensor(mean).reshape(-1, 1), torch.as_tensor(sd).reshape(-1, 1)
        if not bool(torch.isfinite(mean).all() & torch.isfinite(sd).all() & (sd > 0).all()):
            raise InputError(
                "normalisation", "mean, sd", (mean.flatten().tolist(), sd.flatten().tolist()), "sd > 0"
            )
        self.mean.copy_(mean.expand_as(self.mean))
        self.sd.copy_(sd.expand_as(self.sd))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sd


def _norm(kind: str, channels: int) -> nn.Module:
    return TimeBatchNorm(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut (He et al., 2016), over time."""

    def __init__(self, channels_in: int, channels: int, stride: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = TimeConv(channels_in, channels, kernel, stride)
        self.norm1 = _norm(norm, channels)
        self.conv2 = TimeConv(channels, channels, kernel)
        self.norm2 = _norm(norm, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(TimeConv(channels_in, channels, 1), _norm(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        out = rectify(self.norm1(self.conv1(x)))
        # The shortcut's stride is a slice: oneDNN's weight gradient of a strided 1x1 convolution in channels-last layout
        # writes outside its buffers for fewer than 16 channels and an odd batch (torch 2.14 and 2.15, AVX-512).
        return rectify(self.norm2(self.conv2(out)) + self.shortcut(x[..., :: self.stride]))


class ResNet1d(nn.Module, Pretrained):
    """The paper's ECG encoder: a residual network with kernels of 15 samples (Raghu et al., 2021, supplement).

    Args:
        blocks: residual blocks a stage; (2, 2, 2, 2) is ResNet-18.
        leads: number of input leads.
        width: channels of the first stage, doubled at each of the next three; 32 in the paper (4.6 M parameters).
        kernel: odd kernel size, samples.
        norm: ``"batch"`` or ``"group"`` (whose output for a record does not depend on its batch).
        fs: sampling rate in Hz of the records it is trained on; kept with it.
        lead_names: names of its leads, in order; kept with it.
        preprocess: how the recordings it is trained on were made (:class:`ecgmeta.data.preprocess.Preprocess`, as a
            dictionary); kept with it, for whoever reads others.

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features`` = 8·width). Any length.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        leads: int = 12,
        width: int = 32,
        kernel: int = 15,
        norm: str = "batch",
        fs: float = 100.0,
        lead_names: tuple[str, ...] | None = None,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("batch", "group"):
            raise InputError("encoder", "norm", repr(norm), "'batch' or 'group'")
        self.leads, self.fs, self.preprocess = leads, fs, dict(preprocess or {})
        # A saved configuration is JSON, which gives a tuple back as a list.
        self.lead_names = None if lead_names is None else tuple(lead_names)
        self.num_features = width * 2 ** (len(blocks) - 1)
        self.normalize = Normalize(leads)
        self.stem = nn.Sequential(TimeConv(leads, width, kernel, 2), _norm(norm, width), Rectifier())
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(blocks):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width * 2**stage, stride, kernel, norm))
                channels = width * 2**stage
        self.stages = nn.Sequential(*stages)
        # Time is the second of two spatial axes, because two-dimensional convolutions have a channels-last layout, in
        # which a training step takes about two thirds of its time with one-dimensional ones (measured on a CPU).
        self.to(memory_format=torch.channels_last)

    def initialise(self, generator: torch.Generator) -> ResNet1d:
        """He initialisation (fan out) of every convolution from ``generator``; returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (batch, num_features, frames), before pooling.

        Raises:
            InputError: another layout or number of leads.
        """
        if x.ndim != 3 or x.shape[1] != self.leads:
            raise InputError("encoder", "shape of x", tuple(x.shape), f"(batch, {self.leads}, samples)")
        image = self.normalize(x).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return self.stages(self.stem(image)).squeeze(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean(-1)
