"""Nuisance: is the strength of a nuisance that only the fine-tuning recordings have found, from below and from above?

Pre-training classifies clean simulated recordings on which an operation puts the nuisance at magnitude m, on fixed features
that saturate, so that the weights it learns fit one strength; the ridge head of fine-tuning, which sees the outcome only,
cannot put it right. At m = truth both stages see the same law: the known optimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ecgmeta.augment import LearnedPolicy
from ecgmeta.augment.functional import OPERATIONS
from ecgmeta.augment.policy import Draw
from ecgmeta.augment.taskaug import TASKAUG_OPERATIONS
from ecgmeta.bilevel import SGD, ConjugateGradient, ImplicitHead, MetaState, Schedule, meta_train, paper
from ecgmeta.bilevel.implicit_head import leave_one_out, standardise
from ecgmeta.bilevel.trees import Tree
from ecgmeta.data import SyntheticCohort
from ecgmeta.data.nuisances import Nuisances
from ecgmeta.runtime.seeds import derive, numpy_generator, torch_generator
from examples.studies import study
from examples.studies.report import forest, shown, table
from examples.studies.statistics import by_seed, mean, paired
from examples.studies.study import Outcome, Result, Section, Task

FEATURES, CLASSES, HZ, SECONDS = 64, 5, 100.0, 2.0
DECAY, PENALTY = 3e-3, 0.1
LEARNED = ("from below", "from above")
BAR = 15.0  # per cent of the truth
Batch = tuple[Tensor, Draw]
Way = Literal["ours", "paper", "released", "random_walk"]
WAYS: Mapping[str, Way] = {"walk": "random_walk", "paper": "paper", "released": "released"}
PAPER = ("paper", "released")
Errors = Mapping[tuple[str, str], Mapping[int, float]]


@dataclass
class Situation:
    """Attributes:
    operation: of `ecgmeta.augment`, which puts the nuisance on a recording.
    truth: its magnitude in the fine-tuning recordings, in units of its typical one.
    """

    operation: str = ""
    truth: float = 1.0


@dataclass
class Settings:
    """Attributes:
    below, above: where φ starts, as factors of the truth; the range of the search.
    records: of either stage.
    steps, warmup, period, batch_size, lr: of pre-training (Adam), and when a φ step is taken.
    phi_lr: of φ's Adam, whose parameter is the square root of the magnitude; it falls to a tenth as a cosine does.
    iterations: of conjugate gradients.
    paper_head_lr, paper_phi_lr: of the arms with the paper's settings, whose φ steps come every tenth step.
    trials: of the random search, whole runs without learning: one that learns takes less time than two.
    """

    situations: dict[str, Situation] = field(default_factory=dict)
    below: float = 0.2
    above: float = 4.0
    records: int = 1000
    steps: int = 600
    warmup: int = 100
    period: int = 2
    batch_size: int = 300
    lr: float = 3e-2
    phi_lr: float = 0.1
    iterations: int = 30
    paper_head_lr: float = 1e-4
    paper_phi_lr: float = 0.1
    trials: int = 2


@dataclass
class Plan(study.Plan):
    settings: Settings = field(default_factory=Settings)


class Problem:
    """``L_PT``: a logistic layer on saturating features of clean recordings under the operation; ``L_FT``: a linear head on its
    outputs for recordings that have the nuisance."""

    def __init__(self, situation: Situation, records: int, seed: int) -> None:
        generator = torch_generator(seed, "features")
        clean, other = (
            SyntheticCohort(
                records, fs=HZ, duration=SECONDS, seed=derive(seed, part) % 2**31, nuisances=Nuisances.none()
            )
            for part in ("pretrain", "finetune")
        )
        self.x, self.y = torch.from_numpy(clean.signals), torch.from_numpy(clean.labels).float()
        self.policy = LearnedPolicy(ops=(situation.operation,), selector="chain", gate=False)
        self.filters = torch.randn(FEATURES, 12, 15, generator=generator) / 13
        self.mean, self.sd = torch.tensor(0.0), torch.tensor(1.0)
        plain = self.features_of(self.x)[:, :-1]
        self.mean, self.sd = plain.mean(0), plain.std(0)
        operation = {**OPERATIONS, **TASKAUG_OPERATIONS}[situation.operation]
        x = torch.from_numpy(other.signals)
        noise = operation.draw(x, torch_generator(seed, "nuisance"))
        magnitude = torch.full((1, 1, 1), situation.truth * operation.typical)
        self.z = self.features_of(operation.apply(x, magnitude, noise, HZ))
        self.labels = torch.from_numpy(other.labels).float()

    def features_of(self, x: Tensor) -> Tensor:
        saturated = torch.tanh(3 * F.conv1d(x, self.filters, stride=2))
        found = torch.cat([saturated.mean(-1), saturated.square().mean(-1)], 1)
        return F.pad((found - self.mean) / self.sd, (0, 1), value=1.0)

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Batch) -> Tensor:
        rows, draw = batch
        z = self.features_of(functional_call(self.policy, dict(phi), (self.x[rows], draw)))
        loss = F.binary_cross_entropy_with_logits(z @ theta["w"], self.y[rows])
        return loss + DECAY * theta["w"].square().sum()

    def features(self, theta: Tree, batch: slice) -> Tensor:
        return self.z[batch] @ theta["w"]

    def targets(self, batch: slice) -> Tensor:
        return self.labels[batch]

    def head_loss(self, features: Tensor, psi: Tree, batch: slice) -> Tensor:
        return (features @ psi["w"] - self.labels[batch]).square().mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: slice) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def validation(self, theta: Tree) -> float:
        """Leave-one-out error of the ridge head, by which candidates are chosen: what φ follows."""
        with torch.no_grad():
            features, labels = self.features(theta, slice(None)).double(), self.labels.double()
            return float(leave_one_out(features, standardise(labels), PENALTY))


@dataclass(frozen=True)
class Batches:
    """Each a function of the seed and the step. The labelled recordings are all of them at each step, or where the head takes
    steps, and so needs others to validate on (``split``), four fifths and a fifth."""

    problem: Problem
    size: int
    seed: int
    split: bool = False

    def pretrain(self, step: int) -> Batch:
        return self._drawn("pretrain", step)

    def hyper(self, step: int, k: int = 0) -> Batch:
        return self._drawn("hyper", step, k)

    def train(self, step: int, k: int) -> slice:
        return slice(len(self.problem.z) * 4 // 5) if self.split else slice(None)

    def validation(self, step: int, k: int = 0) -> slice:
        return slice(len(self.problem.z) * 4 // 5, None) if self.split else slice(None)

    def _drawn(self, *key: str | int) -> Batch:
        generator = torch_generator(self.seed, *key)
        rows = torch.randint(0, len(self.problem.x), (self.size,), generator=generator)
        return rows, self.problem.policy.draw(self.problem.x[rows], generator)


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    common = asdict(settings)
    paper_rates = {name: common.pop(name) for name in ("paper_head_lr", "paper_phi_lr")}
    del common["situations"]
    for seed in seeds:
        for name, situation in settings.situations.items():
            inputs = common | {"situation": asdict(situation)}
            for arm in (*LEARNED, "walk from below", "walk from above", "search"):
                yield Task(arm, name, seed, inputs)
            for arm in (f"{way} {start}" for way in PAPER for start in LEARNED):
                yield Task(arm, name, seed, inputs | paper_rates)


def run(task: Task) -> Mapping[str, float]:
    """The magnitude that was found, over the truth; and the validation loss in it."""
    inputs = dict(task.inputs)
    situation = Situation(**inputs.pop("situation"))
    settings = Settings(**inputs)
    problem = Problem(situation, settings.records, task.seed)
    if task.arm == "search":
        return _searched(problem, situation.truth, settings, task.seed)
    start = settings.below if task.arm.endswith("below") else settings.above
    way = WAYS.get(task.arm.split()[0], "ours")
    found, loss = pretrained(problem, settings, task.seed, start * situation.truth, way)
    return {"found": found / situation.truth, "validation": loss}


def _searched(problem: Problem, truth: float, settings: Settings, seed: int) -> dict[str, float]:
    """The best of a few random magnitudes by validation loss."""
    low, high = math.log(settings.below), math.log(settings.above)
    tried = np.exp(numpy_generator(seed, "search").uniform(low, high, settings.trials))
    losses = [pretrained(problem, settings, seed, float(x) * truth, None)[1] for x in tried]
    best = int(np.argmin(losses))
    return {"found": float(tried[best]), "validation": losses[best]}


def pretrained(
    problem: Problem, settings: Settings, seed: int, start: float, way: Way | None = "ours"
) -> tuple[float, float]:
    """The magnitude, a geometric mean over the last quarter of the φ steps, and the validation loss at the end.

    Args:
        way: to move φ; None: it is held. ``released`` is ``paper`` without our guard against a series that grows.
    """
    theta = {"w": torch.zeros(2 * FEATURES + 1, CLASSES, requires_grad=True)}
    phi = {"g": torch.full((1, 1, 1), math.sqrt(start), requires_grad=True)}
    phi_lr = settings.paper_phi_lr if way in PAPER else settings.phi_lr
    phi_optimizer = torch.optim.Adam(phi.values(), lr=phi_lr)
    state = MetaState(
        theta=theta,
        phi=phi,
        psi={"w": torch.zeros(CLASSES, CLASSES)},
        theta_optimizer=torch.optim.Adam(theta.values(), lr=settings.lr),
        phi_optimizer=phi_optimizer,
    )
    path = []
    for report in meta_train(
        problem,
        state,
        Batches(problem, settings.batch_size, seed, split=way in PAPER),
        seed=seed,
        **_engine(settings, way),
    ):
        done = max(0.0, (report.step - settings.warmup) / (settings.steps - settings.warmup))
        for group in phi_optimizer.param_groups:
            group["lr"] = phi_lr * (0.1 + 0.9 * math.cos(math.pi / 2 * min(done, 1.0)) ** 2)
        path.append(2 * math.log(abs(float(phi["g"].detach()))))
    last = (settings.steps - settings.warmup) // 4
    return math.exp(fmean(path[-last:])), problem.validation(theta)


def _engine(settings: Settings, way: Way | None) -> dict[str, Any]:
    if way in PAPER:
        found = paper(settings.steps, settings.warmup, lr=settings.lr, head_lr=settings.paper_head_lr)
        return found if way == "paper" else found | {"inverse": replace(found["inverse"], growth=math.inf)}
    return {
        "schedule": Schedule(settings.steps, settings.period if way else 0, settings.warmup),
        "finetune": ImplicitHead("ridge", penalty=PENALTY),
        "head_optimizer": SGD(1e-4),
        "inverse": ConjugateGradient(settings.iterations, damping=DECAY),
        "control": "random_walk" if way == "random_walk" else "none",
    }


def report(plan: Plan, results: Sequence[Result]) -> Section:
    names = list(plan.settings.situations)
    found = {
        (name, arm): by_seed(results, "found", arm, name)
        for name in names
        for arm in dict.fromkeys(result.task.arm for result in results)
    }
    errors = {pair: {s: 100 * abs(x - 1) for s, x in values.items()} for pair, values in found.items()}
    rows = [
        (
            *pair,
            len(values),
            shown(mean(errors[pair]), 1),
            shown(mean([100 * (x - 1) for x in values.values()]), 1),
            f"{sum(e <= BAR for e in errors[pair].values())} of {len(values)}",
        )
        for pair, values in found.items()
        if values
    ]
    head = ("fine-tuning gain", "arm", "seeds", "error, % of the truth", "signed", f"within {BAR:g} %")
    shown_errors = {
        name: {
            arm: mean(found_errors) for (n, arm), found_errors in errors.items() if n == name and found_errors
        }
        for name in names
    }
    page = forest(shown_errors, "error of the magnitude, % of the truth (dashed: the bar)", BAR, log=True)
    return Section(
        {
            "magnitude": _within(errors, names),
            "search": _nearer(errors, names, dict.fromkeys(LEARNED, "search")),
            "walk": _nearer(errors, names, {start: f"walk {start}" for start in LEARNED}),
            **{way: _nearer(errors, names, {start: f"{way} {start}" for start in LEARNED}) for way in PAPER},
        },
        f"{table(head, rows)}\n\n![Error of the magnitude in every arm](figures/nuisance.svg)",
        {"nuisance": page},
    )


def _within(errors: Errors, names: Sequence[str]) -> Outcome:
    known = {(name, arm): mean(errors.get((name, arm), {})) for name in names for arm in LEARNED}
    text = "; ".join(f"{name}, {arm}: {shown(e, 1)}" for (name, arm), e in known.items())
    if any(math.isnan(e.low) for e in known.values()):
        return Outcome(text)
    return Outcome(text, all(e.value <= BAR for e in known.values()))


def _nearer(errors: Errors, names: Sequence[str], others: Mapping[str, str]) -> Outcome:
    """How much larger the error of another way is than that of learning, from each start."""
    known = {
        (name, arm): paired(errors.get((name, other), {}), errors.get((name, arm), {}))
        for name in names
        for arm, other in others.items()
    }
    text = "; ".join(f"{name}, {arm}: {shown(e, 1)} larger" for (name, arm), e in known.items())
    if any(math.isnan(e.low) for e in known.values()):
        return Outcome(text)
    return Outcome(text, all(e.low > 0 for e in known.values()))
