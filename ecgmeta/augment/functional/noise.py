"""Additive noise, in mV or as a fraction of the signal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional.operation import Noise, operation


@operation(noise=Noise("normal", ("leads", "samples")), unit="1", typical=0.05, identities=False)
def white_noise(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``x + magnitude · std(lead) · noise``: an amplifier's noise, each lead its own (the paper's static pipeline).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: SD of the noise as a fraction of each lead's own standard deviation.
        noise: (batch, leads, samples) standard normal.
    """
    # Twice as fast as torch's std, and the same derivatives: 0 where a lead is flat.
    deviation = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1, keepdim=True)
    return torch.addcmul(x, magnitude * (deviation / math.sqrt(x.shape[-1] - 1)), noise.to(x.dtype))
