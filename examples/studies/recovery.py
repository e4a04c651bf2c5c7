"""Recovery: does learned pre-training find what is known to be right? Rotations and wrong labels of handwritten digits.

The paper's synthetic study (Raghu et al., 2021, on MNIST), here on scikit-learn's digits with supervised pre-training: upright
digits, rotated by N(mean, spread²), while the fine-tuning digits are turned by N(turn, spread²). And its study of noise: some
pre-training labels are wrong, and each example has a weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgmeta.bilevel import (
    SGD,
    ConjugateGradient,
    DoubleBackward,
    ImplicitHead,
    MetaState,
    Schedule,
    meta_train,
    paper,
)
from ecgmeta.bilevel.implicit_head import leave_one_out, standardise
from ecgmeta.bilevel.trees import Tree, clone
from ecgmeta.runtime.seeds import torch_generator
from examples.studies import study
from examples.studies.digits import (
    CLASSES,
    PRETRAIN,
    Digits,
    DigitsProblem,
    ExampleWeights,
    Rotation,
    initial_head,
    initial_theta,
)
from examples.studies.study import Task

DEGREE = math.pi / 180
LENGTHS = 12  # of which each run keeps the one with the lowest validation loss
Numbers = dict[str, float]


@dataclass
class Situation:
    """What is true and where φ starts, in degrees; or the share of wrong labels.

    Attributes:
        labels: of fine-tuning.
        turn, spread: the truth.
        start_mean, start_spread: φ at the start.
        wrong: share of pre-training labels that are wrong; where it is above 0, φ are example weights.
        decay: of θ.
        penalty: of the ridge head whose leave-one-out error is every arm's validation loss.
        arms: to run.
    """

    labels: int = 500
    turn: float = 0.0
    spread: float = 0.0
    start_mean: float = 0.0
    start_spread: float = 20.0
    wrong: float = 0.0
    decay: float = 2e-3
    penalty: float = 0.1
    arms: list[str] = field(default_factory=list)


@dataclass
class Training:
    steps: int = 600
    lr: float = 1e-2
    warmup: int = 100


@dataclass
class Meta:
    """Our settings: the implicit head on all labels, conjugate gradients, frequent φ steps."""

    period: int = 5
    iterations: int = 5
    damping: float = 0.1


@dataclass
class Paper:
    """The paper's: P = 10, K = 1, J = 1 at the pre-training learning rate."""

    head_lr: float = 1e-2


@dataclass
class PhiRates:
    """Learning rates of φ's Adam, each chosen on pilot seeds from the same grid."""

    meta: float = 0.02
    paper: float = 0.02
    meta_weights: float = 0.1
    paper_weights: float = 0.1


@dataclass
class Search:
    """Random search: means within ±``widest`` degrees, spreads up to ``largest``; ``budget`` runs are equal compute."""

    budget: int = 3
    most: int = 6
    widest: float = 90.0
    largest: float = 60.0


@dataclass
class Settings:
    """``remedies``: arm -> inputs in which it differs from ``meta``; ``members`` is how many runs its φ is the mean of."""

    situations: dict[str, Situation] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    meta: Meta = field(default_factory=Meta)
    paper: Paper = field(default_factory=Paper)
    phi_rates: PhiRates = field(default_factory=PhiRates)
    search: Search = field(default_factory=Search)
    remedies: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Plan(study.Plan):
    settings: Settings = field(default_factory=Settings)


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seeds in the outer loop, so that a run that was stopped has whole pairs."""
    for seed in seeds:
        for name, situation in settings.situations.items():
            where = {n: v for n, v in asdict(situation).items() if n != "arms"}
            for arm in situation.arms:
                yield Task(
                    arm,
                    name,
                    seed,
                    {**where, **asdict(settings.training), **_of_arm(settings, arm, situation)},
                )


def _of_arm(settings: Settings, arm: str, situation: Situation) -> Mapping[str, Any]:
    rates, kind = settings.phi_rates, "_weights" if situation.wrong else ""
    if arm in settings.remedies:
        return {**_of_arm(settings, "meta", situation), **settings.remedies[arm]}
    if arm in ("meta", "random walk"):
        return {**asdict(settings.meta), "phi_lr": getattr(rates, f"meta{kind}")}
    if arm == "paper":
        return {**asdict(settings.paper), "phi_lr": getattr(rates, f"paper{kind}")}
    return asdict(settings.search) if arm in ("search", "symmetric") else {}


def run(task: Task) -> Numbers:
    problem, truth = _problem(task)
    if "phi_lr" in task.inputs:
        return _learned(task, problem, truth)
    if task.arm in ("search", "symmetric"):
        return _searched(task, problem)
    if task.arm == "grid":
        return _grid(task, problem)
    if task.arm == "random encoder":
        theta = initial_theta(torch_generator(task.seed, "theta"))
        return {"accuracy": problem.test_accuracy(theta)}
    if task.arm == "ceiling":  # pre-training on the fine-tuning digits and labels themselves
        data = problem.data
        own = Digits(data.tuning, data.tuning_y, data.tuning, data.tuning_y, data.test, data.test_y)
        problem = ExampleWeights(own, problem.decay, data.tuning_y)
        phi = {"z": torch.zeros(len(data.tuning_y))}
    else:
        phi = {"initial": _start(task), "truth": truth, "none": _rotation(0.0, 0.0)}[task.arm]
    return _scores(problem, _pretrain(task, problem, phi))


def _problem(task: Task) -> tuple[Rotation | ExampleWeights, Tree]:
    """The problem of a cell, and the φ that is right for it."""
    i = task.inputs
    data = Digits.draw(task.seed, i["labels"], turn=i["turn"], spread=i["spread"])
    if not i["wrong"]:
        return Rotation(data, i["decay"]), _rotation(i["turn"], i["spread"])
    generator = torch_generator(task.seed, "wrong labels")
    wrong = torch.rand(PRETRAIN, generator=generator) < i["wrong"]
    other = (data.y + torch.randint(1, CLASSES, (PRETRAIN,), generator=generator)) % CLASSES
    return ExampleWeights(data, i["decay"], torch.where(wrong, other, data.y)), {
        "z": torch.where(wrong, -20.0, 20.0)
    }


def _start(task: Task) -> Tree:
    i = task.inputs
    return {"z": torch.zeros(PRETRAIN)} if i["wrong"] else _rotation(i["start_mean"], i["start_spread"])


def _rotation(mean: float, spread: float) -> Tree:
    return {
        "mean": torch.tensor(mean * DEGREE),
        "log_spread": torch.tensor(max(spread, 1e-3) * DEGREE).log(),
    }


class _Batches:
    """All pre-training digits at every step, with fresh angles; all labels, or 80 % and 20 % of them."""

    def __init__(self, task: Task, problem: Rotation | ExampleWeights, name: str) -> None:
        self.seed, self.name = task.seed, name
        self.rows = torch.arange(len(problem.data.y)) if isinstance(problem, ExampleWeights) else None
        labels = torch.arange(len(problem.data.tuning_y))
        self.everything, cut = labels, round(0.8 * len(labels))
        self.split = (labels[:cut], labels[cut:])
        self.whole = task.arm != "paper"

    def pretrain(self, step: int) -> Tensor:
        return self._batch("pretrain", step)

    def hyper(self, step: int, k: int) -> Tensor:
        return self._batch("hyper", step, k)

    def train(self, step: int, k: int) -> Tensor:
        return self.split[0]

    def validation(self, step: int, k: int) -> Tensor:
        return self.everything if self.whole else self.split[1]

    def _batch(self, *names: str | int) -> Tensor:
        if self.rows is not None:
            return self.rows
        return torch.randn(PRETRAIN, generator=torch_generator(self.seed, self.name, *names))


@dataclass
class _Trained:
    """A pre-training run, where it ended and where its validation loss was lowest."""

    state: MetaState
    trace: list[Tree]  # φ after each of its steps, from the start on
    best: Tree = field(default_factory=dict)
    best_step: int = 0
    best_loss: float = math.inf


def _pretrain(
    task: Task, problem: Rotation | ExampleWeights, phi: Tree, *, learn: bool = False, name: str = "first"
) -> _Trained:
    """Pre-train from the initial θ called ``name``; φ is held, or learned."""
    i = task.inputs
    theta = initial_theta(torch_generator(task.seed, name))
    phi = {n: value.clone().requires_grad_() for n, value in phi.items()}
    phi_optimizer = torch.optim.Adam(phi.values(), lr=i["phi_lr"]) if learn else None
    state = MetaState(theta, phi, initial_head(), torch.optim.Adam(theta.values(), lr=i["lr"]), phi_optimizer)
    if learn and task.arm == "paper":
        settings = paper(i["steps"], i["warmup"], lr=i["lr"], head_lr=i["head_lr"])
    else:
        settings = {
            "schedule": Schedule(int(i["steps"]), i["period"] if learn else 0, i["warmup"]),
            "finetune": ImplicitHead("ridge", i["penalty"]),
            "inverse": ConjugateGradient(i.get("iterations", 1), damping=i.get("damping", 0.0)),
            "head_optimizer": SGD(0.1),
            "products": DoubleBackward,
            "control": "random_walk" if task.arm == "random walk" else "none",
            "seed": task.seed,
        }
    trained = _Trained(state, [clone(phi)])
    for report in meta_train(problem, state, _Batches(task, problem, name), **settings):
        if report.hyper is not None and not report.skipped:
            trained.trace.append(clone(state.phi))
        if state.step % max(1, int(i["steps"]) // LENGTHS) == 0:
            loss = _validation(problem, state.theta, i["penalty"])
            if loss < trained.best_loss:
                trained.best, trained.best_step, trained.best_loss = clone(state.theta), state.step, loss
    return trained


def _scores(problem: DigitsProblem, trained: _Trained) -> Numbers:
    """At the best of twelve lengths by validation loss, which is every arm's result; and ``..._end`` at the full length."""
    return {
        "accuracy": problem.test_accuracy(trained.best),
        "accuracy_end": problem.test_accuracy(trained.state.theta),
        "validation": trained.best_loss,
        "length": float(trained.best_step),
    }


def _learned(task: Task, problem: Rotation | ExampleWeights, truth: Tree) -> Numbers:
    """φ is the mean over the last quarter of its steps (of every member); and a second encoder is trained with it held."""
    clock = time.perf_counter()
    members = ["first", *(f"member {k}" for k in range(1, int(task.inputs.get("members", 1))))]
    runs = [_pretrain(task, problem, _start(task), learn=True, name=name) for name in members]
    taken, trained = time.perf_counter() - clock, runs[0]
    last = [point for run in runs for point in run.trace[-max(1, len(run.trace) // 4) :]]
    phi = {n: torch.stack([point[n] for point in last]).mean(0) for n in last[0]}
    clock = time.perf_counter()
    again = _pretrain(task, problem, phi, name="again")
    found = {
        **_scores(problem, trained),
        "retrained": problem.test_accuracy(again.best),
        "plain_runs": taken / (time.perf_counter() - clock),
        "phi_steps": float(len(trained.trace) - 1),
        **_named(phi),
    }
    if "z" in phi:
        from sklearn.metrics import roc_auc_score

        right = truth["z"] > 0
        weights = 2 * torch.sigmoid(phi["z"])
        order = torch.randperm(PRETRAIN, generator=torch_generator(task.seed, "permuted"))
        permuted = _pretrain(task, problem, {"z": phi["z"][order]}, name="again").best
        found |= {
            "auroc": float(roc_auc_score(right, weights)),
            "weight_right": float(weights[right].mean()),
            "weight_wrong": float(weights[~right].mean()),
            "permuted": problem.test_accuracy(permuted),
        }
    return found


def _searched(task: Task, problem: Rotation | ExampleWeights) -> Numbers:
    """The best of several φ by validation loss; the same within equal compute as ``..._budget``.

    ``search`` draws φ uniformly, ``symmetric`` tries spreads about 0°, as one sets augmentations by hand.
    """
    i = task.inputs
    generator = torch_generator(task.seed, "search")
    best, found = math.inf, {}
    for trial in range(i["most"] if task.arm == "search" and not i["wrong"] else i["budget"]):
        if isinstance(problem, ExampleWeights):
            phi = {"z": torch.randn(PRETRAIN, generator=generator) * 2}
        else:
            mean, spread = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            phi = _rotation((2 * mean - 1) * i["widest"], spread * i["largest"])
            if task.arm == "symmetric":
                phi = _rotation(0.0, i["largest"] * (trial + 1) / i["budget"])
        trained = _pretrain(task, problem, phi)
        if trained.best_loss < best:
            best, chosen = trained.best_loss, {**_scores(problem, trained), **_named(phi)}
        if trial + 1 == i["budget"]:
            found = {f"{n}_budget": value for n, value in chosen.items()}
    return chosen | found


def _grid(task: Task, problem: Rotation | ExampleWeights) -> Numbers:
    """Where the validation loss itself is lowest, the spread being known: the vertex of a parabola through a grid of means."""
    turn = task.inputs["turn"]
    means = np.linspace(turn - 12, turn + 12, 7)
    runs = [_pretrain(task, problem, _rotation(float(mean), task.inputs["spread"])) for mean in means]
    a, b, _ = np.polyfit(means - turn, [trained.best_loss for trained in runs], 2)
    return {"mean": turn - b / (2 * a) if a > 0 else math.nan, "curvature": float(a)}


def _named(phi: Tree) -> Numbers:
    if "z" in phi:
        return {}
    return {"mean": float(phi["mean"]) / DEGREE, "spread": float(phi["log_spread"].exp()) / DEGREE}


def _validation(problem: Rotation | ExampleWeights, theta: Tree, penalty: float) -> float:
    """What every arm chooses by: the leave-one-out error of a ridge head on the labels, none of the test digits."""
    rows = torch.arange(len(problem.data.tuning_y))
    with torch.no_grad():
        features = problem.features(theta, rows)
        return float(leave_one_out(features, standardise(problem.targets(rows).to(features.dtype)), penalty))


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.recovery_report import section

    return section(plan, results)
