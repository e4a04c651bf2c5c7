"""A learned weight for each recording: pre-training attends to those that help fine-tuning (the paper's noise study)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ecgmeta.runtime.pretrained import Pretrained


class ExampleWeights(nn.Module, Pretrained):
    """``w = 2σ(z)``, one z a recording, from 0: every recording starts at 1 and can fall to 0 or rise to 2.

    Args:
        records: how many pre-training recordings there are.

    Shapes: numbers of recordings (batch,) -> weights (batch,).
    """

    def __init__(self, records: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(records))

    def forward(self, rows: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.logits[rows])

    def all(self) -> Tensor:
        """(records,): the weight of each, without gradient."""
        return 2 * torch.sigmoid(self.logits.detach())

    def trace(self) -> dict[str, float]:
        """A few numbers that are worth a curve over training."""
        return {"example weights, SD": float(self.all().std(correction=0))}
