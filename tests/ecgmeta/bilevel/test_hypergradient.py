"""The hypergradient against closed forms, by value and by the rate at which it converges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Quadratic, Ridge, relative_error
from torch import Tensor

from ecgmeta.bilevel import SGD, Adam, Identity, Neumann, Unroll, hypergradient
from ecgmeta.bilevel.trees import Tree


def _of_quadratic(problem: Quadratic, phi: Tensor, psi: Tensor, steps: int, lr: float, inverse: Any) -> Any:
    return hypergradient(
        problem,
        {"w": problem.B @ phi},
        {"p": phi},
        {"h": psi},
        pretrain_batch=None,
        train_batches=["train"] * steps,
        val_batch="validation",
        finetune=Unroll(steps, SGD(lr)),
        inverse=inverse,
    )


def _draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), steps=st.integers(0, 5), lr=st.floats(0.01, 0.9), n=st.integers(1, 8))
def test_quadratic_two_stage_hypergradient_equals_its_closed_form(
    seed: int, steps: int, lr: float, n: int
) -> None:
    problem = Quadratic.random(seed, n=n, low=1.0, high=2.0)
    phi, psi = _draw(4, seed + 1), _draw(3, seed + 2)
    found = _of_quadratic(problem, phi, psi, steps, lr, Neumann(terms=60, step_size=1 / 1.5))
    expected = problem.hypergradient(phi, psi, steps, lr)
    assert (found.phi["p"] - expected).norm() <= 1e-9 * (1 + expected.norm())
    assert found.ok
    torch.testing.assert_close(found.finetune.v["w"], problem.v(problem.B @ phi, psi, steps, lr))


def test_neumann_hypergradient_converges_at_the_rate_one_minus_alpha_lambda_min() -> None:
    problem = Quadratic.random(3, low=1.0, high=10.0)
    phi, psi, alpha = _draw(4, 1), _draw(3, 2), 0.1
    expected = problem.hypergradient(phi, psi, 2, 0.3)
    errors = [
        float((_of_quadratic(problem, phi, psi, 2, 0.3, Neumann(j, alpha)).phi["p"] - expected).norm())
        for j in (60, 61, 80)
    ]
    rate = 1 - alpha * 1.0
    assert errors[1] / errors[0] == pytest.approx(rate, rel=1e-3)
    assert errors[2] / errors[0] == pytest.approx(rate**20, rel=1e-2)


def test_identity_is_neumann_without_terms() -> None:
    problem = Quadratic.random(5)
    phi, psi = _draw(4, 1), _draw(3, 2)
    identity = _of_quadratic(problem, phi, psi, 1, 0.5, Identity(step_size=0.07))
    neumann = _of_quadratic(problem, phi, psi, 1, 0.5, Neumann(0, 0.07))
    torch.testing.assert_close(identity.phi, neumann.phi, rtol=0, atol=0)
    # By hand: −Mᵀ(αv) = α (AB)ᵀ v.
    v = problem.v(problem.B @ phi, psi, 1, 0.5)
    torch.testing.assert_close(identity.phi["p"], 0.07 * (problem.A @ problem.B).T @ v)


def test_ridge_per_feature_penalty_equals_its_closed_form() -> None:
    problem = Ridge.random(0)
    phi = _draw(5, 7)
    expected = problem.hypergradient(phi)
    top = float(torch.linalg.eigvalsh(problem.hessian(phi))[-1])
    found = hypergradient(
        problem,
        {"w": problem.solution(phi)},
        {"log_penalty": phi},
        {},
        pretrain_batch=None,
        train_batches=[],
        val_batch=None,
        finetune=Unroll(0, SGD(1.0)),
        inverse=Neumann(400, 1 / top),
    )
    assert relative_error(found.phi["log_penalty"], expected) < 1e-9
    for i in range(
        5
    ):  # and both equal a central difference of the whole: penalty -> ridge solution -> validation loss
        step = torch.zeros(5, dtype=torch.float64)
        step[i] = 1e-5
        high, low = (
            problem.finetune_loss({"w": problem.solution(phi + s * step)}, {}, None) for s in (1.0, -1.0)
        )
        assert float((high - low) / 2e-5) == pytest.approx(float(expected[i]), rel=1e-6)


class TwoLayer:
    """``tanh`` network whose examples are weighted by φ in pre-training; fine-tuning trains a head on its hidden layer."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.x, self.y = draw(12, 3), draw(12, 2)
        self.x_ft = {"train": draw(8, 3), "validation": draw(8, 3)}
        self.y_ft = {"train": draw(8), "validation": draw(8)}
        self.theta0 = {"w1": 0.5 * draw(4, 3), "w2": 0.5 * draw(2, 4)}
        self.phi = {"log_weight": 0.3 * draw(12), "log_decay": torch.tensor(-1.5, dtype=torch.float64)}
        self.psi = {"head": draw(4)}

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        errors = (torch.tanh(self.x @ theta["w1"].T) @ theta["w2"].T - self.y).square().sum(1)
        decay = sum(w.square().sum() for w in theta.values())
        return (phi["log_weight"].exp() * errors).mean() + phi["log_decay"].exp() * decay

    def features(self, theta: Tree, batch: Any) -> Tensor:
        return torch.tanh(self.x_ft[batch] @ theta["w1"].T)

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor:
        return (features @ psi["head"] - self.y_ft[batch]).square().mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def pretrained(self, phi: Tree, start: Tree, descent: int = 0) -> Tree:
        """``θ*(φ)``: some gradient descent into a basin, then Newton's method to machine precision."""
        shapes = {name: value.shape for name, value in start.items()}
        flat = torch.cat([value.reshape(-1) for value in start.values()])

        def unflatten(z: Tensor) -> Tree:
            parts = z.split([s.numel() for s in shapes.values()])
            return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

        def loss(z: Tensor) -> Tensor:
            return self.pretrain_loss(unflatten(z), phi, None)

        for _ in range(descent):
            flat = flat - 0.1 * torch.func.grad(loss)(flat)
        for _ in range(6):
            flat = flat - torch.linalg.solve(torch.func.hessian(loss)(flat), torch.func.grad(loss)(flat))
        assert float(torch.func.grad(loss)(flat).norm()) < 1e-12
        return unflatten(flat)

    def two_stage(self, phi: Tree, start: Tree, steps: int, optimizer: Any) -> Tensor:
        """The whole procedure: pre-train to convergence, fine-tune the head K steps, validation loss."""
        theta, psi = self.pretrained(phi, start), dict(self.psi)
        state = optimizer.init(psi)
        for _ in range(steps):
            grads = torch.func.grad(lambda p: self.finetune_loss(theta, p, "train"))(psi)
            psi, state = optimizer.update(psi, grads, state)
        return self.finetune_loss(theta, psi, "validation")


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(SGD(0.2), marks=pytest.mark.slow),
        pytest.param(SGD(0.1, momentum=0.7, weight_decay=0.05), marks=pytest.mark.slow),
        Adam(0.15, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.02),
    ],
)
def test_small_network_against_finite_differences_of_the_whole_procedure(optimizer: Any) -> None:
    problem = TwoLayer(0)
    theta = problem.pretrained(problem.phi, problem.theta0, descent=300)
    found = hypergradient(
        problem,
        theta,
        problem.phi,
        problem.psi,
        pretrain_batch=None,
        train_batches=["train"] * 4,
        val_batch="validation",
        finetune=Unroll(4, optimizer),
        inverse=Neumann(4000, 0.12),
    )
    assert found.ok, found.message
    errors, scale = [], []
    for name, value in problem.phi.items():
        for i in range(value.numel()):
            ends = []
            for sign in (1.0, -1.0):
                moved = value.clone()
                moved.view(-1)[i] += sign * 1e-4
                ends.append(problem.two_stage({**problem.phi, name: moved}, theta, 4, optimizer))
            difference = float(ends[0] - ends[1]) / 2e-4
            errors.append(difference - float(found.phi[name].view(-1)[i]))
            scale.append(difference)
    assert torch.tensor(errors).norm() / torch.tensor(scale).norm() < 1e-5


def test_features_route_equals_the_route_through_the_whole_loss() -> None:
    problem, adam = TwoLayer(1), Adam(0.1)
    _, warm = adam.update(problem.psi, {"head": torch.ones(4, dtype=torch.float64)}, adam.init(problem.psi))

    class Whole:  # the same problem without the split
        pretrain_loss = staticmethod(problem.pretrain_loss)
        finetune_loss = staticmethod(problem.finetune_loss)

    results = [
        hypergradient(
            p,
            problem.theta0,
            problem.phi,
            problem.psi,
            pretrain_batch=None,
            train_batches=["train", "validation", "train"],
            val_batch="validation",
            finetune=Unroll(3, adam),
            inverse=Neumann(2, 0.05),
            head_state=warm,
        )
        for p in (problem, Whole())
    ]
    torch.testing.assert_close(results[0].phi, results[1].phi, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(results[0].finetune.v, results[1].finetune.v, rtol=1e-12, atol=1e-15)
    assert results[0].diagnostics().keys() == results[1].diagnostics().keys()


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    problem = Quadratic.random(0)
    problem.t = problem.t * float("nan")
    with pytest.raises(FloatingPointError, match="validation loss is nan"):
        _of_quadratic(problem, _draw(4, 1), _draw(3, 2), 1, 0.5, Identity())


def test_an_unroll_with_the_wrong_number_of_batches_is_an_error() -> None:
    problem = Quadratic.random(0)
    with pytest.raises(ValueError, match="3 steps needs as many train batches, got 1"):
        hypergradient(
            problem,
            {"w": problem.B @ _draw(4, 1)},
            {"p": _draw(4, 1)},
            {"h": _draw(3, 2)},
            pretrain_batch=None,
            train_batches=["train"],
            val_batch="validation",
            finetune=Unroll(3, SGD(0.1)),
            inverse=Identity(),
        )
