"""Nuisances of a recording with known distributions: what an augmentation should learn to imitate.

Additive noise is made at the nine electrodes (RA, LA, LL, V1..V6) and then led off, so Einthoven's and Goldberger's
identities survive it. Each kind has its own random stream: switching one off leaves the others as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from ecgmeta.data.dipole import DOWER, FROM_ELECTRODES, Floats
from ecgmeta.runtime.errors import InputError

CHEST_SPACING_CM = 4.0  # between neighbouring chest electrodes, along the chest (a round figure)
TILT_PER_CM = (
    0.1  # change of a chest lead's y coefficient when its electrode slides 1 cm down (our approximation)
)
MUSCLE_HZ, MUSCLE_WIDTH = (
    22.0,
    0.47,
)  # centre and width (in log frequency) of the power spectrum of muscle noise


@dataclass(frozen=True)
class Level:
    """How strong a nuisance is: absent with probability 1 − ``share``, else log-uniform on [``low``, ``high``]."""

    low: float
    high: float
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and 0 < self.low <= self.high):
            raise InputError("Level", "low, high", f"{self.low}, {self.high}", "finite, 0 < low <= high")
        if not 0.0 <= self.share <= 1.0:
            raise InputError("Level", "share", self.share, "a probability in [0, 1]")

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """(count,) float32 magnitudes, 0.0 where the nuisance is absent."""
        present = rng.random(count) < self.share
        size = np.exp(rng.uniform(math.log(self.low), math.log(self.high), count))
        return np.where(present, size, 0.0).astype(np.float32)


@dataclass(frozen=True)
class Nuisances:
    """Which nuisances a cohort has; ``None`` switches one off.

    The additive ones are given by their RMS over the eight independent leads (I, II, V1..V6) and the record, in mV,
    before the gain.

    Attributes:
        wander: baseline wander, mV RMS: respiration (0.15 to 0.35 Hz) and a slow random walk.
        powerline: mains hum, mV RMS. Hum at or above fs/2 is left out, as a recorder's anti-alias filter would.
        powerline_hz: mains frequency, 50 or 60 Hz (each record is within 0.05 Hz of it).
        muscle: muscle noise, mV RMS: a broad band around 25 Hz, swelling and fading.
        motion: electrode motion, mV RMS: an electrode jumps and creeps back within 0.05 to 3 s.
        white: amplifier noise, mV RMS.
        gain: ``|log gain|`` of the amplifier, one a record, either sign; it scales heart and noise alike.
        displacement: RMS shift of the chest electrodes in cm, along and across the chest.
        warp: RMS of a smooth displacement of the heart's clock in s (knots 1 s apart): the rate drifts.
    """

    wander: Level | None = Level(0.02, 0.20, 0.7)
    powerline: Level | None = Level(0.005, 0.04, 0.3)
    powerline_hz: float = 50.0
    muscle: Level | None = Level(0.005, 0.05, 0.4)
    motion: Level | None = Level(0.03, 0.20, 0.1)
    white: Level | None = Level(0.003, 0.015, 1.0)
    gain: Level | None = Level(0.02, 0.25, 0.6)
    displacement: Level | None = Level(0.3, 2.5, 0.7)
    warp: Level | None = Level(0.005, 0.03, 0.5)

    def __post_init__(self) -> None:
        if not 0 < self.powerline_hz < 1000:
            raise InputError(
                "Nuisances", "powerline_hz", self.powerline_hz, "a mains frequency in Hz (50 or 60)"
            )
        # Beyond this the clock could run backwards and a beat would be drawn twice.
        if self.warp is not None and self.warp.high > 0.08:
            raise InputError("Nuisances", "warp.high", self.warp.high, "at most 0.08 s")

    @classmethod
    def none(cls) -> Nuisances:
        """A cohort without any nuisance."""
        return cls(**_off(KINDS))

    @classmethod
    def only(cls, *kinds: str) -> Nuisances:
        """The default levels of the named nuisances and none of the others.

        Raises:
            InputError: a name is not one of ``KINDS``.
        """
        for kind in kinds:
            if kind not in KINDS:
                raise InputError("Nuisances", "only", kind, "one of " + ", ".join(KINDS))
        return cls(**_off([kind for kind in KINDS if kind not in kinds]))


def _off(kinds: Iterable[str]) -> dict[str, Any]:
    return dict.fromkeys(kinds)


KINDS = tuple(field.name for field in fields(Nuisances) if field.name != "powerline_hz")
ADDITIVE = ("wander", "powerline", "muscle", "motion", "white")


def _spline(duration: float, spacing: float, samples: int) -> Floats:
    """(knots, samples) matrix that turns values at knots ``spacing`` s apart into a smooth curve."""
    knots = max(4, math.ceil(duration / spacing) + 1)
    where = np.linspace(0.0, duration, knots)
    return CubicSpline(where, np.eye(knots))(np.linspace(0.0, duration, samples)).T.astype(np.float32)


def _unit_rms(electrodes: Floats) -> Floats:
    """(batch, 9, samples) electrode potentials -> (batch, 8, samples) leads whose RMS is 1 in every record."""
    leads = np.matmul(FROM_ELECTRODES, electrodes)
    rms = np.sqrt(np.mean(np.square(leads), axis=(1, 2), keepdims=True))
    return leads / np.maximum(rms, np.float32(1e-12))


def _tones(batch: int, hz: Floats, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    """(batch, 9, samples): one tone a record at ``hz`` (batch,), with its own strength and sign at each electrode."""
    phase = rng.uniform(0, 2 * np.pi, (batch, 1)) + 2 * np.pi * hz[:, None] * (np.arange(samples) / fs)
    weight = rng.standard_normal((batch, 9, 1), dtype=np.float32)
    return weight * np.sin(phase).astype(np.float32)[:, None]


def _wander(batch: int, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    breath = _tones(batch, rng.uniform(0.15, 0.35, batch).astype(np.float32), samples, fs, rng)
    curve = _spline(samples / fs, 1.0, samples)
    walk = np.cumsum(rng.standard_normal((batch, 9, len(curve)), dtype=np.float32), axis=2)
    walk -= walk.mean(axis=2, keepdims=True)
    mix = rng.uniform(0.2, 1.0, (batch, 1, 1)).astype(np.float32)
    return mix * breath + (1.2 - mix) * np.matmul(walk, curve)


def _muscle(batch: int, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    hz = np.fft.rfftfreq(samples, 1 / fs)
    # The band of the muscle record of the MIT-BIH noise stress test database, above the wander that it holds too.
    octaves = np.log(np.maximum(hz, 1e-3) / MUSCLE_HZ) / MUSCLE_WIDTH
    shape = np.exp(-0.25 * np.square(octaves)).astype(np.float32)
    white = rng.standard_normal((batch, 9, len(hz), 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise = np.fft.irfft(white * shape, n=samples, axis=2).astype(np.float32)
    curve = _spline(samples / fs, 0.7, samples)
    swell = np.exp(0.6 * np.matmul(rng.standard_normal((batch, 9, len(curve)), dtype=np.float32), curve))
    return noise * swell


def _motion(batch: int, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    time = (np.arange(samples) / fs).astype(np.float32)
    out = np.zeros((batch, 9, samples), dtype=np.float32)
    for _ in range(3):
        electrode = rng.integers(0, 9, batch)
        # The jump is never at the very end, so a record that is said to move does move.
        start = rng.uniform(0.05, 0.85, (batch, 1)).astype(np.float32) * np.float32(samples / fs)
        # Short twitches are as frequent as long drifts, and higher: that gives the spectrum of the real record of electrode
        # motion from 0.5 to 20 Hz, which slow creeping alone misses by a factor of 25.
        creep = np.exp(rng.uniform(math.log(0.05), math.log(3.0), (batch, 1))).astype(np.float32)
        height = rng.standard_normal((batch, 1), dtype=np.float32) / np.sqrt(creep)
        since = np.maximum(time - start, 0)
        out[np.arange(batch), electrode] += height * (1 - np.exp(-since / 0.015)) * np.exp(-since / creep)
    return out


def additive(
    kind: str, magnitude: Floats, samples: int, fs: float, powerline_hz: float, rng: np.random.Generator
) -> Floats:
    """One kind of additive noise for a batch.

    Args:
        kind: one of ``ADDITIVE``.
        magnitude: (batch,) RMS in mV over the eight independent leads; 0 gives no noise.
        samples: length.
        fs: sampling rate in Hz.
        powerline_hz: mains frequency.
        rng: the stream of this kind.

    Returns:
        (batch, 8, samples) float32 mV.
    """
    batch = len(magnitude)
    makers: dict[str, Callable[[int, int, float, np.random.Generator], Floats]] = {
        "wander": _wander,
        "muscle": _muscle,
        "motion": _motion,
        "white": lambda b, s, _, r: r.standard_normal((b, 9, s), dtype=np.float32),
        "powerline": lambda b, s, f, r: _tones(
            b, (powerline_hz + r.uniform(-0.05, 0.05, b)).astype(np.float32), s, f, r
        ),
    }
    return magnitude[:, None, None] * _unit_rms(makers[kind](batch, samples, fs, rng))


def warped_clock(magnitude: Floats, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    """(batch, samples) time in s on the heart's clock: sample time plus a smooth displacement of RMS ``magnitude``."""
    time = (np.arange(samples) / fs).astype(np.float32)
    curve = _spline(samples / fs, 1.0, samples)
    shift = np.matmul(rng.standard_normal((len(magnitude), len(curve)), dtype=np.float32), curve)
    shift /= np.sqrt(np.mean(np.square(shift), axis=1, keepdims=True))
    return time + magnitude[:, None] * shift


def displaced_leads(magnitude: Floats, rng: np.random.Generator) -> Floats:
    """(batch, 8, 3) lead field with the chest electrodes moved by ``magnitude`` cm RMS; limb leads stay.

    Half of the variance is common to the strip (placed a rib too high), half is each electrode's own. Along the
    chest the field is interpolated between neighbouring rows of Dower's table; across it the lead tilts by
    ``TILT_PER_CM``.
    """
    batch = len(magnitude)
    shift = rng.standard_normal((batch, 6, 2), dtype=np.float32) + rng.standard_normal(
        (batch, 1, 2), dtype=np.float32
    )
    shift *= magnitude[:, None, None] / np.sqrt(np.mean(np.square(shift), axis=(1, 2), keepdims=True))
    place = np.arange(6) + shift[..., 0] / CHEST_SPACING_CM
    lower = np.clip(np.floor(place), 0, 4).astype(np.int64)
    part = (place - lower)[..., None]
    chest = DOWER[2:]
    field = np.repeat(DOWER[None], batch, axis=0)
    field[:, 2:] = (1 - part) * chest[lower] + part * chest[lower + 1]
    field[:, 2:, 1] += TILT_PER_CM * shift[..., 1]
    return field
