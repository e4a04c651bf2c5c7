"""Product routes against each other, fine-tuning factors against finite differences, the spectrum against eigenvalues."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Quadratic
from torch import Tensor, nn
from torch.func import functional_call

from ecgmeta.bilevel import (
    SGD,
    Adam,
    CentralDifference,
    DoubleBackward,
    ForwardOverReverse,
    ImplicitHead,
    LowPrecision,
    Unroll,
    choose_products,
)
from ecgmeta.bilevel.implicit_head import leave_one_out
from ecgmeta.bilevel.probe import route_name
from ecgmeta.bilevel.products import Deferred
from ecgmeta.bilevel.storage import CompactGraph
from ecgmeta.bilevel.trees import Tree, axpy, detach, gradient, leaves, norm

X = torch.randn(10, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 9)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.transpose(1, 2)).chunk(3, dim=-1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


NETWORKS = {
    "batchnorm": lambda: nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)
    ),
    "layernorm": lambda: nn.Sequential(
        nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)
    ),
    "groupnorm": lambda: nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)
    ),
    "attention": lambda: nn.Sequential(Attention(), nn.Flatten(), nn.Linear(24, 2)),
}


def setting(name: str) -> tuple[Any, Tree, Tree, Tree]:
    torch.manual_seed(1)
    network = NETWORKS[name]().double().train()
    theta = detach(dict(network.named_parameters()))
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    phi = {"log_weight": torch.randn(10, dtype=torch.float64)}

    def loss(theta: Tree, phi: Tree) -> Tensor:
        out = functional_call(network, theta | {n: b.clone() for n, b in buffers.items()}, (X,))
        return (phi["log_weight"].exp() * (out - 1).square().sum(1)).mean()

    return loss, theta, phi, {n: torch.randn_like(v) for n, v in theta.items()}


def apart(a: Tree, b: Tree) -> float:
    return float(norm({n: a[n] - b[n] for n in a}) / norm(b))


@pytest.mark.parametrize("name", NETWORKS)
def test_central_differences_converge_to_double_backward_at_second_order(name: str) -> None:
    loss, theta, phi, u = setting(name)
    exact = DoubleBackward(loss, theta, phi)
    for product in ("hvp", "mixed"):
        errors = [
            apart(getattr(CentralDifference(step)(loss, theta, phi), product)(u), getattr(exact, product)(u))
            for step in (2e-3, 1e-3)
        ]
        assert errors[1] < 1e-4
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("name", ["batchnorm", "layernorm", "attention"])
def test_forward_over_reverse_equals_double_backward_and_brings_the_gradient(name: str) -> None:
    loss, theta, phi, u = setting(name)
    exact, forward = DoubleBackward(loss, theta, phi), ForwardOverReverse(loss, theta, phi)
    assert apart(forward.mixed(u), exact.mixed(u)) < 1e-12
    assert apart(forward.hvp(u), exact.hvp(u)) < 1e-12
    assert apart(forward.gradient, exact.gradient) < 1e-13
    torch.testing.assert_close(forward.loss, exact.loss)


def test_the_choice_of_route_is_measured_and_never_a_wrong_one() -> None:
    loss, theta, phi, _ = setting("groupnorm")
    coarse = CentralDifference(5.0)
    route, probes = choose_products(
        loss, theta, phi, candidates=[coarse, ForwardOverReverse, DoubleBackward], tolerance=1e-6
    )
    by_route = {id(p.route): p for p in probes}
    assert by_route[id(coarse)].error > 1e-6
    assert route is not coarse
    assert by_route[id(DoubleBackward)].error < 1e-12
    for p in probes:
        assert (p.error == float("inf")) == bool(p.failure)


def test_a_route_evaluates_the_recorded_loss_once() -> None:
    from contextlib import contextmanager

    loss, theta, phi, u = setting("layernorm")
    deferred = partial(Deferred, DoubleBackward)
    for route in (DoubleBackward, ForwardOverReverse, CentralDifference(), deferred):
        entered: list[int] = []

        @contextmanager
        def recording(entered: list[int] = entered) -> Any:
            entered.append(1)
            yield

        point = route(loss, theta, phi, recording())
        point.hvp(u)
        point.mixed(u)
        assert apart(point.gradient, DoubleBackward(loss, theta, phi).gradient) < 1e-12
        assert len(entered) == 1


@pytest.mark.parametrize("first", ["gradient", "hvp"])
def test_a_deferred_route_waits_for_its_first_product(first: str) -> None:
    loss, theta, phi, u = setting("batchnorm")
    taken: list[int] = []

    def route(*arguments: Any, **named: Any) -> DoubleBackward:
        taken.append(1)
        return DoubleBackward(*arguments, **named)

    exact, point = DoubleBackward(loss, theta, phi), Deferred(route, loss, theta, phi)
    if first == "gradient":
        assert torch.equal(point.loss, exact.loss)
        assert apart(point.gradient, exact.gradient) < 1e-14
        assert not taken
    assert apart(point.hvp(u), exact.hvp(u)) < 1e-14
    assert apart(point.mixed(u), exact.mixed(u)) < 1e-14
    assert apart(point.gradient, exact.gradient) < 1e-14
    assert torch.equal(point.loss, exact.loss)
    assert len(taken) == 1


class Regression:
    """A tanh layer under a linear head; targets known."""

    def __init__(self, outputs: int = 2) -> None:
        g = torch.Generator().manual_seed(4)
        self.x = {b: torch.randn(14, 3, generator=g, dtype=torch.float64) for b in ("train", "validation")}
        self.y = {
            b: (torch.randn(14, outputs, generator=g, dtype=torch.float64) > 0).double() for b in self.x
        }
        self.theta = {"w": torch.randn(5, 3, generator=g, dtype=torch.float64)}
        self.psi = {"head": torch.randn(outputs, 5, generator=g, dtype=torch.float64)}

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return theta["w"].square().sum()

    def features(self, theta: Tree, batch: Any) -> Tensor:
        return torch.tanh(self.x[batch] @ theta["w"].T)

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(features @ psi["head"].T, self.y[batch])

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def targets(self, batch: Any) -> Tensor:
        return self.y[batch]


def against_differences(problem: Regression, factor: Any, train: list[str], scale_fixed: Any = None) -> float:
    v = factor(problem, problem.theta, problem.psi, train, "validation").v["w"]
    found = torch.zeros_like(v)
    for i in range(v.numel()):
        ends = []
        for sign in (1, -1):
            moved = problem.theta["w"].clone()
            moved.view(-1)[i] += sign * 1e-6
            ends.append(factor(problem, {"w": moved}, problem.psi, train, "validation").validation_loss)
        found.view(-1)[i] = (ends[0] - ends[1]) / 2e-6
    return float((v - found).norm() / found.norm())


@pytest.mark.parametrize("optimizer", [SGD(0.3, momentum=0.5), Adam(0.05, eps=1e-3)])
@pytest.mark.parametrize("encoder", [False, True])
def test_unrolls_equal_differences_of_the_fine_tuned_loss(optimizer: Any, encoder: bool) -> None:
    factor = Unroll(3, optimizer, encoder=encoder)
    assert against_differences(Regression(), factor, ["train", "validation", "train"]) < 1e-6


def test_full_unroll_differs_from_the_head_alone() -> None:
    problem = Regression()
    found = [
        Unroll(3, SGD(0.5), encoder=e)(problem, problem.theta, problem.psi, ["train"] * 3, "validation").v[
            "w"
        ]
        for e in (False, True)
    ]
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 0.01


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 2, 2, 3, 1, 4]], ids=["alone", "groups"])
def test_leave_one_out_equals_refitting_without_each_example(groups: list[int] | None) -> None:
    g = torch.Generator().manual_seed(5)
    for n, d in ((9, 4), (6, 11)):
        f, y = (
            torch.randn(n, d, generator=g, dtype=torch.float64),
            torch.randn(n, 2, generator=g, dtype=torch.float64),
        )
        penalty = 0.3
        size = penalty * float((f - f.mean(0)).square().sum())
        errors = []
        of = list(range(n)) if groups is None else groups[:n]
        for i in range(n):
            kept = [k for k in range(n) if of[k] != of[i]]
            a = torch.cat([f[kept], torch.ones(len(kept), 1, dtype=torch.float64)], 1)
            ridge = size * torch.eye(d + 1, dtype=torch.float64)
            ridge[-1, -1] = 0
            w = torch.linalg.solve(a.T @ a + ridge, a.T @ y[kept])
            errors.append(y[i] - torch.cat([f[i], torch.ones(1, dtype=torch.float64)]) @ w)
        found = leave_one_out(f, y, penalty, None if groups is None else torch.tensor(of))
        torch.testing.assert_close(found, torch.stack(errors).square().mean())


def test_one_group_leaves_nothing_to_fit() -> None:
    f, y = torch.randn(5, 3), torch.randn(5, 2)
    assert leave_one_out(f, y, 0.3, torch.zeros(5)).isnan()
    assert leave_one_out(f, y, 0.3, torch.tensor([0, 0, 0, 0, 1])).isfinite()


def test_the_logistic_head_is_differentiated_at_its_optimum() -> None:
    # The penalty's scale is a constant of the derivative, so it is held fixed in the differences by features of equal norm.
    class Normed(Regression):
        def features(self, theta: Tree, batch: Any) -> Tensor:
            f = super().features(theta, batch)
            f = f - f.mean(0)
            return f / f.square().sum(1).mean().sqrt()

    problem = Normed()
    assert against_differences(problem, ImplicitHead("logistic", penalty=0.2), ["train"]) < 1e-5
    assert against_differences(problem, ImplicitHead("ridge", penalty=0.2), []) < 1e-5


def test_the_implicit_head_needs_targets() -> None:
    with pytest.raises(TypeError, match="targets"):
        ImplicitHead()(Quadratic.random(0), {"w": torch.zeros(6)}, {}, [], "validation")
    with pytest.raises(ValueError, match="penalty > 0"):
        ImplicitHead(penalty=0.0)


def test_low_precision_products_keep_the_gradient_exact_and_lie_within_their_precision() -> None:
    x, theta, phi = _mlp()

    def loss(t: Tree, p: Tree) -> Tensor:
        hidden = torch.tanh(x @ t["a"] * p["gain"])
        return (hidden @ t["b"]).logsumexp(1).mean() + 0.1 * (t["a"].square().sum() + t["b"].square().sum())

    u = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(9))
        for name, value in theta.items()
    }
    exact, low = DoubleBackward(loss, theta, phi), LowPrecision()(loss, theta, phi)
    assert low.loss.equal(exact.loss)
    assert all(low.gradient[name].equal(value) for name, value in exact.gradient.items())
    for found, expected in ((low.hvp(u), exact.hvp(u)), (low.mixed(u), exact.mixed(u))):
        assert all(value.dtype == torch.float32 for value in found.values())
        error = float(norm(axpy(-1.0, expected, found)) / norm(expected))
        assert 1e-4 < error < 2e-2  # that of bfloat16: neither exact nor wrong
    again = low.hvp(u)
    assert all(again[name].equal(value) for name, value in low.hvp(u).items())


def test_a_compact_graph_keeps_what_it_saves_in_low_precision_after_one_reading() -> None:
    x, theta, _ = _mlp()
    phi = {"scale": torch.ones(64, 80)}
    graph = CompactGraph(torch.bfloat16, [*theta.values(), *phi.values()])
    nodes = leaves(theta)
    with graph.loss():
        augmented = torch.sin(x * leaves(phi)["scale"])
        value = (torch.tanh(augmented @ nodes["a"]) @ nodes["b"]).square().mean()
    kept = list({id(k): k for k in graph._kept.values()}.values())
    assert [k.value.dtype for k in kept] == [torch.float32] * len(kept)
    # x and the sine's argument (which the gradient of θ never reads), the sine, tanh, output; no parameter.
    assert sorted(tuple(k.value.shape) for k in kept) == [(64, 70), *3 * [(64, 80)], (64, 96)]
    with graph.gradient():
        gradient(value, nodes, create_graph=True)
    assert {k.value.dtype for k in kept} == {torch.bfloat16}
    assert not graph._kept


def _mlp() -> tuple[Tensor, Tree, Tree]:
    g = torch.Generator().manual_seed(8)
    x = torch.randn(64, 80, generator=g)
    theta = {"a": 0.1 * torch.randn(80, 96, generator=g), "b": 0.1 * torch.randn(96, 70, generator=g)}
    return x, theta, {"gain": 1 + 0.1 * torch.randn(96, generator=g)}


def test_low_precision_is_no_candidate_where_the_numbers_are_double() -> None:
    loss, theta, phi, _ = setting("layernorm")
    _, probes = choose_products(loss, theta, phi)
    assert [route_name(p.route) for p in probes] == ["double_backward", "forward_over_reverse"]
    x, theta, phi = _mlp()
    _, probes = choose_products(
        lambda t, p: (torch.tanh(x @ t["a"] * p["gain"]) @ t["b"]).square().mean(), theta, phi
    )
    assert [route_name(p.route) for p in probes] == [
        "double_backward",
        "forward_over_reverse",
        "low_precision",
    ]
    assert all(p.error < 3e-2 for p in probes)


def test_every_label_counts_alike_in_the_ridge_head() -> None:
    problem, scaled = Regression(3), Regression(3)
    for each in (problem, scaled):
        each.y["validation"][:, 2] = 0.3  # a label that everybody has says nothing
    scaled.y["validation"] = scaled.y["validation"] * torch.tensor([0.01, 7.0, 1.0]) + 2
    expected, found = (
        ImplicitHead()(each, each.theta, each.psi, [], "validation") for each in (problem, scaled)
    )
    torch.testing.assert_close(found.v["w"], expected.v["w"])
    assert float(norm(expected.v)) > 1e-3
