"""How noisy v is: its cosine from few labels to its value from many, at equal time, for each fine-tuning head.

Two checkpoints of a small SimCLR run on the synthetic cohort, early and late. A method sees the labels of one draw alone; one
that is cheaper than the implicit head spends the time that is left on further batches of those labels, and averages v.
Each method is held against its own v from many labels, whose records include the draw's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, median, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ecgmeta.augment import paper_static
from ecgmeta.bilevel import Adam, ImplicitHead, MetaState, Neumann, Schedule, Unroll, meta_train
from ecgmeta.bilevel.products import cosine
from ecgmeta.bilevel.trees import Tree, axpy, detach, gradient, leaves, scale
from ecgmeta.data import SyntheticCohort
from ecgmeta.encoders import create_encoder
from ecgmeta.experiment.batches import Labelled
from ecgmeta.experiment.model import FinetuneHead
from ecgmeta.simclr import SimCLR, Views, draw_views
from tests.bench.measure import THREADS
from tests.bench.pretraining import Problem

FEW, MANY, DRAWS, SPLITS, BATCH = 200, 2000, 12, 5, 64
TRAIN_SHARE = 0.8  # of the labels; the rest validate, where a method needs a split
WARM_HEAD_STEPS = 100  # of the K-step head's start, on the labels it may see


Prepare = Callable[[Problem, Labelled, torch.Generator], Callable[[], Tree]]
"""What a method does once a set of labels; it returns what computes one v, from another batch or split at each call."""


@dataclass(frozen=True)
class Method:
    """A fine-tuning head; preparing is not timed.

    Args:
        splits: splits of the many labels that are averaged into the value from all of them.
        target: how that value is taken, where not by ``prepare``.
    """

    name: str
    prepare: Prepare
    splits: int = 1
    target: Prepare | None = None


def _take(labels: Labelled, rows: Tensor) -> Labelled:
    return Labelled(labels.x[rows], labels.y[rows])


def _split(labels: Labelled, generator: torch.Generator) -> tuple[Labelled, Labelled]:
    order = torch.randperm(len(labels.x), generator=generator)
    cut = round(TRAIN_SHARE * len(order))
    return _take(labels, order[:cut]), _take(labels, order[cut:])


def ridge(penalty: float) -> Prepare:
    """All labels, leave-one-out."""

    def prepare(problem: Problem, labels: Labelled, generator: torch.Generator) -> Callable[[], Tree]:
        head = ImplicitHead("ridge", penalty)
        return lambda: head(problem, problem.theta, problem.psi, [], labels).v

    return prepare


def logistic(penalty: float) -> Prepare:
    """A new split at each call."""

    def prepare(problem: Problem, labels: Labelled, generator: torch.Generator) -> Callable[[], Tree]:
        def v() -> Tree:
            train, val = _split(labels, generator)
            head = ImplicitHead("logistic", penalty)
            return head(problem, problem.theta, problem.psi, [train], val).v

        return v

    return prepare


def unrolled(steps: int, batch: int = BATCH) -> Prepare:
    """K steps from a head that was kept warm on the training part of one split, as Algorithm 1 keeps it."""

    def prepare(problem: Problem, labels: Labelled, generator: torch.Generator) -> Callable[[], Tree]:
        train, val = _split(labels, generator)
        with torch.no_grad():
            features = torch.cat(
                [problem.features(problem.theta, Labelled(x, x)) for x in train.x.split(256)]
            )
        psi, warm = detach(problem.psi), Adam(1e-2)
        state = warm.init(psi)
        for _ in range(WARM_HEAD_STEPS):
            rows = _batch(train, generator)
            nodes = leaves(psi)
            slope = gradient(problem.head_loss(features[rows], nodes, _take(train, rows)), nodes)
            psi, state = warm.update(psi, slope, state)
        psi, unroll = detach(psi), Unroll(steps, Adam(1e-4))

        def v() -> Tree:
            batches = [_take(train, _batch(train, generator, batch)) for _ in range(steps)]
            return unroll(
                problem, problem.theta, psi, batches, _take(val, _batch(val, generator, batch)), state
            ).v

        return v

    return prepare


def _batch(labels: Labelled, generator: torch.Generator, size: int = BATCH) -> Tensor:
    return torch.randperm(len(labels.x), generator=generator)[:size]


METHODS = (
    Method("K-step head, K = 1", unrolled(1), SPLITS, unrolled(1, MANY)),
    # Its ten batches differ, so the value from many labels takes batches of a tenth of them.
    Method("K-step head, K = 10", unrolled(10), SPLITS, unrolled(10, MANY // 10)),
    *(Method(f"ridge, λ = {p:g}", ridge(p)) for p in (0.01, 0.1, 1.0, 10.0)),
    *(Method(f"logistic, λ = {p:g}", logistic(p), SPLITS) for p in (0.1, 1.0)),
)
BUDGET = "ridge, λ = 1"  # its one v sets the time that the others may take


def run(width: int, early: int = 50, late: int = 600) -> None:
    """Train, stop at ``early`` and ``late`` steps, and print a table at each."""
    torch.set_num_threads(THREADS)
    console = Console(width=None if sys.stdout.isatty() else 160)
    started = time.perf_counter()
    cohort = SyntheticCohort(FEW * 2 + MANY, fs=100, duration=5)
    x, y = cohort[slice(0, len(cohort))]
    labels = Labelled(x, y)
    problem, pretraining = _pretraining(width, x, late)
    for step in range(1, late + 1):
        next(pretraining)
        if step in (early, late):
            console.print(f"{step} steps; {time.perf_counter() - started:.0f} s so far")
            console.print(
                _table(f"{'early' if step == early else 'late'}: {step} steps of SimCLR", problem, labels)
            )


def _pretraining(width: int, x: Tensor, steps: int) -> tuple[Problem, Iterator[object]]:
    torch.manual_seed(0)
    encoder = create_encoder("resnet18", width=width)
    encoder.normalize.set(x.mean(), x.std())
    simclr = SimCLR(encoder)
    problem = Problem(simclr, FinetuneHead(encoder, 5))
    generator = torch.Generator().manual_seed(0)
    static = paper_static()

    class Batches:
        def pretrain(self, step: int) -> Views:
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            return draw_views(x[rows], static, generator=generator)

        def hyper(self, step: int, k: int) -> Views:
            raise NotImplementedError

        def train(self, step: int, k: int) -> Labelled:
            raise NotImplementedError

        def validation(self, step: int, k: int) -> Labelled:
            raise NotImplementedError

    state = MetaState(problem.theta, {}, problem.psi, torch.optim.Adam(problem.theta.values(), lr=1e-3))
    settings = {"finetune": Unroll(1, Adam(1e-4)), "inverse": Neumann(1, 1e-4), "head_optimizer": Adam(1e-4)}
    return problem, meta_train(problem, state, Batches(), schedule=Schedule(steps, 0), **settings)  # type: ignore[arg-type]


def _average(method: Method, problem: Problem, labels: Labelled, seconds: float) -> tuple[Tree, int]:
    """The mean of the v's that fit in ``seconds``, one at least, and how many they were."""
    v = method.prepare(problem, labels, torch.Generator().manual_seed(DRAWS))
    start = time.perf_counter()
    total, count = v(), 1
    while (time.perf_counter() - start) * (count + 1) / count <= seconds:
        total, count = axpy(1.0, v(), total), count + 1
    return scale(1 / count, total), count


def _target(method: Method, problem: Problem, labels: Labelled) -> Tree:
    """The value from all ``labels``, with as little noise of its own as can be: a noisy one would lower every cosine to it."""
    prepare = method.target or method.prepare
    values = [
        prepare(problem, labels, torch.Generator().manual_seed(seed))() for seed in range(method.splits)
    ]
    return {name: torch.stack([v[name] for v in values]).mean(0) for name in values[0]}


def _table(title: str, problem: Problem, labels: Labelled) -> Table:
    """Draws of few labels come from those that the target saw as well: it is the value that more of the same labels give."""
    many = _take(labels, torch.arange(MANY))
    targets = {m.name: _target(m, problem, many) for m in METHODS}
    draws = [
        _take(many, torch.randperm(MANY, generator=torch.Generator().manual_seed(seed))[:FEW])
        for seed in range(DRAWS)
    ]
    budget_method = next(m for m in METHODS if m.name == BUDGET)
    seconds = median(_timed(budget_method, problem, draw) for draw in draws[:5])
    table = Table(title=f"{title}; {DRAWS} draws of {FEW} labels, {seconds:.2f} s each, to {MANY}")
    for column in (
        "",
        "v's averaged",
        "cosine to its own v from many, 95 %",
        "to that ridge's",
        "to K = 10's",
    ):
        table.add_column(column)
    for method in METHODS:
        found = [_average(method, problem, draw, seconds) for draw in draws]
        own = [cosine(v, targets[method.name]) for v, _ in found]
        table.add_row(
            method.name,
            f"{mean(count for _, count in found):.1f}",
            _interval(own),
            f"{mean(cosine(v, targets[BUDGET]) for v, _ in found):.2f}",
            f"{mean(cosine(v, targets['K-step head, K = 10']) for v, _ in found):.2f}",
        )
    return table


def _timed(method: Method, problem: Problem, labels: Labelled) -> float:
    v = method.prepare(problem, labels, torch.Generator().manual_seed(1))
    start = time.perf_counter()
    v()
    return time.perf_counter() - start


def _interval(values: list[float]) -> str:
    """Mean and its 95 % interval by Student's t (2.2 at 11 degrees of freedom)."""
    half = 2.201 * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.2f} ({mean(values) - half:.2f}–{mean(values) + half:.2f})"
