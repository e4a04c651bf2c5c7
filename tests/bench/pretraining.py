"""A plain SimCLR step, a φ step, and whole pre-training with and without meta-learning at P = 10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

# Named here so that every import is done before a measurement forks.
from ecgmeta.augment import LearnedWarp, paper_static
from ecgmeta.bilevel import (
    Adam,
    FeatureModuleProblem,
    Identity,
    MetaState,
    Neumann,
    Schedule,
    Solver,
    Unroll,
    hypergradient,
    meta_train,
)
from ecgmeta.encoders import create_encoder
from ecgmeta.experiment.batches import Labelled
from ecgmeta.experiment.model import FinetuneHead
from ecgmeta.simclr import SimCLR, Views, draw_views
from tests.bench.measure import Cost, measure

LEADS, SAMPLES, CLASSES, PERIOD = 12, 1024, 5, 10


class RandomBatches:
    """White noise in the shape of recordings: the arithmetic does not depend on the values."""

    def __init__(self, batch: int, augmenter: LearnedWarp | None) -> None:
        self.x = torch.randn(batch, LEADS, SAMPLES)
        self.y = (torch.rand(batch, CLASSES) > 0.5).float()
        self.static, self.augmenter = paper_static(), augmenter

    def pretrain(self, step: int) -> Views:
        return draw_views(self.x, self.static, self.augmenter)

    def hyper(self, step: int) -> Views:
        return self.pretrain(step)

    def train(self, step: int, k: int) -> Labelled:
        return Labelled(self.x, self.y)

    def validation(self, step: int) -> Labelled:
        return Labelled(self.x, self.y)


def _setting(width: int, batch: int, learned: bool) -> tuple[FeatureModuleProblem, MetaState, RandomBatches]:
    torch.manual_seed(0)
    encoder = create_encoder("resnet18", leads=LEADS, width=width)
    augmenter = LearnedWarp(LEADS) if learned else None
    simclr = SimCLR(encoder, augmenter)
    problem = FeatureModuleProblem(simclr, FinetuneHead(encoder, CLASSES), hyper=augmenter)
    state = MetaState(
        problem.theta,
        problem.phi,
        {name: value.detach() for name, value in problem.psi.items()},
        torch.optim.Adam(problem.theta.values(), lr=1e-4),
        torch.optim.Adam(problem.phi.values(), lr=1e-4) if learned else None,
    )
    return problem, state, RandomBatches(batch, augmenter)


def _loop(width: int, batch: int, steps: int, period: int, learned: bool) -> Callable[[], Callable[[], None]]:
    def build() -> Callable[[], None]:
        problem, state, batches = _setting(width, batch, learned)
        settings: dict[str, Any] = {
            "finetune": Unroll(1, Adam(1e-4)),
            "head_optimizer": Adam(1e-4),
            "inverse": Neumann(1, 1e-4),
        }

        def work() -> None:
            state.step = 0
            for _ in meta_train(problem, state, batches, schedule=Schedule(steps, period), **settings):
                pass

        return work

    return build


def _phi_step(width: int, batch: int, unroll: int, inverse: Solver) -> Callable[[], Callable[[], None]]:
    def build() -> Callable[[], None]:
        problem, state, batches = _setting(width, batch, True)

        def work() -> None:
            hypergradient(
                problem,
                state.theta,
                state.phi,
                state.psi,
                pretrain_batch=batches.hyper(0),
                train_batches=[batches.train(0, k) for k in range(unroll)],
                val_batch=batches.validation(0),
                finetune=Unroll(unroll, Adam(1e-4)),
                inverse=inverse,
            )

        return work

    return build


def run(width: int, batch: int, steps: int) -> None:
    """Measure and print the table."""
    alpha = 1e-4
    rows: list[tuple[str, Callable[[], Callable[[], None]], int, int]] = [
        ("plain SimCLR step, static views", _loop(width, batch, 1, 0, False), 5, 1),
        ("plain SimCLR step, warp not learned", _loop(width, batch, 1, 0, True), 5, 1),
        ("φ step, K = 1, identity", _phi_step(width, batch, 1, Identity(alpha)), 3, 1),
        ("φ step, K = 1, Neumann J = 1", _phi_step(width, batch, 1, Neumann(1, alpha)), 3, 1),
        ("φ step, K = 1, Neumann J = 5", _phi_step(width, batch, 1, Neumann(5, alpha)), 2, 1),
        ("φ step, K = 10, Neumann J = 1", _phi_step(width, batch, 10, Neumann(1, alpha)), 2, 1),
        ("pre-training, warp not learned, a step", _loop(width, batch, steps, 0, True), 1, steps),
        (f"pre-training, meta, P = {PERIOD}, a step", _loop(width, batch, steps, PERIOD, True), 1, steps),
    ]
    console = Console()
    table = Table(
        "resnet18",
        "time, s",
        "÷ plain",
        "peak, MB",
        "÷ plain",
        title=f"width {width}, {batch} × {LEADS} × {SAMPLES}",
    )
    plain: Cost | None = None
    for name, build, repeats, per in rows:
        console.print(f"measuring: {name}")
        cost = measure(build, repeats, per)
        plain = plain or cost
        ratios = cost.seconds / plain.seconds, cost.peak_mb / plain.peak_mb
        table.add_row(
            name, f"{cost.seconds:.2f}", f"{ratios[0]:.2f}", f"{cost.peak_mb:.0f}", f"{ratios[1]:.2f}"
        )
    console.print(table)
