"""Additive noise, in mV or as a fraction of the signal."""

from __future__ import annotations

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
    return x + (magnitude * x.std(dim=-1, keepdim=True)) * noise.to(x.dtype)
