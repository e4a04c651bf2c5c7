"""Operations on time: warps, shifts and zooms. All leads move together, so the limb-lead identities are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.augment.functional.operation import (
    Noise,
    at_hand,
    fresh,
    in_cache,
    operation,
    records_in_cache,
)
from ecgmeta.runtime.errors import InputError


def sample(x: Tensor, positions: Tensor) -> Tensor:
    """``x`` read at fractional sample positions by linear interpolation; 0 outside the record, NaN where a position is NaN.

    Args:
        x: (batch, leads, samples).
        positions: (batch, samples) for all leads, or (batch, 1 or leads, samples), in samples; float32 or wider.

    The values of ``grid_sample(align_corners=True, padding_mode="zeros")``, but exact at whole positions (that one loses
    1e-4 samples on the way to coordinates in [−1, 1]), and with every derivative that the engine's routes take.
    """
    if x.shape[-1] < 2:
        raise InputError("sample", "samples of x", x.shape[-1], "at least 2")
    positions = positions.unsqueeze(1) if positions.ndim == 2 else positions
    result: Tensor = _Sample.apply(x, positions)
    return result


class _Sample(torch.autograd.Function):
    """``a·x[i] + b·x[i+1]``. Autograd's own chain would keep, and allocate, three more tensors of x's size."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, positions: Tensor) -> Tensor:
        return _by_grid(x, positions) if _takes_a_grid(x, positions) else in_cache(_interpolate, x, positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, positions = ctx.saved_tensors
        of_x = of_positions = None
        if ctx.needs_input_grad[0]:
            index, low, high = _neighbours(positions, x.shape[-1])
            of_x = _add(torch.zeros_like(x), index, gradient * _hat(low).to(x.dtype))
            of_x = _add(of_x, index + 1, gradient * _hat(high).to(x.dtype))
        if ctx.needs_input_grad[1]:
            if _takes_a_grid(x, positions) and at_hand(gradient):
                low, high, _ = _grids(positions, x.shape[-1])
                of_positions = in_cache(_pull_back_by_grid, x, low, high, gradient)
            else:
                of_positions = in_cache(_pull_back, x, positions, gradient)
        return of_x, of_positions

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, positions = ctx.saved_tensors
        of_x, of_positions = tangents
        total = torch.zeros_like(x)
        if of_x is not None:
            total = total + sample(of_x, positions)
        if of_positions is not None:
            total = total + _slope(x, positions) * of_positions.to(x.dtype)
        return total


def _takes_a_grid(x: Tensor, positions: Tensor) -> bool:
    plain = x.dtype == positions.dtype == torch.float32 and positions.shape == (len(x), 1, x.shape[-1])
    # In a longer record float32 could take the place of a sample for that of the next.
    return plain and x.shape[-1] <= 1 << 20 and at_hand(x, positions)


def _interpolate(x: Tensor, positions: Tensor) -> Tensor:
    index, low, high = _neighbours(positions, x.shape[-1])
    result = _read(x, index).mul_(_hat(low).to(x.dtype))
    return result.add_(_read(x, index + 1).mul_(_hat(high).to(x.dtype)))


def _pull_back(x: Tensor, positions: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the positions; summed over leads that share them."""
    each = (gradient * _slope(x, positions)).to(positions.dtype)
    return each if positions.shape[1] == x.shape[1] else each.sum(1, keepdim=True)


def _grids(positions: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours of each position as places in a grid of n samples, and the right one's weight.

    A grid is read in half the time of a gather. Outside the record it has 0, beyond which no position need lie; NaN stays.
    """
    positions = positions.clamp(-2, n)
    left = positions.floor()
    low = (left * (2 / n)).add_(1 / n - 1)
    return low, low + 2 / n, positions - left


def _by_grid(x: Tensor, positions: Tensor) -> Tensor:
    # Fewer than elsewhere: both neighbours and the result are as large as x.
    result, records = fresh(x, len(x)), max(1, records_in_cache(x) // 2)
    tensors = (result, x, *_grids(positions, x.shape[-1]))
    for out, part, low, high, weight in zip(*(tensor.split(records) for tensor in tensors), strict=True):
        torch.lerp(_nearest(part, low), _nearest(part, high), weight, out=out)
    return result


def _pull_back_by_grid(x: Tensor, low: Tensor, high: Tensor, gradient: Tensor) -> Tensor:
    return _nearest(x, high).sub_(_nearest(x, low)).mul_(gradient).sum(1, keepdim=True)


def _nearest(x: Tensor, place: Tensor) -> Tensor:
    """x at whole samples, exactly. There is one row, so that its coordinate may be any: the same, without a copy."""
    grid = place.unsqueeze(-1).expand(-1, -1, -1, 2)
    return F.grid_sample(x.unsqueeze(2), grid, mode="nearest", align_corners=False).squeeze(2)


def _neighbours(positions: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The left neighbour's index, 0 to n − 2, and the distances of each position from both neighbours, in samples."""
    # NaN has no index, but it must come out as NaN, through the distance: a zero would hide that φ has diverged.
    left = positions.detach().floor().clamp(0, n - 2).nan_to_num(0.0)
    low = positions - left
    return left.long(), low, low - 1


def _hat(distance: Tensor) -> Tensor:
    """A neighbour's weight. Whatever its index was clamped to, a sample or more away it weighs nothing."""
    return (1 - distance.abs()).clamp(min=0)


def _slope(x: Tensor, positions: Tensor) -> Tensor:
    """The derivative of :func:`sample` in its positions; from the right where it has a kink."""
    index, low, high = _neighbours(positions.detach(), x.shape[-1])
    low, high = (
        torch.where((d >= -1) & (d < 1), torch.where(d < 0, 1.0, -1.0), 0.0).to(x.dtype) for d in (low, high)
    )
    return low * _read(x, index) + high * _read(x, index + 1)


def _read(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-1, index.expand(-1, x.shape[1], -1))


def _add(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return x.scatter_add(-1, index.expand(-1, x.shape[1], -1), values)


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
    magnitude: Tensor,
    noise: Tensor,
    *,
    downsample: int = 4,
    steps: int = 5,
    window: int = 25,
    where: str = "random_displacement",
) -> Tensor:
    """The paper's random time displacement, in samples (Raghu et al., 2021, supplement; TaskAug's warp).

    White noise times ``100·magnitude`` is down-sampled, integrated as a velocity field, brought back to full length and
    smoothed by a truncated Gaussian. At ``magnitude`` 1 its SD is 5 of 1,024 samples and 0.05 % of steps fold back; at 16
    (the paper's initial value) 85 samples and 40 %: not a diffeomorphism, and numerically chaotic.

    Args:
        magnitude: (batch, 1) or scalar; linear scale of the velocity.
        noise: (batch, samples) standard normal.
        downsample: factor, which leaves at least 2 samples.
        steps: of :func:`integrate`.
        window: of the filter, an odd number of samples.
        where: named in errors.
    """
    n = noise.shape[-1]
    if not (isinstance(downsample, int) and 1 <= downsample <= n // 2):
        raise InputError(where, "downsample", downsample, f"a whole number from 1 to {n // 2}")
    if not (isinstance(steps, int) and steps >= 0):
        raise InputError(where, "steps", steps, "a whole number, 0 or more")
    if not (isinstance(window, int) and window > 0 and window % 2):
        raise InputError(where, "window", window, "an odd number of samples")
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


SLOWEST = 0.01
"""Least speed of time under :func:`monotone_displacement` (before its mean is set to 1): rounding cannot fold it either."""


def monotone_displacement(
    magnitude: Tensor,
    noise: Tensor,
    *,
    fs: float,
    smoothness: float = 0.25,
    where: str = "monotone_displacement",
) -> Tensor:
    """A random time displacement that never folds, in samples: d(t) with ``t + d(t)`` increasing and both ends fixed.

    The local speed of time is positive by construction, a bounded function of a random curve u(t) over its mean:

        1 + d'(t) = s(t) / mean(s),  s = 1 + (1 − ε) tanh(u/(1 − ε)),  u = magnitude · Σₖ aₖ cₖ (πk/T) cos(πkt/T),  a ~ N(0, 1)

    with cₖ ∝ exp(−(πk·smoothness/T)²/4), so that for a small magnitude ``d = magnitude · Σ aₖ cₖ sin(πkt/T)``: away from the
    ends a Gaussian process of SD ``magnitude`` and correlation ``exp(−Δt²/(2·smoothness²))``. Large magnitudes saturate: about
    half of the record is hurried over at twice its speed, the rest all but stands still. ε is :data:`SLOWEST`. The bounded
    speed and its spectrum are of this package; Ramsay (1998) has monotone functions as integrals of positive speeds, exp u.

    Args:
        magnitude: (batch, 1) or scalar, in s, ≥ 0.
        noise: (batch, samples) standard normal, of which the first ``1.9 T/smoothness`` are used.
        fs: sampling rate in Hz.
        smoothness: correlation time in s. The paper's warp has about 0.1 s at 100 Hz, which bends QRS complexes; from about 1 s
            on, beats keep their shape and only the rate wanders.
        where: named in errors.
    """
    if not smoothness > 0:
        raise InputError(where, "smoothness", smoothness, "a time in s above 0")
    steps = noise.shape[-1] - 1
    duration = steps / fs
    basis = _cosines(steps, duration, smoothness).to(noise)
    # Changes of speed, not speeds: exactly 0 at magnitude 0, and float32 keeps the small ones.
    change = (1 - SLOWEST) * torch.tanh(magnitude * (noise[:, : len(basis)] @ basis))
    mean = change.mean(-1, keepdim=True)
    return F.pad(((change - mean) / (1 + mean)).cumsum(-1), (1, 0))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _cosines(steps: int, duration: float, smoothness: float) -> Tensor:
    """(harmonics, steps), in float64: the curves that a's numbers weigh in u/magnitude."""
    # Harmonics whose amplitude is below 2e-4 of the first ones are left out.
    count = max(1, min(steps, math.ceil(5.9 * duration / (math.pi * smoothness))))
    k = torch.arange(1, count + 1, dtype=torch.float64)
    # (Only a lone one, which is scaled to the same whatever it is, could vanish: where smoothness is many records long.)
    amplitude = torch.exp(-0.25 * (math.pi * k * smoothness / duration).clamp(max=30) ** 2)
    # Away from the ends the squared sines average to 1/2, so d has SD 1 there.
    amplitude = amplitude / (0.5 * amplitude.square().sum()).sqrt() / (1 - SLOWEST)
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return (amplitude * math.pi * k / duration).unsqueeze(1) * torch.cos(math.pi * k.unsqueeze(1) * middles)


@operation(noise=Noise("normal", ("samples",)), unit="s", typical=0.05)
def time_warp(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float, smoothness: float = 0.25) -> Tensor:
    """Smooth random warp of time that never folds: ``x(t + d(t))`` with d from :func:`monotone_displacement`.

    Of this package, where the paper has :func:`paper_warp`; a positive speed is integrated, as by Ramsay (1998).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: SD of d in s, to first order.
        noise: (batch, samples) standard normal.
        fs: sampling rate in Hz.
        smoothness: correlation time of d in s.
    """
    d = _per_row(
        lambda m, z: monotone_displacement(m, z, fs=fs, smoothness=smoothness, where="time_warp"),
        magnitude,
        noise,
    )
    return sample(x, d + torch.arange(x.shape[-1], dtype=d.dtype, device=d.device))


@operation(noise=Noise("normal", ("samples",)), unit="1", typical=1.0)
def paper_warp(
    x: Tensor,
    magnitude: Tensor,
    *,
    noise: Tensor,
    downsample: int = 4,
    steps: int = 5,
    window: int = 25,
) -> Tensor:
    """The paper's random warp of time, which folds: ``x(t + d(t))`` with d from :func:`random_displacement`, in samples.

    (Raghu et al., 2021, supplement.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: the paper's ``m(x)·g²``; 1 displaces by 5 samples (SD), 16 by 85.
        noise: (batch, samples) standard normal.
        downsample, steps, window: of :func:`random_displacement`.
    """
    d = _per_row(
        lambda m, z: random_displacement(
            m, z, downsample=downsample, steps=steps, window=window, where="paper_warp"
        ),
        magnitude,
        noise,
    )
    return sample(x, d + torch.arange(x.shape[-1], dtype=d.dtype, device=d.device))


def _per_row(displace: Callable[[Tensor, Tensor], Tensor], magnitude: Tensor, noise: Tensor) -> Tensor:
    """(batch, 1 or leads, samples) from a (1 or batch, 1 or leads, 1) magnitude: leads share the noise, not its strength."""
    magnitude = magnitude.to(noise.dtype)
    if magnitude.shape[1] == 1:
        return displace(magnitude[:, 0], noise).unsqueeze(1)
    return torch.stack([displace(lead, noise) for lead in magnitude.unbind(1)], dim=1)


@operation(noise=Noise("uniform", (1, 1)), unit="s", typical=0.2)
def time_shift(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float) -> Tensor:
    """The record moved by up to ``magnitude`` either way, by parts of a sample; 0 mV comes in at the ends.

    ``x(t + magnitude·(2u − 1))``, u uniform: TaskAug's displacement (Raghu et al., CHIL 2022).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: largest shift in s.
        noise: (batch, 1, 1) uniform.
        fs: sampling rate in Hz.
    """
    shift = fs * magnitude.to(noise.dtype) * (2 * noise - 1)
    return sample(x, shift + torch.arange(x.shape[-1], dtype=noise.dtype, device=x.device))


@operation(noise=Noise("uniform", (2, 1)), unit="1", typical=0.3, limit=0.95)
def random_resized_crop(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """A random stretch of the record brought back to full length: ``x(s + (1 − magnitude·u₁)·t)``, s uniform where it fits.

    It slows every rhythm and widens every wave by ``1/(1 − magnitude·u₁)``, so it destroys labels that rate or durations
    decide. The best single operation for PTB-XL in Mehari and Strodthoff (2022), who crop half to all of the record.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: largest share of the record that is cut away, 0 to 0.95.
        noise: (batch, 2, 1) uniform.
    """
    cut = magnitude.to(noise.dtype) * noise[:, :1]
    n = x.shape[-1]
    start = cut * (n - 1) * noise[:, 1:]
    return sample(x, start + (1 - cut) * torch.arange(n, dtype=noise.dtype, device=x.device))


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
