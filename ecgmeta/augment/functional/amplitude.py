"""Operations on amplitude: one gain a record, or one a lead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional.operation import Noise, operation

LARGEST = math.log(10.0)
"""Bound of a log factor: no random factor leaves [0.1, 10]."""


def bounded(log_factor: Tensor) -> Tensor:
    """``L tanh(log_factor/L)``: itself where it is small, never beyond ±L = ±:data:`LARGEST`."""
    return LARGEST * torch.tanh(log_factor / LARGEST)


def _scaled(x: Tensor, magnitude: Tensor, noise: Tensor) -> Tensor:
    return x * bounded(magnitude.to(noise.dtype) * noise).exp().to(x.dtype)


@operation(noise=Noise("normal", (1, 1)), unit="1", typical=0.2)
def gain(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """All leads of a record times one factor, ``exp(magnitude · z)``: amplifiers and thoraces differ.

    The exponent is :func:`bounded`; the median factor is 1. (TaskAug's magnitude scale, Raghu et al., CHIL 2022.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: SD of the log factor.
        noise: (batch, 1, 1) standard normal.
    """
    return _scaled(x, magnitude, noise)


@operation(noise=Noise("normal", ("leads", 1)), unit="1", typical=0.2, identities=False)
def lead_gain(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """Each lead times a factor of its own, ``exp(magnitude · z)`` (channel resize in Mehari and Strodthoff, 2022).

    The exponent is :func:`bounded`; the median factor is 1. It breaks the limb-lead identities.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: SD of the log factor.
        noise: (batch, leads, 1) standard normal.
    """
    return _scaled(x, magnitude, noise)
