"""The transforms: their ranges, their generators, and the identity in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import welch
from torch import Tensor, nn

from ecgmeta.augment import (
    Compose,
    LearnedWarp,
    Random,
    RealNoise,
    Transform,
    TwoViews,
    WhiteNoise,
    ZeroCrop,
    functional,
    paper_static,
)
from ecgmeta.augment.transforms import _normal
from ecgmeta.runtime.errors import InputError

FAMILY: dict[str, Callable[[], Transform]] = {
    "zero_crop": ZeroCrop,
    "white_noise": WhiteNoise,
    "compose": lambda: Compose([WhiteNoise(), ZeroCrop()]),
    "paper_static": paper_static,
    "random": lambda: Random("muscle_noise", (0.01, 0.1), fs=100.0),
    "real_noise": lambda: RealNoise(torch.randn(5, 12, 300, generator=_generator(3)), (0.0, 20.0)),
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _x(batch: int = 3, leads: int = 12, samples: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    return 1 + torch.rand(batch, leads, samples, generator=_generator(9), dtype=dtype)  # nowhere 0


@pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)
class TestFamily:
    def test_evaluation_is_the_identity(self, make: Callable[[], Transform]) -> None:
        x = _x()
        assert make().eval()(x) is x

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_type_are_kept_and_the_input_is_not_written_to(
        self, make: Callable[[], Transform], dtype: torch.dtype
    ) -> None:
        x = _x(dtype=dtype)
        before = x.clone()
        out = make()(x, generator=_generator())
        assert torch.equal(x, before)
        assert (out.shape, out.dtype) == (x.shape, dtype)
        assert not torch.equal(out, x)

    def test_the_generator_decides(self, make: Callable[[], Transform]) -> None:
        x, state = _x(), torch.random.get_rng_state()
        first, again, other = (make()(x, generator=_generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.random.get_rng_state(), state)  # torch's own is left alone

    def test_records_and_leads_are_augmented_each_their_own_way(self, make: Callable[[], Transform]) -> None:
        x = _x()[:1, :1].repeat(3, 12, 1)
        out = make()(x, generator=_generator())
        assert not torch.equal(out[0], out[1])
        assert not torch.equal(out[:, 0], out[:, 1])

    @pytest.mark.parametrize("shape", [(12, 200), (3, 200, 12), (2, 3, 12, 200)])
    def test_another_layout_is_refused(self, make: Callable[[], Transform], shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"shape of x: found .*expected \(batch, leads, samples\)"):
            make().eval()(torch.zeros(shape))


def test_its_own_generator_serves_where_none_is_given() -> None:
    own, given = ZeroCrop(generator=_generator(4)), ZeroCrop()
    assert torch.equal(own(_x()), given(_x(), generator=_generator(4)))


def _crops(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Length and start of the zeros of every lead; each is one stretch."""
    zero = (x == 0).reshape(-1, x.shape[-1]).numpy()
    edges = np.diff(np.pad(zero, ((0, 0), (1, 1))).astype(int), axis=1)
    assert np.all((edges == 1).sum(axis=1) <= 1)
    return zero.sum(axis=1), np.where(zero.any(axis=1), zero.argmax(axis=1), -1)


def test_crop_lengths_are_uniform_below_half_the_record_and_starts_uniform_where_they_fit() -> None:
    """The paper's ``U{0..T−1} // 2`` at T = 40: each of 0..19 with probability 1/20."""
    x = torch.ones(1000, 12, 40)
    length, start = _crops(ZeroCrop()(x, generator=_generator()))
    counts = np.bincount(length, minlength=20)
    assert len(counts) == 20
    # χ² with 19 degrees of freedom exceeds 43.8 once in a thousand seeds.
    assert ((counts - 600) ** 2 / 600).sum() < 43.8
    starts = np.bincount(start[length == 10], minlength=31)
    assert len(starts) == 31  # 0..30: the stretch always fits
    expected = starts.sum() / 31
    assert ((starts - expected) ** 2 / expected).sum() < 59.7  # 30 degrees of freedom


@pytest.mark.parametrize(("fraction", "longest"), [(0.0, 0), (0.25, 9), (1.0, 39)])
def test_the_longest_crop_is_a_setting(fraction: float, longest: int) -> None:
    length, _ = _crops(ZeroCrop(fraction)(torch.ones(1000, 12, 40), generator=_generator()))
    assert length.max() == longest


@pytest.mark.parametrize("largest", [0.1, 0.4])
def test_noise_levels_are_uniform_up_to_the_largest(largest: float) -> None:
    x = torch.randn(100, 12, 1000, generator=_generator(1)) * 3
    added = WhiteNoise(largest)(x, generator=_generator()) - x
    level = (added.std(-1) / x.std(-1)).flatten().sort().values / largest
    # 1,200 uniform levels: Kolmogorov's distance is below 1.95/√1200 = 0.056 in all but one of a thousand seeds;
    # measuring a level from 1,000 samples adds a relative 2 %.
    assert float((level - torch.linspace(0, 1, len(level))).abs().max()) < 0.056 + 0.02
    assert float(level[-1]) < 1.08


def test_fast_noise_is_normal_and_every_number_its_own() -> None:
    n, g = 1_000_000, _generator(11)
    draws = []
    for _ in range(2):
        noise = torch.empty(n + 3)  # not a multiple of what is drawn at once
        fill, sd = _normal(noise, g)
        fill(noise)
        draws.append(sd * noise[-n:].double())
    z, other = draws
    expected = torch.special.ndtr(z.sort().values)
    distance = (expected - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
    assert float(distance) < 1.95 / n**0.5  # Kolmogorov's, in all but one of a thousand seeds
    assert abs(float(z.mean())) < 5 / n**0.5
    assert float(z.square().mean()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert float(z.pow(3).mean()) == pytest.approx(0, abs=5 * (15 / n) ** 0.5)
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    # Neither numbers nor their squares (of variance 2) follow their neighbours or the next draw; four share 64 bits.
    for lag in (1, 2, 3, 4, 5, 8, 1000):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / n**0.5
        assert abs(float(((z[lag:].square() - 1) * (z[:-lag].square() - 1)).mean())) < 10 / n**0.5
    assert abs(float((z * other).mean())) < 5 / n**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_crop_is_the_same_in_every_type_and_layout(dtype: torch.dtype) -> None:
    x = _x(batch=40)
    expected = ZeroCrop()(x, generator=_generator()) == 0
    assert torch.equal(ZeroCrop()(x.to(dtype), generator=_generator()) == 0, expected)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ZeroCrop()(turned, generator=_generator()) == 0, expected)
    assert torch.equal(
        ZeroCrop()(x.clone().requires_grad_(), generator=_generator()), torch.where(expected, 0, x)
    )


class _Same(nn.Module):
    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return x


class _Nothing(Transform):
    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x


def test_a_step_that_returns_its_input_does_not_make_the_next_write_to_it() -> None:
    x = _x(batch=40)
    before = x.clone()
    for harmless in (_Same(), _Nothing(), ZeroCrop().eval()):
        for step in (ZeroCrop(), WhiteNoise()):
            out = Compose([harmless, step])(x, generator=_generator())
            assert torch.equal(x, before)
            assert not torch.equal(out, before)


def test_compose_applies_its_transforms_in_order_from_one_generator() -> None:
    crop, noise, g = ZeroCrop(), WhiteNoise(), _generator(2)
    step_by_step = noise(crop(_x(), generator=g), generator=g)
    assert torch.equal(Compose([crop, noise])(_x(), generator=_generator(2)), step_by_step)
    assert not torch.equal(Compose([noise, crop])(_x(), generator=_generator(2)), step_by_step)


def test_what_is_done_some_records_at_a_time_is_what_one_after_the_other_does() -> None:
    crop, noise, x = ZeroCrop(), WhiteNoise(), _x(batch=60, samples=700)
    for steps in ([crop, noise], [noise, crop], [crop, crop], [crop, Random("gain", 0.1), noise, noise]):
        g, made = _generator(2), x
        for step in steps:
            made = step(made, generator=g)
        assert torch.equal(Compose(steps)(x, generator=_generator(2)), made)
    g = _generator(3)
    one_by_one = [paper_static()(x, generator=g) for _ in range(2)]
    for view, expected in zip(TwoViews(paper_static())(x, generator=_generator(3)), one_by_one, strict=True):
        assert torch.equal(view, expected)


def test_two_views_differ_and_repeat_with_their_generator() -> None:
    views = TwoViews(paper_static())
    first, second = views(_x(), generator=_generator())
    again = views(_x(), generator=_generator())
    assert not torch.equal(first, second)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    quiet = views.eval()(_x())
    assert torch.equal(quiet[0], _x())
    assert torch.equal(quiet[1], _x())


@pytest.mark.parametrize(
    "module", [nn.Identity(), nn.Sequential(nn.Identity()), torch.compile(nn.Identity())]
)
def test_a_module_that_takes_no_generator_is_a_transform_too(module: nn.Module) -> None:
    x, noise = _x(), WhiteNoise()
    out = Compose([noise, module, ZeroCrop()])(x, generator=_generator())
    assert torch.equal(out, Compose([noise, ZeroCrop()])(x, generator=_generator()))
    first, second = TwoViews(module)(x, generator=_generator())
    assert torch.equal(first, x)
    assert torch.equal(second, x)


def test_a_learned_augmenter_and_what_wraps_it_draw_from_the_generator() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.warp = warp

        def forward(self, x: Tensor, **settings: Any) -> Tensor:
            return warp(x, **settings)

    warp, x = LearnedWarp(), _x()
    for module in (warp, Wrapped()):
        expected = warp(x, generator=_generator())
        assert torch.equal(Compose([module])(x, generator=_generator()), expected)
        assert torch.equal(TwoViews(module)(x, generator=_generator())[0], expected)


def test_random_draws_a_uniform_magnitude_for_each_record_and_leaves_the_others_exactly() -> None:
    x = torch.zeros(4000, 1, 8)
    out = Random("dc_shift", (0.2, 0.6), probability=0.3)(x, generator=_generator())
    left = (out == 0).all(-1)[:, 0]
    assert float(left.double().mean()) == pytest.approx(0.7, abs=0.03)  # 4 SD
    # What a time mask hides is its magnitude.
    spread = Random("time_mask", (0.5, 1.5), fs=100.0)
    hidden = (1 - spread(torch.ones(4000, 1, 1000), generator=_generator())).sum(-1)[:, 0] / 100
    # Kolmogorov's distance of 4,000 uniform numbers: below 1.95/√4,000 = 0.031.
    assert float((hidden.sort().values - torch.linspace(0.5, 1.5, 4000)).abs().max()) < 0.031


@pytest.mark.parametrize("name", sorted(set(functional.OPERATIONS) - {"real_noise"}))
def test_random_takes_every_operation_that_draws_its_own_noise(name: str) -> None:
    spec, x = functional.OPERATIONS[name], _x(batch=6)
    some = Random(name, (spec.typical / 2, spec.typical), probability=0.6, fs=125.0)
    assert name in repr(some)
    out = some(x, generator=_generator(1))
    changed = (out != x).flatten(1).any(1)
    assert 0 < int(changed.sum()) < 6
    # The same noise and levels, whatever the probability.
    all_of_them = Random(name, (spec.typical / 2, spec.typical), fs=125.0)(x, generator=_generator(1))
    torch.testing.assert_close(out[changed], all_of_them[changed])
    assert some(x.bfloat16(), generator=_generator(1)).dtype == torch.bfloat16


def test_random_hands_on_settings() -> None:
    x = torch.zeros(2, 1, 500, dtype=torch.float64)
    out = Random("powerline", 0.1, fs=500.0, frequency=60.0)(x, generator=_generator())
    assert int(torch.fft.rfft(out).abs().argmax(-1)[0, 0]) == 60  # bins of 1 Hz


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"operation": "time_travel", "magnitude": 1.0},
            "Random: operation: found 'time_travel', expected one of ",
        ),
        (
            {"operation": "real_noise", "magnitude": 0.1},
            "Random: operation: found real_noise, expected one that",
        ),
        ({"operation": "gain", "magnitude": -0.1}, "gain: magnitude: found"),
        ({"operation": "gain", "magnitude": (0.2, 0.1)}, "gain: magnitude: found"),
        ({"operation": "gain", "magnitude": float("nan")}, "gain: magnitude: found"),
        ({"operation": "gain", "magnitude": float("inf")}, "gain: magnitude: found"),
        ({"operation": "lead_mask", "magnitude": (0.5, 1.1)}, "lead_mask: magnitude: found .* at most 1"),
        ({"operation": "gain", "magnitude": 0.1, "probability": 1.5}, "gain: probability: found 1.5"),
        ({"operation": "time_shift", "magnitude": 0.1}, "time_shift: fs: found None"),
        ({"operation": "gain", "magnitude": 0.1, "edge": 3.0}, "gain: setting edge: found no such one"),
    ],
)
def test_random_refuses_what_its_operation_does_not_take(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + message):
        Random(**arguments)


def test_real_noise_is_a_stretch_of_a_recording_at_a_ratio_in_its_range() -> None:
    recordings = torch.arange(2000.0, dtype=torch.float64).reshape(2, 1, 1000) ** 2
    x = _x(batch=500, dtype=torch.float64)
    out = RealNoise(recordings, (5.0, 15.0), probability=0.5)(x, generator=_generator())
    added = out - x
    chosen = (added != 0).flatten(1).any(1)
    assert float(chosen.double().mean()) == pytest.approx(0.5, abs=0.1)
    ratio = 10 * torch.log10(x.var(-1).mean(1) / added.var(-1).mean(1))[chosen]
    assert float(ratio.min()) > 5
    assert float(ratio.max()) < 15
    assert float(ratio.mean()) == pytest.approx(10, abs=0.8)  # SD 2.9/√250 = 0.18
    # A stretch of squares has constant second differences.
    curved = added[chosen].diff(n=2, dim=-1)
    torch.testing.assert_close(
        curved, curved.mean((1, 2), keepdim=True).expand_as(curved), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize(
    ("recordings", "settings", "message"),
    [
        (torch.zeros(2, 1, 150), {}, "shape of recordings"),
        (torch.zeros(2, 3, 300), {}, "shape of recordings"),
        (torch.full((1, 1, 300), float("nan")), {}, "samples of x"),
        (torch.zeros(1, 1, 300), {"snr_db": (5.0, 1.0)}, "snr_db"),
        (torch.zeros(1, 1, 300), {"probability": -0.1}, "probability"),
        (torch.zeros(1, 1, 300), {"fs": 100.0}, "fs, recordings_fs"),
        (torch.zeros(1, 1, 300), {"recordings_fs": 360.0}, "fs, recordings_fs"),
        (torch.zeros(1, 1, 300), {"fs": 0.0, "recordings_fs": 360.0}, "fs, recordings_fs"),
        (torch.zeros(1, 1, 300), {"fs": 100.0, "recordings_fs": float("nan")}, "fs, recordings_fs"),
        (torch.zeros(1, 1, 300), {"fs": 100.0, "recordings_fs": 360.0}, "shape of recordings"),  # now 84
        (np.zeros((1, 1, 300), dtype=np.int16), {}, "dtype of x"),
        (np.zeros((650000, 2)), {}, "shape of x"),
        (np.array(["noise"]), {}, "recordings"),
        ([[[1.0, 2.0], [1.0]]], {}, "recordings"),
    ],
)
def test_real_noise_refuses_what_does_not_fit(
    recordings: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^real_noise.*: {message}: found"):
        RealNoise(recordings, **{"snr_db": 10.0, **settings})(_x())


def test_real_noise_of_another_rate_is_resampled_so_that_a_sine_keeps_its_frequency() -> None:
    sine = torch.sin(2 * torch.pi * 5 * torch.arange(3600) / 360).view(1, 1, -1)  # 10 s of 5 Hz
    x = torch.zeros(4, 2, 500, dtype=torch.float64)
    x[..., ::2] = 1e-3
    for kind, recordings in (("tensor", sine), ("array", sine.double().numpy())):
        noise = RealNoise(recordings, 0.0, fs=100, recordings_fs=360)
        assert noise.recordings.shape == (1, 1, 1000), kind
        added = noise(x, generator=_generator()) - x
        strongest = torch.fft.rfft(added).abs().argmax(-1)
        assert bool((strongest * 100 / 500 == 5).all()), kind
        expected = torch.sin(2 * torch.pi * 5 * torch.arange(1000) / 100)
        error = (noise.recordings[0, 0] - expected)[50:-50].abs().max()
        assert float(error) < 2e-3, kind


def test_real_noise_at_the_rate_of_the_records_is_left_as_it_is() -> None:
    recordings = torch.randn(2, 1, 300, generator=_generator(), dtype=torch.float64)
    for rate in (None, 100.0):
        assert RealNoise(recordings, 5.0, fs=rate, recordings_fs=rate).recordings is recordings
    assert torch.equal(RealNoise(recordings.numpy(), 5.0).recordings, recordings)


def test_the_stress_tests_noise_keeps_its_spectrum_in_records_of_another_rate(real_data: Path) -> None:
    with np.load(real_data / "nstdb" / "nstdb_noise_360hz_int16_200adu_per_mV.npz") as file:
        recorded = np.stack([file[name][: 360 * 120].T / 200 for name in ("bw", "em", "ma")])
    noise = RealNoise(recorded.reshape(6, 1, -1), 0.0, fs=100, recordings_fs=360)
    assert noise.recordings.shape == (6, 1, 12000)
    for before, after in zip(recorded.reshape(6, -1), noise.recordings[:, 0].numpy(), strict=True):
        hz, there = welch(before, 360, nperseg=3600)
        other_hz, here = welch(after, 100, nperseg=1000)
        for low, high in ((0.2, 2), (2, 10), (10, 40)):
            power = there[(hz >= low) & (hz < high)].sum()
            assert here[(other_hz >= low) & (other_hz < high)].sum() == pytest.approx(power, rel=0.03)
    x = _x(batch=8, samples=1000)
    added = noise(x, generator=_generator()) - x
    ratio = x.var(-1, correction=0).mean(1) / added.var(-1, correction=0).mean(1)
    torch.testing.assert_close(ratio, torch.ones(8), rtol=1e-3, atol=0)
