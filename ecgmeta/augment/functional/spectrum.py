"""Operations on the Fourier transform. What is added to x is transformed back, so nothing is rounded at magnitude 0.

The transform takes a record as periodic: a step between its end and its beginning spreads. All leads share the noise, so the
limb-lead identities are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ecgmeta.augment.functional.masks import relaxed_bernoulli
from ecgmeta.augment.functional.operation import Noise, operation, wide
from ecgmeta.runtime.errors import InputError


def _passed(x: Tensor, response: Tensor) -> Tensor:
    """x through a filter: response (batch, 1 or leads, bins). float32 or wider."""
    return torch.fft.irfft(torch.fft.rfft(x.to(wide(x.dtype))) * response, n=x.shape[-1])


@operation(noise=Noise("uniform", ("bins",)), unit="1", typical=0.1, limit=1.0)
def fourier_surrogate(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """Every frequency's phase turned by ``magnitude · θ``, θ uniform on (−π, π) and the same in all leads.

    ``x + F⁻¹[(e^{iφ} − 1) F x]``; power spectra and, between leads, cross-spectra stay. At 1 it is Prichard and Theiler's
    surrogate (1994), which has lost its beats; Rommel et al. (2022) use it, with a magnitude, as an augmentation.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: share of the full range of phases.
        noise: (batch, samples//2 + 1) uniform.
    """
    theta = math.pi * (2 * noise - 1)
    # The mean and, of an even number of samples, fs/2 have no phase to turn.
    turns = torch.ones_like(theta)
    turns[..., 0] = 0
    if x.shape[-1] % 2 == 0:
        turns[..., -1] = 0
    phase = magnitude.to(noise.dtype) * (theta * turns).unsqueeze(1)
    change = torch.complex(-2 * torch.sin(phase / 2).square(), torch.sin(phase))
    return x + _passed(x, change).to(x.dtype)


@operation(noise=Noise("uniform", (1, 1)), unit="1", typical=0.8, limit=1.0)
def band_stop(
    x: Tensor,
    magnitude: Tensor,
    *,
    noise: Tensor,
    fs: float,
    low: float = 0.5,
    high: float = 40.0,
    width: float = 2.0,
) -> Tensor:
    """A Gaussian notch at a random frequency: the filter ``1 − magnitude · exp(−½ ((f − f₀)/width)²)``.

    f₀ is uniform from ``low`` to ``high``. (Cheng et al., 2020; Mohsenvand et al., 2020, for EEG.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: depth of the notch; 1 removes f₀.
        noise: (batch, 1, 1) uniform.
        fs: sampling rate in Hz.
        low, high: of f₀, in Hz; at most fs/2.
        width: SD of the notch in Hz.

    Raises:
        InputError: also for frequencies out of order or beyond fs/2, or a width of 0.
    """
    if not 0 <= low <= high <= fs / 2:
        raise InputError("band_stop", "low, high", f"{low:g}, {high:g}", f"0 <= low <= high <= {fs / 2:g} Hz")
    if not width > 0:
        raise InputError("band_stop", "width", width, "a frequency in Hz above 0")
    hz = torch.fft.rfftfreq(x.shape[-1], 1 / fs, dtype=noise.dtype, device=x.device)
    notch = torch.exp(-0.5 * ((hz - low - (high - low) * noise) / width).square())
    return x - (magnitude.to(noise.dtype) * _passed(x, notch)).to(x.dtype)


@operation(noise=Noise("uniform", ("bins",)), unit="1", typical=0.2, limit=1.0)
def spectral_mask(x: Tensor, magnitude: Tensor, *, noise: Tensor, temperature: float = 0.2) -> Tensor:
    """Each frequency hidden with probability ``magnitude``, relaxed: ``x − F⁻¹[b F x]``.

    b is a :func:`~ecgmeta.augment.functional.masks.relaxed_bernoulli` for each bin of the transform; its derivative vanishes at
    magnitude 0. (Frequency dropout as in SpecAugment, Park et al., 2019, without its time axis.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: share of the frequencies that are hidden.
        noise: (batch, samples//2 + 1) uniform.
        temperature: of the relaxation, above 0 and at most 0.5.
    """
    p = magnitude.to(noise.dtype)
    hidden = relaxed_bernoulli(p, noise.unsqueeze(1), temperature, where="spectral_mask")
    return x - _passed(x, hidden).to(x.dtype)
