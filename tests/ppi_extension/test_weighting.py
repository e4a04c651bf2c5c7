"""The weighting rules: what each step does by a second route, and what they all share."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from ego_batches import ego_batch
from test_task_problem import FINETUNE, TASKS, Fixed, direction, make
from torch import Tensor

from ecgmeta.bilevel.trees import Tree, clone, dot, flatten, gradient, norm
from ecgmeta.runtime.errors import InputError
from ppi_extension.gnn import TaskHead
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting import RULES, Cosine, Famo, Uncertainty, Weighting, create, train
from ppi_extension.weighting.cotrain import aggregator, project

SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"weights": [0.0, 0.5, 1.0, 1.5, 2.0, 1.0, 1.0]},
    "uncertainty": {"lr": 0.1},
    "cosine": {"period": 2, "lr": 0.1},
}


def rule_of(name: str, **settings: Any) -> Weighting:
    return create(name, TASKS, **(SETTINGS.get(name, {}) | settings))


def setting(rule: Weighting, lr: float = 1e-2) -> tuple[TaskProblem, torch.optim.Optimizer]:
    problem = make(finetune_mode=rule.finetune_mode)
    return problem, torch.optim.Adam(problem.theta.values(), lr)


def everything(problem: TaskProblem) -> Tree:
    return clone(problem.pretrain.state_dict()) | {
        f"finetune.{n}": v for n, v in clone(problem.finetune.state_dict()).items()
    }


@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str) -> None:
    rule = rule_of(name)
    problem, optimizer = setting(rule)
    for report in train(rule, problem, optimizer, Fixed(), steps=3):
        assert report.loss == report.loss
    buffer = io.BytesIO()
    torch.save([everything(problem), optimizer.state_dict(), rule.state_dict()], buffer)
    list(train(rule, problem, optimizer, Fixed(), start=3, steps=6))

    again = rule_of(name)
    other, other_optimizer = setting(again)
    buffer.seek(0)
    modules, of_theta, of_rule = torch.load(buffer, weights_only=True)
    own = {n: v for n, v in modules.items() if not n.startswith("finetune.")}
    other.pretrain.load_state_dict(own)
    other.finetune.load_state_dict({n[9:]: v for n, v in modules.items() if n.startswith("finetune.")})
    other_optimizer.load_state_dict(of_theta)
    again.load_state_dict(of_rule)
    list(train(again, other, other_optimizer, Fixed(), start=3, steps=6))
    for (key, found), expected in zip(everything(other).items(), everything(problem).values(), strict=True):
        assert torch.equal(found, expected), key
    assert torch.equal(again.weights(), rule.weights())


@pytest.mark.parametrize("name", RULES)
def test_a_step_moves_theta_and_only_what_it_should(name: str) -> None:
    rule = rule_of(name)
    problem, optimizer = setting(rule)
    before = everything(problem)
    (report,) = train(rule, problem, optimizer, Fixed(), steps=1)
    after = everything(problem)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert set(problem.theta) <= moved | {n for n in before if n.endswith("hidden.bias")}
    assert "task_weights.z" not in moved
    assert ("finetune.head.weight" in moved) == rule.reads_finetune
    passes = 2 if rule.finetune_mode == "train" else 1  # of the encoder that record their statistics
    assert int(after["encoder.layers.0.norm.num_batches_tracked"]) == passes
    assert (report.finetune_loss is None) == (not rule.reads_finetune)
    problem_again, _ = setting(rule)
    problem_again.at_step(0)
    losses = problem_again.task_losses(problem_again.theta, Fixed().pretrain(0))
    assert report.pretrain_loss == pytest.approx(float(losses.detach().mean()), rel=1e-12)
    assert rule.weights().shape == (TASKS,)
    assert all(value.grad is None for value in problem.theta.values())


@pytest.mark.parametrize("name", ["uniform", "fixed", "random"])
def test_fixed_weights_are_a_plain_step_of_the_weighted_mean(name: str) -> None:
    rule = rule_of(name)
    problem, _ = setting(rule)
    twin = make()
    list(train(rule, problem, torch.optim.SGD(problem.theta.values(), 0.1), Fixed(), steps=1))
    twin.at_step(0)
    losses = twin.task_losses(twin.theta, Fixed().pretrain(0))
    loss = sum(float(w) * loss for w, loss in zip(rule.weights(), losses, strict=True)) / TASKS
    for (n, value), slope in zip(
        twin.theta.items(), torch.autograd.grad(loss, list(twin.theta.values())), strict=True
    ):
        torch.testing.assert_close(problem.theta[n], value - 0.1 * slope, rtol=1e-10, atol=1e-12)


def test_random_weights_are_drawn_from_zero_to_two_by_their_seed() -> None:
    weights = create("random", 4000, seed=1).weights()
    assert float(weights.min()) > 0
    assert float(weights.max()) < 2
    assert float(weights.mean()) == pytest.approx(1, abs=0.05)
    assert float(weights.std()) == pytest.approx(2 / 12**0.5, abs=0.02)
    assert torch.equal(weights, create("random", 4000, seed=1).weights())
    assert not torch.equal(weights, create("random", 4000, seed=2).weights())


@pytest.mark.slow
def test_log_variances_follow_torchjds_uncertainty_weighting_and_end_at_the_inverse_losses() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    rule = Uncertainty(TASKS, lr=0.05)
    problem, _ = setting(rule)
    still = torch.optim.SGD(problem.theta.values(), 0.0)
    batch = ego_batch(0, pretrain=TASKS, unlabelled=0.0)
    problem.at_step(0)
    losses = problem.task_losses(problem.theta, batch).detach().float()
    theirs = scalarization.UW(TASKS)
    optimizer = torch.optim.Adam(theirs.parameters(), 0.05)
    for _ in range(5):
        rule.step(problem, still, batch)
        optimizer.zero_grad()
        (theirs(losses) * 2 / TASKS).backward()
        optimizer.step()
    torch.testing.assert_close(rule.weights(), (-theirs.log_var).exp().detach())
    for _ in range(150):
        rule.step(problem, still, batch)
    torch.testing.assert_close(rule.weights(), 1 / losses, rtol=1e-3, atol=0)


def test_famo_is_torchjds_where_every_task_is_labelled() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    rule, batch = Famo(TASKS), ego_batch(0, pretrain=TASKS, unlabelled=0.0)
    problem, optimizer = setting(rule)
    twin, theirs = make(), scalarization.FAMO(TASKS).double()
    other = torch.optim.Adam(twin.theta.values(), 1e-2)
    for step in range(8):
        problem.at_step(step)
        rule.step(problem, optimizer, batch)
        twin.at_step(step)
        grads = gradient(theirs(twin.task_losses(twin.theta, batch)), twin.theta)
        for n, value in twin.theta.items():
            value.grad = grads[n]
        other.step()
        theirs.update(twin.task_losses(twin.theta, batch).detach())
    for n, value in twin.theta.items():
        # Its weights are float32, torchjd's here float64.
        torch.testing.assert_close(problem.theta[n], value, rtol=1e-4, atol=1e-6)
    assert float(rule.weights().std()) > 0.01


def test_famo_leaves_out_tasks_without_labels() -> None:
    rule, batch = Famo(TASKS), ego_batch(0, pretrain=TASKS)
    batch.pretrain_labels[:, :2] = -1
    problem, optimizer = setting(rule)
    problem.at_step(0)
    rule.step(problem, optimizer, batch)
    assert rule.weights()[:2].tolist() == [0.0, 0.0]
    assert bool((rule.weights()[2:] > 0).all())
    before = clone(problem.theta)
    batch.pretrain_labels[:] = -1
    assert rule.step(problem, optimizer, batch).loss == 0
    assert all(torch.equal(before[n], v) for n, v in problem.theta.items())


def exact_cosines(problem: TaskProblem, batch: Any, target: Tree) -> Tensor:
    """Task by task."""
    losses = problem.task_losses(problem.theta, batch)
    shared = {n: problem.theta[n] for n in target}
    grads = [gradient(loss, shared, retain_graph=True) for loss in losses]
    return torch.stack([dot(g, target) / (norm(g) * norm(target)) for g in grads])


@pytest.mark.slow
def test_cosines_are_those_of_each_tasks_gradient() -> None:
    rule, batch = Cosine(TASKS, decay=0.99), ego_batch(0, pretrain=TASKS)
    problem, _ = setting(rule)
    target = {n: v for n, v in direction(problem.theta).items() if n in problem.shared}
    exact = exact_cosines(problem, batch, target)
    for _ in range(150):
        found = rule.cosines(problem, batch, target)
    assert bool((found.sign() == exact.sign()).all())
    torch.testing.assert_close(found.double(), exact, rtol=0.2, atol=0)  # a tenth is one standard deviation


def test_a_task_that_is_the_fine_tuning_task_gains_on_its_opposite() -> None:
    problem = make(finetune_mode="train")
    problem.pretrain.encoder.dropout = 0.0
    for head in (problem.pretrain.head, problem.finetune.head):
        assert isinstance(head, TaskHead)
        torch.nn.init.constant_(head.weight, 0.01)  # read alike by every task, and far from sure of itself
        torch.nn.init.zeros_(head.bias)
    batch, finetune_batch = (
        ego_batch(0, pretrain=TASKS, finetune=FINETUNE, unlabelled=0.0) for _ in range(2)
    )
    batch.pretrain_labels[:, 0] = finetune_batch.finetune_labels[:, 0]
    batch.pretrain_labels[:, 1] = 1 - finetune_batch.finetune_labels[:, 0]
    finetune_batch.finetune_labels[:, 1:] = -1
    rule = Cosine(TASKS, lr=0.1)
    optimizer = torch.optim.SGD(problem.theta.values(), 0.0)
    for step in range(3):
        problem.at_step(step)
        rule.step(problem, optimizer, batch, finetune_batch)
    assert float(rule.weights()[0]) > 1.05
    assert float(rule.weights()[1]) < 0.95


@pytest.mark.parametrize("seed", range(6))
def test_pcgrad_is_torchjds(seed: int) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        {"x": torch.randn(2, 3, generator=generator), "y": torch.randn(4, generator=generator)} for _ in "ab"
    )
    expected = aggregation.PCGrad()(torch.stack([flatten(a), flatten(b)]))
    torch.testing.assert_close(flatten(project(a, b)), expected)
    torch.testing.assert_close(flatten(aggregator("PCGrad", {})(a, b)), expected)


def test_pcgrad_leaves_no_conflict() -> None:
    a, b = {"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([-1.0, 1.0])}
    # a loses its part along b and b its part along a: (1/2, 1/2) + (0, 1).
    assert project(a, b)["x"].tolist() == [0.5, 1.5]
    assert project(a, {"x": -b["x"]})["x"].tolist() == [2.0, -1.0]


def test_cotraining_is_a_step_of_the_joint_loss() -> None:
    rule = create("cotrain", TASKS, weight=0.7)
    problem, twin = make(finetune_mode="train"), make(finetune_mode="train")
    source = Fixed()
    list(train(rule, problem, torch.optim.SGD(problem.theta.values(), 0.1), source, steps=1))
    twin.at_step(0)
    batch, finetune_batch = source.pretrain(0), source.train(0, 0)
    loss = twin.task_losses(twin.theta, batch).mean()
    loss = loss + 0.7 * twin.finetune_loss(twin.theta, twin.psi, finetune_batch)
    for n, slope in gradient(loss, twin.theta).items():
        torch.testing.assert_close(problem.theta[n], twin.theta[n] - 0.1 * slope, rtol=1e-10, atol=1e-12)
    moved = (problem.psi["head.weight"] - twin.psi["head.weight"]).detach()
    assert float(moved.abs().max()) == pytest.approx(1e-3, rel=1e-3)  # Adam's first step


def test_another_aggregator_of_torchjd_serves_too() -> None:
    pytest.importorskip("torchjd.aggregation")
    rule = create("cotrain", TASKS, combine="MGDA")
    problem, optimizer = setting(rule)
    assert [r.finetune_loss for r in train(rule, problem, optimizer, Fixed(), steps=1)] != [None]


def test_without_torchjd_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(
        InputError, match=r"torchjd is not installed, expected pip install 'ecgmeta\[baselines\]'"
    ):
        create("cotrain", TASKS, combine="MGDA")
    create("cotrain_pcgrad", TASKS)  # ours needs none


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("meta", {}, "name: found meta, expected one of uniform, fixed"),
        ("uniform", {"lr": 1.0}, "uniform: found .*unexpected keyword argument 'lr'"),
        ("fixed", {"weights": [1.0]}, r"weights: found shape \(1,\)"),
        ("fixed", {"weights": [-1.0] * TASKS}, "weights"),
        ("uncertainty", {"lr": 0.0}, "lr: found 0.0"),
        ("famo", {"weight_decay": -1.0}, "weight_decay"),
        ("cosine", {"period": 0}, "period: found 0"),
        ("cosine", {"decay": 1.0}, "decay"),
        ("cosine", {"head_lr": 0.0}, "head_lr"),
        ("cotrain", {"weight": 0.0}, "weight"),
        ("cotrain", {"combine": "mean of both"}, "combine: found mean of both"),
    ],
)
def test_unknown_names_and_settings_out_of_range_are_named(name: str, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, TASKS, **settings)


def test_a_rule_without_tasks_or_with_the_state_of_another_is_an_error() -> None:
    with pytest.raises(InputError, match="tasks: found 0"):
        create("famo", 0)
    with pytest.raises(InputError, match="rule: found Uncertainty, expected the state of Famo"):
        rule_of("famo").load_state_dict(rule_of("uncertainty").state_dict())


@pytest.mark.parametrize("name", ["cosine", "cotrain"])
def test_a_missing_fine_tuning_batch_is_named(name: str) -> None:
    rule = rule_of(name)
    problem, optimizer = setting(rule)
    with pytest.raises(InputError, match=f"{name}: found no fine-tuning batch"):
        rule.step(problem, optimizer, Fixed().pretrain(0))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    rule = rule_of("uniform")
    problem, optimizer = setting(rule)
    with torch.no_grad():
        next(iter(problem.theta.values())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="pre-training loss is nan"):
        rule.step(problem, optimizer, Fixed().pretrain(0))
