"""Task weights of multitask least squares against the two-stage hypergradient by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Multitask, relative_error

from ecgmeta.bilevel import SGD, ConjugateGradient, Unroll, hypergradient


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
