"""The check on ordinary modules: buffers, frozen parameters, dropout and every form of batch follow it to float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ecgmeta.bilevel import (
    SGD,
    Check,
    ConjugateGradient,
    FeatureModuleProblem,
    ModuleProblem,
    Unroll,
    check_hypergradient,
)
from ecgmeta.bilevel.precision import double_batch, doubled


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, waiting for a second thread of a busy machine is most of the time (10 s against 0.3)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Views:
    x: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Labelled:
    x: Tensor
    y: Tensor
    pool: Pool | None = None
    rows: Tensor | None = None


class Pool:
    """Recordings that stay in float32, whatever is done to a batch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __getitem__(self, rows: Tensor) -> Labelled:
        return Labelled(self.x[rows], self.y[rows], self, rows)


def parts(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, tuple):
        return batch
    return (batch.x, batch.noise) if isinstance(batch, Views) else (batch.x, batch.y)


class Encoder(nn.Module):
    """Normalising constants and running statistics in buffers, a frozen parameter, dropout."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(0.1))
        self.conv, self.norm, self.dropout = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Dropout(0.2)
        self.gain = nn.Parameter(torch.tensor([1.0, 0.7, 1.3]), requires_grad=False)
        self.norm.running_mean, self.norm.running_var = (
            torch.tensor([0.1, -0.2, 0.3]),
            torch.tensor([0.6, 0.9, 1.1]),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.tanh(self.norm(self.conv(x - self.centre)))
        return self.dropout(maps.mean(2)) * self.gain


class Pretrain(nn.Module):
    """Regression, and a quadratic pull on each part of the network whose strength is φ."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head, self.pull = encoder, nn.Linear(3, 2), nn.Linear(3, 1, bias=False)

    def forward(self, batch: Any) -> Tensor:
        x, y = parts(batch)
        fit = (self.head(self.encoder(x)) - y).square().mean()
        sizes = [
            sum((p - 0.3).square().sum() for p in part.parameters())
            for part in (self.encoder.conv, self.encoder.norm, self.head)
        ]
        return fit + self.pull.weight.flatten().exp() @ torch.stack(sizes)  # type: ignore[arg-type]


class Finetune(nn.Module):
    """With a constant of its own, too."""

    mix: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.register_buffer("mix", torch.eye(3) + 0.1)
        self.encoder, self.head = encoder, nn.Linear(3, 1)

    def features(self, batch: Any) -> Tensor:
        return self.encoder(parts(batch)[0])

    def head_loss(self, features: Tensor, batch: Any) -> Tensor:
        return (self.head(features @ self.mix)[:, 0] - parts(batch)[1]).square().mean()

    def forward(self, batch: Any) -> Tensor:
        return self.head_loss(self.features(batch), batch)


def setting(kind: type[ModuleProblem], **settings: Any) -> tuple[ModuleProblem, Tensor, Tensor, Pool]:
    """A problem of float32 modules near the minimum of its pre-training loss."""
    torch.manual_seed(0)
    encoder = Encoder()
    pretrain, finetune = Pretrain(encoder), Finetune(encoder)
    nn.init.constant_(pretrain.pull.weight, 0.5)
    problem = kind(pretrain, finetune, hyper=pretrain.pull, **settings)
    problem.at_step(3)
    x, y, pool = torch.randn(8, 2, 9), torch.randn(8, 2), Pool(torch.randn(10, 2, 9), torch.randn(10))
    # Found on the float64 copy: of another type, dropout draws other masks.
    exact = doubled(problem)
    optimizer = torch.optim.LBFGS(
        exact.theta.values(),
        max_iter=300,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = exact.pretrain_loss(exact.theta, exact.phi, (x.double(), y.double()))
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        for name, value in problem.theta.items():
            value.copy_(exact.theta[name])
    return problem, x, y, pool


def check(problem: ModuleProblem, pretrain_batch: Any, labelled: Callable[[list[int]], Any]) -> Check:
    train, validation = [labelled([0, 1, 2, 3]), labelled([3, 4, 5])], labelled([5, 6, 7, 8, 9])
    return check_hypergradient(
        problem, problem.theta, problem.phi, problem.psi, pretrain_batch=pretrain_batch, train_batches=train,
        val_batch=validation, finetune=Unroll(2, SGD(0.2, momentum=0.5)), inverse=ConjugateGradient(40),
        inner_steps=30, inner_lr=0.2, directions=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "form", "finetune_mode", "statistics"),
    [
        (ModuleProblem, "tuple", "eval", "update"),
        (ModuleProblem, "dataclass", "train", "frozen"),
        (FeatureModuleProblem, "dataclass", "eval", "frozen"),  # features of pooled batches
        (FeatureModuleProblem, "dataclass", "train", "update"),
    ],
)
def test_modules_in_float32_are_checked_in_float64_and_left_alone(
    kind: type[ModuleProblem], form: str, finetune_mode: str, statistics: str
) -> None:
    problem, x, y, pool = setting(kind, statistics=statistics, finetune_mode=finetune_mode)
    problem.pretrain.train()
    before = copy.deepcopy([problem.pretrain.state_dict(), problem.finetune.state_dict()])

    def labelled(rows: list[int]) -> Any:
        batch = pool[torch.tensor(rows)]
        return (batch.x, batch.y) if form == "tuple" else batch

    found = check(problem, (x, y) if form == "tuple" else Views(x, y), labelled)
    assert found.ok, found.verdict
    assert found.unroll_error < 1e-3  # θ is a minimum to float32 only
    assert found.difference_error < 1e-2  # relative to the slope in one direction, which may be small
    assert found.repeat_error == 0  # dropout is held
    for old, module in zip(before, (problem.pretrain, problem.finetune), strict=True):
        torch.testing.assert_close(old, dict(module.state_dict()), rtol=0, atol=0)
    assert all(module.training for module in problem.pretrain.modules())


def test_dropout_that_is_not_held_is_named() -> None:
    problem, x, y, pool = setting(ModuleProblem, seed=None)
    found = check(problem, (x, y), lambda rows: pool[torch.tensor(rows)])
    assert not found.ok
    assert "not the same function at every call" in found.verdict


class Pair(NamedTuple):
    x: Tensor
    number: int


@dataclass(frozen=True)
class Derived:
    x: Tensor
    twice: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.x)


def test_batches_keep_their_form_and_only_their_floating_tensors_change() -> None:
    x, rows = torch.ones(2), torch.tensor([1, 0])
    batch = {"list": [x, "name"], "pair": Pair(x, 3), "rows": rows, "derived": (Derived(x), Derived)}
    found = double_batch(batch)
    assert found["list"][0].dtype == torch.float64
    assert found["list"][1] == "name"
    assert isinstance(found["pair"], Pair)
    assert (found["pair"].x.dtype, found["pair"].number) == (torch.float64, 3)
    assert found["rows"] is rows
    derived, same = found["derived"]
    assert derived.x.dtype == derived.twice.dtype == torch.float64
    assert same is Derived
    pooled = double_batch(Pool(x, x)[rows])
    assert pooled.pool is None
    assert pooled.rows is rows
    assert pooled.x.dtype == torch.float64
