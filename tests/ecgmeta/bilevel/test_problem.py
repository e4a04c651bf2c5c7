"""The adapter from modules: roles, buffers, and equality with the modules' own losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecgmeta.bilevel import FeatureModuleProblem, FeatureProblem, ModuleProblem


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.frozen


class Pretrain(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head, self.weights = encoder, nn.Linear(4, 2), nn.Linear(1, 2, bias=False)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return ((self.head(self.encoder(x)) - y).square() * self.weights.weight.flatten().exp()).mean()


class Finetune(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(4, 1)

    def features(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.encoder(batch[0])

    def head_loss(self, features: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self.head(features)[:, 0] - batch[1][:, 0]).square().mean()

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.head_loss(self.features(batch), batch)


@pytest.fixture
def modules() -> tuple[Pretrain, Finetune, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    encoder = Encoder()
    return Pretrain(encoder), Finetune(encoder), (torch.randn(8, 3), torch.randn(8, 2))


def test_roles_go_by_identity(modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]]) -> None:
    pretrain, finetune, _ = modules
    problem = FeatureModuleProblem(pretrain, finetune, hyper=pretrain.weights)
    assert set(problem.phi) == {"weights.weight"}
    assert set(problem.theta) == {
        "encoder.linear.weight",
        "encoder.linear.bias",
        "encoder.norm.weight",
        "encoder.norm.bias",
        "head.weight",
        "head.bias",
    }
    assert set(problem.psi) == {"head.weight", "head.bias"}
    assert problem.theta["encoder.linear.weight"] is pretrain.encoder.linear.weight
    assert isinstance(problem, FeatureProblem)
    assert not isinstance(ModuleProblem(pretrain, finetune), FeatureProblem)


def test_losses_equal_the_modules_own(modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]]) -> None:
    pretrain, finetune, batch = modules
    problem = FeatureModuleProblem(pretrain, finetune, hyper=pretrain.weights)
    torch.testing.assert_close(
        problem.pretrain_loss(problem.theta, problem.phi, batch), pretrain.train()(batch)
    )
    loss = problem.finetune_loss(problem.theta, problem.psi, batch)
    torch.testing.assert_close(loss, finetune.eval()(batch))
    split = problem.head_loss(problem.features(problem.theta, batch), problem.psi, batch)
    torch.testing.assert_close(split, loss)


def test_other_tensors_than_the_live_ones_are_used(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, batch = modules
    problem = ModuleProblem(pretrain, finetune, hyper=pretrain.weights)
    zero = {name: torch.zeros_like(value) for name, value in problem.theta.items()}
    expected = (batch[1].square() * pretrain.weights.weight.flatten().exp()).mean()
    torch.testing.assert_close(problem.pretrain_loss(zero, problem.phi, batch), expected)


def test_running_statistics_move_only_while_recording(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, batch = modules
    problem = ModuleProblem(pretrain, finetune, finetune_mode="train")
    norm = pretrain.encoder.norm
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    before = norm.running_mean.clone()
    problem.pretrain_loss(problem.theta, problem.phi, batch)
    problem.finetune_loss(problem.theta, problem.psi, batch)
    torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)
    with problem.recording():
        problem.pretrain_loss(problem.theta, problem.phi, batch)
    assert not torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 1


def test_finetune_mode_chooses_the_statistics(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, batch = modules
    by_mode = {
        mode: ModuleProblem(pretrain, finetune, finetune_mode=mode).finetune_loss(
            ModuleProblem(pretrain, finetune).theta,
            dict(finetune.head.named_parameters(prefix="head")),
            batch,
        )
        for mode in ("eval", "train")
    }
    assert not torch.allclose(by_mode["eval"], by_mode["train"])


def test_modules_that_do_not_fit_are_refused(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, _ = modules
    with pytest.raises(ValueError, match="shares no parameter"):
        ModuleProblem(pretrain, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="submodule of pretrain"):
        ModuleProblem(pretrain, finetune, hyper=nn.Linear(1, 1))
