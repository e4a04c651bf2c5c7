"""The check of a hypergradient passes the right settings, and names what is wrong with the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Quadratic

from ecgmeta.bilevel import SGD, Check, Neumann, Unroll, check_hypergradient
from ecgmeta.bilevel.trees import Tree


class WrongSign(Quadratic):
    def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
        return {"p": (self.A @ self.B).T @ u["w"]}  # the true Mᵀu is −(AB)ᵀu


def check(kind: type[Quadratic], terms: int = 80, alpha: float = 0.4, away: float = 0.0) -> Check:
    problem = kind.random(0, low=1.0, high=3.0)
    phi, psi = torch.ones(4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    theta = problem.B @ phi + away
    kept = theta.clone()
    found = check_hypergradient(
        problem, {"w": theta}, {"p": phi}, {"h": psi}, pretrain_batch=None, train_batches=["train"] * 2,
        val_batch="validation", finetune=Unroll(2, SGD(0.3)), inverse=Neumann(terms, alpha),
        inner_steps=60, inner_lr=0.4,
    )  # fmt: skip
    torch.testing.assert_close(theta, kept, rtol=0, atol=0)
    return found


def test_right_settings_are_ok() -> None:
    found = check(Quadratic)
    assert found.ok, found.verdict
    assert max(found.unroll_error, found.difference_error, found.reference_error) < 1e-6


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"kind": Quadratic, "alpha": 1.0}, "smaller step_size"),
        ({"kind": Quadratic, "terms": 1}, "more terms"),
        ({"kind": Quadratic, "away": 1.0}, "θ is not converged"),
        ({"kind": WrongSign}, "mixed product is wrong"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], hint: str) -> None:
    found = check(**settings)
    assert not found.ok
    assert hint in found.verdict
