"""The transforms: their ranges, their generators, and the identity in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgmeta.augment import Compose, Transform, TwoViews, WhiteNoise, ZeroCrop, paper_static
from ecgmeta.runtime.errors import InputError

FAMILY: dict[str, Callable[[], Transform]] = {
    "zero_crop": ZeroCrop,
    "white_noise": WhiteNoise,
    "compose": lambda: Compose([WhiteNoise(), ZeroCrop()]),
    "paper_static": paper_static,
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


def test_compose_applies_its_transforms_in_order_from_one_generator() -> None:
    crop, noise, g = ZeroCrop(), WhiteNoise(), _generator(2)
    step_by_step = noise(crop(_x(), generator=g), generator=g)
    assert torch.equal(Compose([crop, noise])(_x(), generator=_generator(2)), step_by_step)
    assert not torch.equal(Compose([noise, crop])(_x(), generator=_generator(2)), step_by_step)


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
