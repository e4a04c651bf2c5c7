"""ECG, synthetic cohort, once more: why learning φ goes astray in some runs, and what helps.

A remedy differs from the arm ``meta`` of :mod:`examples.studies.ecg_synthetic` in one setting. Each is tried on the pilot's
seeds; those that were chosen there meet seeds of record on which nothing was chosen.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel import MetaState, Neumann
from ecgmeta.bilevel.inverse.diagonal import adam_preconditioner
from ecgmeta.encoders import Encoder
from ecgmeta.runtime.seeds import derive
from examples.studies import ecg_synthetic, study
from examples.studies.ecg_arms import (
    Meta,
    Pretrained,
    Records,
    Scoring,
    Training,
    Variation,
    drawn,
    drawn_ramp,
    learned_numbers,
    pretrain,
    ramp,
    scaled,
    score,
    untrained,
    validated,
)
from examples.studies.study import Result, Section, Task

CHECKED = 10  # pre-training steps between two looks at the criterion
PENALTIES = (1.0, 0.1, 0.03, 0.01, 0.003)  # of other criteria, written down beside the one that chooses
WINDOW = 4  # looks that going back looks back on
MARKS = (40, 80, 120, 160)  # steps after which the magnitudes are written down


@dataclass
class Remedy:
    """In which settings an arm differs from ``meta``.

    Attributes:
        meta: settings of :class:`~examples.studies.ecg_arms.Meta`.
        learn: what moves φ, see :func:`~examples.studies.ecg_arms.pretrain`; not a remedy but a control where it is not ours.
        draws: of pre-training batch and noise, whose mean hypergradient a φ step takes.
        terms, step_size: of the Neumann series; 0 terms: no inverse.
        adam: eps of Adam's preconditioner in it, in units of a gradient; 0: none.
        anchor: share of the way back to its start, in the log, that each magnitude goes after each φ step.
        shrink: whether a coordinate's step is times ``max(0, 1 − 1/z²)``, z the drift of its hypergradients in SDs of noise.
        multiplicative: whether a φ step multiplies the root of a magnitude by ``exp`` of what would have been added.
        back: where the criterion has fallen by more than this (R² in %) below its best of the last WINDOW looks, φ goes back to
            where it was then; 0: never. θ goes on.
        sgd: whether φ's optimiser is SGD with momentum 0.9 in place of Adam, so that coordinates keep their proportions.
        ensemble: of so many runs from different initialisations, the geometric mean of the paths, led in one more run.
        runs: how many runs, each from an initialisation and with batches of its own, of which the criterion may choose one.
        seeds: on which it is tried; none: on all.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    learn: str = "ours"
    draws: int = 1
    terms: int = 0
    step_size: float = 1.0
    adam: float = 0.0
    anchor: float = 0.0
    shrink: bool = False
    multiplicative: bool = False
    back: float = 0.0
    sgd: bool = False
    ensemble: int = 0
    runs: int = 1
    seeds: list[int] = field(default_factory=list)


@dataclass
class Settings(ecg_synthetic.Settings):
    """As of the study before.

    Attributes:
        remedies: name of an arm -> what it changes.
        ramps: how many runs of the ramp, each from an initialisation and with batches of its own.
        steeper: situation -> factors of the start to which other ramps lead.
        schedules: situation -> how many ramps whose ends are drawn, up to the bound of what is learned: a search of schedules.
    """

    remedies: dict[str, Remedy] = field(default_factory=dict)
    ramps: int = 1
    steeper: dict[str, list[float]] = field(default_factory=dict)
    schedules: dict[str, int] = field(default_factory=dict)


@dataclass
class Plan(study.Plan):
    """The plan of this study.

    Attributes:
        main: the label size that the expectations are about.
        added: situations that came when the expectations had been written, with ones of their own.
        chosen: the arms that the expectations are about, ``best of 3 NAME`` among them: the remedies, best of so many runs.
        without: the arms without learning they are compared with.
        notes: what is to be said below the tables, written when the results are there.
    """

    settings: Settings = field(default_factory=Settings)
    main: int = 250
    added: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    notes: str = ""


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seed by seed, so that a run that is stopped leaves whole comparisons."""
    common = {name: asdict(getattr(settings, name)) for name in ("sizes", "training", "meta", "scoring")}
    for place, seed in enumerate(seeds):
        for name, situation in settings.situations.items():
            if place >= situation.seeds:
                continue
            described = asdict(situation)
            del described["factors"], described["seeds"]
            inputs = common | {"situation": described}
            for factor in situation.factors:
                yield Task(f"static {factor:g}", name, seed, inputs | {"factor": factor})
            spanned = [min(situation.factors), max(situation.factors)]
            for run in range(1, settings.ramps + 1):
                yield Task(numbered("ramp", run), name, seed, inputs | {"ramp": spanned, "run": run})
            for end in settings.steeper.get(name, []):
                yield Task(f"ramp to {end:g}", name, seed, inputs | {"ramp": [spanned[0], end], "run": 1})
            for trial in range(1, settings.schedules.get(name, 0) + 1):
                yield Task(
                    f"schedule {trial}",
                    name,
                    seed,
                    inputs | {"schedule": trial, "highest": settings.meta.highest},
                )
            for trial in range(1, settings.trials + 1):
                yield Task(
                    f"search {trial}", name, seed, inputs | {"trial": trial, "spread": settings.spread}
                )
            for arm, remedy in settings.remedies.items():
                if remedy.seeds and seed not in remedy.seeds:
                    continue
                for run in range(1, remedy.runs + 1):
                    yield Task(
                        numbered(arm, run), name, seed, inputs | {"remedy": _changed(remedy), "run": run}
                    )


def numbered(arm: str, run: int) -> str:
    return arm if run == 1 else f"{arm} {run}"


def _changed(remedy: Remedy) -> dict[str, Any]:
    """What it changes, so that a setting which is added later leaves finished cells what they are."""
    usual = asdict(Remedy())
    return {n: v for n, v in asdict(remedy).items() if v != usual[n] and n not in ("runs", "seeds")}


class Watch(Variation):
    """Keeps the encoder of the moment at which the criterion was best, whatever sets the magnitudes."""

    def __init__(self, encoder: Encoder, metaft: Records, penalty: float, first: int) -> None:
        self.encoder, self.metaft, self.penalty, self.first = encoder, metaft, penalty, first
        self.seen: dict[int, float] = {}
        self.best: dict[str, Tensor] = {}

    def after(self, step: int) -> None:
        done = step + 1
        if done < self.first or done % CHECKED:
            return
        value = validated(self.encoder, self.metaft, self.penalty)
        self.encoder.train()
        if not self.seen or value > max(self.seen.values()):
            self.best = copy.deepcopy(self.encoder.state_dict())
        self.seen[done] = value


class Change(Watch):
    """A remedy."""

    def __init__(self, remedy: Remedy, lr: float, training: Training, *watched: Any) -> None:
        super().__init__(*watched)
        self.remedy, self.lr, self.theta_lr = remedy, lr, training.lr
        self.start: Tensor | None = None
        self.roots: Tensor | None = None
        self.looks: list[tuple[float, Tensor]] = []

    def after(self, step: int) -> None:
        super().after(step)
        if not self.remedy.back or self.roots is None or step + 1 not in self.seen:
            return
        now = self.seen[step + 1]
        if self.looks:
            best, roots = max(self.looks, key=lambda look: look[0])
            if now < best - self.remedy.back:
                self.roots.copy_(roots)
        self.looks = [*self.looks, (now, self.roots.clone())][-WINDOW:]

    def engine(self, state: MetaState) -> dict[str, Any]:
        remedy = self.remedy
        settings: dict[str, Any] = {"accumulate": remedy.draws}
        if remedy.sgd:
            state.phi_optimizer = torch.optim.SGD(state.phi.values(), lr=self.lr, momentum=0.9, dampening=0.9)
        if remedy.terms or remedy.adam:
            optimizer, theta, eps = state.theta_optimizer, state.theta, remedy.adam
            preconditioner = (lambda: adam_preconditioner(optimizer, theta, eps=eps)) if eps else None
            settings["inverse"] = Neumann(
                remedy.terms, remedy.step_size, growth=10.0, preconditioner=preconditioner
            )
        return settings

    def stepped(self, state: MetaState, roots: Tensor, before: Tensor) -> None:
        remedy = self.remedy
        if self.start is None:
            self.start = before
        self.roots = roots
        if remedy.multiplicative:
            roots.copy_(before * (roots - before).exp())
        if remedy.shrink and state.signal.count > 2:
            z = state.signal.z().view(len(roots), len(roots), -1)[..., 0].diagonal().to(roots)
            roots.copy_(before + (1 - z.square().reciprocal()).clamp(min=0.0) * (roots - before))
        if remedy.anchor:
            roots.clamp_(min=1e-3).pow_(1 - remedy.anchor).mul_(self.start**remedy.anchor)


def run(task: Task) -> Mapping[str, float]:
    """Test AUROC and the criterion, at the end and where the criterion was best on the way."""
    inputs = task.inputs
    _, pool, test = ecg_synthetic.cohort_of(inputs, task.seed)
    scoring, metaft = Scoring(**inputs["scoring"]), pool.take(slice(inputs["sizes"]["metaft"]))
    found, watch = _pretrained(json.dumps(dict(inputs)), task.seed)
    numbers = score(found.encoder, pool, test, scoring, task.seed)
    numbers["validation"] = watch.seen[max(watch.seen)]
    numbers |= {f"R² at {penalty:g}": validated(found.encoder, metaft, penalty) for penalty in PENALTIES}
    stopped = copy.deepcopy(found.encoder)
    stopped.load_state_dict(watch.best)
    numbers |= {f"stopped {n}": x for n, x in score(stopped, pool, test, scoring, task.seed).items()}
    at = max(watch.seen, key=watch.seen.__getitem__)
    numbers |= {"stopped validation": watch.seen[at], "stopped at": at}
    numbers |= {"pretrain seconds": found.seconds}
    return numbers | (_course(found, watch) if "remedy" in inputs else {})


def _course(found: Pretrained, watch: Watch) -> dict[str, float]:
    """The magnitudes and the criterion on the way, and at the end with their drift."""
    numbers: dict[str, float] = {}
    for mark in MARKS:
        if mark < len(found.path):
            numbers |= {
                f"φ{mark} {n}": float(x) for n, x in zip(found.magnitudes, found.path[mark], strict=True)
            }
            numbers |= {f"R² {mark}": watch.seen[mark]} if mark in watch.seen else {}
    return numbers | learned_numbers(found)


@lru_cache(maxsize=8)  # the ensemble averages runs that are arms, too
def _pretrained(text: str, seed: int) -> tuple[Pretrained, Watch]:
    inputs = json.loads(text)
    unlabelled, pool, _ = ecg_synthetic.cohort_of(inputs, seed)
    metaft = pool.take(slice(inputs["sizes"]["metaft"]))
    start, training = inputs["situation"]["start"], Training(**inputs["training"])
    remedy = Remedy(**inputs.get("remedy", {}))
    meta = Meta(**(inputs["meta"] | remedy.meta))
    learn, path, before = "", None, 0.0
    if "factor" in inputs:
        start = scaled(start, inputs["factor"])
    elif "trial" in inputs:
        start = drawn(start, inputs["spread"], seed, inputs["trial"])
    elif "ramp" in inputs:
        low, high = inputs["ramp"]
        path = ramp(start, low, high, training.steps)
    elif "schedule" in inputs:
        path = drawn_ramp(start, inputs["highest"], training.steps, seed, inputs["schedule"])
    elif remedy.ensemble:
        alone = _changed(replace(remedy, ensemble=0))
        each = (inputs | {"remedy": alone, "run": run} for run in range(1, remedy.ensemble + 1))
        runs = [_pretrained(json.dumps(one), seed)[0] for one in each]
        path = torch.stack([one.path for one in runs]).log().mean(0).exp()
        before = sum(one.seconds for one in runs)
    else:
        learn = remedy.learn
    run = inputs.get("run", 1)
    own = seed if run == 1 else derive(seed, "run", run)
    encoder = untrained(unlabelled, own)
    watched = (encoder, metaft, inputs["meta"]["penalty"], inputs["meta"]["warmup"])
    variation = Change(remedy, meta.lr, training, *watched) if learn else Watch(*watched)
    found = pretrain(
        unlabelled, metaft, start, own, training, meta, learn=learn, encoder=encoder, path=path,
        variation=variation,
    )  # fmt: skip
    return replace(found, seconds=found.seconds + before), variation


def report(plan: Plan, results: Sequence[Result]) -> Section:
    from examples.studies.ecg_remedies_report import section

    return section(plan, results, list(tasks(plan.settings, plan.record)), _pilot(plan))


def _pilot(plan: Plan) -> list[Result]:
    file = study.results_file("ecg_remedies", pilot=True)
    return study.read_results(file, tasks(plan.settings, plan.pilot))
