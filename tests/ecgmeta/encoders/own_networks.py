"""What a user might bring: networks that know nothing of this project, imported by the tests as ``own_networks:Class``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Maps(nn.Module):
    """Feature maps (batch, features, frames); takes a width and does not say how many features it has."""

    def __init__(self, leads: int, width: int = 16, kernel: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(leads, width, kernel, stride=2, padding=kernel // 2),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, 3 * width, kernel, padding=kernel // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Features(nn.Module):
    """Features (batch, features), which it counts itself; takes leads and whatever else there is."""

    def __init__(self, leads: int, **rest: Any) -> None:
        super().__init__()
        self.offered = rest
        self.conv, self.num_features = nn.Conv1d(leads, 7, 3, padding=1), 7

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)).mean(-1)


class FixedLength(nn.Module):
    """Takes records of 100 samples only."""

    def __init__(self, leads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(leads * 100, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Tuple(nn.Module):
    """Returns what no encoder may."""

    def __init__(self, leads: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class NoLeads(nn.Module):
    """Cannot be told how many leads there are."""

    def __init__(self) -> None:
        super().__init__()


class NeedsMore(nn.Module):
    """Has an argument without a default."""

    def __init__(self, leads: int, heads: int) -> None:
        super().__init__()


NOT_A_CLASS = print
