"""What TaskAug does that no other operation here does, as its released code has it (Raghu, Shanmugam et al., CHIL 2022).

They belong to :meth:`ecgmeta.augment.LearnedPolicy.taskaug` and are kept out of :data:`~ecgmeta.augment.functional.OPERATIONS`,
because they break its contract: the scale is no identity at 0 and the crop has no derivative in its length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional import Noise, Operation, zero_crop


def taskaug_wander(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``x + magnitude·u₁ sin((10 + 20 u₂)/6 · t/T + 2π u₃)``, the same in all leads: 0.3 to 0.8 periods over the record.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: largest amplitude in mV.
        noise: (batch, 3, 1) uniform.
    """
    strength, rate, phase = noise.unbind(1)
    t = torch.linspace(0, 1, x.shape[-1], dtype=noise.dtype, device=x.device)
    wave = strength * torch.sin((10 + 20 * rate) / 6 * t + 2 * math.pi * phase)
    return x + magnitude * wave.unsqueeze(1).to(x.dtype)


def taskaug_crop(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """A stretch of ``magnitude`` times the record set to 0 in all leads.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: a share of the record; not differentiable.
        noise: (batch, 1, 1) uniform: where.
    """
    n = x.shape[-1]
    length = (magnitude.detach().to(noise.dtype) * n).long()
    return zero_crop(x, length, (noise * (n - length)).long())


def taskaug_scale(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``x · magnitude · (1.25 − u/2)``.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: the largest factor over 1.25.
        noise: (batch, 1, 1) uniform.
    """
    return x * (magnitude * (1.25 - 0.5 * noise).to(x.dtype))


TASKAUG_OPERATIONS = {
    name: Operation(name, function, Noise("uniform", dims), unit, typical, math.inf, False, keeps, 0)
    for name, function, dims, unit, typical, keeps in (
        ("taskaug_wander", taskaug_wander, (3, 1), "mV", 0.25, False),
        ("taskaug_crop", taskaug_crop, (1, 1), "1", 0.05, True),
        ("taskaug_scale", taskaug_scale, (1, 1), "1", 1.0, True),
    )
}
