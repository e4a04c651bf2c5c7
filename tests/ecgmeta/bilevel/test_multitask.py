"""Task weights of multitask least squares against the two-stage hypergradient by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Multitask, relative_error

from ecgmeta.bilevel import SGD, ConjugateGradient, Neumann, Unroll, hypergradient


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), tasks=st.integers(1, 4), d=st.integers(1, 6), steps=st.integers(0, 4))
def test_cg_is_exact_in_as_many_steps_as_dimensions(seed: int, tasks: int, d: int, steps: int) -> None:
    problem = Multitask.random(seed, tasks=tasks, n=12, d=d)
    phi, psi = torch.linspace(-0.5, 0.5, tasks, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    found = hypergradient(
        problem, {"w": problem.solution(phi)}, {"log_weight": phi}, {"h": psi}, pretrain_batch=None,
        train_batches=["train"] * steps, val_batch="validation", finetune=Unroll(steps, SGD(0.3)),
        inverse=ConjugateGradient(d),
    )  # fmt: skip
    assert relative_error(found.phi["log_weight"], problem.hypergradient(phi, psi, steps, 0.3)) < 1e-8


def test_neumann_converges_at_the_rate_one_minus_alpha_lambda_min() -> None:
    problem = Multitask.random(2, n=30)
    phi, psi = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(problem.hessian(phi))
    alpha = 1 / float(eigenvalues[-1])  # so that the slowest mode is the flattest
    expected = problem.hypergradient(phi, psi, 2, 0.3)

    def error(terms: int) -> float:
        found = hypergradient(
            problem, {"w": problem.solution(phi)}, {"log_weight": phi}, {"h": psi}, pretrain_batch=None,
            train_batches=["train"] * 2, val_batch="validation", finetune=Unroll(2, SGD(0.3)),
            inverse=Neumann(terms, alpha),
        )  # fmt: skip
        return float((found.phi["log_weight"] - expected).norm())

    rate = 1 - alpha * float(eigenvalues[0])
    assert rate < 0.9  # else the modes are not apart, and the ratios say nothing
    first, second, last = error(20), error(21), error(30)
    assert second / first == pytest.approx(rate, rel=1e-3)
    assert last / first == pytest.approx(rate**10, rel=1e-2)


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_every_setting_off_its_default_against_the_two_stages_by_hand(steps: int, encoder: bool) -> None:
    problem = Multitask.random(4)
    problem.decay = 0.3
    phi = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
    psi, buffer = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -0.7]], dtype=torch.float64)
    w = problem.solution(phi)
    diagonal = torch.tensor([0.5, 1.0, 1.5, 0.8], dtype=torch.float64)
    damping, lr, momentum, decay = 0.2, 0.07, 0.6, 0.15
    shifted = problem.hessian(phi) + damping * torch.eye(4, dtype=torch.float64)
    top = float(torch.linalg.eigvalsh(diagonal.sqrt()[:, None] * shifted * diagonal.sqrt())[-1])
    found = hypergradient(
        problem, {"w": w}, {"log_weight": phi}, {"h": psi}, pretrain_batch=None, train_batches=["train"] * steps,
        val_batch="validation", head_state={"momentum": {"h": buffer}},
        finetune=Unroll(steps, SGD(lr, momentum=momentum, weight_decay=decay), encoder=encoder),
        inverse=Neumann(
            400, 1.5 / top, damping=damping, exact_residual=True, growth=3.0, preconditioner=lambda: {"w": diagonal}
        ),
    )  # fmt: skip
    v = problem.stage.v_momentum(
        w, psi, buffer, steps, lr=lr, momentum=momentum, decay=decay, encoder=encoder
    )
    torch.testing.assert_close(found.finetune.v["w"], v, rtol=1e-12, atol=1e-12)
    assert relative_error(found.phi["log_weight"], problem.pull_back(phi, v, damping)) < 1e-9
