"""Gradient accumulation and autocast in Algorithm 1: the same plain steps, and φ steps that lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ecgmeta.bilevel import (
    SGD,
    DoubleBackward,
    MetaState,
    MicroBatches,
    Neumann,
    Report,
    Schedule,
    Unroll,
    meta_train,
)
from ecgmeta.bilevel.trees import Tree

ROWS = 12


class Regression:
    """A tanh layer that predicts y from x with one weight an example; a linear head. A batch is (x, y, rows)."""

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        x, y, rows = batch
        error = (torch.tanh(x @ theta["w"]) - y).square().mean(1)
        return (error * phi["weights"][rows].exp()).mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        x, y, _ = batch
        return (torch.tanh(x @ theta["w"]) @ psi["head"] - y).square().mean()


class Batches:
    """Steps of twelve rows, whole or in ``parts``; φ steps on twelve others."""

    def __init__(self, dtype: torch.dtype, parts: int = 1) -> None:
        self.dtype, self.parts = dtype, parts
        self.hypers: list[int] = []

    def _batch(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(ROWS, 3, generator=generator, dtype=self.dtype) for _ in range(2))
        return x, y, torch.arange(ROWS)

    def pretrain(self, step: int) -> Any:
        batch = self._batch(step)
        if self.parts == 1:
            return batch
        return MicroBatches(list(zip(*(part.chunk(self.parts) for part in batch), strict=True)))

    def hyper(self, step: int, k: int) -> Any:
        self.hypers.append(step)
        return self._batch(1000 + step)

    def train(self, step: int, k: int) -> Any:
        return self._batch(2000 + step + k)

    def validation(self, step: int, k: int) -> Any:
        return self._batch(3000 + step)


def _run(
    dtype: torch.dtype = torch.float64, parts: int = 1, period: int = 0, share: bool = False, **settings: Any
) -> tuple[MetaState, list[Report], Batches]:
    generator = torch.Generator().manual_seed(0)
    theta = {"w": torch.randn(3, 3, generator=generator, dtype=dtype).requires_grad_()}
    phi = {"weights": torch.zeros(ROWS, dtype=dtype, requires_grad=True)}
    state = MetaState(
        theta,
        phi,
        {"head": torch.eye(3, dtype=dtype)},
        torch.optim.SGD(theta.values(), lr=0.1),
        torch.optim.SGD(phi.values(), lr=1.0),
    )
    batches = Batches(dtype, parts)
    loop = meta_train(
        Regression(),
        state,
        batches,
        schedule=Schedule(6, period=period, warmup=0),
        finetune=Unroll(1, SGD(0.1)),
        head_optimizer=SGD(0.1),
        inverse=Neumann(2, 0.1),
        share=share,
        products=DoubleBackward,  # the cheapest is measured, and may be another in the next run
        **settings,
    )
    return state, list(loop), batches


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("period", [0, 2])
def test_equal_parts_step_as_the_whole_batch_does(parts: int, period: int) -> None:
    whole, reports, _ = _run(period=period)
    state, found, batches = _run(parts=parts, period=period)
    torch.testing.assert_close(state.theta["w"], whole.theta["w"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.phi["weights"], whole.phi["weights"], rtol=1e-12, atol=1e-14)
    assert [r.pretrain_loss for r in found] == pytest.approx([r.pretrain_loss for r in reports], rel=1e-12)
    assert len(batches.hypers) == (3 if period else 0)


def test_a_phi_step_of_micro_batches_takes_its_own_batch_though_sharing_was_asked_for() -> None:
    shared, apart = _run(parts=3, period=2, share=True), _run(parts=3, period=2, share=False)
    assert shared[2].hypers == apart[2].hypers == [1, 3, 5]
    assert torch.equal(shared[0].phi["weights"], apart[0].phi["weights"])


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        MicroBatches([])


def test_autocast_rounds_plain_steps_and_no_phi_step() -> None:
    plain, reports, _ = _run(torch.float32, period=6)
    cast, found, _ = _run(torch.float32, period=6, autocast=torch.bfloat16)
    # Five plain steps in bfloat16: near, and not equal.
    assert 1e-6 < abs(found[0].pretrain_loss - reports[0].pretrain_loss) < 1e-2
    torch.testing.assert_close(cast.theta["w"], plain.theta["w"], rtol=0.02, atol=0.02)
    assert not torch.equal(cast.theta["w"], plain.theta["w"])
    # A φ step alone is the same to the last bit.
    first, whole, _ = _run(torch.float32, period=1, share=True)
    again, other, _ = _run(torch.float32, period=1, share=True, autocast=torch.bfloat16)
    assert torch.equal(first.phi["weights"], again.phi["weights"])
    assert [r.pretrain_loss for r in whole] == [r.pretrain_loss for r in other]
