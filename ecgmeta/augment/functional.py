"""Augmentations as pure functions: deterministic given their noise, differentiable, dtype-preserving.

Every operation takes and returns ``(batch, leads, samples)`` in mV and does nothing at magnitude 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(x: Tensor, positions: Tensor) -> Tensor:
    """``x`` read at fractional sample positions by linear interpolation; 0 outside the record, NaN where a position is NaN.

    Args:
        x: (batch, leads, samples).
        positions: (batch, samples), in samples; shared by all leads, so limb-lead identities are kept.

    A gather and a lerp on contiguous rows: the same values as ``grid_sample(align_corners=True,
    padding_mode="zeros")``, whose double backward is missing, at about a third of its cost.
    """
    n = x.shape[-1]
    left = positions.detach().floor()
    weight = (positions - left).unsqueeze(1)
    # One zero on either side stands for everything outside the record.
    padded = F.pad(x, (1, 1))
    # NaN has no index, but it must come out as NaN: a zero would hide that φ has diverged.
    index = (left.clamp(-1, n).nan_to_num(0.0) + 1).long().unsqueeze(1).expand(-1, x.shape[1], -1)
    low = padded.gather(-1, index)
    high = padded.gather(-1, (index + 1).clamp(max=n + 1))
    outside = ((left < -1) | (left > n - 1)).unsqueeze(1)
    return torch.where(
        outside, torch.zeros_like(low), torch.lerp(low, high, weight.to(x.dtype).expand_as(low))
    )


def integrate(velocity: Tensor, steps: int) -> Tensor:
    """The displacement after unit time along a stationary velocity field, by scaling and squaring.

    ``d₀ = velocity / 2^steps``, then ``d ← d + d∘(id + d)`` ``steps`` times (Arsigny et al., 2006).

    Args:
        velocity: (batch, samples), in samples.
    """
    grid = torch.arange(velocity.shape[-1], dtype=velocity.dtype, device=velocity.device)
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample(displacement.unsqueeze(1), grid + displacement).squeeze(1)
    return displacement


def random_displacement(
    magnitude: Tensor, noise: Tensor, *, downsample: int = 4, steps: int = 5, window: int = 25
) -> Tensor:
    """The paper's random time displacement, in samples (Raghu et al., 2021, supplement; TaskAug's warp).

    White noise times ``100·magnitude`` is down-sampled, integrated as a velocity field, brought back to full length and
    smoothed by a truncated Gaussian. At ``magnitude`` 1 its SD is 5 of 1,024 samples and 0.05 % of steps fold back; at 16
    (the paper's initial value) 85 samples and 40 %: not a diffeomorphism, and numerically chaotic.

    Args:
        magnitude: (batch, 1) or scalar; linear scale of the velocity.
        noise: (batch, samples) standard normal.
    """
    n = noise.shape[-1]
    coarse = F.interpolate((100 * magnitude * noise).unsqueeze(1), size=n // downsample, mode="linear")
    displacement = integrate(coarse.squeeze(1) / downsample, steps)
    fine = F.interpolate(downsample * displacement.unsqueeze(1), size=n, mode="linear")
    return F.conv1d(fine, smoothing_kernel(window).to(fine), padding=window // 2).squeeze(1)


def smoothing_kernel(window: int) -> Tensor:
    """A Gaussian of σ = window//2 samples reflected into ``window`` samples, as the paper's filter; (1, 1, window)."""
    half = window // 2
    reach = torch.arange(-4 * half, 4 * half + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (reach / max(half, 1)) ** 2)
    # The impulse sits in the middle; mass beyond an edge is mirrored back (d c b a | a b c d | d c b a).
    target = (reach.long() + half) % (2 * window)
    target = torch.where(target < window, target, 2 * window - 1 - target)
    kernel = torch.zeros(window, dtype=torch.float64).index_add(0, target, weights / weights.sum())
    return kernel.view(1, 1, window)


def warp(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """Random time warp, one for all leads: ``x(t + d(t))`` with d from :func:`random_displacement`.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: (batch, 1) or scalar, ≥ 0.
        noise: (batch, samples) standard normal.
    """
    displacement = random_displacement(magnitude, noise)
    grid = torch.arange(x.shape[-1], dtype=displacement.dtype, device=x.device)
    return sample(x, grid + displacement)


def white_noise(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``x + magnitude · std(lead) · noise``.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: broadcastable to (batch, leads, 1); a fraction of each lead's own standard deviation.
        noise: like x, standard normal.
    """
    return x + magnitude * x.std(dim=-1, keepdim=True) * noise


def zero_crop(x: Tensor, length: Tensor, start: Tensor) -> Tensor:
    """``x`` with ``length`` samples from ``start`` set to 0, each lead its own.

    Args:
        x: (batch, leads, samples), mV.
        length, start: integers, broadcastable to (batch, leads, 1).
    """
    t = torch.arange(x.shape[-1], device=x.device)
    return x.masked_fill((t >= start) & (t < start + length), 0.0)


def displacement_statistics(displacement: Tensor, fs: float) -> dict[str, float]:
    """What a displacement (batch, samples; in samples) does to time.

    Returns:
        ``sd_ms``: its standard deviation; ``folded``: share of steps where time runs backwards; ``outside``: share of
        positions that leave the record.
    """
    n = displacement.shape[-1]
    positions = displacement + torch.arange(n, device=displacement.device)
    return {
        "sd_ms": float(displacement.std()) / fs * 1000,
        "folded": float((positions.diff(dim=-1) < 0).double().mean()) if n > 1 else math.nan,
        "outside": float(((positions < 0) | (positions > n - 1)).double().mean()),
    }
