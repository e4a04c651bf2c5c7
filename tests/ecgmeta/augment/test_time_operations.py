"""Operations on time, against closed forms and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgmeta.augment import functional
from ecgmeta.augment.functional import monotone_displacement
from ecgmeta.runtime.errors import InputError


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _sines(magnitude: float, noise: Tensor, fs: float, smoothness: float) -> Tensor:
    """``magnitude · Σ aₖ cₖ sin(πkt/T)`` in samples: what a small warp is to first order."""
    n = noise.shape[-1]
    duration = (n - 1) / fs
    k = torch.arange(1, math.ceil(5.9 * duration / (math.pi * smoothness)) + 1, dtype=torch.float64)
    c = torch.exp(-0.25 * (math.pi * k * smoothness / duration) ** 2)
    c = c / (c.square().sum() / 2).sqrt()
    t = torch.arange(n, dtype=torch.float64) / fs
    return fs * magnitude * (c * noise[:, : len(k)]) @ torch.sin(math.pi * k.unsqueeze(1) * t / duration)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothness", [0.05, 0.25, 2.0])
def test_a_warp_never_folds_and_its_ends_stay(smoothness: float, dtype: torch.dtype) -> None:
    noise = _normal(40, 1000, dtype=dtype)
    for magnitude in np.geomspace(1e-3, 1e4, 8):
        d = monotone_displacement(
            torch.tensor(magnitude, dtype=dtype), noise, fs=100.0, smoothness=smoothness
        )
        position = d + torch.arange(1000, dtype=dtype)
        assert float(position.diff(dim=-1).min()) > 0
        assert bool((position[:, 0] == 0).all())
        torch.testing.assert_close(position[:, -1], torch.full((40,), 999.0, dtype=dtype), rtol=1e-5, atol=0)


@pytest.mark.parametrize("smoothness", [0.25, 1.0])
def test_a_small_warp_is_its_sines_and_departs_from_them_with_the_cube_of_the_magnitude(
    smoothness: float,
) -> None:
    """tanh has no square, and the mean of the sines' slopes is 0. (800 Hz: below, the sum's own error is soon larger.)"""
    noise, fs = _normal(10, 8001), 800.0
    magnitudes = 0.02 * smoothness * 0.5 ** np.arange(4)
    errors = []
    for magnitude in magnitudes:
        d = monotone_displacement(
            torch.tensor(magnitude, dtype=torch.float64), noise, fs=fs, smoothness=smoothness
        )
        errors.append(float((d - _sines(magnitude, noise, fs, smoothness)).abs().max()) / fs)
    assert errors[0] < 0.01 * magnitudes[0]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 8, rtol=0.07)


def test_a_small_warp_has_its_magnitude_as_rms_and_a_gaussian_correlation() -> None:
    fs, smoothness, magnitude = 100.0, 0.25, torch.tensor(0.002)
    d = monotone_displacement(magnitude, _normal(4000, 1001), fs=fs, smoothness=smoothness) / (0.002 * fs)
    # Over the record: each squared sine averages to 1/2. (4,000 records: 0.2 %.)
    assert float(d.square().mean().sqrt()) == pytest.approx(1, rel=0.01)
    # In the middle it is 1.6 % more (the theta function's value there), because the ends have less. (1.1 %.)
    assert float(d[:, 500].std()) == pytest.approx(1.016, rel=0.03)
    inner = d[:, 100:-100]
    variance = float(inner.square().mean())
    for lag in (10, 25, 50):
        found = float((inner[:, :-lag] * inner[:, lag:]).mean()) / variance
        assert found == pytest.approx(math.exp(-((lag / fs) ** 2) / (2 * smoothness**2)), abs=0.02)


def test_a_large_warp_hurries_over_one_half_at_twice_its_speed() -> None:
    d = monotone_displacement(torch.tensor(1e4).double(), _normal(200, 1001), fs=100.0)
    speed = 1 + d.diff(dim=-1)
    halves = (speed > 1).double().mean(-1)
    assert float(halves.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(speed.median(dim=-1).values.log().abs().max()) < 10
    assert float((speed * (speed > 1)).sum() / speed.sum()) > 0.98


@pytest.mark.parametrize("samples", [-30, -1, 0, 7, 250])
def test_a_shift_of_whole_samples_is_exact_and_lets_silence_in(samples: int) -> None:
    x, fs = _normal(1, 3, 200), 125.0
    u = torch.tensor(1.0 if samples > 0 else 0.0).double().view(1, 1, 1)  # as far as it goes, either way
    out = functional.time_shift(x, abs(samples) / fs, noise=u, fs=fs)
    expected = torch.zeros_like(x)
    if samples >= 0:
        expected[..., : max(0, 200 - samples)] = x[..., samples:]
    else:
        expected[..., -samples:] = x[..., :samples]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_a_shift_by_half_a_sample_is_the_mean_of_neighbours() -> None:
    x = _normal(2, 1, 50)
    out = functional.time_shift(x, 0.5 / 100, noise=torch.ones(2, 1, 1, dtype=torch.float64), fs=100.0)
    torch.testing.assert_close(out[..., :-1], (x[..., 1:] + x[..., :-1]) / 2)


@pytest.mark.parametrize("magnitude", [0.05, 0.5, 0.95])
def test_a_resized_crop_is_numpys_interpolation_of_a_stretch(magnitude: float) -> None:
    x, u = (
        _normal(5, 2, 300),
        torch.rand(5, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    out = functional.random_resized_crop(x, magnitude, noise=u)
    for row in range(5):
        cut = magnitude * float(u[row, 0])
        first = cut * 299 * float(u[row, 1])
        where = np.linspace(first, first + (1 - cut) * 299, 300)
        assert where[0] >= 0
        assert where[-1] <= 299 + 1e-9
        for lead in range(2):
            expected = np.interp(where, np.arange(300), x[row, lead].numpy())
            np.testing.assert_allclose(out[row, lead].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        *(("time_warp", "smoothness", value, "a time in s above 0") for value in (0.0, -0.1, math.nan)),
        *(("paper_warp", "window", value, "an odd number of samples") for value in (24, 0, -1, 25.0)),
        *(("paper_warp", "downsample", value, "a whole number from 1 to 100") for value in (0, -1, 101, 2.0)),
        ("paper_warp", "steps", -1, "a whole number, 0 or more"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_the_operations_name(
    name: str, setting: str, value: float, expected: str
) -> None:
    spec, x = functional.OPERATIONS[name], _normal(2, 3, 200)
    rate = {"fs": 100.0} if spec.timed else {}
    with pytest.raises(InputError, match=f"^{name}: {setting}: found {value}, expected {expected}$"):
        getattr(functional, name)(x, 0.05, noise=_normal(2, 200), **rate, **{setting: value})


@pytest.mark.parametrize("smoothness", [100.0, 1e4, 1e200])
def test_a_warp_smoother_than_the_record_is_long_is_half_a_sine(smoothness: float) -> None:
    noise = _normal(3, 1001)
    d = monotone_displacement(torch.tensor(1e-4).double(), noise, fs=100.0, smoothness=smoothness)
    half = math.sqrt(2) * 1e-4 * 100 * noise[:, :1] * torch.sin(math.pi * torch.linspace(0, 1, 1001).double())
    torch.testing.assert_close(d, half, rtol=0, atol=1e-6)
