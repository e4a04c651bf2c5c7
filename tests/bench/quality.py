"""How noisy v is: its cosine from few labels to its value from many, at equal time, for each fine-tuning head.

Two checkpoints of a small SimCLR run on the synthetic cohort, early and late. The labels of a draw are all that a method may
see of them; a K-step head, which is cheaper than the implicit one, spends the time that is left on further splits and
batches of the same labels and averages v. Each method is held against its own v from many labels.
"""

from __future__ import annotations

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

FEW, MANY, DRAWS, BATCH = 200, 2000, 12, 64
TRAIN_SHARE = 0.8  # of the labels; the rest validate, where a method needs a split
WARM_HEAD_STEPS = 200  # of the K-step head's start, on the labels it may see


@dataclass(frozen=True)
class Method:
    """``gradients(problem, labels, generator)`` yields one v after another, each from another split or batch of the labels."""

    name: str
    gradients: Callable[[Problem, Labelled, torch.Generator], Iterator[Tree]]
    repeats: int  # v's averaged into the value from many labels


def _take(labels: Labelled, rows: Tensor) -> Labelled:
    return Labelled(labels.x[rows], labels.y[rows])


def _split(labels: Labelled, generator: torch.Generator) -> tuple[Labelled, Labelled]:
    order = torch.randperm(len(labels.x), generator=generator)
    # Even, because the weight gradient of narrow strided convolutions is not safe on odd batches (torch 2.14, oneDNN).
    cut = round(TRAIN_SHARE * len(order)) // 2 * 2
    return _take(labels, order[:cut]), _take(labels, order[cut:])


def implicit(head: ImplicitHead) -> Callable[[Problem, Labelled, torch.Generator], Iterator[Tree]]:
    def gradients(problem: Problem, labels: Labelled, generator: torch.Generator) -> Iterator[Tree]:
        while True:
            train, val = ([], labels) if head.train_batches == 0 else _split(labels, generator)
            batches = [train] if isinstance(train, Labelled) else []
            yield head(problem, problem.theta, problem.psi, batches, val).v

    return gradients


def unrolled(
    steps: int, whole: bool = False
) -> Callable[[Problem, Labelled, torch.Generator], Iterator[Tree]]:
    """K steps from a head kept warm on the training labels, as Algorithm 1 keeps it; a new split and new batches each time.

    ``whole`` validates and trains on everything that the split gives, instead of on batches of 64.
    """

    def gradients(problem: Problem, labels: Labelled, generator: torch.Generator) -> Iterator[Tree]:
        theta, optimizer = detach(problem.theta), Adam(1e-2)
        with torch.no_grad():
            features = torch.cat([problem.features(theta, Labelled(x, x)) for x in labels.x.split(256)])
        while True:
            order = torch.randperm(len(labels.x), generator=generator)
            cut = round(TRAIN_SHARE * len(order)) // 2 * 2
            psi, state = detach(problem.psi), optimizer.init(problem.psi)
            fit = order[:cut]
            for _ in range(WARM_HEAD_STEPS):
                rows = fit[torch.randint(cut, (BATCH,), generator=generator)]
                nodes = leaves(psi)
                slope = gradient(problem.head_loss(features[rows], nodes, _take(labels, rows)), nodes)
                psi, state = optimizer.update(psi, slope, state)
            size = cut if whole else BATCH
            train = [
                _take(labels, fit[torch.randperm(cut, generator=generator)[:size]]) for _ in range(steps)
            ]
            held = order[cut:] if whole else order[cut:][:BATCH]
            # The small learning rate of the paper's unroll, with the warm optimiser's state.
            unroll = Unroll(steps, Adam(1e-4))
            yield unroll(problem, theta, psi, train, _take(labels, held), state).v

    return gradients


METHODS = (
    Method("K-step head, K = 1", unrolled(1), 60),
    Method("K-step head, K = 10", unrolled(10), 40),
    Method("K-step head, K = 1, full batch", unrolled(1, whole=True), 8),
    *(
        Method(f"implicit, ridge λ = {p:g}", implicit(ImplicitHead("ridge", p)), 1)
        for p in (0.03, 0.1, 0.3, 1.0, 3.0)
    ),
    *(Method(f"implicit, logistic λ = {p:g}", implicit(ImplicitHead("logistic", p)), 8) for p in (0.1, 1.0)),
)
BUDGET = "implicit, ridge λ = 0.1"  # its one v sets the time that the others may take


def run(width: int, early: int = 50, late: int = 600) -> None:
    """Train, stop at ``early`` and ``late`` steps, and print a table at each."""
    torch.set_num_threads(THREADS)
    console = Console()
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

        def hyper(self, step: int) -> Views:
            raise NotImplementedError

        def train(self, step: int, k: int) -> Labelled:
            raise NotImplementedError

        def validation(self, step: int) -> Labelled:
            raise NotImplementedError

    state = MetaState(problem.theta, {}, problem.psi, torch.optim.Adam(problem.theta.values(), lr=1e-3))
    settings = {"finetune": Unroll(1, Adam(1e-4)), "inverse": Neumann(1, 1e-4), "head_optimizer": Adam(1e-4)}
    return problem, meta_train(problem, state, Batches(), schedule=Schedule(steps, 0), **settings)  # type: ignore[arg-type]


def _averages(
    method: Method, problem: Problem, labels: Labelled, seed: int, seconds: float, most: int
) -> tuple[Tree, int]:
    """The mean of the v's that fit in ``seconds`` (one at least, ``most`` at most), and how many they were."""
    start = time.perf_counter()
    total: Tree | None = None
    count = 0
    for v in method.gradients(problem, labels, torch.Generator().manual_seed(seed)):
        total = v if total is None else axpy(1.0, v, total)
        count += 1
        spent = time.perf_counter() - start
        if count >= most or spent * (count + 1) / count > seconds:
            break
    assert total is not None
    return scale(1 / count, total), count


def _table(title: str, problem: Problem, labels: Labelled) -> Table:
    """Draws of few labels come from those that the target saw as well: it is the value that more of the same labels give."""
    many = _take(labels, torch.arange(MANY))
    targets = {m.name: _averages(m, problem, many, 0, float("inf"), m.repeats)[0] for m in METHODS}
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
        "one v",
        "to ridge's (λ = 0.1)",
        "to K = 10's",
    ):
        table.add_column(column)
    for method in METHODS:
        found = [_averages(method, problem, draw, 1, seconds, 10_000) for draw in draws]
        singles = [_averages(method, problem, draw, 1, 0.0, 1)[0] for draw in draws]
        own = [cosine(v, targets[method.name]) for v, _ in found]
        table.add_row(
            method.name,
            f"{mean(count for _, count in found):.1f}",
            _interval(own),
            _interval([cosine(v, targets[method.name]) for v in singles]),
            f"{mean(cosine(v, targets[BUDGET]) for v, _ in found):.2f}",
            f"{mean(cosine(v, targets['K-step head, K = 10']) for v, _ in found):.2f}",
        )
    return table


def _timed(method: Method, problem: Problem, labels: Labelled) -> float:
    start = time.perf_counter()
    _averages(method, problem, labels, 1, 0.0, 1)
    return time.perf_counter() - start


def _interval(values: list[float]) -> str:
    """Mean and its 95 % interval by Student's t (2.2 at 11 degrees of freedom)."""
    half = 2.201 * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.2f} ({mean(values) - half:.2f}–{mean(values) + half:.2f})"
