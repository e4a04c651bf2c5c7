"""Additive noise, in mV or as a fraction of the signal.

What reaches the leads through electrodes is made at the nine electrodes of a 12-lead record and then led off, so that the
limb-lead identities survive (:func:`~ecgmeta.augment.functional.leads.lead_off`); the magnitude is then the RMS over the eight
independent leads, I, II and V1..V6. With another number of leads each has noise of its own.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from ecgmeta.augment.functional.leads import INDEPENDENT, LEADS, lead_off
from ecgmeta.augment.functional.operation import ELECTRODES, Noise, operation, wide
from ecgmeta.runtime.errors import InputError

Decibels = TypeVar("Decibels", float, Tensor)

SINES = 12
"""Sines of the baseline wander of an electrode."""
MUSCLE_HZ, MUSCLE_WIDTH = 22.0, 0.47
"""Centre and width (SD of the logarithm) of the power spectrum of the MIT-BIH stress test's record ``ma``."""
JUMPS = 3
"""Jumps of electrodes in a record."""
RISE = 0.015
"""Time constant of a jump's rise in s."""


def _added(x: Tensor, magnitude: Tensor, unit: Tensor) -> Tensor:
    """``x + magnitude · unit``, the product in unit's dtype."""
    return x + (magnitude.to(unit.dtype) * unit).to(x.dtype)


@operation(noise=Noise("normal", ("leads", "samples")), unit="1", typical=0.05, identities=False)
def white_noise(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``x + magnitude · std(lead) · noise``: an amplifier's noise, each lead its own.

    One of the two operations of the paper's static pipeline (Raghu et al., 2021).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: SD of the noise as a fraction of each lead's own standard deviation.
        noise: (batch, leads, samples) standard normal.
    """
    return torch.addcmul(x, magnitude * deviation(x), noise.to(x.dtype))


def deviation(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The standard deviation of each lead, (batch, leads, 1): twice as fast as torch's on a CPU, and its derivatives are 0
    where a lead is flat. ``out``, like x, is memory to work in."""
    centred = torch.sub(x, x.mean(-1, keepdim=True), out=out)
    return torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)


@operation(noise=Noise("normal", ("electrodes", 2 * SINES)), unit="mV", typical=0.1)
def baseline_wander(
    x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float, low: float = 0.05, high: float = 0.5
) -> Tensor:
    """Slow Gaussian drift of each electrode, from breathing and sweat.

    ``w(t) = magnitude/√K · Σₖ aₖ cos 2πfₖt + bₖ sin 2πfₖt`` with a, b ~ N(0, 1) and K = 12 frequencies at the middles of equal
    steps of log f from ``low`` to ``high``: a stationary Gaussian process of RMS ``magnitude`` whose covariance is
    ``magnitude²/K · Σₖ cos 2πfₖτ``, as much power in each octave. (Sums of slow sines as in Mehari and Strodthoff, 2022.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: RMS in mV.
        noise: (batch, 9 or leads, 24) standard normal: the aₖ, then the bₖ.
        fs: sampling rate in Hz.
        low, high: of the frequencies, in Hz; at most fs/2.

    Raises:
        InputError: also for frequencies out of order or beyond fs/2.
    """
    if not 0 < low < high <= fs / 2:
        raise InputError(
            "baseline_wander", "low, high", f"{low:g}, {high:g}", f"0 < low < high <= {fs / 2:g} Hz"
        )
    share = (torch.arange(SINES, dtype=torch.float64, device=x.device) + 0.5) / SINES
    phase = _turns(low * (high / low) ** share, x, fs)
    basis = torch.cat([phase.cos(), phase.sin()]) / math.sqrt(SINES)
    return _added(x, magnitude, lead_off(noise, x.shape[1]) @ basis.to(noise))


@operation(noise=Noise("normal", ("electrodes", 2)), unit="mV", typical=0.02)
def powerline(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float, frequency: float = 50.0) -> Tensor:
    """Mains hum, whose amplitude (Rayleigh) and phase (uniform) each electrode has for itself.

    ``h(t) = magnitude · (a cos 2πft + b sin 2πft)`` with a, b ~ N(0, 1). (As in Mehari and Strodthoff, 2022, who add
    harmonics.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: RMS in mV.
        noise: (batch, 9 or leads, 2) standard normal: a and b.
        fs: sampling rate in Hz.
        frequency: of the mains in Hz, 50 or 60; below fs/2.

    Raises:
        InputError: also for a frequency at or above fs/2, where there is no such hum: a recorder's filter takes it away.
    """
    if not 0 < frequency < fs / 2:
        raise InputError(
            "powerline", "frequency", f"{frequency:g} Hz", f"less than half of fs, {fs / 2:g} Hz"
        )
    phase = _turns(torch.tensor([frequency], dtype=torch.float64, device=x.device), x, fs)
    return _added(x, magnitude, lead_off(noise, x.shape[1]) @ torch.cat([phase.cos(), phase.sin()]).to(noise))


def _turns(hz: Tensor, x: Tensor, fs: float) -> Tensor:
    """2πft: (frequencies, samples), float64."""
    return 2 * math.pi / fs * hz.unsqueeze(1) * torch.arange(x.shape[-1], dtype=hz.dtype, device=hz.device)


@operation(noise=Noise("normal", ("electrodes", "bins", 2)), unit="mV", typical=0.03)
def muscle_noise(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float) -> Tensor:
    """Stationary Gaussian noise with the band of the muscles' record ``ma`` of the MIT-BIH stress test (Moody et al., 1984).

    Its power spectrum is ``exp(−½ (ln(f/22 Hz)/0.47)²)``, cut at fs/2 and then scaled to RMS ``magnitude``; it is drawn in the
    Fourier domain, so its end goes on at its beginning.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: RMS in mV.
        noise: (batch, 9 or leads, samples//2 + 1, 2) standard normal: real and imaginary parts.
        fs: sampling rate in Hz.
    """
    n = x.shape[-1]
    hz = torch.fft.rfftfreq(n, 1 / fs, dtype=torch.float64, device=x.device)
    octaves = torch.log(hz.clamp(min=1e-3) / MUSCLE_HZ) / MUSCLE_WIDTH
    shape = torch.exp(-0.25 * octaves.square())
    # Every frequency stands for itself and its mirror image, 0 and fs/2 for themselves alone.
    sides = torch.full_like(hz, 2.0)
    sides[0] = 1
    if n % 2 == 0:
        sides[-1] = 1
    shape = shape * n / (sides * shape).square().sum().sqrt()
    parts = noise * shape.to(noise).unsqueeze(1)
    potentials = torch.fft.irfft(torch.complex(parts[..., 0], parts[..., 1]), n=n)
    return _added(x, magnitude, lead_off(potentials, x.shape[1]))


@operation(noise=Noise("normal", (JUMPS, 4)), unit="mV", typical=0.1)
def electrode_motion(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float) -> Tensor:
    """Electrodes that slip: three jumps, each at a random electrode, which creep back.

    A jump at time s is ``h/√c · (1 − exp(−(t−s)/15 ms)) · exp(−(t−s)/c)`` with h ~ N(0, 1), c log-uniform from 0.05 to 3 s and
    s uniform from 5 to 85 % of the record: short twitches are higher than long drifts, as in the MIT-BIH record ``em``
    (Moody et al., 1984); the formula is of this package. The sum is scaled so that its RMS over the record (and the independent
    leads) is ``magnitude`` in every record, not only on average.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: RMS in mV.
        noise: (batch, 3, 4) standard normal: h, and what becomes the electrode, s and c.
        fs: sampling rate in Hz.
    """
    leads, n = x.shape[1:]
    count = ELECTRODES if leads == len(LEADS) else leads
    which, when, creep = torch.special.ndtr(noise[..., 1:]).unsqueeze(-1).unbind(2)
    creep = 0.05 * 60**creep
    time = torch.arange(n, dtype=noise.dtype, device=noise.device) / fs
    since = (time - n / fs * (0.05 + 0.8 * when)).clamp(min=0)
    jumps = noise[..., :1] / creep.sqrt() * -torch.expm1(-since / RISE) * torch.exp(-since / creep)
    electrode = (which * count).long().clamp(max=count - 1)
    place = (electrode == torch.arange(count, device=x.device)).to(jumps)
    moved = lead_off(place.mT, leads) @ jumps
    counted = moved[:, list(INDEPENDENT)] if leads == len(LEADS) else moved
    rms = counted.square().mean((1, 2), keepdim=True).sqrt()
    return _added(x, magnitude, moved / rms.clamp(min=1e-12))


@operation(noise=Noise("normal", ("electrodes", 1)), unit="mV", typical=0.1)
def dc_shift(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """A constant offset of each electrode, ``magnitude · z``: half-cell potentials that the amplifier let through.

    Of this package; the baseline shifts of Mehari and Strodthoff (2022) last for a part of the record.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: RMS in mV.
        noise: (batch, 9 or leads, 1) standard normal.
    """
    return _added(x, magnitude, lead_off(noise, x.shape[1]))


@operation(noise=None, unit="1", typical=0.25, identities=False)
def real_noise(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """Recorded noise mixed in at a noise-to-signal ratio: ``x + magnitude · rms(x)/rms(noise) · noise``.

    Each RMS is about the mean of each lead, over all leads of the record, so noise of several leads keeps its proportions, and
    its limb-lead identities if it has them. Moody et al. (1984) describe such a test with the records ``bw``, ``em``, ``ma``.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: noise-to-signal RMS ratio; :func:`snr_to_magnitude` has it from decibels.
        noise: (batch, 1 or leads, samples) recordings at the rate of x, any unit; one channel goes to all leads.

    Raises:
        InputError: also for recordings that are not finite.
    """
    noise = noise.to(wide(x.dtype))
    ratio = _rms(x.to(noise.dtype)) / _rms(noise)
    return _added(x, magnitude, ratio * noise)


def _rms(x: Tensor) -> Tensor:
    # The floor, 1e-12 mV, is for flat records: it gives their square root a derivative.
    return x.var(-1, correction=0).mean(1).clamp(min=1e-24).sqrt().view(-1, 1, 1)


def snr_to_magnitude(db: Decibels) -> Decibels:
    """The noise-to-signal RMS ratio of a signal-to-noise ratio in decibels, ``10^(−db/20)``; a number or a tensor."""
    ratio: Decibels = 10 ** (-db / 20)
    return ratio
