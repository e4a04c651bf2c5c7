"""Augmentation of one record at a time, for data sets and loaders that want a function of a sample."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class OnRecord:
    """A transform or a learned augmenter as a function of one record, to give to a data set, or to lightly.

    ``OnRecord(LearnedWarp.from_pretrained(folder))(record)``. Noise comes from torch's own generator, which a ``DataLoader``
    seeds in each of its workers: a generator of its own would be copied into all of them and draw the same in each. No
    gradient is kept, and nothing is learned from a record: normalisation layers use the statistics that they have.

    Batches are several times cheaper to augment at once, on their device: see examples 02 and 09.

    Args:
        augment: any module that takes (batch, leads, samples) in mV.
    """

    def __init__(self, augment: nn.Module) -> None:
        self.augment = augment
        for module in augment.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()

    @torch.no_grad()
    def __call__(self, record: Tensor | NDArray[Any]) -> Tensor:
        """(leads, samples) in mV, a tensor or an array, to a tensor of the same shape."""
        x = torch.as_tensor(record)
        return self.augment(x.unsqueeze(0)).squeeze(0)
