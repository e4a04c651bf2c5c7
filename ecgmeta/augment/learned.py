"""Augmentation networks that learn: their parameters are φ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecgmeta.augment import functional
from ecgmeta.augment.transforms import check_layout
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained

SHORTEST = 211
"""Samples that four convolutions of 15 with stride 2 need."""


class LearnedWarp(nn.Module, Pretrained):
    """The paper's learned time warp (Raghu et al., 2021, sec. 5): how much to warp is learned, per record and overall.

    ``x(t + d(t))`` with d drawn from noise scaled by ``m(x)·g²``, where ``m(x) = 2σ(linear(net(x)))`` is a small
    convolutional network's opinion of the record and ``g`` a global magnitude. With 12 leads φ has 52,258 numbers.

    Args:
        leads: number of leads.
        magnitude: initial g. 1 is gentle: SD 5 samples of 1,024, 0.05 % of steps fold back. The paper starts from 4 (see
            :meth:`paper`): SD 85 samples, 40 % fold back, and the derivative through it is dominated by chaos.
        fs: sampling rate in Hz of the records it learns on; kept with it, because d is in samples.
        generator: default source of noise.

    In ``eval()`` it is the identity. :meth:`from_pretrained` returns it ready to augment: in train mode, with the statistics
    of its normalisation layers frozen, so that an example's augmentation does not depend on its batch.

    Shapes: (batch, leads, samples) in, the same out; mV; any dtype and device. At least 211 samples.
    """

    def __init__(
        self,
        leads: int = 12,
        magnitude: float = 1.0,
        fs: float = 100.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.leads, self.fs, self.generator = leads, fs, generator
        self.frozen_statistics = False
        layers: list[nn.Module] = []
        for channels in (leads, 32, 32, 32):
            layers += [nn.Conv1d(channels, 32, 15, stride=2), nn.BatchNorm1d(32), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.magnitude_layer = nn.Linear(32, 1)
        self.global_magnitude = nn.Parameter(torch.tensor([float(magnitude)]))

    @classmethod
    def paper(cls, **settings: Any) -> LearnedWarp:
        """With the paper's initial global magnitude, 4."""
        return cls(**{"magnitude": 4.0, **settings})

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> LearnedWarp:
        """Load from a folder or hub id; ready to augment (see the class)."""
        model = super().from_pretrained(*args, **kwargs)
        model.frozen_statistics = True
        return model.train()

    def train(self, mode: bool = True) -> LearnedWarp:
        super().train(mode)
        if self.frozen_statistics:
            self.net.eval()
        return self

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The noise of one augmentation of ``x``: (batch, samples), standard normal.

        Drawn apart from its use, so that every derivative of one φ step sees the same augmentation.
        """
        shape = (x.shape[0], x.shape[-1])
        return torch.randn(shape, generator=generator or self.generator, device=x.device, dtype=x.dtype)

    def magnitude(self, x: Tensor) -> Tensor:
        """``m(x)·g²`` for each record: (batch, 1)."""
        return 2 * torch.sigmoid(self.magnitude_layer(self.net(x))) * self.global_magnitude.square()

    def forward(
        self, x: Tensor, noise: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """``x`` warped; ``noise`` from :meth:`draw`, drawn here where it is None."""
        check_layout(x, "LearnedWarp")
        if x.shape[1] != self.leads:
            raise InputError("LearnedWarp", "leads of x", x.shape[1], self.leads)
        if not self.training:
            return x
        if x.shape[-1] < SHORTEST:
            raise InputError("LearnedWarp", "samples of x", x.shape[-1], f"at least {SHORTEST}")
        noise = self.draw(x, generator) if noise is None else noise
        return functional.warp(x, self.magnitude(x), noise=noise)

    @torch.no_grad()
    def describe(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, float]:
        """What it does now to the records ``x``: magnitudes, and displacement statistics in ms and shares.

        Uses the frozen statistics of the normalisation layers, and changes nothing.
        """
        training = [(module, module.training) for module in self.modules()]
        self.eval()
        magnitude = self.magnitude(x)
        displacement = functional.random_displacement(magnitude, self.draw(x, generator))
        for module, was in training:
            module.training = was
        return {
            "global_magnitude": self.global_magnitude.item(),
            "magnitude_mean": float(magnitude.mean()),
            "magnitude_sd": float(magnitude.std(correction=0)),
            **functional.displacement_statistics(displacement, self.fs),
        }

    def __repr__(self) -> str:
        return f"LearnedWarp(leads={self.leads}, fs={self.fs}, global_magnitude={self.global_magnitude.item():.3g})"


def load_augmenter(folder: str | Path) -> LearnedWarp:
    """The augmenter saved in a run's ``augmenter/`` folder."""
    return LearnedWarp.from_pretrained(folder)
