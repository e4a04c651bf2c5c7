"""Operations that hide a part of the record: a stretch of time, or leads."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_crop(x: Tensor, length: Tensor, start: Tensor) -> Tensor:
    """``x`` with ``length`` samples from ``start`` set to 0, each lead its own (the paper's static pipeline).

    Args:
        x: (batch, leads, samples), mV.
        length, start: integers, broadcastable to (batch, leads, 1).
    """
    t = torch.arange(x.shape[-1], device=x.device)
    return x.masked_fill((t >= start) & (t < start + length), 0.0)
