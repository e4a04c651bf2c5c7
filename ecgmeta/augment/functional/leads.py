"""The geometry of twelve leads: from nine electrodes, and to and from the heart's dipole.

Leads stand in the order I, II, III, aVR, aVL, aVF, V1..V6; electrodes in the order RA, LA, LL, V1..V6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional.operation import ELECTRODES

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INDEPENDENT = (0, 1, 6, 7, 8, 9, 10, 11)
"""The leads from which the other four follow: I, II, V1..V6."""

# Einthoven and Goldberger, as potentials of RA, LA and LL. The chest leads are measured against Wilson's terminal, their mean.
_LIMBS = (
    *((-1.0, 1.0, 0.0), (-1.0, 0.0, 1.0), (0.0, -1.0, 1.0)),
    *((1.0, -0.5, -0.5), (-0.5, 1.0, -0.5), (-0.5, -0.5, 1.0)),
)
# Dower et al., Clin. Cardiol. 1980: I, II, V1..V6 from Frank's x (left), y (foot), z (back).
_DOWER = (
    (0.632, -0.235, 0.059),
    (0.235, 1.066, -0.132),
    (-0.515, 0.157, -0.917),
    (0.044, 0.164, -1.387),
    (0.882, 0.098, -1.277),
    (1.213, 0.127, -0.601),
    (1.125, 0.127, -0.086),
    (0.831, 0.076, 0.230),
)


def _from_electrodes() -> Tensor:
    matrix = torch.zeros(12, ELECTRODES, dtype=torch.float64)
    matrix[:6, :3] = torch.tensor(_LIMBS, dtype=torch.float64)
    matrix[6:, :3] = -1 / 3
    matrix[6:, 3:] = torch.eye(6, dtype=torch.float64)
    return matrix


def _from_dipole() -> Tensor:
    eight = torch.tensor(_DOWER, dtype=torch.float64)
    one, two = eight[0], eight[1]
    limbs = torch.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    return torch.cat([limbs, eight[2:]])


def _to_dipole() -> Tensor:
    # Of the eight leads that carry information; all twelve would count the limbs three times.
    matrix = torch.zeros(3, 12, dtype=torch.float64)
    matrix[:, list(INDEPENDENT)] = torch.linalg.pinv(torch.tensor(_DOWER, dtype=torch.float64))
    return matrix


FROM_ELECTRODES = _from_electrodes()
"""(12, 9): leads from potentials of electrodes, mV."""
FROM_DIPOLE = _from_dipole()
"""(12, 3): leads from Frank's x, y, z, mV (Dower et al., 1980)."""
TO_DIPOLE = _to_dipole()
"""(3, 12): the dipole that explains I, II, V1..V6 best (least squares); ``TO_DIPOLE @ FROM_DIPOLE`` is the identity."""

# Mean variance of I, II, V1..V6 where each electrode has variance 1: (2·2 + 6·4/3)/8.
_UNIT_ELECTRODES = math.sqrt(1.5)


def lead_off(potentials: Tensor, leads: int) -> Tensor:
    """Leads from independent potentials of variance 1, so that the leads' mean variance is 1 as well.

    Of twelve leads the mean is over the eight independent ones: I and II have √(4/3) = 1.15 times the SD of the mean, the chest
    leads √(8/9) = 0.94 times. With another number of leads, each potential is a lead.

    Args:
        potentials: (batch, 9 or leads, ...) mV, 3-dimensional.
    """
    if leads != len(LEADS):
        return potentials
    return (FROM_ELECTRODES / _UNIT_ELECTRODES).to(potentials) @ potentials
