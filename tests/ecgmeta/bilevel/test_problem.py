"""The adapter from modules: roles, buffers, and equality with the modules' own losses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ecgmeta.bilevel import FeatureModuleProblem, FeatureProblem, ModuleProblem
from ecgmeta.bilevel.trees import gradient


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


def test_three_ways_to_treat_statistics(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, batch = modules
    norm = pretrain.encoder.norm
    assert norm.running_mean is not None
    norm.running_mean.fill_(0.7)
    fixed = pretrain.train()
    fixed.encoder.norm.eval()
    of_running = fixed(batch).detach()
    of_batch = copy.deepcopy(pretrain).train()(batch).detach()
    assert not torch.allclose(of_running, of_batch)
    for statistics, expected, moves in (
        ("update", of_batch, True),
        ("batch", of_batch, False),
        ("frozen", of_running, False),
    ):
        norm.reset_running_stats()
        norm.running_mean.fill_(0.7)
        problem = ModuleProblem(pretrain, finetune, hyper=pretrain.weights, statistics=statistics)  # type: ignore[arg-type]
        problem.finetune_loss(problem.theta, problem.psi, batch)  # leaves the shared encoder in eval mode
        torch.testing.assert_close(problem.pretrain_loss(problem.theta, problem.phi, batch), expected)
        assert torch.equal(norm.running_mean, torch.full((4,), 0.7))
        with problem.recording():
            torch.testing.assert_close(problem.pretrain_loss(problem.theta, problem.phi, batch), expected)
        assert torch.equal(norm.running_mean, torch.full((4,), 0.7)) != moves
    with pytest.raises(ValueError, match="'update', 'batch' or 'frozen', got 'eval'"):
        ModuleProblem(pretrain, finetune, statistics="eval")  # type: ignore[arg-type]


def test_batch_statistics_hold_the_normalisers_and_nothing_else() -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.encoder(x).square().mean()

    encoder = nn.BatchNorm1d(3)
    pretrain = Counting(encoder)
    problem = ModuleProblem(pretrain, nn.Sequential(encoder), statistics="batch")
    with problem.recording():
        problem.pretrain_loss(problem.theta, {}, torch.randn(5, 3))
    assert float(pretrain.calls) == 1
    assert encoder.num_batches_tracked is not None
    assert int(encoder.num_batches_tracked) == 0


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
    holds = nn.ModuleList([finetune, pretrain.weights])
    with pytest.raises(ValueError, match=r"1\.weight, a part of φ"):
        ModuleProblem(pretrain, holds, hyper=pretrain.weights)


class Tied(nn.Module):
    """``mean (x wᵀ w)²`` with w under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up.weight
        return ((x @ self.down.weight.T) @ up).square().mean()


def test_a_parameter_under_two_names_is_one_parameter() -> None:
    torch.manual_seed(0)
    tied = Tied().double()
    head = nn.ModuleDict({"again": tied.up, "encoder": tied})  # another name first than in pretrain

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = head

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["again"](x).sum() + self.parts["encoder"](x)

    problem = ModuleProblem(tied, Head())
    assert list(problem.theta) == ["down.weight"]
    assert problem.psi == {}
    x = torch.randn(4, 3, dtype=torch.float64)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)  # not the live value
    theta = {"down.weight": w}
    by_hand = (x @ w.T @ w).square().mean()
    untied = gradient(by_hand, {"w": w}, retain_graph=True)["w"]
    loss = problem.pretrain_loss(theta, {}, x)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(gradient(loss, theta)["down.weight"], untied)
    also = (x @ w.T).sum() + by_hand
    found = problem.finetune_loss(theta, {}, x)
    torch.testing.assert_close(found, also)
    torch.testing.assert_close(gradient(found, theta)["down.weight"], gradient(also, {"w": w})["w"])


def test_what_a_loss_does_not_touch_has_a_zero_derivative_and_frozen_parameters_have_none(
    modules: tuple[Pretrain, Finetune, tuple[Tensor, Tensor]],
) -> None:
    pretrain, finetune, batch = modules
    pretrain.encoder.linear.bias.requires_grad_(False)
    finetune.head.bias.requires_grad_(False)
    problem = ModuleProblem(pretrain, finetune, hyper=pretrain.weights)
    assert not {"encoder.frozen", "encoder.linear.bias"} & (set(problem.theta) | set(problem.psi))
    assert set(problem.psi) == {"head.weight"}
    slope = gradient(problem.finetune_loss(problem.theta, problem.psi, batch), problem.theta)
    assert slope.keys() == problem.theta.keys()
    assert all(not slope[name].any() for name in ("head.weight", "head.bias"))
    assert slope["encoder.linear.weight"].any()


class Noisy(nn.Module):
    """An encoder and a head, each with dropout in training mode."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def head_loss(self, features: Tensor, x: Tensor) -> Tensor:
        return self.head(features).square().mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.head_loss(self.features(x), x)


def noisy(seed: int | None = 0) -> FeatureModuleProblem:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    return FeatureModuleProblem(Noisy(encoder), Noisy(encoder), finetune_mode="train", seed=seed)


def test_dropout_is_one_function_within_a_step_and_another_in_the_next() -> None:
    problem, x = noisy(), torch.randn(6, 3)

    def losses() -> list[float]:
        return [
            problem.pretrain_loss(problem.theta, problem.phi, x).item(),
            problem.finetune_loss(problem.theta, problem.psi, x).item(),
        ]

    first = losses()
    assert first == losses()
    seen = [first]
    for step, draw in ((1, 0), (0, 1), (2, 0)):
        problem.at_step(step, draw)
        seen.append(losses())
        assert seen[-1] == losses()
    for column in zip(*seen, strict=True):
        assert len(set(column)) == len(seen)
    problem.at_step(0)
    assert losses() == first
    split = problem.head_loss(problem.features(problem.theta, x), problem.psi, x)
    assert split.item() == first[1]
    other = noisy(seed=1)
    assert other.pretrain_loss(other.theta, other.phi, x).item() != first[0]


def test_a_head_draws_other_noise_than_its_encoder() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.drop = nn.Linear(1, 1), nn.Dropout(0.5)

        def features(self, x: Tensor) -> Tensor:
            return self.drop(x)

        def head_loss(self, features: Tensor, x: Tensor) -> Tensor:
            return (self.drop(features) > 0).double().mean()

    masks, x = Masks(), torch.ones(10_000)
    problem = FeatureModuleProblem(masks, masks, finetune_mode="train")
    kept = float(problem.head_loss(problem.features(problem.theta, x), {}, x))
    assert kept == pytest.approx(0.25, abs=0.02)  # one mask twice would keep half


def test_noise_does_not_move_the_callers_generator_unless_asked_to() -> None:
    x = torch.randn(6, 3)
    for seed, moves in ((0, False), (None, True)):
        problem = noisy(seed)
        before = torch.random.get_rng_state()
        problem.pretrain_loss(problem.theta, problem.phi, x)
        assert torch.equal(before, torch.random.get_rng_state()) != moves


def test_noise_on_a_gpu_is_held_too() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    problem, x = noisy(), torch.randn(6, 3, device="cuda")
    problem.pretrain.cuda(), problem.finetune.cuda()
    theta = {name: value.cuda() for name, value in problem.theta.items()}
    before = torch.cuda.get_rng_state()
    first = float(problem.pretrain_loss(theta, {}, x))
    assert first == float(problem.pretrain_loss(theta, {}, x))
    assert torch.equal(before, torch.cuda.get_rng_state())
    problem.at_step(1)
    assert first != float(problem.pretrain_loss(theta, {}, x))
