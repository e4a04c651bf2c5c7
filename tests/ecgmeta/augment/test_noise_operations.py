"""Additive noise: its RMS, its spectrum and its geometry, measured by numpy and scipy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import welch
from torch import Tensor

from ecgmeta.augment import functional
from ecgmeta.augment.functional import OPERATIONS
from ecgmeta.augment.functional.leads import INDEPENDENT
from ecgmeta.data import dipole
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # statistics of much noise

EIGHT = list(INDEPENDENT)
ADDITIVE = ["baseline_wander", "dc_shift", "electrode_motion", "muscle_noise", "powerline"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _added(
    name: str, batch: int, leads: int, samples: int, fs: float, magnitude: float, **settings: float
) -> Tensor:
    x = torch.zeros(batch, leads, samples, dtype=torch.float64)
    spec = OPERATIONS[name]
    rate = {"fs": fs} if spec.timed else {}
    return getattr(functional, name)(x, magnitude, noise=spec.draw(x, _generator()), **rate, **settings)


def test_the_lead_matrix_is_the_cohorts_own() -> None:
    """The simulator's tables, which this package may not import, written and tested elsewhere."""
    eight = functional.FROM_ELECTRODES[EIGHT].numpy()
    np.testing.assert_allclose(eight, dipole.FROM_ELECTRODES, atol=1e-7)
    potentials = np.random.default_rng(0).standard_normal((2, 9, 5))
    expected = dipole.twelve_leads((eight @ potentials).astype(np.float32))
    np.testing.assert_allclose(functional.FROM_ELECTRODES.numpy() @ potentials, expected, atol=1e-6)


@pytest.mark.parametrize("leads", [12, 3])
@pytest.mark.parametrize("name", ADDITIVE)
def test_the_magnitude_is_the_rms_in_mv_over_the_independent_leads(name: str, leads: int) -> None:
    added = _added(name, 4000 if leads == 12 else 12000, leads, 200, 125.0, 0.3)
    counted = added[:, EIGHT] if leads == 12 else added
    # Mean squares of thousands of independent records: a relative SD of about √(2/4,000)/2 = 1 %.
    assert float(counted.square().mean().sqrt()) == pytest.approx(0.3, rel=0.03)
    if name != "electrode_motion":  # whose records are each at the magnitude, whatever their leads
        each = added.square().mean((0, 2)).sqrt() / 0.3
        limb, chest = ((4 / 3) ** 0.5, (8 / 9) ** 0.5) if leads == 12 else (1.0, 1.0)
        torch.testing.assert_close(each[:2], torch.full((2,), limb, dtype=torch.float64), rtol=0.05, atol=0)
        torch.testing.assert_close(each[-1], torch.tensor(chest, dtype=torch.float64), rtol=0.05, atol=0)


def test_electrode_motion_has_the_magnitude_in_every_record() -> None:
    added = _added("electrode_motion", 50, 12, 1000, 100.0, 0.2)
    rms = added[:, EIGHT].square().mean((1, 2)).sqrt()
    torch.testing.assert_close(rms, torch.full((50,), 0.2, dtype=torch.float64))


def test_baseline_wander_is_as_strong_at_every_time_and_has_the_covariance_it_states() -> None:
    fs, lags = 50.0, np.array([0, 20, 75, 200])
    added = _added("baseline_wander", 20000, 1, 500, fs, 1.0)[:, 0].numpy()
    np.testing.assert_allclose((added**2).mean(0)[[0, 100, 499]], 1, atol=0.04)
    hz = np.exp(np.linspace(np.log(0.05), np.log(0.5), 25)[1::2])  # the middles of 12 equal steps
    expected = np.cos(2 * np.pi * hz[:, None] * lags / fs).mean(0)
    found = [(added[:, 7] * added[:, 7 + lag]).mean() for lag in lags]
    np.testing.assert_allclose(found, expected, atol=0.04)  # 1/√20,000 = 0.007, times √2
    kurtosis = (added[:, 250] ** 4).mean() / (added[:, 250] ** 2).mean() ** 2
    assert kurtosis == pytest.approx(3, abs=0.15)  # Gaussian


def test_baseline_wander_stays_between_its_frequencies() -> None:
    added = _added("baseline_wander", 64, 1, 10000, 20.0, 1.0).numpy()[:, 0]
    hz, power = welch(added, fs=20.0, nperseg=4000)
    inside = (hz >= 0.04) & (hz <= 0.51)
    assert power[:, inside].sum() / power.sum() > 0.999
    octave = [power[:, (hz >= low) & (hz < 2 * low)].sum() for low in (0.06, 0.12, 0.24)]
    assert max(octave) / min(octave) < 1.5  # as much in each


def test_baseline_wander_refuses_frequencies_that_are_none() -> None:
    with pytest.raises(InputError, match=r"^baseline_wander: low, high: found 0\.5, 0\.05, expected 0 < low"):
        _added("baseline_wander", 1, 1, 50, 50.0, 1.0, low=0.5, high=0.05)


@pytest.mark.parametrize("frequency", [50.0, 60.0])
def test_powerline_is_one_frequency(frequency: float) -> None:
    added = _added("powerline", 20, 12, 1000, 500.0, 0.1, frequency=frequency).numpy()
    hz, power = welch(added, fs=500.0, window="boxcar", nperseg=1000, detrend=False)
    assert power[..., hz == frequency].sum() / power.sum() > 1 - 1e-9
    amplitude = np.abs(np.fft.rfft(added, axis=-1)[..., round(2 * frequency)])
    assert amplitude.std(axis=1).min() > 0  # each lead its own


@pytest.mark.parametrize(("frequency", "fs"), [(50.0, 100.0), (60.0, 100.0), (0.0, 500.0)])
def test_powerline_refuses_a_frequency_that_the_rate_cannot_hold(frequency: float, fs: float) -> None:
    with pytest.raises(
        InputError, match=r"^powerline: frequency: found \d+ Hz, expected less than half of fs"
    ):
        _added("powerline", 1, 2, 100, fs, 0.1, frequency=frequency)


@pytest.mark.parametrize("samples", [2000, 2001])
@pytest.mark.parametrize("fs", [100.0, 500.0])
def test_muscle_noise_has_the_band_it_states(fs: float, samples: int) -> None:
    added = _added("muscle_noise", 300, 1, samples, fs, 0.5).numpy()[:, 0]
    assert (added**2).mean() == pytest.approx(0.25, rel=0.02)
    hz, power = welch(added, fs=fs, nperseg=500)
    inside = (hz > 8) & (hz < min(45, 0.45 * fs))
    shape = power.mean(0)[inside]
    expected = np.exp(-0.5 * (np.log(hz[inside] / 22.0) / 0.47) ** 2)
    np.testing.assert_allclose(shape / shape.sum(), expected / expected.sum(), rtol=0.08)


@pytest.mark.parametrize(
    ("name", "record", "bands", "factor"),
    [
        # Below 5 Hz the muscles' record holds wander; below 0.5 Hz that of motion does.
        ("muscle_noise", "ma", (10.0, 20.0, 40.0, 80.0), 1.3),
        ("electrode_motion", "em", (0.5, 1.0, 2.0, 5.0, 10.0, 20.0), 2.5),
    ],
)
def test_the_spectrum_is_that_of_the_stress_tests_record(
    name: str, record: str, bands: tuple[float, ...], factor: float, real_data: Path
) -> None:
    recorded = np.load(real_data / "nstdb/nstdb_noise_360hz_int16_200adu_per_mV.npz")[record].T / 200.0
    ours = _added(name, 100, 1, 7200, 360.0, 1.0).numpy()[:, 0]
    shares = []
    for signal in (recorded, ours):
        hz, power = welch(signal, fs=360.0, nperseg=7200)
        each = [power[:, (hz >= a) & (hz < b)].sum() for a, b in itertools.pairwise(bands)]
        shares.append(np.array(each) / sum(each))
    ratio = shares[1] / shares[0]
    assert ratio.max() < factor
    assert ratio.min() > 1 / factor


def test_an_electrode_jumps_at_once_and_creeps_back() -> None:
    """One jump alone: zero before it, a rise of tens of ms, then the exponential return it states."""
    fs, noise = 1000.0, torch.zeros(1, 3, 4, dtype=torch.float64)
    noise[0, 0, 0] = 1.0  # the one height; ndtr(0) = 1/2: electrode 0 of one, s = 45 % of 4 s, c = √(0.05·3)
    x = torch.zeros(1, 1, 4000, dtype=torch.float64)
    added = functional.electrode_motion(x, 0.1, noise=noise, fs=fs)[0, 0].numpy()
    start, creep = 1800, np.sqrt(0.05 * 3)
    assert not added[: start + 1].any()
    since = np.arange(4000 - start) / fs
    expected = (1 - np.exp(-since / 0.015)) * np.exp(-since / creep)
    np.testing.assert_allclose(added[start:] / added.max(), expected / expected.max(), atol=1e-9)


def test_the_lead_that_an_electrode_does_not_touch_stays_still() -> None:
    """V1's electrode moves V1 alone; LL's moves all but I."""
    moved = _added("electrode_motion", 400, 12, 400, 100.0, 0.1).abs().amax(-1) > 0
    # Three jumps at three electrodes at most, so some lead rests in most records.
    assert float((~moved).any(1).double().mean()) > 0.5
    assert bool(
        (moved[:, 2] | ~(moved[:, 0] ^ moved[:, 1])).all()
    )  # III moves where only one of I and II does


def test_dc_shift_is_constant() -> None:
    added = _added("dc_shift", 5, 12, 100, 100.0, 0.2)
    assert torch.equal(added, added[..., :1].expand_as(added))
    assert (added[..., 0] != 0).all()


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("db", [-6.0, 0.0, 12.0])
def test_real_noise_has_the_ratio_asked_for(db: float, channels: int) -> None:
    x = torch.randn(3, 12, 500, generator=_generator(1), dtype=torch.float64) * 0.3 + 2
    noise = 40 * torch.randn(3, channels, 500, generator=_generator(2), dtype=torch.float64) - 300
    added = (functional.real_noise(x, functional.snr_to_magnitude(db), noise=noise) - x).numpy()
    found = 10 * np.log10(x.numpy().var(-1).mean(1) / added.var(-1).mean(1))
    np.testing.assert_allclose(found, db, atol=1e-9)
    shape = added / noise.numpy()
    np.testing.assert_allclose(shape, np.broadcast_to(shape[:, :1, :1], shape.shape))


def test_real_noise_refuses_noise_of_other_leads_and_noise_that_is_not_finite() -> None:
    x = torch.randn(2, 12, 50)
    with pytest.raises(
        InputError, match=r"^real_noise: shape of noise: found \(2, 2, 50\), expected \(2, 1 or 12, 50\)"
    ):
        functional.real_noise(x, 0.1, noise=torch.zeros(2, 2, 50))
    with pytest.raises(InputError, match=r"^real_noise: noise: found samples that are not finite"):
        functional.real_noise(x, 0.1, noise=torch.full((2, 1, 50), float("nan")))
    assert torch.equal(functional.real_noise(x, 0.1, noise=torch.zeros(2, 1, 50)), x)  # silence adds nothing
