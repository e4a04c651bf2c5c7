"""Two processes, each with half of every batch, end with the hypergradient of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from ecgmeta.bilevel import (
    SGD,
    Adam,
    FinetuneFactor,
    Hypergradient,
    ImplicitHead,
    Neumann,
    Unroll,
    hypergradient,
)
from ecgmeta.bilevel.distributed import Reduce, local, mean_of, mean_over_ranks
from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.trees import Tree

RANKS, ROWS = 2, 8


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network:
    """A tanh layer pre-trained to reconstruct with one weight an input; a linear head. A batch is (x, y)."""

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        x = batch[0]
        error = (torch.tanh(x @ theta["w"]) @ theta["w"].T - x).square()
        return (error * phi["weights"].exp()).mean() + 0.1 * theta["w"].square().sum()

    def features(self, theta: Tree, batch: Any) -> Tensor:
        return torch.tanh(batch[0] @ theta["w"])

    def targets(self, batch: Any) -> Tensor:
        return batch[1]

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor:
        return (features @ psi["head"] - batch[1]).square().mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)


MOMENTUM = Unroll(3, SGD(0.2, momentum=0.7, weight_decay=0.1))
FACTORS: dict[str, FinetuneFactor] = {
    "momentum": MOMENTUM,
    "adam": Unroll(3, Adam(0.05, eps=1e-3)),
    "encoder": Unroll(2, Adam(0.05, eps=1e-3), encoder=True),
    "ridge": ImplicitHead("ridge", 0.2),
}


def _batch(seed: int, rank: int | None) -> tuple[Tensor, Tensor]:
    x, y = _draw(ROWS, 4, seed=seed), _draw(ROWS, 2, seed=seed + 100)
    rows = slice(None) if rank is None else slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
    return x[rows], y[rows]


def _hypergradient(factor: str, rank: int | None, reduce: Reduce) -> Hypergradient:
    psi: Tree = {"head": _draw(3, 2, seed=2)}
    warm: State | None = None
    if factor == "momentum":  # a state that is not the fresh one
        warm = {"momentum": {"head": _draw(3, 2, seed=3)}}
    finetune = FACTORS[factor]
    # The implicit head takes whole batches on every rank.
    labelled = None if factor == "ridge" else rank
    return hypergradient(
        Network(),
        {"w": 0.5 * _draw(4, 3, seed=0)},
        {"weights": 0.3 * _draw(4, seed=1)},
        psi,
        pretrain_batch=_batch(10, rank),
        train_batches=[_batch(20 + k, labelled) for k in range(finetune.train_batches)],
        val_batch=_batch(30, labelled),
        finetune=finetune,
        inverse=Neumann(4, 0.1, damping=0.2),
        head_state=warm,
        reduce=reduce,
    )


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    reduce = mean_over_ranks()
    found = {name: _hypergradient(name, rank, reduce).phi for name in FACTORS}
    mixed = {"half": torch.ones(2) * rank, "double": torch.ones(3, 2, dtype=torch.float64) * rank}
    means = reduce(mixed)
    bad = mean_of(torch.tensor(float("nan") if rank else 1.0), reduce)
    torch.save({"phi": found, "means": means, "bad": bad, "empty": reduce({})}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("factor", FACTORS)
def test_each_rank_has_the_hypergradient_of_the_whole_batch(ranks: list[dict[str, Any]], factor: str) -> None:
    whole = _hypergradient(factor, None, local).phi["weights"]
    for rank in range(RANKS):
        torch.testing.assert_close(ranks[rank]["phi"][factor]["weights"], whole, rtol=1e-9, atol=1e-12)
    # The mean of what each rank would find alone is something else.
    alone = torch.stack([_hypergradient(factor, rank, local).phi["weights"] for rank in range(RANKS)]).mean(0)
    assert float((alone - whole).norm() / whole.norm()) > 1e-3


@pytest.mark.slow
def test_the_hook_keeps_types_and_shapes_and_a_bad_loss_reaches_every_rank(
    ranks: list[dict[str, Any]],
) -> None:
    for result in ranks:
        torch.testing.assert_close(result["means"]["half"], torch.full((2,), 0.5))
        torch.testing.assert_close(result["means"]["double"], torch.full((3, 2), 0.5, dtype=torch.float64))
        assert result["bad"].isnan()
        assert result["empty"] == {}
