"""A batch is a function of (seed, step), and an epoch passes through every recording once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecgmeta.augment import LearnedWarp, paper_static
from ecgmeta.bilevel.features import PooledBatch
from ecgmeta.bilevel.precision import double_batch
from ecgmeta.data import ECGDataset
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.experiment.batches import SimCLRBatches


def numbered(n: int) -> ECGDataset:
    """Recording i holds the constant i + 1, so that a batch says which recordings are in it."""
    signals = np.broadcast_to(np.arange(1, n + 1, dtype=np.float32)[:, None, None], (n, 12, 250)).copy()
    labels = (np.arange(n) % 2 == 0).astype(np.float32)[:, None]
    return ECGDataset(signals, labels, fs=50, leads=STANDARD_LEADS, label_names=["even"])


def make(n: int = 22, *, seed: int = 0, plain: bool = True, **sizes: int) -> SimCLRBatches:
    options = {"batch_size": 5, "hyper_batch_size": 4, "label_batch_size": 3, **sizes}
    return SimCLRBatches(
        numbered(n),
        numbered(8),
        numbered(4),
        static=None if plain else paper_static(0.5, 0.1),
        augmenter=None if plain else LearnedWarp(fs=50),
        seed=seed,
        device=torch.device("cpu"),
        **options,
    )


def members(x: torch.Tensor) -> list[int]:
    return [int(value) for value in x[:, 0, 0]]


def test_the_same_step_is_the_same_batch_to_the_last_bit() -> None:
    first, second = make(plain=False), make(plain=False)
    for step in (7, 2):  # in any order: nothing is remembered between steps
        a, b = first.pretrain(step), second.pretrain(step)
        assert a.x.equal(b.x)
        assert a.noise is not None
        assert b.noise is not None
        assert a.noise.equal(b.noise)
        assert first.hyper(step).x.equal(second.hyper(step).x)
        assert first.train(step, 1).x.equal(second.train(step, 1).x)
        assert first.validation(step).x.equal(second.validation(step).x)
        second.pretrain(0)


def test_steps_seeds_and_purposes_differ() -> None:
    batches, other = make(plain=False), make(plain=False, seed=1)
    assert not batches.pretrain(0).x.equal(batches.pretrain(1).x)
    assert not batches.pretrain(0).x.equal(other.pretrain(0).x)
    assert not batches.hyper(0).x.equal(batches.hyper(1).x)
    for draw in (batches.hyper, batches.validation, batches.train):
        assert not draw(3, 0).x.equal(draw(3, 1).x)
    plain = make()
    assert [members(plain.train(0, k).x) for k in range(4)] != [members(plain.train(0, 0).x)] * 4
    assert [members(plain.hyper(k).x) for k in range(4)] != [members(plain.pretrain(k).x) for k in range(4)]


def test_an_epoch_takes_no_recording_twice_and_the_next_has_another_order() -> None:
    batches = make()
    assert batches.steps_per_epoch == 4
    epochs = [
        [i for step in range(4 * e, 4 * e + 4) for i in members(batches.pretrain(step).x)[:5]] for e in (0, 1)
    ]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == 20
    assert epochs[0] != epochs[1]


def test_both_views_are_of_the_same_recordings() -> None:
    names = members(make().pretrain(3).x)
    assert names[:5] == names[5:]


def test_labels_stay_with_their_recordings() -> None:
    batch = make().train(5, 0)
    assert batch.y[:, 0].tolist() == [float(i % 2) for i in members(batch.x)]


def test_sizes_are_at_most_what_is_there() -> None:
    batches = make(6, batch_size=100, hyper_batch_size=100, label_batch_size=100)
    assert (batches.batch_size, batches.hyper_batch_size, batches.steps_per_epoch) == (6, 6, 1)
    assert sorted(members(batches.pretrain(0).x)[:6]) == list(range(1, 7))
    assert len(batches.train(0, 0).x) == 8
    assert len(batches.validation(0).x) == 4


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10), (0.1, 1), (0, 0)])
def test_parts_of_an_epoch_are_rounded_up(epochs: float, steps: int) -> None:
    assert make().steps(epochs) == steps


def test_an_arm_that_learns_nothing_has_no_labelled_batches() -> None:
    batches = SimCLRBatches(
        numbered(6),
        None,
        None,
        static=None,
        augmenter=None,
        batch_size=2,
        hyper_batch_size=2,
        label_batch_size=2,
        seed=0,
        device=torch.device("cpu"),
    )
    with pytest.raises(ValueError, match="meta-learns nothing"):
        batches.train(0, 0)


def test_an_unroll_encodes_each_recording_of_its_pool_once() -> None:
    batches = make(label_batch_size=6)
    first, second, held_out = batches.train(0, 0), batches.train(0, 1), batches.validation(0, 0)
    assert isinstance(first, PooledBatch)
    assert first.signals is None  # read when they are wanted
    assert first.pool is second.pool is not held_out.pool
    assert first.pool is not None
    assert first.rows is not None
    again = first.pool[first.rows]
    assert again.x.equal(first.x)
    assert again.y.equal(first.y)
    assert again.pool is None


def test_a_batch_of_a_pool_goes_to_float64_with_its_signals() -> None:
    batch = make(label_batch_size=6).train(0, 0)
    double = double_batch(batch)
    assert double.pool is None
    assert double.x.dtype == double.y.dtype == torch.float64
    torch.testing.assert_close(double.x, batch.x.double(), rtol=0, atol=0)
