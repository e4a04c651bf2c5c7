"""Operations on the dipole, on the spectrum and on pairs of records, against scipy and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import csd, welch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ecgmeta.augment import functional
from ecgmeta.augment.functional import FROM_DIPOLE, OPERATIONS, TO_DIPOLE
from ecgmeta.augment.functional.leads import INDEPENDENT
from ecgmeta.data import dipole
from ecgmeta.runtime.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def test_the_leads_of_a_dipole_are_dowers_and_the_dipole_is_found_again() -> None:
    np.testing.assert_allclose(FROM_DIPOLE[list(INDEPENDENT)].numpy(), dipole.DOWER, atol=1e-7)
    vector = np.random.default_rng(0).standard_normal((1, 3, 7))
    expected = dipole.twelve_leads((dipole.DOWER @ vector).astype(np.float32))
    np.testing.assert_allclose(FROM_DIPOLE.numpy() @ vector, expected, atol=1e-6)
    torch.testing.assert_close(TO_DIPOLE @ FROM_DIPOLE, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("degrees", [1e-4, 5.0, 60.0, 180.0])
def test_a_rotated_dipole_is_scipys_rotation_of_it(degrees: float) -> None:
    noise, vector = _normal(4, 3, seed=1), _normal(4, 3, 20, seed=2)
    out = functional.electrode_rotation(FROM_DIPOLE @ vector, degrees, noise=noise)
    turns = Rotation.from_rotvec(np.radians(degrees) / math.sqrt(3) * noise.numpy()).as_matrix()
    np.testing.assert_allclose(out.numpy(), FROM_DIPOLE.numpy() @ (turns @ vector.numpy()), atol=1e-12)


def test_the_rms_of_the_angle_is_the_magnitude() -> None:
    x = (FROM_DIPOLE @ torch.eye(3, dtype=torch.float64)).repeat(4000, 1, 4)
    noise = OPERATIONS["electrode_rotation"].draw(x, _generator())
    turned = TO_DIPOLE @ functional.electrode_rotation(x, 20.0, noise=noise)[..., :3]
    angle = torch.acos(((torch.diagonal(turned, dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1)).rad2deg()
    assert float(angle.square().mean().sqrt()) == pytest.approx(20, rel=0.03)  # SD 0.65 %


@pytest.mark.parametrize("name", ["electrode_rotation", "electrode_scale"])
def test_what_no_dipole_explains_stays(name: str) -> None:
    x = _normal(2, 12, 30)
    rest = x - FROM_DIPOLE @ (TO_DIPOLE @ x)
    out = getattr(functional, name)(rest, OPERATIONS[name].typical, noise=_normal(2, 3, seed=1))
    torch.testing.assert_close(out, rest)


def test_the_axes_of_the_dipole_are_scaled_each_by_its_own_factor() -> None:
    noise, vector = _normal(3, 3, seed=1), _normal(3, 3, 20, seed=2)
    out = TO_DIPOLE @ functional.electrode_scale(FROM_DIPOLE @ vector, 1e-3, noise=noise)
    torch.testing.assert_close(out, vector * torch.exp(1e-3 * noise).unsqueeze(-1), rtol=1e-7, atol=0)
    wild = TO_DIPOLE @ functional.electrode_scale(FROM_DIPOLE @ vector, 1e6, noise=noise) / vector
    assert bool(
        (
            torch.isclose(wild, torch.tensor(10.0).double()) | torch.isclose(wild, torch.tensor(0.1).double())
        ).all()
    )


@pytest.mark.parametrize("samples", [400, 401])
@pytest.mark.parametrize("magnitude", [0.2, 1.0])
def test_a_surrogate_keeps_power_spectra_and_cross_spectra(magnitude: float, samples: int) -> None:
    x = _normal(2, 3, samples) + 0.7
    out = functional.fourier_surrogate(
        x, magnitude, noise=OPERATIONS["fourier_surrogate"].draw(x, _generator())
    )
    before, after = (np.fft.rfft(signal.numpy(), axis=-1) for signal in (x, out))
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-9)
    np.testing.assert_allclose(
        after[:, 0] * after[:, 1].conj(), before[:, 0] * before[:, 1].conj(), atol=1e-7
    )
    # One window of the whole record, so that scipy estimates the same spectra.
    power = [welch(s.numpy(), nperseg=samples, window="boxcar")[1] for s in (x, out)]
    np.testing.assert_allclose(power[1], power[0], atol=1e-9)
    pair = [csd(s[:, 0].numpy(), s[:, 2].numpy(), nperseg=samples, window="boxcar")[1] for s in (x, out)]
    np.testing.assert_allclose(pair[1], pair[0], atol=1e-9)
    assert float((out - x).square().mean()) > 0.05


def test_the_phases_of_a_surrogate_are_uniform_up_to_the_share_of_the_circle() -> None:
    x = _normal(40, 1, 501)
    out = functional.fourier_surrogate(x, 0.3, noise=OPERATIONS["fourier_surrogate"].draw(x, _generator()))
    turn = np.angle(np.fft.rfft(out.numpy()) / np.fft.rfft(x.numpy()))[..., 1:].ravel() / np.pi
    assert np.abs(turn).max() <= 0.3 + 1e-9
    ranks = np.linspace(-0.3, 0.3, turn.size)
    assert np.abs(np.sort(turn) - ranks).max() < 0.6 * 1.95 / math.sqrt(
        turn.size
    )  # Kolmogorov, one in a thousand


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_a_notch_has_its_depth_at_its_centre_and_its_width(depth: float) -> None:
    fs, u = 250.0, torch.tensor([0.0, 0.31, 1.0], dtype=torch.float64).view(3, 1, 1)
    impulse = torch.zeros(3, 1, 2500, dtype=torch.float64)
    impulse[..., 0] = 1
    out = functional.band_stop(impulse, depth, noise=u, fs=fs, low=5.0, high=45.0, width=1.5)
    response, hz = np.fft.rfft(out[:, 0].numpy()), np.fft.rfftfreq(2500, 1 / fs)
    centre = 5 + 40 * u.view(3, 1).numpy()
    np.testing.assert_allclose(response, 1 - depth * np.exp(-0.5 * ((hz - centre) / 1.5) ** 2), atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"high": 60.0}, r"low, high: found 0\.5, 60, .* <= 50 Hz"), ({"width": 0.0}, "width")],
)
def test_a_notch_beyond_the_rate_is_refused(settings: dict[str, float], message: str) -> None:
    x = _normal(1, 2, 100)
    with pytest.raises(InputError, match=rf"^band_stop: {message}"):
        functional.band_stop(x, 0.5, noise=OPERATIONS["band_stop"].draw(x), fs=100.0, **settings)


def test_a_spectral_mask_hides_its_share_of_the_frequencies_and_adds_none() -> None:
    x = _normal(20, 2, 2000)
    out = functional.spectral_mask(
        x, 0.3, noise=OPERATIONS["spectral_mask"].draw(x, _generator()), temperature=0.05
    )
    kept = np.fft.rfft(out.numpy()) / np.fft.rfft(x.numpy())
    np.testing.assert_allclose(kept.imag, 0, atol=1e-9)
    np.testing.assert_allclose(kept[:, 0], kept[:, 1], atol=1e-9)  # the same in all leads
    assert (kept[:, 0].real < 0.5).mean() == pytest.approx(0.3, abs=0.012)  # 20,020 bins: SD 0.3 %
    assert kept.real.min() > -1e-9
    assert kept.real.max() < 1 + 1e-9
    gone = functional.spectral_mask(x, 1.0, noise=OPERATIONS["spectral_mask"].draw(x, _generator()))
    torch.testing.assert_close(gone, torch.zeros_like(x))


def test_mixup_weights_are_uniform_up_to_the_magnitude_and_the_labels_share_them() -> None:
    x = torch.eye(2000, dtype=torch.float64).unsqueeze(1)  # record k is 1 at sample k only
    noise = OPERATIONS["mixup"].draw(x, _generator())
    out = functional.mixup(x, 0.4, noise=noise)[:, 0]
    rows = np.arange(2000)
    partner = out[rows, (rows - 1) % 2000].numpy()  # what stands where the record before has its 1
    np.testing.assert_allclose(out[rows, rows].numpy(), 1 - partner)
    assert np.abs(np.sort(partner) - np.linspace(0, 0.4, 2000)).max() < 0.4 * 1.95 / math.sqrt(2000)
    labels = functional.mixup_labels(torch.eye(2000, dtype=torch.float64), 0.4, noise=noise)
    torch.testing.assert_close(labels, out)


def test_cutmix_labels_weigh_what_is_seen_of_each_record() -> None:
    batch, n, fs = 30, 1000, 100.0
    x = torch.arange(batch, dtype=torch.float64).view(-1, 1, 1).expand(-1, 1, n).contiguous()
    noise = OPERATIONS["cutmix"].draw(x, _generator())
    magnitude = torch.linspace(0, 1, batch, dtype=torch.float64)
    out = functional.cutmix(x, magnitude, noise=noise, fs=fs)
    one_hot = torch.eye(batch, dtype=torch.float64)
    labels = functional.cutmix_labels(one_hot, magnitude, noise=noise, samples=n, fs=fs)
    torch.testing.assert_close(labels.sum(1), torch.ones(batch, dtype=torch.float64))
    # A record's value is its number, so its mean over time is the mean number under its mixed label.
    torch.testing.assert_close(labels @ torch.arange(batch, dtype=torch.float64), out.mean(-1)[:, 0])
    weight = labels[torch.arange(batch), torch.arange(batch) - 1]
    torch.testing.assert_close(weight, magnitude * noise[:, 0, 0], rtol=0, atol=3e-3)  # the stretch's share


def test_mixed_labels_are_differentiable_in_the_magnitude_and_keep_their_type() -> None:
    noise, y = torch.rand(4, 2, 1, generator=_generator(), dtype=torch.float64), _normal(4, 5)
    magnitude = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for mixed in (
        lambda m: functional.mixup_labels(y, m, noise=noise[:, :1]),
        lambda m: functional.cutmix_labels(y, m, noise=noise, samples=50, fs=10.0),
    ):
        assert torch.autograd.gradcheck(mixed, (magnitude,))
        assert torch.equal(mixed(torch.tensor(0.0)), y)
    assert functional.mixup_labels(y.bfloat16(), 0.5, noise=noise[:, :1]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), "dtype of y"),
        (torch.zeros(3, 2), r"shape of y: found \(3, 2\)"),
    ],
)
def test_labels_that_cannot_be_mixed_are_refused(y: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=rf"^mixup_labels: {message}"):
        functional.mixup_labels(y, 0.5, noise=torch.rand(4, 1, 1))


@pytest.mark.parametrize(
    ("magnitude", "message"),
    [
        (3.0, "magnitude: found 3, expected 0 to 1"),
        (-0.1, "magnitude: found -0.1, expected 0 to 1"),
        (math.nan, "magnitude: found nan, expected 0 to 1"),
        (torch.full((3,), 0.5), r"shape of magnitude: found \(3,\)"),
    ],
)
def test_labels_are_mixed_with_magnitudes_that_the_records_would_take(
    magnitude: float | Tensor, message: str
) -> None:
    y, noise = torch.rand(4, 2), torch.rand(4, 2, 1)
    with pytest.raises(InputError, match=f"^mixup_labels: {message}"):
        functional.mixup_labels(y, magnitude, noise=noise[:, :1])
    with pytest.raises(InputError, match=f"^cutmix_labels: {message}"):
        functional.cutmix_labels(y, magnitude, noise=noise, samples=50, fs=10.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fs": 0.0}, "fs: found 0.0, expected the sampling rate"),
        ({"fs": math.inf}, "fs: found inf"),
        ({"samples": 0}, "samples: found 0"),
        ({"edge": 0.0}, "edge: found 0.0"),
        ({"noise": torch.rand(4, 1, 1)}, "shape of noise"),
    ],
)
def test_labels_of_cutmix_refuse_what_it_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^cutmix_labels: {message}"):
        functional.cutmix_labels(
            torch.rand(4, 2), 0.5, **{"noise": torch.rand(4, 2, 1), "samples": 50, "fs": 10.0, **settings}
        )
