"""Hypergradient quality: each route against a known answer, against pre-training differentiated end to end, and whole runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from ecgmeta.bilevel import (
    SGD,
    Adam,
    ConjugateGradient,
    DoubleBackward,
    FinetuneFactor,
    Identity,
    ImplicitHead,
    Neumann,
    Nystrom,
    Solver,
    Spectrum,
    Unroll,
    hypergradient,
    lanczos,
)
from ecgmeta.bilevel.trees import Tree, detach, flatten, gradient, leaves
from ecgmeta.runtime.seeds import torch_generator
from examples.studies import study
from examples.studies.contrast import MAGNITUDES, Contrast, Views, initial_phi
from examples.studies.study import Task

Numbers = dict[str, float]
T = TypeVar("T")
PRETRAIN, LABELLED, TRAIN, VALIDATION = range(900), range(900, 1000), range(1000, 1400), range(1400, 1797)
POPULATION = ImplicitHead("logistic", 0.01)  # the truth of fine-tuning: 400 labels, validated on 397 others


HEADS: dict[str, FinetuneFactor] = {
    "K = 1 head": Unroll(1, Adam(1e-2)),
    "K = 10 head": Unroll(10, Adam(1e-2)),
    "K = 10, encoder too": Unroll(10, Adam(1e-3), encoder=True),
    "logistic": ImplicitHead("logistic", 0.1),
    "ridge, λ = 0.1": ImplicitHead("ridge", 0.1),
    "ridge, λ = 1": ImplicitHead("ridge", 1.0),
}


@dataclass
class ClosedForm:
    """Ridge with one log-penalty a feature, at its minimum; κ is the condition number of H."""

    features: int = 30
    kappas: list[int] = field(default_factory=lambda: [10, 100])


@dataclass
class Small:
    """The small SimCLR run.

    Attributes:
        early, late: pre-training steps at which hypergradients are taken.
        draws: of pre-training batches, view noise and fine-tuning batches, for each route.
        spectra: batches whose Hessian's spectrum decides step size and damping.
        unrolls: whole runs differentiated end to end, each with other noise; their mean is the reference.
        lr, batch: of Adam in pre-training.
        half: half distance of the factorial's two levels in φ, a log magnitude.
    """

    early: int = 30
    late: int = 150
    draws: int = 12
    spectra: int = 3
    unrolls: int = 4
    lr: float = 3e-3
    batch: int = 64
    half: float = 0.5


@dataclass
class Settings:
    closed_form: ClosedForm = field(default_factory=ClosedForm)
    small: Small = field(default_factory=Small)


@dataclass
class Plan(study.Plan):
    settings: Settings = field(default_factory=Settings)


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    small = asdict(settings.small)
    for seed in seeds:
        for kappa in settings.closed_form.kappas:
            yield Task(
                "closed form",
                f"κ = {kappa}",
                seed,
                {"features": settings.closed_form.features, "kappa": kappa},
            )
        for when in ("early", "late"):
            yield Task("routes", when, seed, {**small, "steps": small[when]})
        yield Task("factorial", "whole runs", seed, small)


def run(task: Task) -> Numbers:
    return {"closed form": _closed_form, "routes": _routes, "factorial": _factorial}[task.arm](task)


def inverses(spectrum: Spectrum) -> dict[str, Solver]:
    """Every solver, with step size and damping from one spectrum estimate."""
    step, damping = spectrum.step_size, spectrum.damping
    return {
        "identity": Identity(step),
        **{f"Neumann, J = {j}": Neumann(j, step, damping) for j in (1, 5, 20)},
        **{f"CG, {n} iterations": ConjugateGradient(n, damping) for n in (5, 20)},
        "Nyström 10 + CG 10": Nystrom(10, 10, max(damping, 1e-8)),
    }


class _Ridge:
    """``L_PT = ½‖Xθ − y‖²/n + ½Σ e^{φᵢ}θᵢ²``; v is the gradient of the error on other rows. Its hypergradient in closed form
    is ``−e^φ θ* ⊙ H⁻¹v``."""

    def __init__(self, seed: int, features: int, kappa: float) -> None:
        g = torch_generator(seed, "ridge", str(kappa))

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        q, r = torch.linalg.qr(draw(2 * features, features)).Q, torch.linalg.qr(draw(features, features)).Q
        self.phi = torch.full((features,), math.log(0.5), dtype=torch.float64)
        values = torch.linspace(1.0, kappa, features, dtype=torch.float64) - 0.5
        self.x = q @ torch.diag((2 * features * values).sqrt()) @ r
        truth = draw(features)
        self.y = self.x @ truth + draw(2 * features)
        self.other = draw(2 * features, features)
        self.other_y = self.other @ truth + draw(2 * features)
        self.hessian = self.x.T @ self.x / len(self.y) + torch.diag(self.phi.exp())
        self.theta = torch.linalg.solve(self.hessian, self.x.T @ self.y / len(self.y))

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: None) -> Tensor:
        w = theta["w"]
        return 0.5 * (self.x @ w - self.y).square().mean() + 0.5 * (phi["p"].exp() * w * w).sum()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: None) -> Tensor:
        return 0.5 * (self.other @ theta["w"] - self.other_y).square().mean()

    def exact(self) -> Tensor:
        v = self.other.T @ (self.other @ self.theta - self.other_y) / len(self.other_y)
        return -self.phi.exp() * self.theta * torch.linalg.solve(self.hessian, v)


def _closed_form(task: Task) -> Numbers:
    ridge = _Ridge(task.seed, task.inputs["features"], task.inputs["kappa"])
    theta, phi, exact = {"w": ridge.theta}, {"p": ridge.phi}, ridge.exact()
    spectrum = lanczos(
        DoubleBackward(lambda t, p: ridge.pretrain_loss(t, p, None), theta, phi).hvp, theta, 12
    )
    found: Numbers = {}
    for name, inverse in inverses(spectrum).items():
        hyper = hypergradient(
            ridge, theta, phi, {}, pretrain_batch=None, train_batches=[], val_batch=None, finetune=Unroll(0, SGD(1.0)),
            inverse=inverse,
        )  # fmt: skip
        found[f"{name}|error"] = float((hyper.phi["p"] - exact).norm() / exact.norm())
        found[f"{name}|cosine"] = _cosine(hyper.phi["p"], exact)
    return found


@dataclass(frozen=True)
class _Route:
    """A way to the hypergradient at one θ: the draw's number -> (φ-shaped vector, whether it may be used)."""

    name: str
    value: Callable[[int], tuple[Tensor, bool]]


class _Run:
    """A small SimCLR run of a task: plain, or with the graph that leads back to φ."""

    def __init__(self, task: Task) -> None:
        self.seed, self.i = task.seed, task.inputs
        self.problem = Contrast(task.seed)
        self.adam = Adam(self.i["lr"])
        self.theta, self.psi = self.problem.initial(task.seed)

    def views(self, *names: str | int) -> Views:
        return self.problem.draw(self.seed, *names, rows=PRETRAIN, size=self.i["batch"])

    def train(self, phi: Tree, steps: int, noise: int = 0, *, graph: bool = False) -> Tree:
        """θ after so many steps; ``noise`` numbers the stream of batches."""
        theta = leaves(self.theta)
        state = self.adam.init(theta)
        for step in range(steps):
            loss = self.problem.pretrain_loss(theta, phi, self.views("batch", noise, step))
            theta, state = self.adam.update(theta, gradient(loss, theta, create_graph=graph), state)
            if not graph:
                theta, state = leaves(theta), {name: detach(tree) for name, tree in state.items()}
        return theta

    def end_to_end(self, steps: int, noise: int) -> Tensor:
        """``dL/dφ`` of the population's fine-tuning, through every step of pre-training."""
        phi = leaves(initial_phi())
        theta = self.train(phi, steps, noise, graph=True)
        v = self.population(theta)[1]
        return gradient(list(theta.values()), phi, grad_outputs=[v[n] for n in theta])["log"]

    def population(self, theta: Tree) -> tuple[float, Tree]:
        """The validation loss of fine-tuning on the population, and its v."""
        found = POPULATION(self.problem, theta, self.psi, [torch.tensor(TRAIN)], torch.tensor(VALIDATION))
        return float(found.validation_loss), found.v


def _routes(task: Task) -> Numbers:
    run = _Run(task)
    theta, phi = detach(run.train(initial_phi(), run.i["steps"])), initial_phi()
    whole = [_timed(partial(run.end_to_end, run.i["steps"], k)) for k in range(run.i["unrolls"])]
    reference = torch.stack([g for g, _ in whole]).mean(0)
    plain = median(_timed(partial(_plain_step, run, theta, phi, k))[1] for k in range(20))
    found = {"plain_seconds": plain, **_quality("whole run", whole, reference, plain, [True] * len(whole))}
    curvature = _curvature(run, theta, phi)
    found |= {"largest": curvature.largest, "smallest": curvature.smallest, "damping": curvature.damping}
    for route in _every_route(run, theta, phi, curvature):
        values = [_timed(partial(route.value, k)) for k in range(run.i["draws"])]
        ok = [good for (_, good), _ in values]
        found |= _quality(route.name, [(g, s) for (g, _), s in values], reference, plain, ok)
    return found


def _curvature(run: _Run, theta: Tree, phi: Tree) -> Spectrum:
    """The widest of the spectra of a few batches: one batch's damping is too small for others."""
    spectra = []
    for k in range(run.i["spectra"]):
        loss = partial(run.problem.pretrain_loss, batch=run.views("spectrum", k))
        spectra.append(lanczos(DoubleBackward(loss, theta, phi).hvp, theta, 12))
    top = max(spectra, key=lambda s: s.largest + s.largest_error)
    low = max(spectra, key=lambda s: s.damping)
    return replace(top, smallest=low.smallest, smallest_error=low.smallest_error)


def _plain_step(run: _Run, theta: Tree, phi: Tree, k: int) -> Tree:
    nodes = leaves(theta)
    slope = gradient(run.problem.pretrain_loss(nodes, phi, run.views("plain", k)), nodes)
    return run.adam.update(theta, slope, run.adam.init(theta))[0]


def _every_route(run: _Run, theta: Tree, phi: Tree, curvature: Spectrum) -> Iterator[_Route]:
    """Every inverse behind the v of the population, which the reference has, too; every head before two of them."""
    problem = run.problem
    solvers = inverses(curvature)
    labelled = torch.tensor(LABELLED)
    train, val = labelled[:80], labelled[80:]
    psi, state = _warm_head(problem, theta, run.psi, train)

    def labels(finetune: FinetuneFactor, k: int) -> tuple[list[Tensor], Tensor]:
        """Ridge takes all labels; the logistic head another split of them at each draw, the K-step heads other batches."""
        generator = torch_generator(run.seed, "labels", k)
        if finetune is POPULATION:
            return [torch.tensor(TRAIN)], torch.tensor(VALIDATION)
        if isinstance(finetune, ImplicitHead):
            order = labelled[torch.randperm(len(labelled), generator=generator)]
            return ([], labelled) if finetune.kind == "ridge" else ([order[:80]], order[80:])
        picks = [torch.randperm(len(train), generator=generator)[:32] for _ in range(finetune.train_batches)]
        return [train[pick] for pick in picks], val

    def route(name: str, finetune: FinetuneFactor, inverse: Solver) -> _Route:
        def value(k: int) -> tuple[Tensor, bool]:
            batches, last = labels(finetune, k)
            hyper = hypergradient(
                problem, theta, phi, psi, pretrain_batch=run.views("draw", k), train_batches=batches, val_batch=last,
                finetune=finetune, inverse=inverse, head_state=state,
            )  # fmt: skip
            return hyper.phi["log"], hyper.ok

        return _Route(name, value)

    for name, solver in solvers.items():
        yield route(f"population; {name}", POPULATION, solver)
    for (name, head), inverse in product(HEADS.items(), ("identity", "Neumann, J = 5")):
        yield route(f"{name}; {inverse}", head, solvers[inverse])
    yield route("paper", Unroll(1, Adam(1e-4)), Neumann(1, run.i["lr"]))


def _warm_head(problem: Contrast, theta: Tree, psi: Tree, train: Tensor) -> tuple[Tree, dict[str, Tree]]:
    """The head as Algorithm 1 keeps it: 200 Adam steps on the features of the training labels."""
    adam = Adam(1e-2)
    state = adam.init(psi)
    features = problem.features(theta, train).detach()
    for _ in range(200):
        nodes = leaves(psi)
        psi, state = adam.update(psi, gradient(problem.head_loss(features, nodes, train), nodes), state)
        psi, state = detach(psi), {name: detach(tree) for name, tree in state.items()}
    return psi, state


def _quality(
    name: str, values: Sequence[tuple[Tensor, float]], reference: Tensor, plain: float, ok: Sequence[bool]
) -> Numbers:
    """Of a route's draws: what one of them and their mean say of the reference, signal-to-noise, cost.

    ``snr`` is the root mean square over coordinates of m/s, freed of what noise adds: ``√max(0, mean(m²/s²) − 1/n)``.
    """
    used = torch.stack(
        [g for (g, _), good in zip(values, ok, strict=True) if good] or [torch.full_like(reference, math.nan)]
    )
    mean, n = used.mean(0), len(used)
    spread = used.std(0) if n > 1 else torch.full_like(mean, math.nan)
    return {
        f"{name}|cosine": sum(_cosine(g, reference) for g in used) / n,
        f"{name}|cosine_of_mean": _cosine(mean, reference),
        f"{name}|error": float((mean - reference).norm() / reference.norm()),
        f"{name}|snr": math.sqrt(max(0.0, float((mean / spread).square().mean()) - 1 / n))
        if n > 1
        else math.nan,
        f"{name}|cost": median(seconds for _, seconds in values) / plain,
        f"{name}|unusable": 1 - sum(ok) / len(ok),
        **{f"{name}|g_{coordinate}": float(mean[k]) for k, coordinate in enumerate(MAGNITUDES)},
    }


def _factorial(task: Task) -> Numbers:
    """Main effects of the magnitudes on the final loss of whole runs: half of a 2⁵ design, no effect mixed with another pair's.

    The fifth level is the product of the four others (Box, Hunter & Hunter, *Statistics for Experimenters*: 2^(5−1), V).
    """
    run = _Run(task)
    levels = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    levels = torch.cat([levels, levels.prod(1, keepdim=True)], 1)
    losses = torch.tensor(
        [run.population(detach(run.train({"log": run.i["half"] * row}, run.i["late"])))[0] for row in levels],
        dtype=torch.float64,
    )
    effects = (
        levels.T @ losses / len(levels) / run.i["half"]
    )  # a derivative: half the difference over half the distance
    return {f"effect_{name}": float(effects[k]) for k, name in enumerate(MAGNITUDES)} | {
        "loss": float(losses.mean())
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    value = work()
    return value, time.perf_counter() - started


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(flatten({"a": a}) @ flatten({"b": b}) / (a.norm() * b.norm()))


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.hypergradient_report import section

    return section(plan, results)
