"""Functional optimisers against ``torch.optim`` and against finite differences of their own steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ecgmeta.bilevel import SGD, Adam

PAIRS: list[tuple[Any, Any, dict[str, Any]]] = [
    (SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    (
        SGD(0.1, momentum=0.8, weight_decay=0.3),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.3},
    ),
    (Adam(0.01), torch.optim.Adam, {"lr": 0.01}),
    (
        Adam(0.05, betas=(0.7, 0.9), eps=1e-2, weight_decay=0.2),
        torch.optim.Adam,
        {"lr": 0.05, "betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.2},
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "settings"), PAIRS)
def test_steps_equal_torch_optim(ours: Any, theirs: Any, settings: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(0)
    params = {
        "a": torch.randn(3, generator=g, dtype=torch.float64),
        "b": torch.randn(2, 2, generator=g, dtype=torch.float64),
    }
    live = {name: value.clone().requires_grad_() for name, value in params.items()}
    reference = theirs(live.values(), **settings)
    state = ours.init(params)
    for _ in range(6):
        grads = {
            name: torch.randn(value.shape, generator=g, dtype=torch.float64) for name, value in params.items()
        }
        grads["a"][0] = 0.0  # a coordinate that never gets a gradient
        for name, value in live.items():
            value.grad = grads[name].clone()
        reference.step()
        params, state = ours.update(params, grads, state)
        for name, value in live.items():
            torch.testing.assert_close(params[name], value.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [pair[0] for pair in PAIRS])
def test_three_steps_are_differentiable_twice(optimizer: Any) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 4, generator=g, dtype=torch.float64)

    def trained(x: Tensor) -> Tensor:
        params, state = {"w": x}, optimizer.init({"w": x.detach()})
        for target in targets:
            params, state = optimizer.update(params, {"w": (params["w"] - target) ** 3}, state)
        return params["w"]

    assert torch.autograd.gradcheck(trained, x)
    assert torch.autograd.gradgradcheck(trained, x)


def test_adam_has_a_finite_and_right_derivative_where_no_gradient_ever_came() -> None:
    grad = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam = Adam(0.1, eps=1e-2)
    params, _ = adam.update(
        {"w": torch.zeros(2, dtype=torch.float64)}, {"w": grad}, adam.init({"w": grad.detach()})
    )
    (slope,) = torch.autograd.grad(params["w"].sum(), grad)
    # One step from rest: Δ = −lr·g/(|g|+eps), whose slope at 0 is −lr/eps.
    torch.testing.assert_close(slope, torch.full_like(slope, -0.1 / 1e-2))
