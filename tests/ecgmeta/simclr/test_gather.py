"""Two processes, each with half of every batch, pre-train as one does: gradients, hypergradients and φ after five φ steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from ecgmeta.augment import Augmenter, LearnedPolicy, LearnedWarp
from ecgmeta.bilevel import (
    Adam,
    FeatureModuleProblem,
    MetaState,
    Neumann,
    Schedule,
    Unroll,
    meta_train,
)
from ecgmeta.bilevel.distributed import Reduce, local, mean_over_ranks
from ecgmeta.encoders import create_encoder
from ecgmeta.runtime.seeds import seeded
from ecgmeta.simclr import SimCLR, Views, draw_views
from ecgmeta.simclr.gather import gather

RANKS, RECORDS = 2, 6
AUGMENTERS = ("warp", "policy")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _augmenter(kind: str) -> Augmenter:
    if kind == "policy":
        return LearnedPolicy(3, ops=("time_warp", "white_noise", "time_shift"), stages=1)
    warp = LearnedWarp(3, magnitude=0.7)
    warp.frozen_statistics = True  # its norm layers take no statistics of a rank's part
    return warp


class Head(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(16, 2)

    def features(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        features: Tensor = self.encoder(batch[0])
        return features

    def head_loss(self, features: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.head(features), batch[1])

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.head_loss(self.features(batch), batch)


class Batches:
    def __init__(self, augmenter: Augmenter, rank: int | None) -> None:
        self.augmenter, self.rank = augmenter, rank

    def pretrain(self, step: int) -> Views:
        x = torch.randn(RECORDS, 3, 240, generator=_generator(step), dtype=torch.float64)
        views = draw_views(x, None, self.augmenter, generator=_generator(step + 1000))
        return views if self.rank is None else views.part(self.rank, RANKS)

    def hyper(self, step: int, k: int = 0) -> Views:
        return self.pretrain(step + 100)

    def train(self, step: int, k: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(5, 3, 240, generator=_generator(step + 2000 + k), dtype=torch.float64)
        return x, (x.mean((1, 2)) > 0).double().unsqueeze(1).expand(-1, 2)

    def validation(self, step: int, k: int = 0) -> tuple[Tensor, Tensor]:
        return self.train(step + 500, 0)


def _run(kind: str, rank: int | None, reduce: Reduce) -> dict[str, Any]:
    with seeded(0, "everything"):
        augmenter = _augmenter(kind)
        encoder = create_encoder("resnet18", leads=3, width=2, norm="group")
        simclr = SimCLR(encoder, augmenter, projection=8).double().train()
        head = Head(encoder).double()
    problem = FeatureModuleProblem(simclr, head, hyper=augmenter)
    state = MetaState(
        problem.theta,
        problem.phi,
        {name: value.detach() for name, value in problem.psi.items()},
        torch.optim.Adam(problem.theta.values(), lr=1e-2),
        torch.optim.Adam(problem.phi.values(), lr=1e-2),
    )
    norms, losses = [], []
    for report in meta_train(
        problem,
        state,
        Batches(augmenter, rank),
        schedule=Schedule(5, period=1, warmup=0),
        finetune=Unroll(1, Adam(0.05)),
        head_optimizer=Adam(0.05),
        inverse=Neumann(2, 0.1),
        reduce=reduce,
    ):
        losses.append(report.pretrain_loss)
        if report.hyper is not None:
            norms.append(report.diagnostics["norm"])
    tensors = {**state.phi, **{f"theta.{name}": value for name, value in state.theta.items()}}
    return {
        "norms": norms,
        "losses": losses,
        "end": {name: v.detach().clone() for name, v in tensors.items()},
    }


def _derivatives() -> dict[str, Tensor]:
    """Gather alone: values, first and second derivatives, and its tangent, on a rank."""
    rank = dist.get_rank()
    x = (torch.arange(3.0, dtype=torch.float64) + 10 * rank + 1).requires_grad_()
    everything = gather(x)
    loss = (everything**3).sum() * everything[0]
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    tangent = torch.func.jvp(
        lambda v: gather(v).square(), (x.detach(),), (torch.ones(3, dtype=torch.float64),)
    )[1]
    return {"values": everything.detach(), "first": first.detach(), "second": second, "tangent": tangent}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {kind: _run(kind, rank, mean_over_ranks()) for kind in AUGMENTERS}
    torch.save({**found, "gather": _derivatives()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
def test_gather_has_the_derivatives_of_one_process(ranks: list[dict[str, Any]]) -> None:
    x = torch.cat([torch.arange(3.0) + 1, torch.arange(3.0) + 11]).double().requires_grad_()
    loss = (x**3).sum() * x[0]
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    # Each of two ranks takes the loss, and derivatives are their sum: twice the first; its square, four times.
    (second,) = torch.autograd.grad((2 * first).square().sum(), x)
    for rank in range(RANKS):
        own = slice(3 * rank, 3 * rank + 3)
        found = ranks[rank]["gather"]
        torch.testing.assert_close(found["values"], x.detach())
        torch.testing.assert_close(found["first"], 2 * first[own].detach())
        torch.testing.assert_close(found["second"], second[own])
        torch.testing.assert_close(found["tangent"], 2 * x.detach())


@pytest.mark.slow
@pytest.mark.parametrize("kind", AUGMENTERS)
def test_two_processes_end_with_the_phi_and_theta_of_one(ranks: list[dict[str, Any]], kind: str) -> None:
    whole = _run(kind, None, local)
    assert len(whole["norms"]) == 5
    for rank in range(RANKS):
        found = ranks[rank][kind]
        assert found["losses"] == pytest.approx(whole["losses"], rel=1e-9)
        assert found["norms"] == pytest.approx(whole["norms"], rel=1e-6)
        for name, value in whole["end"].items():
            torch.testing.assert_close(found["end"][name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert all(norm > 1e-6 for norm in whole["norms"])
