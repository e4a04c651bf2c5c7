"""Operations that hide a part of the record: a stretch of time, or leads."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ecgmeta.augment.functional.leads import LEADS
from ecgmeta.augment.functional.operation import Noise, operation
from ecgmeta.runtime.errors import InputError


def zero_crop(x: Tensor, length: Tensor, start: Tensor) -> Tensor:
    """``x`` with ``length`` samples from ``start`` set to 0, each lead its own (the paper's static pipeline).

    Args:
        x: (batch, leads, samples), mV.
        length, start: integers, broadcastable to (batch, leads, 1).
    """
    n = x.shape[-1]
    onwards = _onwards(n, x.device)
    first, last = (
        at.clamp(0, n).expand(len(x), at.shape[1] if at.ndim == 3 else 1, 1) for at in (start, start + length)
    )
    stretch = onwards[first.flatten()] ^ onwards[last.flatten()]
    return x.clone().masked_fill_(stretch.view(len(x), -1, n), 0.0)


@lru_cache(maxsize=4)
def _onwards(n: int, device: torch.device) -> Tensor:
    """(n + 1, n), row i true from sample i on: two rows differ in a stretch. Copying rows of this small table is several times
    faster than comparing every sample with two numbers."""
    return torch.arange(n, device=device) >= torch.arange(n + 1, device=device).unsqueeze(1)


def soft_stretch(
    start: Tensor, length: Tensor, *, samples: int, fs: float, edge: float, where: str = "soft_stretch"
) -> Tensor:
    """A window that is 1 from ``start`` to ``start + length`` and 0 elsewhere, with soft edges.

    ``S((t − start)/edge) − S((t − start − length)/edge)`` with S the quintic step from −½ to ½, which has two derivatives. Its
    area is ``length``, whatever the edge; one shorter than the edge is shallow; at length 0 the window is exactly 0.

    Args:
        start, length: (batch, 1 or leads, 1), s.
        samples, fs: of the window.
        edge: rise and fall take so many s, centred on the ends of the stretch.
        where: named in errors.

    Returns:
        (batch, 1 or leads, samples).
    """
    if not edge > 0:
        raise InputError(where, "edge", edge, "a time in s above 0")
    since = torch.arange(samples, dtype=length.dtype, device=length.device) / fs - start
    return _step(since / edge) - _step((since - length) / edge)


def _step(u: Tensor) -> Tensor:
    u = (u + 0.5).clamp(0, 1)
    return u**3 * (10 - 15 * u + 6 * u.square())


@operation(noise=Noise("uniform", (1, 1)), unit="s", typical=0.5)
def time_mask(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float, edge: float = 0.05) -> Tensor:
    """All leads of a stretch of ``magnitude`` seconds set to 0, with soft edges: ``x · (1 − soft_stretch)``.

    The stretch begins uniformly where it fits; one longer than the record hides all of it. (Time-out in Mehari and Strodthoff,
    2022; differentiable in its length through :func:`soft_stretch`.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: length in s.
        noise: (batch, 1, 1) uniform.
        fs: sampling rate in Hz.
        edge: of the mask in s.
    """
    length = magnitude.to(noise.dtype)
    start = noise * (x.shape[-1] / fs - length)
    hidden = soft_stretch(start, length, samples=x.shape[-1], fs=fs, edge=edge, where="time_mask")
    return x * (1 - hidden).to(x.dtype)


@operation(noise=Noise("uniform", ("leads", 1)), unit="1", typical=1.0, limit=1.0, identities=False)
def lead_mask(x: Tensor, magnitude: Tensor, *, noise: Tensor, share: float = 0.5) -> Tensor:
    """A random set of leads times ``1 − magnitude`` (Oh et al., CHIL 2022, mask each lead with probability ½ instead).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: how much of these leads is taken away; 1 silences them.
        noise: (batch, leads, 1) uniform.
        share: of the leads that are in the set, rounded to a whole number, but at least one.
    """
    if not 0 < share <= 1:
        raise InputError("lead_mask", "share", share, "above 0 and at most 1")
    count = max(1, round(share * x.shape[1]))
    masked = noise.argsort(dim=1) < count  # a random order of the leads
    return x * (1 - magnitude * masked.to(x.dtype))


@operation(noise=Noise("uniform", ("leads", 1)), unit="1", typical=0.25, limit=1.0, identities=False)
def lead_dropout(x: Tensor, magnitude: Tensor, *, noise: Tensor, temperature: float = 0.2) -> Tensor:
    """Each lead lost with probability ``magnitude``, relaxed so that the probability can be learned: ``x · (1 − b)``.

    Random lead masking (Oh et al., CHIL 2022) at any probability, with b a :func:`relaxed_bernoulli` (Maddison et al., 2017).
    Its derivative in the probability vanishes at 0 itself: learning starts above it.

    Args:
        x: (batch, leads, samples), mV.
        magnitude: probability that a lead is lost.
        noise: (batch, leads, 1) uniform.
        temperature: of the relaxation, above 0 and at most 0.5.
    """
    lost = relaxed_bernoulli(magnitude.to(noise.dtype), noise, temperature, where="lead_dropout")
    return x * (1 - lost).to(x.dtype)


def relaxed_bernoulli(
    probability: Tensor, uniform: Tensor, temperature: float, *, where: str = "relaxed_bernoulli"
) -> Tensor:
    """``σ((logit p + logit u)/temperature)`` in [0, 1]: above ½ with probability exactly p, and 0 at p = 0, 1 at p = 1.

    The binary Concrete variable of Maddison et al. (2017), written without logarithms, so that it has derivatives at 0 and 1.

    Args:
        probability, uniform: broadcastable to each other.
        temperature: above 0; at most 0.5, beyond which the second derivative at 0 is infinite.
        where: named in errors.
    """
    if not 0 < temperature <= 0.5:
        raise InputError(where, "temperature", temperature, "above 0 and at most 0.5")
    u = uniform.clamp(1e-6, 1 - 1e-6)
    odds_for, odds_against = probability * u, (1 - probability) * (1 - u)
    # As shares, one of which is at least ½, so that their high powers do not both underflow.
    a = odds_for / (odds_for + odds_against)
    yes, no = a ** (1 / temperature), (1 - a) ** (1 / temperature)
    return yes / (yes + no)


@operation(noise=Noise("uniform", (3,)), unit="1", typical=1.0, limit=1.0, identities=False, leads=12)
def paper_layout(
    x: Tensor, magnitude: Tensor, *, noise: Tensor, rhythm: str | None = "II", jitter: float = 0.05
) -> Tensor:
    """The usual print of 3 rows and 4 columns: each lead is seen in its quarter only, the rhythm lead throughout.

    ``x · (1 − magnitude · hidden)``; I, II, III are seen first, then aVR, aVL, aVF, then V1..V3, then V4..V6.
    As a mask of signals, of this package; ECG-Image-Kit (Shivashankara et al., 2024) draws such prints as images.

    Args:
        x: (batch, 12, samples), mV.
        magnitude: how much of what is not printed is taken away; 1 takes it all.
        noise: (batch, 3) uniform: where the columns change.
        rhythm: lead that is printed in full; None prints none.
        jitter: a change of columns is up to so many columns early or late, below ½.
    """
    if rhythm is not None and rhythm not in LEADS:
        raise InputError("paper_layout", "rhythm", repr(rhythm), f"None or one of {', '.join(LEADS)}")
    if not 0 <= jitter < 0.5:
        raise InputError("paper_layout", "jitter", jitter, "0 or more, below 0.5")
    n = x.shape[-1]
    change = (torch.arange(1, 4, device=x.device) + jitter * (2 * noise - 1)) * (n / 4)
    now = (torch.arange(n, device=x.device) >= change.unsqueeze(-1)).sum(1, keepdim=True)
    lead = torch.arange(len(LEADS), device=x.device).unsqueeze(1)
    hidden = now != lead // 3
    if rhythm is not None:
        hidden = hidden & (lead != LEADS.index(rhythm))
    return x * (1 - magnitude * hidden.to(x.dtype))
