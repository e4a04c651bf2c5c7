"""What learning thousands of task weights costs: Hu's network on protein graphs, the textbook's double backward and ours."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.data import Data

from ecgmeta.bilevel import (
    Adam,
    DoubleBackward,
    ForwardOverReverse,
    Identity,
    MetaState,
    Neumann,
    Schedule,
    Unroll,
    hypergradient,
    meta_train,
)
from ecgmeta.bilevel.problem import curvature_part
from ecgmeta.bilevel.products import Products, cosine
from ecgmeta.bilevel.trees import Tree, gradient
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import TaskProblem
from ppi_extension.task_weights import TaskWeights
from tests.bench import reference
from tests.bench.measure import THREADS, Cost, Work, call, measure

LR, FINETUNE, PROTEINS, EDGES = 1e-4, 40, 49, 891
PLAIN, TERMS = "plain step", (0, 1)
PART = 0.25  # of the pre-training graphs, on which Hu may be taken


def egos(seed: int, batch: int, tasks: int) -> Data:
    """``batch`` random graphs of Hu's sizes: 49 proteins and 891 directed edges on average, every entry labelled."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    sizes = integers(PROTEINS - 30, PROTEINS + 31, batch)
    first = sizes.cumsum(0) - sizes
    index = []
    for n, start in zip(sizes.tolist(), first.tolist(), strict=True):
        pairs = torch.triu_indices(n, n, 1)
        chosen = torch.randperm(pairs.shape[1], generator=generator)[: EDGES * n // (2 * PROTEINS)]
        both = torch.stack([pairs[:, chosen], pairs[:, chosen].flip(0)], 2).reshape(2, -1)
        index.append(both + start)
    edge_index = torch.cat(index, 1)
    attributes = torch.zeros(edge_index.shape[1], 9)
    attributes[:, :7] = (torch.rand(len(attributes) // 2, 7, generator=generator) < 0.3).repeat_interleave(
        2, 0
    )
    return Data(
        x=torch.ones(int(sizes.sum()), 1), edge_index=edge_index, edge_attr=attributes,
        batch=torch.arange(batch).repeat_interleave(sizes), center_node_idx=first,
        pretrain_labels=integers(0, 2, batch, tasks).to(torch.int8),
        finetune_labels=integers(0, 2, batch, FINETUNE).to(torch.int8),
    )  # fmt: skip


class Batches:
    """The same four batches at every step."""

    def __init__(self, batch: int, tasks: int) -> None:
        self._pool = [egos(seed, batch, tasks) for seed in range(4)]

    def pretrain(self, step: int) -> Data:
        return self._pool[0]

    def hyper(self, step: int, k: int) -> Data:
        return self._pool[1]

    def train(self, step: int, k: int) -> Data:
        return self._pool[2]

    def validation(self, step: int, k: int) -> Data:
        return self._pool[3]


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement."""

    batch: int
    tasks: int
    width: int
    layers: int = 5


class Meta:
    """A training state, and its kinds of step."""

    def __init__(self, setting: Setting, form: Any = "reduced", dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        encoder = EgoGNN(width=setting.width, layers=setting.layers, form=form)
        heads = [TaskHead(encoder.num_features, n) for n in (setting.tasks, FINETUNE)]
        self.problem = TaskProblem(
            encoder.to(dtype), heads[0].to(dtype), heads[1].to(dtype), TaskWeights(setting.tasks).to(dtype)
        )
        self.batches = Batches(setting.batch, setting.tasks)
        problem = self.problem
        self.state = MetaState(
            problem.theta,
            problem.phi,
            {name: value.detach() for name, value in problem.psi.items()},
            torch.optim.Adam(problem.theta.values(), LR),
            torch.optim.Adam(problem.phi.values(), LR, eps=1e-12),
        )

    def plain(self) -> None:
        """One step of θ, by hand: the same on both sides."""
        problem, state = self.problem, self.state
        with problem.recording():
            loss = problem.pretrain_loss(
                state.theta, {n: v.detach() for n, v in state.phi.items()}, self.batches.pretrain(0)
            )
        grads = gradient(loss, state.theta)
        for name, value in state.theta.items():
            value.grad = grads[name]
        state.theta_optimizer.step()
        state.theta_optimizer.zero_grad(set_to_none=True)

    def phi_step(self, terms: int, products: Products, encoder: bool = False, curvature: float = 1.0) -> None:
        """A pre-training step with its φ step, as :func:`meta_train` takes it."""
        self.state.step = 0
        loop = meta_train(
            self.problem,
            self.state,
            self.batches,
            schedule=Schedule(1, 1),
            finetune=Unroll(1, Adam(LR), encoder=encoder),
            inverse=Neumann(terms, LR) if terms else Identity(LR),
            head_optimizer=Adam(LR),
            products=products,
            on_failure="raise",
            curvature=curvature,
        )
        for _ in loop:
            pass

    def textbook(self, terms: int) -> Tree:
        """The hypergradient by double backward throughout."""
        problem, state, batches = self.problem, self.state, self.batches
        return reference.hypergradient(
            problem.pretrain_loss,
            problem.finetune_loss,
            state.theta,
            state.phi,
            state.psi,
            pretrain_batch=batches.pretrain(0),
            train_batches=[batches.train(0, 0)],
            val_batch=batches.validation(0, 0),
            optimizer=Adam(LR),
            terms=terms,
            alpha=LR,
        )

    def textbook_step(self, terms: int) -> None:
        """A φ step alone, by the textbook."""
        for name, value in self.textbook(terms).items():
            self.state.phi[name].grad = value
        self.state.phi_optimizers[0].step()
        self.state.phi_optimizers[0].zero_grad(set_to_none=True)

    def mixed(self, route: Callable[..., Any] | None) -> object:
        """``Mᵀu`` by a route, or in forward mode."""
        problem, state, batch = self.problem, self.state, self.batches.pretrain(0)
        if route is None:
            return problem.mixed_product(state.theta, state.phi, batch, state.theta)
        return route(partial(problem.pretrain_loss, batch=batch), state.theta, state.phi).mixed(state.theta)

    def beside(self) -> object:
        """``∇L_PT`` and ``Mᵀu`` on its way back, as a φ step takes them where no Hessian is in the way."""
        problem, state = self.problem, self.state
        return problem.mixed_product_and_gradient(
            state.theta, state.phi, self.batches.pretrain(0), state.theta
        )

    def hvp(self, route: Callable[..., Any], curvature: float = 1.0) -> object:
        """``∇L_PT`` and one ``Hu`` by a route, on a share of the graphs."""
        problem, state = self.problem, self.state
        batch = curvature_part(problem, self.batches.pretrain(0), curvature)
        return route(partial(problem.pretrain_loss, batch=batch), state.theta, state.phi).hvp(state.theta)

    def v(self) -> object:
        """The fine-tuning factor, K = 1."""
        state, batches = self.state, self.batches
        train = [batches.train(0, 0)]
        return Unroll(1, Adam(LR))(self.problem, state.theta, state.psi, train, batches.validation(0, 0))


def run(setting: Setting, rounds: int) -> None:
    """Measure and print the tables."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    # torch's own forward derivatives of a few operations still go through its old compiler, and say so every time.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    console.print(f"{THREADS} threads; {setting}; {EDGES} edges a graph on average")
    costs = measure(_works(setting), rounds, console.print)
    parts = measure(_parts(setting), rounds, console.print)
    cosines = call(partial(_cosines, setting))
    console.print(_table(setting, costs, cosines))
    console.print(_parts_table(parts, costs[f"ours: {PLAIN}"]))


def _of(setting: Setting, form: str, method: str, *arguments: Any) -> Work:
    return Work(lambda: partial(getattr(Meta(setting, form), method), *arguments))


def _works(setting: Setting) -> dict[str, Work]:
    """The reference: messages edge by edge, the textbook's products. Ours: the reduced form; Hu by both exact routes."""
    works = {
        f"reference: {PLAIN}": _of(setting, "plain", "plain"),
        f"ours: {PLAIN}": _of(setting, "reduced", "plain"),
    }
    for terms in TERMS:
        name = f"φ step, K = 1, J = {terms}"
        works[f"reference: {name}"] = _of(setting, "plain", "textbook_step", terms)
        works[f"ours: {name}"] = _of(setting, "reduced", "phi_step", terms, DoubleBackward)
        if terms:
            works[f"ours: {name}, forward over reverse"] = _of(
                setting, "reduced", "phi_step", terms, ForwardOverReverse
            )
            works[f"ours: {name}, Hu on {PART:g} of the graphs"] = _of(
                setting, "reduced", "phi_step", terms, DoubleBackward, False, PART
            )
    works["ours: φ step, K = 1, J = 0, encoder unrolled"] = _of(
        setting, "reduced", "phi_step", 0, DoubleBackward, True
    )
    return works


def _parts(setting: Setting) -> dict[str, Work]:
    return {
        "v, K = 1": _of(setting, "reduced", "v"),
        "Mᵀu, forward mode": _of(setting, "reduced", "mixed", None),
        "∇L_PT and Mᵀu, on its way back": _of(setting, "reduced", "beside"),
        "∇L_PT and Mᵀu, double backward": _of(setting, "reduced", "mixed", DoubleBackward),
        "∇L_PT and Mᵀu, double backward, edge by edge": _of(setting, "plain", "mixed", DoubleBackward),
        "∇L_PT and Hu, double backward": _of(setting, "reduced", "hvp", DoubleBackward),
        "∇L_PT and Hu, forward over reverse": _of(setting, "reduced", "hvp", ForwardOverReverse),
        f"∇L_PT and Hu, double backward, {PART:g} of the graphs": _of(
            setting, "reduced", "hvp", DoubleBackward, PART
        ),
    }


def _cosines(setting: Setting) -> dict[str, float]:
    """Of our hypergradient in float32 to the textbook's, message by message, in float64."""
    single, double = Meta(setting), Meta(setting, "plain", torch.float64)
    state, batches = single.state, single.batches
    cosines = {}
    rows = [(f"φ step, K = 1, J = {terms}", terms, 1.0) for terms in TERMS]
    rows.append((f"φ step, K = 1, J = 1, Hu on {PART:g} of the graphs", 1, PART))
    exact = {terms: double.textbook(terms) for terms in TERMS}
    for name, terms, curvature in rows:
        found = hypergradient(
            single.problem, state.theta, state.phi, state.psi, pretrain_batch=batches.pretrain(0),
            train_batches=[batches.train(0, 0)], val_batch=batches.validation(0, 0), finetune=Unroll(1, Adam(LR)),
            inverse=Neumann(terms, LR) if terms else Identity(LR), curvature=curvature,
        )  # fmt: skip
        cosines[name] = cosine({n: v.double() for n, v in found.phi.items()}, exact[terms])
    return cosines


def _table(setting: Setting, costs: dict[str, Cost], cosines: dict[str, float]) -> Table:
    table = Table(
        title=f"{setting.tasks} task weights; Hu's network, {setting.layers} layers of {setting.width}; {setting.batch} graphs"
    )
    sides = (
        "ref s",
        "÷ ref plain",
        "ref MB",
        "ours s",
        "÷ ours plain",
        "in CPU s",
        "goal",
        "ours MB",
        "÷ ours plain",
        "goal",
    )
    for column in ("", *sides, "cosine"):
        table.add_column(column)
    theirs_plain, plain = costs[f"reference: {PLAIN}"], costs[f"ours: {PLAIN}"]
    for name in dict.fromkeys(key.split(": ", 1)[1] for key in costs):
        theirs, ours = costs.get(f"reference: {name}"), costs[f"ours: {name}"]
        phi = name.startswith("φ")
        goals = ("≤ 3", "≤ 1.5") if name in cosines else ("", "")
        table.add_row(
            name,
            *(
                ("", "", "")
                if theirs is None
                else (
                    f"{theirs.seconds:.2f}",
                    f"{theirs.seconds / theirs_plain.seconds:.2f}",
                    f"{theirs.peak_mb:.0f}",
                )
            ),
            f"{ours.seconds:.3f}",
            f"{ours.seconds / plain.seconds - phi:.2f}",
            f"{ours.cpu / plain.cpu - phi:.2f}",
            goals[0],
            f"{ours.peak_mb:.0f}",
            f"{ours.peak_mb / plain.peak_mb:.2f}",
            goals[1],
            f"{cosines[name]:.6f}" if name in cosines else "",
        )
    table.caption = (
        "a φ step of ours: its whole step less a plain one; the reference's: alone. "
        "cosine: our float32 to the textbook's float64, edge by edge."
    )
    return table


def _parts_table(costs: dict[str, Cost], plain: Cost) -> Table:
    table = Table(title="where the time of a φ step goes")
    for column in ("", "s", "plain steps", "peak MB"):
        table.add_column(column)
    for name, cost in costs.items():
        table.add_row(
            name, f"{cost.seconds:.3f}", f"{cost.seconds / plain.seconds:.2f}", f"{cost.peak_mb:.0f}"
        )
    return table
