"""Augmenters where people put them: loaders, compilers, autocast, a GPU."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ecgmeta.augment import Augmenter, LearnedPolicy, LearnedWarp, OnRecord, Random, paper_static
from ecgmeta.augment.policy import Draw
from ecgmeta.runtime.seeds import seeded


def _augmenter(kind: str) -> Augmenter:
    with seeded(0, "augmenter"):
        if kind == "policy":
            return LearnedPolicy(
                3, ops=("time_warp", "white_noise", "time_shift"), magnitude="network", gate=False
            )
        return LearnedWarp(3, variant="paper" if kind == "paper" else "monotone")


KINDS = ("monotone", "paper", "policy")


def _x(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 256, generator=torch.Generator().manual_seed(0))


def _by_torch(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: tuple[Callable[[Any], Any], ...] = (
    lambda module: pickle.loads(pickle.dumps(module)),
    _by_torch,
    copy.deepcopy,
)


@pytest.mark.parametrize("copied", COPIES, ids=("pickle", "torch.save", "deepcopy"))
@pytest.mark.parametrize("kind", [*KINDS, "taskaug", "random"])
def test_a_copy_through_bytes_augments_alike(kind: str, copied: Callable[[Any], Any]) -> None:
    module: Any
    if kind == "random":
        module = Random("powerline", (0.0, 0.1), fs=100.0, frequency=40.0)
    else:
        module = LearnedPolicy.taskaug(leads=3) if kind == "taskaug" else _augmenter(kind)
    same, x = copied(module), _x()
    expected = module(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(same(x, generator=torch.Generator().manual_seed(1)), expected)
    assert not torch.equal(expected, x)


class _Records(Dataset[Tensor]):
    def __init__(self, transform: OnRecord) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(_x(1)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_record_is_a_batch_of_one(kind: str) -> None:
    augmenter, record = _augmenter(kind), _x()[1]
    transform = OnRecord(augmenter)
    with seeded(1, "noise"):
        out = transform(record)
    with seeded(1, "noise"), torch.no_grad():
        expected = augmenter(record.unsqueeze(0))[0]
    assert torch.equal(out, expected)
    assert not out.requires_grad
    assert not torch.equal(out, record)
    with seeded(1, "noise"):
        assert torch.equal(transform(np.asarray(record)), out)
    buffers = {name: value.clone() for name, value in augmenter.named_buffers()}
    transform(record)
    assert all(torch.equal(value, buffers[name]) for name, value in augmenter.named_buffers())


def test_workers_draw_differently_and_a_seeded_loader_the_same_again() -> None:
    def epoch(seed: int) -> Tensor:
        loader = DataLoader(
            _Records(OnRecord(paper_static())),
            batch_size=2,
            num_workers=2,
            generator=torch.Generator().manual_seed(seed),
        )
        return torch.cat(list(loader))

    first = epoch(1)
    # The same record eight times: all draws differ, also the first of both workers.
    assert torch.unique(first.flatten(1), dim=0).shape[0] == 8
    assert torch.equal(epoch(1), first)
    assert not torch.equal(epoch(2), first)


@pytest.mark.slow
def test_workers_that_are_spawned_augment_too() -> None:
    loader = DataLoader(
        _Records(OnRecord(_augmenter("policy"))), num_workers=1, multiprocessing_context="spawn"
    )
    out = torch.cat(list(loader))
    assert torch.unique(out.flatten(1), dim=0).shape[0] == 8


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["monotone", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:])])
def test_a_compiled_augmenter_is_the_plain_one(kind: str, backend: str) -> None:
    augmenter, x = _augmenter(kind), _x()
    torch._dynamo.reset()
    compiled = torch.compile(augmenter, backend=backend)
    for seed in (1, 2):
        draw = augmenter.draw(x, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x, draw), augmenter(x, draw), rtol=1e-3, atol=1e-4)
    loss = compiled(x, draw).square().mean()
    found = torch.autograd.grad(loss, [p for p in augmenter.parameters() if p.ndim > 1][-1])[0]
    expected = torch.autograd.grad(
        augmenter(x, draw).square().mean(), [p for p in augmenter.parameters() if p.ndim > 1][-1]
    )[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bfloat16_changes_no_magnitude_and_no_position(kind: str) -> None:
    augmenter, x = _augmenter(kind), _x()
    draw = augmenter.draw(x, torch.Generator().manual_seed(1))
    plain = augmenter(x, draw)
    with torch.autocast("cpu", torch.bfloat16):
        cast = augmenter(x, draw)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_records_in_bfloat16_stay_so_and_move_as_they_should(kind: str) -> None:
    augmenter, x = _augmenter(kind), _x()
    draw = augmenter.draw(x, torch.Generator().manual_seed(1))
    out = augmenter(x.bfloat16(), draw)
    assert out.dtype == torch.bfloat16
    # Eight bits of a few mV; a position in bfloat16 would be whole samples off, and the error of the order of 1.
    error = (out.float() - augmenter(x, draw)).square().mean().sqrt()
    assert error < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_values_of_the_cpu(kind: str) -> None:
    """In float64: in float32, convolutions on a GPU round to ten bits of mantissa (TF32), which moves positions."""
    augmenter, x = _augmenter(kind).double(), _x().double()
    draw = augmenter.draw(x, torch.Generator().manual_seed(1))
    expected = augmenter(x, draw)
    found = augmenter.cuda()(x.cuda(), _to_cuda(draw))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=1e-9)
    augmenter, x = augmenter.float(), x.float()
    own = augmenter(x.cuda(), generator=torch.Generator("cuda").manual_seed(1))
    assert own.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_derivatives_of_the_cpu(kind: str) -> None:
    """The second one along the first, which is what a hypergradient's products are made of."""
    augmenter, x = _augmenter(kind).double(), _x().double()
    draw = augmenter.draw(x, torch.Generator().manual_seed(1))
    wanted = _derivatives(augmenter, x, draw)
    found = _derivatives(augmenter.cuda(), x.cuda(), _to_cuda(draw))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-9)


def _derivatives(augmenter: Any, x: Tensor, draw: Any) -> list[Tensor]:
    chosen = [p for p in augmenter.parameters() if p.ndim > 1][-1:]
    first = torch.autograd.grad(augmenter(x, draw).square().mean(), chosen, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), chosen, allow_unused=True)
    return [first[0].detach(), *(value for value in second if value is not None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_compiles_and_autocasts_to_the_plain_one(kind: str) -> None:
    augmenter, x = _augmenter(kind).cuda(), _x().cuda()
    draw = augmenter.draw(x, torch.Generator("cuda").manual_seed(1))
    plain = augmenter(x, draw)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(augmenter)(x, draw), plain, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        cast = augmenter(x, draw)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=1e-4, atol=1e-4)


def _to_cuda(draw: Any) -> Any:
    if isinstance(draw, Tensor):
        return draw.cuda()
    if isinstance(draw, tuple):
        return tuple(_to_cuda(part) for part in draw)
    if isinstance(draw, Draw):
        return Draw(**{name: _to_cuda(value) for name, value in vars(draw).items()})
    return draw
