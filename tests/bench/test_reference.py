"""The reference computes what ours computes, so that the table compares costs and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ecgmeta.augment import LearnedWarp
from ecgmeta.bilevel import DoubleBackward
from ecgmeta.bilevel.products import cosine
from ecgmeta.encoders import create_encoder
from tests.bench import reference
from tests.bench.measure import Work, measure
from tests.bench.pretraining import PHI_STEPS, Ours, Phi, _ours, _textbook


def _same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy in the order of definition, which is the same on both sides; a convolution over time loses its height of 1."""
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        its.data.copy_(mine.data.reshape(its.shape))


def test_encoder_is_ours() -> None:
    x = torch.randn(4, 12, 300)
    ours, theirs = create_encoder("resnet18", width=8), reference.Encoder(12, 8)
    _same_weights(ours, theirs)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-3, atol=1e-4)


def test_warp_is_ours_to_the_second_derivative() -> None:
    x, noise = torch.randn(2, 12, 256, dtype=torch.float64), torch.randn(2, 256, dtype=torch.float64)
    ours, theirs = LearnedWarp(variant="paper").double(), reference.Warp(12).double()
    for mine, its in zip(
        [*ours.net.parameters(), *ours.magnitude_layer.parameters(), ours.global_magnitude],
        [*theirs.net.parameters(), theirs.global_magnitude],
        strict=True,
    ):
        its.data.copy_(mine.data)
    torch.testing.assert_close(theirs(x, noise), ours(x, noise))
    seconds = []
    for warp in (ours, theirs):
        g = warp.global_magnitude
        (first,) = torch.autograd.grad(warp(x, noise).square().mean(), g, create_graph=True)
        seconds.append(torch.autograd.grad(first, g)[0])
    torch.testing.assert_close(seconds[1], seconds[0])


def test_nt_xent_is_lightlys() -> None:
    from lightly.loss import NTXentLoss

    first, second = torch.randn(2, 6, 16)
    torch.testing.assert_close(reference.nt_xent(first, second), NTXentLoss(0.5)(first, second))


@pytest.mark.slow
@pytest.mark.parametrize("phi", [p for p in PHI_STEPS if p.head is None], ids=str)
def test_hypergradient_is_ours_in_float64(phi: Phi) -> None:
    ours = Ours(4, 4, dtype=torch.float64)
    assert cosine(_ours(ours, phi, DoubleBackward), _textbook(ours, phi)) > 1 - 1e-9


def test_measure_takes_turns() -> None:
    costs = measure(
        {"a": Work(lambda: lambda: None), "b": Work(lambda: lambda: None, rounds=1)}, 2, lambda _: None
    )
    assert set(costs) == {"a", "b"}
    assert all(cost.seconds >= 0 for cost in costs.values())
    assert costs["a"].peak_mb >= 0


def test_the_peak_is_what_was_in_use_at_once() -> None:
    # NumPy, because a forked child of a process in which torch has run threads must not use torch's.
    works = {
        "together": Work(lambda: lambda: [np.ones(4 << 20, np.float32) for _ in range(4)] and None),
        "one after the other": Work(lambda: lambda: sum(np.ones(4 << 20, np.float32)[0] for _ in range(4))),
    }
    costs = measure(works, 2, lambda _: None)
    assert costs["together"].peak_mb >= 64
    assert 16 <= costs["one after the other"].peak_mb < 48
