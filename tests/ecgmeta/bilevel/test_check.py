"""The check of a hypergradient passes the right settings, and names what is wrong with the others."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from problems import Quadratic
from torch import Tensor

from ecgmeta.bilevel import SGD, Check, ConjugateGradient, Neumann, Unroll, check_hypergradient
from ecgmeta.bilevel.trees import Tree
from ecgmeta.bilevel.unroll import FinetuneGradient


class Supplied(Quadratic):
    """Its own Mᵀu, ``factor`` times the true one, which is −(AB)ᵀu."""

    factor = 1.0

    def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
        return {"p": -self.factor * (self.A @ self.B).T @ u["w"]}


class WrongSign(Supplied):
    factor = -1.0


class Twice(Supplied):
    factor = 2.0


class NoisyPretraining(Quadratic):
    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return super().pretrain_loss(theta, phi, batch) + 1e-3 * torch.rand(()) * theta["w"].sum()


class NoisyFinetuning(Quadratic):
    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return super().finetune_loss(theta, psi, batch) * (1 + 1e-3 * torch.rand(()))


class Detached(Quadratic):
    """A validation loss that hides a part of its dependence on θ."""

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        hidden = theta["w"].detach() if batch == "validation" else theta["w"]
        return super().finetune_loss({"w": hidden}, psi, batch)


class Single(Quadratic):
    """The same problem in float32, which can turn itself to float64."""

    def double(self) -> None:
        turn(self, torch.float64)


def turn(problem: Quadratic, dtype: torch.dtype) -> None:
    for field in fields(problem):
        setattr(problem, field.name, getattr(problem, field.name).to(dtype))


def check(
    kind: type[Quadratic] = Quadratic,
    inverse: Any = None,
    away: float = 0.0,
    low: float = 1.0,
    problem: Quadratic | None = None,
    phi: Tensor | None = None,
    **settings: Any,
) -> Check:
    problem = problem or kind.random(0, low=low, high=3.0)
    dtype = problem.A.dtype
    phi, psi = torch.ones(4, dtype=dtype) if phi is None else phi, torch.ones(3, dtype=dtype)
    theta = problem.B @ phi + away
    kept = theta.clone()
    given: dict[str, Any] = {
        "finetune": Unroll(2, SGD(0.3)), "inverse": inverse or Neumann(80, 0.4), "inner_steps": 60, "inner_lr": 0.4,
    }  # fmt: skip
    found = check_hypergradient(
        problem, {"w": theta}, {"p": phi}, {"h": psi}, pretrain_batch=None, train_batches=["train"] * 2,
        val_batch="validation", **{**given, **settings},
    )  # fmt: skip
    torch.testing.assert_close(theta, kept, rtol=0, atol=0)
    return found


@pytest.mark.parametrize("kind", [Quadratic, Supplied])
def test_right_settings_are_ok(kind: type[Quadratic]) -> None:
    found = check(kind)
    assert found.ok, found.verdict
    assert "too few" not in found.verdict
    assert max(found.unroll_error, found.difference_error, found.reference_error) < 1e-6
    assert max(found.residual, found.reference_residual, found.repeat_error, found.mixed_error) < 1e-10
    assert found.mixed_scale == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"inverse": Neumann(80, 1.0)}, "smaller step_size"),
        ({"inverse": Neumann(1, 0.4)}, "more terms"),
        ({"away": 1.0}, "θ is not converged"),
        ({"kind": WrongSign}, "the problem's mixed_product is wrong: .* -1 times; check its sign and scale"),
        ({"kind": Twice}, "the problem's mixed_product is wrong: .* 2 times; check its sign and scale"),
        ({"inner_steps": 4}, "inner_steps are too few: its own residual is 8.2e-02"),
        ({"kind": Twice, "inner_steps": 4}, "mixed_product is wrong"),  # a fault in itself comes first
        # A flat direction, which N steps hardly touch and 2N hardly more: seen in the residual, not in the change.
        ({"low": 1e-4, "inverse": ConjugateGradient(6)}, "inner_steps are too few"),
        ({"inner_lr": 4.0}, "inner steps diverge.* smaller inner_lr"),
        ({"inner_lr": 1e200}, "not finite; try a smaller inner_lr"),
        ({"kind": NoisyPretraining}, "not the same function at every call"),
        ({"kind": NoisyFinetuning}, "not the same function at every call"),
        ({"kind": Detached}, "detach"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], hint: str) -> None:
    found = check(**settings)
    assert not found.ok
    assert re.search(hint, found.verdict), found.verdict


def test_a_route_that_is_as_short_as_its_reference_agrees_and_is_told_so() -> None:
    """A Neumann series of N terms with the inner step size is the N-step unroll, converged or not."""
    found = check(inverse=Neumann(3, 0.4), inner_steps=4)
    assert found.unroll_error < 1e-10
    assert found.ok
    assert "too few" in found.verdict
    assert found.reference_residual == pytest.approx(found.residual)


def test_a_problem_in_float32_is_checked_in_float32_or_in_a_float64_copy() -> None:
    problem = Single.random(0, low=1.0, high=3.0)
    turn(problem, torch.float32)
    in_single = check(problem=problem, double=False, step=0.1)
    assert in_single.ok, in_single.verdict
    assert 1e-8 < in_single.unroll_error < 1e-4  # float32's rounding, which float64 would not leave
    in_double = check(problem=problem)
    assert in_double.ok, in_double.verdict
    assert in_double.mixed_error == 0
    assert in_double.residual < 1e-10 < in_single.residual
    assert problem.A.dtype == torch.float32


def test_numbers_relative_to_zero_are_finite_in_float32() -> None:
    problem = Quadratic.random(0, low=1.0, high=3.0)
    turn(problem, torch.float32)
    at_zero = check(problem=problem, phi=torch.zeros(4), double=False, step=0.1)  # θ* = 0, so ‖θ‖ = 0
    assert at_zero.ok, at_zero.verdict
    assert at_zero.drift == 0
    problem.C, problem.D = problem.C * 0, problem.D * 0  # v = 0, so everything after it is
    nothing = check(problem=problem, double=False)
    assert nothing.ok, nothing.verdict
    assert (nothing.residual, nothing.unroll_error, nothing.mixed_error) == (0, 0, 0)


@dataclass(frozen=True)
class Recorder:
    """Fine-tuning that writes down the head state it is given."""

    seen: list[Any]
    train_batches = 2

    def __call__(
        self, problem: Any, theta: Any, psi: Any, train: Sequence[Any], val: Any, head_state: Any = None,
        reduce: Any = None,
    ) -> FinetuneGradient:  # fmt: skip
        self.seen.append(copy.deepcopy(head_state))
        return Unroll(2, SGD(0.3, momentum=0.8))(problem, theta, psi, train, val, head_state)


def test_the_warm_head_state_is_passed_on_everywhere() -> None:
    seen: list[Any] = []
    warm = {"momentum": {"h": torch.tensor([1.0, -2.0, 3.0])}}
    found = check(finetune=Recorder(seen), head_state=warm, directions=2)
    assert found.ok, found.verdict
    assert len(seen) == 2 * 4 + 3  # two directions, two steps, two signs; the route, the unroll, the repeat
    expected = {"momentum": {"h": warm["momentum"]["h"].double()}}
    for state in seen:
        torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert warm["momentum"]["h"].dtype == torch.float32


@pytest.mark.parametrize("settings", [{"inner_steps": 0}, {"directions": 0}])
def test_a_check_needs_steps_and_directions(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        check(**settings)
