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
    n = x.shape[-1]
    t = torch.arange(n, device=x.device)
    # From each sample on, as rows: those from the start differ from those from the end in the stretch. Copying rows of a
    # small table is several times faster than comparing every sample with two numbers.
    onwards = t >= torch.arange(n + 1, device=x.device).unsqueeze(1)
    first, last = (
        at.clamp(0, n).expand(len(x), at.shape[1] if at.ndim == 3 else 1, 1) for at in (start, start + length)
    )
    stretch = onwards[first.flatten()] ^ onwards[last.flatten()]
    return x.clone().masked_fill_(stretch.view(len(x), -1, n), 0.0)
