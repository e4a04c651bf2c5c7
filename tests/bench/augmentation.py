"""What augmentation costs, beside the constructions in use: batches of 256 records, 12 x 1000 samples, one thread.

The peers are written anew from their descriptions: the paper's learned warp (magnitude network, ``grid_sample`` on the tensor
repeated to two columns), TaskAug's scheme (every operation of a stage on the whole batch, then a weighted sum), and a pipeline
of the static operations in NumPy, record by record.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ecgmeta.augment import LearnedPolicy, LearnedWarp, TwoViews, paper_static
from ecgmeta.augment.functional import (
    displacement_statistics,
    monotone_displacement,
    random_displacement,
    smoothing_kernel,
)
from ecgmeta.bilevel import DoubleBackward
from ecgmeta.data import SyntheticCohort
from tests.bench import reference
from tests.bench.pretraining import PHI_STEPS, Ours

BATCH, LEADS, SAMPLES = 256, 12, 1000


def resample(x: Tensor, displacement: Tensor) -> Tensor:
    """``x(t + d(t))``, x (batch, leads, samples) repeated to two columns, d (batch, 1, samples)."""
    n = x.shape[-1]
    t = 2 * (torch.arange(n) + displacement.squeeze(1)) / (n - 1) - 1
    grid = t.unsqueeze(1).unsqueeze(-1).expand(-1, -1, -1, 2)
    return F.grid_sample(x.unsqueeze(-1).repeat(1, 1, 1, 2), grid, align_corners=True).squeeze(2)


def flow(velocity: Tensor, steps: int, window: int) -> Tensor:
    """The displacement (batch, 1, samples) of a velocity: down-sampled, integrated, up-sampled, smoothed."""
    n = velocity.shape[-1]
    coarse = F.interpolate(velocity, size=n // 4, mode="linear") / 4 / 2**steps
    for _ in range(steps):
        coarse = coarse + resample(coarse, coarse)
    fine = F.interpolate(4 * coarse, size=n, mode="linear")
    return F.conv1d(fine, smoothing_kernel(window).to(fine), padding=window // 2)


class PaperWarp(reference.Warp):
    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = torch.randn(len(x), x.shape[-1]) if noise is None else noise
        magnitude = 2 * torch.sigmoid(self.net(x)) * self.global_magnitude.square()
        return resample(x, flow((100 * magnitude * noise).unsqueeze(1), 5, 25))


class TaskAug(nn.Module):
    """Two stages of seven operations, all computed; magnitudes and probabilities by class."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2, 7))
        self.magnitude = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 0.5, 0, 0]).repeat(2, 2, 1))
        self.probability = nn.Parameter(torch.full((2, 2, 7), 16.0))

    def operations(self, x: Tensor, m: Tensor) -> list[Tensor]:
        """Each operation on all of x; m (batch, 7)."""
        batch, _, n = x.shape
        column = [value.view(-1, 1, 1) for value in m.unbind(1)]
        u = torch.rand(5, batch, 1, 1)
        wave = torch.sin(torch.linspace(0, 1, n) * (10 + 20 * u[0]) / 6 + 2 * math.pi * u[1])
        start = int(torch.randint(0, n - n // 20, (1,)))
        cropped = x.clone()
        cropped[:, :, start : start + n // 20] = 0
        shift = (100 * column[4].square() * (1 - 2 * u[2])).expand(-1, 1, n)
        return [
            resample(x, flow(100 * column[0].square() * torch.randn(batch, 1, n), 7, 51)),
            x + 0.25 * torch.sigmoid(column[1]) * u[3] * wave,
            x + 0.25 * x.std(2, keepdim=True).detach() * torch.sigmoid(column[2]) * torch.randn_like(x),
            cropped,
            resample(x, shift),
            x * torch.sigmoid(column[5]) * (1.25 - 0.5 * u[4]),
            x,
        ]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for weights, magnitude, probability in zip(
            self.weights, self.magnitude, self.probability, strict=True
        ):
            relaxed = torch.distributions.RelaxedOneHotCategorical(
                torch.tensor(0.1), logits=weights
            ).rsample()
            chosen = int(relaxed.argmax())
            weight = torch.zeros(7)
            weight[chosen] = relaxed[chosen] / relaxed[chosen].detach()
            gate = torch.distributions.RelaxedBernoulli(torch.tensor(0.1), logits=probability[y]).rsample()
            outputs = []
            for number, out in enumerate(self.operations(x, magnitude[y])):
                mask = gate[:, number].view(-1, 1, 1)
                outputs.append(weight[number] * (out if number == 6 else mask * out + (1 - mask) * x))
            x = torch.stack(outputs).sum(0)
        return x


def _forward(run: Callable[[], object]) -> Callable[[], object]:
    def work() -> None:
        with torch.no_grad():
            run()

    return work


def _backward(run: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: run().square().mean().backward()


def run(rounds: int = 9) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(width=None if sys.stdout.isatty() else 160)
    x, y = torch.randn(BATCH, LEADS, SAMPLES), torch.randint(0, 2, (BATCH,))
    records = x.numpy()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    warp, policy, views = LearnedWarp(), LearnedPolicy.taskaug(fs=100.0), TwoViews(paper_static())
    paper, everything = PaperWarp(LEADS), TaskAug()
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        "learned warp, forward": (_forward(lambda: paper(x)), _forward(lambda: warp(x)), 3),
        "learned warp, forward and backward": (_backward(lambda: paper(x)), _backward(lambda: warp(x)), 2.5),
        "TaskAug's operations, forward": (_forward(lambda: everything(x, y)), _forward(lambda: policy(x)), 5),
        "TaskAug's operations, forward and backward": (
            _backward(lambda: everything(x, y)),
            _backward(lambda: policy(x)),
            5,
        ),
        "static pipeline, two views": (
            lambda: reference.two_views(records, rng),
            lambda: views(x, generator=generator),
            5,
        ),
    }
    table = Table(title=f"augmenting {BATCH} records of {LEADS} × {SAMPLES} samples, one thread")
    for column in ("work", "peer, records/s", "ours, records/s", "ratio (lowest, highest)", "goal"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for name, (theirs, ours, goal) in pairs.items():
        console.print(f"measuring: {name}")
        turns = _turns((theirs, ours), rounds)
        peer, own = (median(side) for side in zip(*turns, strict=True))
        ratios = sorted(a / b for a, b in turns)
        spread = f"{peer / own:.1f} ({ratios[0]:.1f}, {ratios[-1]:.1f})"
        table.add_row(name, f"{BATCH / peer:.0f}", f"{BATCH / own:.0f}", spread, f"{goal:g}")
    console.print(table)
    console.print(distortion())
    console.print(_appetite())


def _appetite() -> str:
    """How much faster two views are made than the encoder consumes them: resnet18 at width 32, plain steps of 64 records."""
    ours = Ours(32, 64, learned=False)
    plain = partial(ours.train, 1, 0, PHI_STEPS[0], DoubleBackward)
    step = min(turn[0] for turn in _turns((plain,), 3))
    data = SyntheticCohort(512, fs=100, seed=1)
    views, order = TwoViews(paper_static()), np.random.default_rng(0)
    rows = [order.choice(512, 64, replace=False) for _ in range(8)]
    drawn = min(turn[0] for turn in _turns((lambda: [views(data[some][0]) for some in rows],), 3)) / len(rows)
    return (
        f"two views of 64 records, read and augmented: {drawn * 1000:.1f} ms; a plain step on them, its own views included: "
        f"{step * 1000:.0f} ms; {step / drawn:.0f} times as long (goal: 3)"
    )


def distortion() -> Table:
    """What the warps do to time: 400 records of 1,024 samples at 100 Hz, m(x) = 1."""
    noise = torch.randn(400, 1024, generator=torch.Generator().manual_seed(0))
    rows: list[tuple[str, Tensor]] = [
        (f"paper, g = {g}", random_displacement(torch.tensor(float(g * g)), noise)) for g in (1, 4)
    ]
    rows += [
        (
            f"never folds, correlation {smoothness:g} s, magnitude {seconds:g} s",
            monotone_displacement(torch.tensor([[seconds]]), noise, fs=100.0, smoothness=smoothness),
        )
        for smoothness, seconds in ((0.25, 0.05), (0.25, 10.0), (2.0, 1.08))
    ]
    table = Table(title="displacement of time, 1,024 samples at 100 Hz")
    for column in ("warp", "SD, samples", "steps that fold back", "positions outside"):
        table.add_column(column, justify="left" if column == "warp" else "right")
    for name, displacement in rows:
        found = displacement_statistics(displacement, 100.0)
        table.add_row(name, f"{found['sd_ms'] / 10:.1f}", f"{found['folded']:.2%}", f"{found['outside']:.2%}")
    return table


def _turns(works: tuple[Callable[[], object], ...], rounds: int) -> list[tuple[float, ...]]:
    """Seconds of each work, in turns, after one turn that warms up."""
    turns = []
    for _ in range(rounds + 1):
        turn = []
        for work in works:
            start = time.perf_counter()
            work()
            turn.append(time.perf_counter() - start)
        turns.append(tuple(turn))
    return turns[1:]
