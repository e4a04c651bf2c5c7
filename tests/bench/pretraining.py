"""What meta-learning costs: the reference algorithm and ours, side by side, a row for every line of the goal."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import TensorDataset

# Named here so that every import is done before a measurement forks.
from ecgmeta.augment import LearnedWarp, paper_static
from ecgmeta.bilevel import (
    Adam,
    DoubleBackward,
    FeatureModuleProblem,
    FinetuneFactor,
    ForwardOverReverse,
    Identity,
    ImplicitHead,
    MetaState,
    Neumann,
    Schedule,
    Solver,
    Unroll,
    choose_products,
    hypergradient,
    meta_train,
)
from ecgmeta.bilevel.products import Linearization, LowPrecision, Products, cosine
from ecgmeta.data import SyntheticCohort
from ecgmeta.encoders import create_encoder
from ecgmeta.experiment.batches import Labelled, Pool
from ecgmeta.experiment.model import FinetuneHead
from ecgmeta.simclr import SimCLR, Views, draw_views
from tests.bench import reference
from tests.bench.measure import THREADS, Cost, Work, call, measure

FS, SAMPLES, PERIOD, LR, WARM_STEPS = 100.0, 1024, 10, 1e-4, 20
ROUTES: dict[str, Products | None] = {
    "double": DoubleBackward,
    "forward": ForwardOverReverse,
    "low": LowPrecision(),
    "chosen": None,  # whatever choose_products finds cheapest on the problem at hand
}


class Batches:
    """The same records at every step; views are drawn anew, from a seed of their own.

    Of 3 · ``batch`` labelled records, two thirds train and one validates; a fine-tuning batch has ``batch`` of them, so the ten
    of K = 10 share records, as they do wherever few are labelled.

    Args:
        dtype: what the views are cast to after they were drawn, so that float64 sees the float32 numbers.
    """

    def __init__(
        self, batch: int, augmenter: LearnedWarp | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        x, y = records(3 * batch)
        self.x, self.size = x[:batch].to(device), batch
        x, y = x.to(dtype), y.to(dtype)
        self.labels = Pool(TensorDataset(x[batch:]), y[batch:], device)
        self.held_out = Pool(TensorDataset(x[:batch]), y[:batch], device)
        self.static, self.augmenter, self.dtype = paper_static(), augmenter, dtype
        self.generator = torch.Generator(device).manual_seed(1)

    def pretrain(self, step: int, k: int = 0) -> Views:
        views = draw_views(self.x, self.static, self.augmenter, generator=self.generator)
        return Views(views.x.to(self.dtype), None if views.noise is None else views.noise.to(self.dtype))

    hyper = pretrain

    def first_views(self) -> Views:
        """The same at every call, whatever was drawn before, in either precision."""
        self.generator.manual_seed(1)
        return self.pretrain(0)

    def train(self, step: int, k: int) -> Labelled:
        order = torch.randperm(2 * self.size, generator=torch.Generator().manual_seed(k))
        return self.labels.draw(order[: self.size])

    def validation(self, step: int, k: int = 0) -> Labelled:
        return self.held_out.draw(torch.arange(self.size))


class Problem(FeatureModuleProblem):
    """With the targets that the implicit head asks for."""

    def targets(self, batch: Labelled) -> Tensor:
        return batch.y


class Ours:
    """Our training state on the same records as :class:`tests.bench.reference.Reference`."""

    def __init__(
        self,
        width: int,
        batch: int,
        *,
        learned: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(0)
        encoder = create_encoder("resnet18", width=width)
        augmenter = LearnedWarp(variant="paper") if learned else None  # as the reference
        self.batches = Batches(batch, augmenter, dtype, torch.device(device))
        simclr = SimCLR(encoder, augmenter).to(device, dtype)
        head = FinetuneHead(encoder, 5).to(device, dtype)
        self.problem = problem = Problem(simclr, head, hyper=augmenter)
        self.state = MetaState(
            problem.theta,
            problem.phi,
            {name: value.detach() for name, value in problem.psi.items()},
            torch.optim.Adam(problem.theta.values(), lr=LR),
            torch.optim.Adam(problem.phi.values(), lr=LR) if learned else None,
        )

    def load(self, other: Ours) -> None:
        """Take the other's weights and statistics, cast to this one's precision."""
        self.problem.pretrain.load_state_dict(other.problem.pretrain.state_dict())
        self.problem.finetune.load_state_dict(other.problem.finetune.state_dict())

    def train(self, steps: int, period: int, phi: Phi, products: Products) -> None:
        """``steps`` steps of :func:`meta_train`, every ``period``-th a φ step."""
        self.state.step = 0
        loop = meta_train(
            self.problem,
            self.state,
            self.batches,
            schedule=Schedule(steps, period),
            finetune=phi.finetune,
            inverse=phi.inverse,
            head_optimizer=Adam(LR),
            products=products,
            on_failure="raise",
        )
        for _ in loop:
            pass


@dataclass(frozen=True)
class Phi:
    """A kind of φ step. ``goal``: most plain steps that it may add; ``by_reference``: whether the reference does it too."""

    steps: int
    terms: int
    goal: float | None = None
    head: FinetuneFactor | None = None

    def __str__(self) -> str:
        return f"φ step, {f'K = {self.steps}' if self.head is None else 'implicit head'}, J = {self.terms}"

    @property
    def finetune(self) -> FinetuneFactor:
        return self.head or Unroll(self.steps, Adam(LR))

    @property
    def inverse(self) -> Solver:
        return Neumann(self.terms, LR) if self.terms else Identity(LR)


PHI_STEPS = (
    Phi(1, 0, 2.3),
    Phi(1, 1, 4.2),
    Phi(1, 5, 9.0),
    Phi(10, 1, 5.0),
    Phi(0, 0, None, ImplicitHead()),
    Phi(0, 1, None, ImplicitHead()),
)
PLAIN, WARPED = "plain step, static views", "plain step, warp not learned"
NT_XENT = "of which NT-Xent"


def records(batch: int) -> tuple[Tensor, Tensor]:
    """(batch, 12, 1024) in mV and their five superclasses."""
    return SyntheticCohort(batch, fs=FS, duration=SAMPLES / FS)[slice(0, batch)]


def run(width: int, batch: int, steps: int, rounds: int, route: str, full: bool, device: str) -> None:
    """Measure and print the tables."""
    console = Console(width=None if sys.stdout.isatty() else 220)
    # torch's own forward derivatives of a few operations still go through its old compiler, and say so every time.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    records(2)  # what a simulation imports late is imported before the forks
    products = ROUTES[route] or call(partial(_cheapest, width, batch, device))
    where = f"{THREADS} threads" if device == "cpu" else call(torch.cuda.get_device_name)
    console.print(f"{where}; ours takes its products by {getattr(products, '__name__', products)} ({route})")
    for size in (batch, 4 * batch):
        works = _works(width, size, steps, products, size == batch or full, device)
        costs = measure(works, rounds, partial(_say, console, size))
        cosines = call(partial(_cosines, width, size, products, device)) if size == batch else {}
        console.print(_table(f"ResNet-18 of width {width}, {size} × 12 × {SAMPLES}", costs, steps, cosines))
        if size == batch:
            parts = measure(_parts(width, size, products, device), rounds, partial(_say, console, size))
            console.print(_parts_table(parts, costs[f"ours: {PLAIN}"].seconds))
        ratio = costs[f"reference: {PLAIN}"].seconds / costs[f"ours: {PLAIN}"].seconds
        console.print(f"our plain step at batch {size} is {ratio:.2f} times as fast as the reference's\n")


def _say(console: Console, size: int, text: str) -> None:
    console.print(f"batch {size}: {text}")


def _cheapest(width: int, batch: int, device: str) -> Products:
    """What :func:`choose_products` takes here, in a process of its own: its probes cost more memory than the steps."""
    ours = Ours(width, batch, device=device)
    views = ours.batches.pretrain(0)
    return choose_products(
        partial(ours.problem.pretrain_loss, batch=views), ours.state.theta, ours.state.phi
    )[0]


def _works(
    width: int, batch: int, steps: int, products: Products, whole: bool, device: str
) -> dict[str, Work]:
    def of_reference(method: str, *arguments: Any, **settings: Any) -> Callable[[], Callable[[], object]]:
        def build() -> Callable[[], object]:
            torch.manual_seed(0)
            state = reference.Reference(*records(batch), width, lr=LR, device=device)
            return partial(getattr(state, method), *arguments, **settings)

        return build

    def of_ours(
        steps: int, period: int, phi: Phi = PHI_STEPS[0], learned: bool = True
    ) -> Callable[[], Callable[[], object]]:
        def build() -> Callable[[], object]:
            ours = Ours(width, batch, learned=learned, device=device)
            return partial(ours.train, steps, period, phi, products)

        return build

    works = {
        f"reference: {PLAIN}": Work(of_reference("plain_step")),
        f"ours: {PLAIN}": Work(of_ours(1, 0, learned=False)),
        f"reference: {WARPED}": Work(of_reference("plain_step", warped=True)),
        f"ours: {WARPED}": Work(of_ours(1, 0)),
        f"reference: {NT_XENT}": Work(partial(_contrast, batch, device, lambda: reference.nt_xent)),
        f"ours: {NT_XENT}": Work(partial(_contrast, batch, device, _nt_xent)),
    }
    if not whole:
        return works
    for phi in PHI_STEPS:
        if phi.head is None:
            works[f"reference: {phi}"] = Work(of_reference("phi_step", phi.steps, phi.terms))
        works[f"ours: {phi}"] = Work(of_ours(1, 1, phi))
    for phi in PHI_STEPS[:2]:
        name = _loop_name(phi)
        works[f"reference: {name}"] = Work(of_reference("train", steps, PERIOD, phi.terms), steps, 1)
        works[f"ours: {name}"] = Work(of_ours(steps, PERIOD, phi), steps, 1)
    return works


def _nt_xent() -> Callable[[Tensor, Tensor], Tensor]:
    return SimCLR(create_encoder("resnet18", width=4)).loss


def _contrast(
    batch: int, device: str, loss: Callable[[], Callable[[Tensor, Tensor], Tensor]]
) -> Callable[[], object]:
    """NT-Xent of a batch of projections, with its gradient."""
    z = torch.randn(2, batch, 128, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    function = loss()
    return lambda: torch.autograd.grad(function(*z), z)


def _loop_name(phi: Phi) -> str:
    return f"pre-training at P = {PERIOD}, K = 1, J = {phi.terms}, a step"


def _table(title: str, costs: dict[str, Cost], steps: int, cosines: dict[str, tuple[float, float]]) -> Table:
    """Ratios are to the plain step with static views. A φ step of ours shares the gradient of its own pre-training step,
    so what it adds is its whole step less a plain step; the reference's shares nothing and is timed alone."""
    table = Table(title=title)
    for column in ("", "ref s", "ref ÷ ref plain", "ref ÷ our plain", "ours s", "ours CPU s", "ours min–max"):
        table.add_column(column)
    for column in (
        "ours ÷ our plain",
        "goal",
        "peak ref",
        "peak ours",
        "peak goal",
        "cosine",
        "float32's own",
    ):
        table.add_column(column)
    reference_plain, plain = costs[f"reference: {PLAIN}"], costs[f"ours: {PLAIN}"]
    goals = {str(phi): phi.goal for phi in PHI_STEPS} | {
        _loop_name(PHI_STEPS[0]): 1.25,
        _loop_name(PHI_STEPS[1]): 1.4,
    }
    for name in dict.fromkeys(key.split(": ", 1)[1] for key in costs):
        theirs, ours = costs.get(f"reference: {name}"), costs[f"ours: {name}"]
        shared = plain.seconds if name.startswith("φ step") else 0.0
        goal = goals.get(name)
        phi_peak = name.startswith("φ step") and "J = 1" in name
        table.add_row(
            name,
            *(
                ("", "", "")
                if theirs is None
                else (
                    f"{theirs.seconds:.2f}",
                    f"{theirs.seconds / reference_plain.seconds:.2f}",
                    f"{theirs.seconds / plain.seconds:.2f}",
                )
            ),
            f"{ours.seconds:.2f}",
            f"{ours.cpu:.2f}",
            f"{ours.spread[0]:.2f}–{ours.spread[1]:.2f}",
            f"{(ours.seconds - shared) / plain.seconds:.2f}",
            "" if goal is None else f"≤ {goal:g}",
            "" if theirs is None else _peak(theirs, reference_plain),
            _peak(ours, plain),
            "≤ 1.4" if phi_peak else "",
            *(f"{value:.5f}" for value in cosines.get(name, ())),
        )
    table.caption = (
        f"a φ step of ours: its whole step less a plain one; the reference's: alone. Pre-training: {steps} steps. "
        "cosine: to double backward in float64, same weights, batches and noise, same size."
    )
    return table


def _parts(width: int, batch: int, products: Products, device: str) -> dict[str, Work]:
    """Where the time of a φ step goes, each part alone."""

    def build(
        part: Callable[[Ours, Callable[[], Linearization]], object],
    ) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            ours = Ours(width, batch, device=device)
            loss = partial(ours.problem.pretrain_loss, batch=ours.batches.first_views())
            return partial(part, ours, lambda: products(loss, ours.state.theta, ours.state.phi))

        return prepare

    def graph(ours: Ours, point: Callable[[], Linearization]) -> object:
        return point().gradient

    def v(steps: int, ours: Ours, point: Callable[[], Linearization]) -> object:
        batches = [ours.batches.train(0, k) for k in range(steps)]
        state, last = ours.state, ours.batches.validation(0)
        return Unroll(steps, Adam(LR))(ours.problem, state.theta, state.psi, batches, last)

    def product(name: str, ours: Ours, point: Callable[[], Linearization]) -> object:
        return getattr(point(), name)(ours.state.theta)

    return {
        "∇θ L_PT and its graph": Work(build(graph)),
        "∇θ L_PT and its graph, one Hu": Work(build(partial(product, "hvp"))),
        "∇θ L_PT and its graph, Mᵀu": Work(build(partial(product, "mixed"))),
        "v, K = 1": Work(build(partial(v, 1))),
        "v, K = 10": Work(build(partial(v, 10))),
    }


def _parts_table(costs: dict[str, Cost], plain: float) -> Table:
    table = Table(title="where the time of a φ step goes")
    for column in ("", "s", "plain steps", "CPU s", "peak MB"):
        table.add_column(column)
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.seconds:.2f}",
            f"{cost.seconds / plain:.2f}",
            f"{cost.cpu:.2f}",
            f"{cost.peak_mb:.0f}",
        )
    return table


def _peak(cost: Cost, plain: Cost) -> str:
    return "" if math.isnan(cost.peak_mb) else f"{cost.peak_mb:.0f} MB = {cost.peak_mb / plain.peak_mb:.2f}"


def _cosines(width: int, batch: int, products: Products, device: str) -> dict[str, tuple[float, float]]:
    """Cosine of each of our hypergradients to the textbook's in float64, and that of float32 double backward.

    At weights a few steps old: with the untouched statistics of a new encoder, the fine-tuning features overflow their layers
    and float32 itself is off by a percent. A second derivative through ReLU jumps where an activation crosses 0, so float32
    has a floor of its own there, too.

    The implicit head has no textbook here: its v is its own in float64, and the rest is by double backward.
    """
    single = Ours(width, batch, device=device)
    double = Ours(width, batch, dtype=torch.float64, device=device)
    single.train(WARM_STEPS, 0, PHI_STEPS[0], products)
    double.load(single)
    cosines = {}
    for phi in PHI_STEPS:
        exact = _textbook(double, phi) if phi.head is None else _ours(double, phi, DoubleBackward)
        ours, plain = (
            cosine({name: value.double() for name, value in _ours(single, phi, route).items()}, exact)
            for route in (products, DoubleBackward)
        )
        cosines[str(phi)] = ours, plain
        print(f"1 - cosine to float64, {phi}: {1 - ours:.1e}; float32 alone: {1 - plain:.1e}", flush=True)
    return cosines


def _textbook(ours: Ours, phi: Phi) -> dict[str, Tensor]:
    """Of our problem, by the reference's route: an encoder pass a step in the graph, double backward throughout."""
    problem, state, batches = ours.problem, ours.state, ours.batches
    return reference.hypergradient(
        problem.pretrain_loss,
        problem.finetune_loss,
        state.theta,
        state.phi,
        state.psi,
        pretrain_batch=batches.first_views(),
        train_batches=[batches.train(0, k) for k in range(phi.steps)],
        val_batch=batches.validation(0),
        optimizer=Adam(LR),
        terms=phi.terms,
        alpha=LR,
    )


def _ours(ours: Ours, phi: Phi, products: Products) -> dict[str, Tensor]:
    state, batches = ours.state, ours.batches
    return hypergradient(
        ours.problem,
        state.theta,
        state.phi,
        state.psi,
        pretrain_batch=batches.first_views(),
        train_batches=[batches.train(0, k) for k in range(phi.finetune.train_batches)],
        val_batch=batches.validation(0),
        finetune=phi.finetune,
        inverse=phi.inverse,
        products=products,
    ).phi
