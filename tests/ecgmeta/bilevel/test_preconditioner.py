"""Adam's second moments as a preconditioner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Quadratic, relative_error
from torch import Tensor

from ecgmeta.bilevel import SGD, MetaState, Neumann, Schedule, Unroll, adam_preconditioner, meta_train
from ecgmeta.bilevel.trees import Tree

GRADIENTS = [torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[3.0, 1.0], [-0.25, 0.0]])]


def stepped(kind: Any, **settings: Any) -> tuple[torch.optim.Optimizer, Tree]:
    """An optimiser over two tensors in two groups that has taken two steps."""
    theta: Tree = {"w": torch.zeros(2, 2, requires_grad=True), "b": torch.zeros((), requires_grad=True)}
    groups = [{"params": [theta["w"]], "betas": (0.9, 0.8)}, {"params": [theta["b"]], "betas": (0.9, 0.5)}]
    optimizer = kind(groups, lr=0.1, **settings)
    for g in GRADIENTS:
        theta["w"].grad, theta["b"].grad = g.clone(), g[0, 0].clone()
        optimizer.step()
    return optimizer, theta


def second_moment(gradients: list[Tensor], beta: float) -> Tensor:
    """v̂ by its definition: a weighted mean of squares with weights βᵏ."""
    kept = torch.tensor([beta**k for k in range(len(gradients))]).flip(0)
    return sum(k * g.square() for k, g in zip(kept, gradients, strict=True)) / kept.sum()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_it_is_adams_own_with_the_bias_corrected_and_an_eps_of_its_own(kind: Any) -> None:
    optimizer, theta = stepped(kind)
    found = adam_preconditioner(optimizer, theta, eps=0.01)
    assert list(found) == ["w", "b"]
    torch.testing.assert_close(found["w"], 1 / (second_moment(GRADIENTS, 0.8).sqrt() + 0.01))
    torch.testing.assert_close(
        found["b"], 1 / (second_moment([g[0, 0] for g in GRADIENTS], 0.5).sqrt() + 0.01)
    )
    assert float(found["w"][1, 1]) == pytest.approx(100)  # never a gradient: eps alone
    assert not found["w"].requires_grad


def test_it_is_what_adams_step_multiplies_its_mean_with() -> None:
    theta = {"w": torch.zeros(2, 2, requires_grad=True)}
    optimizer = torch.optim.Adam(
        theta.values(), lr=0.1, betas=(0.0, 0.8), eps=1e-3
    )  # the mean is the gradient
    for g in GRADIENTS:
        before = theta["w"].detach().clone()
        theta["w"].grad = g.clone()
        optimizer.step()
    p = adam_preconditioner(optimizer, theta, eps=1e-3)["w"]
    torch.testing.assert_close(theta["w"].detach() - before, -0.1 * p * GRADIENTS[-1])


def test_amsgrad_uses_the_largest_moment() -> None:
    """``torch.optim`` corrects the bias of the running maximum by the present step's."""
    optimizer, theta = stepped(torch.optim.Adam, amsgrad=True)
    theta["w"].grad, theta["b"].grad = torch.zeros(2, 2), torch.zeros(())
    optimizer.step()
    moment = sum(0.2 * 0.8 ** (1 - k) * g.square() for k, g in enumerate(GRADIENTS))
    first = 0.2 * GRADIENTS[0].square()
    largest = torch.maximum(torch.as_tensor(moment), first) / (1 - 0.8**3)
    torch.testing.assert_close(
        adam_preconditioner(optimizer, theta, eps=0.1)["w"], 1 / (largest.sqrt() + 0.1)
    )


def test_each_solve_reads_the_moments_of_its_own_step() -> None:
    optimizer, theta = stepped(torch.optim.Adam)
    solver = Neumann(0, 1.0, preconditioner=lambda: adam_preconditioner(optimizer, theta, eps=0.1))
    v = {"w": torch.ones(2, 2), "b": torch.ones(())}
    first = solver(lambda t: t, v).value
    torch.testing.assert_close(first, adam_preconditioner(optimizer, theta, eps=0.1))
    theta["w"].grad, theta["b"].grad = torch.full((2, 2), 9.0), torch.tensor(9.0)
    optimizer.step()
    assert bool((solver(lambda t: t, v).value["w"] < 0.9 * first["w"]).all())


class Everything:
    """A quadratic has no batches."""

    def pretrain(self, step: int) -> None:
        return None

    def hyper(self, step: int, k: int) -> None:
        return None

    def train(self, step: int, k: int) -> str:
        return "train"

    def validation(self, step: int, k: int) -> str:
        return "validation"


def test_in_the_loop_it_follows_adam_and_gives_the_hypergradient_of_the_closed_form() -> None:
    problem = Quadratic.random(2, low=1.0, high=5.0)
    draw = torch.Generator().manual_seed(3)
    theta = {"w": torch.randn(6, generator=draw, dtype=torch.float64).requires_grad_()}
    phi = {"p": torch.randn(4, generator=draw, dtype=torch.float64).requires_grad_()}
    psi = {"h": torch.randn(3, generator=draw, dtype=torch.float64)}
    adam = torch.optim.Adam(theta.values(), lr=0.05)
    seen: list[Tensor] = []

    def diagonal() -> Tree:
        found = adam_preconditioner(adam, theta, eps=1.0)
        seen.append(found["w"])
        return found

    # P is at most 1/eps = 1 and λmax is 5, so α = 1/5 converges whatever the moments are.
    solver = Neumann(2000, 0.2, preconditioner=diagonal)
    state = MetaState(theta, phi, psi, adam, torch.optim.SGD(phi.values(), lr=1e-3))
    schedule = Schedule(steps=30, period=10, warmup=5)
    loop = meta_train(
        problem,
        state,
        Everything(),
        schedule=schedule,
        finetune=Unroll(2, SGD(0.3)),
        head_optimizer=SGD(0.3),
        inverse=solver,
    )
    for report in loop:
        if report.hyper is None:
            before, head = theta["w"].detach().clone(), state.psi["h"]
            continue
        assert report.hyper.ok, report.hyper.message
        # −MᵀH⁻¹ = Bᵀ at any θ, the loss being quadratic.
        expected = problem.B.T @ problem.v(before, head, 2, 0.3)
        assert relative_error(report.hyper.phi["p"], expected) < 1e-8
    assert len(seen) == 3
    assert not seen[0].allclose(seen[1], rtol=0.05)


def test_what_holds_no_second_moment_is_refused() -> None:
    optimizer, theta = stepped(torch.optim.Adam)
    with pytest.raises(ValueError, match="no second moment of 'other'"):
        adam_preconditioner(optimizer, {**theta, "other": torch.zeros(2)}, eps=1.0)
    with pytest.raises(ValueError, match="has it stepped"):
        adam_preconditioner(torch.optim.Adam(theta.values()), theta, eps=1.0)
    with pytest.raises(ValueError, match="is it Adam's"):
        adam_preconditioner(torch.optim.SGD(theta.values(), lr=0.1, momentum=0.9), theta, eps=1.0)
    with pytest.raises(ValueError, match="eps > 0"):
        adam_preconditioner(optimizer, theta, eps=0.0)
