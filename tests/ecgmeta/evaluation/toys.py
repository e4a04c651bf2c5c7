"""Toy records and encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Records:
    """Arrays with the face of a labelled dataset."""

    def __init__(self, x: Tensor, y: Tensor, label_names: Sequence[str] = ("A", "B")) -> None:
        self.x, self.y, self.label_names = x, y, label_names

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: npt.NDArray[np.intp], /) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class ToyEncoder(nn.Module):
    """Convolution, BatchNorm, mean over time: (batch, 2, samples) -> (batch, 6)."""

    num_features = 6

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 5)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter.normal_(0, 0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.conv(x))).mean(dim=2))


class Means(nn.Module):
    """The mean of each lead over time, times a fixed scale: features known by hand."""

    num_features = 2

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=2) * torch.tensor([1.0, 100.0]) + 5


def records(seed: int, n: int = 48, noise: float = 1.0) -> Records:
    """Label A raises lead 0 by 1 mV, label B makes lead 1 faster; 64 samples; both classes always present."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, 2, generator=generator) < 0.5).long()
    if n:
        y[:2] = torch.tensor([[0, 1], [1, 0]])
    x = noise * torch.randn(n, 2, 64, generator=generator)
    x[:, 0] += y[:, :1]
    x[:, 1] += torch.sin(torch.arange(64) * torch.where(y[:, 1:] == 1, 1.5, 0.3))
    return Records(x, y)
