"""One-dimensional residual networks for multi-lead ECG."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ecgmeta.encoders.base import Encoder, as_image
from ecgmeta.encoders.layers import Rectifier, TimeConv, norm_layer, rectify


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut (He et al., 2016), over time."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = TimeConv(channels_in, channels, kernel, stride)
        self.norm1 = norm_layer(norm, channels)
        self.conv2 = TimeConv(channels, channels, kernel)
        self.norm2 = norm_layer(norm, channels)
        self.shortcut = _shortcut(channels_in, channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = rectify(self.norm1(self.conv1(x)))
        # The shortcut's stride is a slice: oneDNN's weight gradient of a strided 1x1 convolution in channels-last layout
        # writes outside its buffers for fewer than 16 channels and an odd batch (torch 2.14 and 2.15, AVX-512).
        return rectify(self.norm2(self.conv2(out)) + self.shortcut(x[..., :: self.stride]))


class Bottleneck(nn.Module):
    """Three convolutions, the middle one over time between two over channels, and a shortcut (He et al., 2016).

    ``channels`` come out fourfold. The stride is in the middle convolution, which sees every sample, and not in the first one,
    which would skip half of them (He et al., 2019, ResNet-B).
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = TimeConv(channels_in, channels, 1)
        self.norm1 = norm_layer(norm, channels)
        self.conv2 = TimeConv(channels, channels, kernel, stride)
        self.norm2 = norm_layer(norm, channels)
        self.conv3 = TimeConv(channels, self.expansion * channels, 1)
        self.norm3 = norm_layer(norm, self.expansion * channels)
        self.shortcut = _shortcut(channels_in, self.expansion * channels, norm)

    def subsample(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride]

    def forward(self, x: Tensor) -> Tensor:
        out = rectify(self.norm1(self.conv1(x)))
        out = rectify(self.norm2(self.conv2(out)))
        return rectify(self.norm3(self.conv3(out)) + self.shortcut(self.subsample(x)))


def _shortcut(channels_in: int, channels: int, norm: str) -> nn.Module:
    if channels_in == channels:
        return nn.Identity()
    return nn.Sequential(TimeConv(channels_in, channels, 1), norm_layer(norm, channels))


class ResNet1d(Encoder):
    """The paper's ECG encoder: a residual network with kernels of 15 samples (Raghu et al., 2021, supplement).

    Args:
        blocks: residual blocks a stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34, and with bottlenecks ResNet-50.
        leads, fs, lead_names, preprocess: see :class:`~ecgmeta.encoders.base.Encoder`.
        width: channels of the first stage, doubled at each of the next three; 32 in the paper (4.6 M parameters).
        kernel: odd kernel size, samples.
        norm: ``"batch"`` or ``"group"`` (whose output for a record does not depend on its batch).
        bottleneck: blocks of three convolutions, with four times the channels between them.

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features``), 8·width or, with bottlenecks, 32·width. Any
    length.
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
        bottleneck: bool = False,
    ) -> None:
        super().__init__(leads, fs, lead_names, preprocess)
        block = Bottleneck if bottleneck else BasicBlock
        self.stem = nn.Sequential(TimeConv(leads, width, kernel, 2), norm_layer(norm, width), Rectifier())
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(blocks):
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                stages.append(block(channels, width * 2**stage, stride, kernel, norm))
                channels = block.expansion * width * 2**stage
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        self.to(memory_format=torch.channels_last)

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(as_image(x))).squeeze(2)
