"""Features that are computed once: equal to the route through the whole loss, and each example encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.bilevel import SGD, Adam, FeatureProblem, ImplicitHead, Unroll
from ecgmeta.bilevel.features import Encoded, PooledBatch
from ecgmeta.bilevel.trees import Tree, leaves


@dataclass(frozen=True)
class Rows:
    """Examples, as rows of a pool where there is one."""

    x: Tensor
    y: Tensor
    pool: Rows | None = None
    rows: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Rows:
        return Rows(self.x[rows], self.y[rows])

    def take(self, rows: list[int], pooled: bool) -> Rows:
        index = torch.tensor(rows)
        part = self[index]
        return Rows(part.x, part.y, self, index) if pooled else part


class Problem:
    def __init__(self) -> None:
        self.encoded: list[Tensor] = []  # the examples of every forward pass

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        raise AssertionError("fine-tuning only")

    def features(self, theta: Tree, batch: Rows) -> Tensor:
        self.encoded.append(batch.x)
        return torch.tanh(batch.x @ theta["w"])

    def head_loss(self, features: Tensor, psi: Tree, batch: Rows) -> Tensor:
        return F.binary_cross_entropy_with_logits(features @ psi["head"], batch.y)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Rows) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def targets(self, batch: Rows) -> Tensor:
        return batch.y


class Whole(Problem):
    """The same loss without its features, so that each step runs the encoder."""

    features = None  # type: ignore[assignment]

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Rows) -> Tensor:
        return self.head_loss(torch.tanh(batch.x @ theta["w"]), psi, batch)


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _start() -> tuple[Rows, Tree, Tree]:
    y = (_draw(10, 2, seed=3) > 0).double()
    return Rows(_draw(10, 4, seed=0), y), {"w": _draw(4, 3, seed=1)}, {"head": _draw(3, 2, seed=2)}


DRAWN = ([0, 3, 5], [3, 1, 0], [7, 5, 3])  # three training batches that share examples
VALIDATION = [9, 7]


@pytest.mark.parametrize("optimizer", [SGD(0.3, momentum=0.5), Adam(0.1)])
@pytest.mark.parametrize("pooled", [True, False])
def test_the_unroll_is_the_same_however_its_features_come(optimizer: Any, pooled: bool) -> None:
    data, theta, psi = _start()
    train, validation = [data.take(rows, pooled) for rows in DRAWN], data.take(VALIDATION, pooled)
    unroll = Unroll(len(train), optimizer)
    found = unroll(Problem(), theta, psi, train, validation)
    whole = Whole()
    assert not isinstance(whole, FeatureProblem)
    expected = unroll(whole, theta, psi, train, validation)
    torch.testing.assert_close(found.v, expected.v)
    torch.testing.assert_close(found.validation_loss, expected.validation_loss)
    torch.testing.assert_close(found.train_losses, expected.train_losses)


def test_an_example_of_a_pool_is_encoded_once_in_each_direction() -> None:
    data, theta, psi = _start()
    problem = Problem()
    train = [data.take(rows, pooled=True) for rows in DRAWN]
    assert isinstance(train[0], PooledBatch)
    Unroll(3, SGD(0.1))(problem, theta, psi, train, data.take(VALIDATION, pooled=True))
    different = {*DRAWN[0], *DRAWN[1], *DRAWN[2], *VALIDATION}
    assert sum(len(x) for x in problem.encoded) == 2 * len(different)  # there, and recomputed on the way back


def test_features_that_depend_on_their_batch_are_never_pooled() -> None:
    data, theta, psi = _start()
    problem = Problem()
    problem.per_example = False  # type: ignore[attr-defined]
    train = [data.take(rows, pooled=True) for rows in DRAWN]
    Unroll(3, SGD(0.1))(problem, theta, psi, train, data.take(VALIDATION, pooled=True))
    assert [len(x) for x in problem.encoded] == 2 * [3, 3, 3, 2]


def test_one_batch_used_twice_is_encoded_once() -> None:
    data, theta, psi = _start()
    problem = Problem()
    Unroll(1, SGD(0.1))(problem, theta, psi, [data], data)
    assert len(problem.encoded) == 1


@pytest.mark.parametrize("head", [ImplicitHead("ridge", 0.3), ImplicitHead("logistic", 0.3)])
def test_the_implicit_head_is_the_same_on_a_pool(head: ImplicitHead) -> None:
    data, theta, psi = _start()
    found = []
    for pooled in (True, False):
        train = [data.take(DRAWN[0] + DRAWN[2], pooled)][: head.train_batches]
        found.append(head(Problem(), theta, psi, train, data.take(list(range(9)), pooled)).v)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("recompute", [True, False])
def test_the_way_back_is_the_derivative_of_the_features(recompute: bool, chunk: int) -> None:
    data, theta, _ = _start()
    batches = [data.take(rows, pooled=True) for rows in DRAWN] + [data.take(VALIDATION, pooled=False)]
    encoded = Encoded(Problem(), theta, batches, recompute=recompute, chunk=chunk)
    cotangents = {name: _draw(*value.shape, seed=int(name)) for name, value in encoded.features.items()}
    nodes = leaves(theta)
    total = torch.zeros((), dtype=torch.float64)
    for k, batch in enumerate(batches):
        features = torch.tanh(batch.x @ nodes["w"])
        torch.testing.assert_close(encoded.features[str(k)], features.detach())
        total = total + (features * cotangents[str(k)]).sum()
    expected: Mapping[str, Tensor] = {"w": torch.autograd.grad(total, nodes["w"])[0]}
    torch.testing.assert_close(encoded.pull_back(cotangents), expected)
