"""Operations on the heart's dipole: a turned heart, or another thorax (after 3KG, Gopal et al., ML4H 2021).

A record is a dipole seen through Dower's leads, ``D p``, and a rest that no dipole explains. Only the dipole is changed, by a
3 × 3 matrix: ``x + D (M − I) D⁺ x``, so the rest stays, and so do the limb-lead identities, which the rows of D obey.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional.amplitude import bounded
from ecgmeta.augment.functional.leads import FROM_DIPOLE, TO_DIPOLE
from ecgmeta.augment.functional.operation import Noise, operation


def _moved(x: Tensor, change: Tensor) -> Tensor:
    """``x + D change D⁺ x`` with ``change`` (batch, 3, 3)."""
    mixing = FROM_DIPOLE.to(change) @ change @ TO_DIPOLE.to(change)
    return x + mixing.to(x.dtype) @ x


@operation(noise=Noise("normal", (3,)), unit="degrees", typical=10.0, limit=180.0, per_lead=False, leads=12)
def electrode_rotation(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """The dipole turned about a random axis, as if heart or electrodes were turned about each other.

    ``R − I = sin θ K + (1 − cos θ) K²`` (Rodrigues) with the axis z/|z| and the angle ``θ = magnitude · |z|/√3``: the axis does
    not depend on the magnitude, so nothing is singular at 0. (3KG, Gopal et al., ML4H 2021, rotates as a random augmentation.)

    Args:
        x: (batch, 12, samples), mV.
        magnitude: RMS of the angle, in degrees.
        noise: (batch, 3) standard normal: z.
    """
    size = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
    kx, ky, kz = (noise / size.clamp(min=1e-12)).unbind(-1)
    zero = torch.zeros_like(kx)
    cross = torch.stack([zero, -kz, ky, kz, zero, -kx, -ky, kx, zero], dim=-1).unflatten(-1, (3, 3))
    angle = math.radians(1) / math.sqrt(3) * magnitude.to(noise.dtype) * size.unsqueeze(-1)
    # 1 − cos θ, which would lose its digits near 0
    versine = 2 * torch.sin(angle / 2).square()
    return _moved(x, torch.sin(angle) * cross + versine * (cross @ cross))


@operation(noise=Noise("normal", (3,)), unit="1", typical=0.15, per_lead=False, leads=12)
def electrode_scale(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """Each axis of the dipole times a factor of its own, ``exp(magnitude · z)``, as other thoraces conduct.

    The exponents are :func:`~ecgmeta.augment.functional.amplitude.bounded`. (3KG, Gopal et al., ML4H 2021, scales the axes.)

    Args:
        x: (batch, 12, samples), mV.
        magnitude: SD of the log factor.
        noise: (batch, 3) standard normal: z of Frank's x, y and z axes.
    """
    scale = torch.expm1(bounded(magnitude.to(noise.dtype) * noise.unsqueeze(-1)))
    return _moved(x, scale * torch.eye(3, dtype=noise.dtype, device=noise.device))
