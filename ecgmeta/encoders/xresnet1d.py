"""The residual networks of the PTB-XL benchmark."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ecgmeta.encoders.base import Encoder, as_image
from ecgmeta.encoders.layers import Rectifier, TimeConv, norm_layer
from ecgmeta.encoders.resnet1d import Bottleneck


class PooledBottleneck(Bottleneck):
    """A bottleneck whose shortcut averages over its stride instead of skipping samples (He et al., 2019, ResNet-D)."""

    def __init__(self, channels_in: int, channels: int, stride: int, kernel: int, norm: str) -> None:
        super().__init__(channels_in, channels, stride, kernel, norm)
        # As many frames as the convolution of odd kernel gives; the last one may be the mean of a single sample.
        self.pool = nn.AvgPool2d((1, stride), ceil_mode=True, count_include_pad=False)

    def subsample(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else self.pool(x)


class XResNet1d(Encoder):
    """The PTB-XL benchmark's encoder (Strodthoff et al., 2021): a ResNet with the tricks of He et al. (2019), kernels of 5.

    The stem is three convolutions and a maximum; the last normalisation of a block starts at zero, so that a block starts as
    its shortcut. All stages have the same channels, as in the benchmark. What it pools, mean and maximum side by side, belongs
    to its head: here features are the mean over time, as of every encoder.

    Args:
        blocks: bottlenecks a stage; (3, 4, 6, 3) is xresnet1d50, (3, 4, 23, 3) xresnet1d101.
        leads, fs, lead_names, preprocess: see :class:`~ecgmeta.encoders.base.Encoder`.
        width: channels of the stem; 32 in the benchmark, whose bottlenecks have twice as many.
        kernel: odd kernel size, samples.
        norm: ``"batch"`` or ``"group"`` (whose output for a record does not depend on its batch).

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features`` = 8·width). Any length.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        leads: int = 12,
        width: int = 32,
        kernel: int = 5,
        norm: str = "batch",
        fs: float = 100.0,
        lead_names: tuple[str, ...] | None = None,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(leads, fs, lead_names, preprocess)
        layers: list[nn.Module] = []
        for channels_in, channels, stride in ((leads, width, 2), (width, width, 1), (width, 2 * width, 1)):
            layers += [
                TimeConv(channels_in, channels, kernel, stride),
                norm_layer(norm, channels),
                Rectifier(),
            ]
        self.stem = nn.Sequential(*layers, nn.MaxPool2d((1, 3), (1, 2), (0, 1)))
        stages: list[nn.Module] = []
        channels = 2 * width
        for stage, depth in enumerate(blocks):
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                stages.append(PooledBottleneck(channels, 2 * width, stride, kernel, norm))
                channels = PooledBottleneck.expansion * 2 * width
        self.stages = nn.Sequential(*stages)
        self.num_features = channels
        self.to(memory_format=torch.channels_last)

    def initialise(self, generator: torch.Generator) -> Self:
        """He initialisation of every convolution from ``generator``, and blocks that start as their shortcuts."""
        super().initialise(generator)
        for module in self.modules():
            if isinstance(module, PooledBottleneck):
                nn.init.zeros_(module.norm3.get_parameter("weight"))
        return self

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(as_image(x))).squeeze(2)
