"""ECG, synthetic cohort: does learning the augmentation's magnitudes pay, in three situations declared in advance?

A cell is one arm of one situation and seed: it pre-trains once and is then scored at every label size. A seed draws the
cohorts, the initial weights and the batches, which all arms of a situation share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ecgmeta.data import SyntheticCohort
from ecgmeta.data.nuisances import Level, Nuisances
from ecgmeta.runtime.seeds import derive
from examples.studies import study
from examples.studies.ecg_arms import (
    Meta,
    Pretrained,
    Records,
    Scoring,
    Training,
    drawn,
    learned_numbers,
    pretrain,
    ramp,
    scaled,
    score,
    untrained,
    validated,
)
from examples.studies.ecg_report import section
from examples.studies.study import Result, Section, Task

HZ = 100.0
SLOW, FAST = 60.0, 80.0  # beats a minute, between which a heart rate has neither label


@dataclass
class Situation:
    """What the recordings are like, and where the augmentation starts.

    Attributes:
        pretrain, finetune: nuisance -> lowest and highest magnitude and share of records (see
            :class:`~ecgmeta.data.nuisances.Level`); those not named are absent. Fine-tuning's hold for the test, too.
        label: ``"superclass"`` (five) or ``"rate"`` (below 60, above 80 a minute).
        start: operation -> magnitude, in units of its typical one.
        factors: of the static arms, times the start; 1 is the start itself.
        seeds: how many of the plan's seeds, the first ones.
    """

    pretrain: dict[str, list[float]] = field(default_factory=dict)
    finetune: dict[str, list[float]] = field(default_factory=dict)
    label: str = "superclass"
    start: dict[str, float] = field(default_factory=dict)
    factors: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0])
    seeds: int = 10


@dataclass
class Sizes:
    """How many recordings there are to pre-train on, with labels, with labels that φ sees, and to test on."""

    unlabelled: int = 1500
    pool: int = 500
    metaft: int = 250
    test: int = 2000


@dataclass
class Scale:
    """What a larger study changes besides the numbers of records and steps.

    Attributes:
        encoder: its name, or its place in a module.
        leads, seconds: of every recording.
        accelerator: where encoders are trained, ``"cpu"`` or ``"cuda"``.
    """

    encoder: str = "examples.studies.ecg_arms:SmallNet"
    leads: list[str] = field(default_factory=lambda: ["I", "II", "V1", "V5"])
    seconds: float = 4.0
    accelerator: str = "cpu"


@dataclass
class Settings:
    """What every cell follows from.

    Attributes:
        trials, spread: of the random search; see :func:`~examples.studies.ecg_arms.drawn`.
        without: arms that are left out.
    """

    situations: dict[str, Situation] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    scale: Scale = field(default_factory=Scale)
    training: Training = field(default_factory=Training)
    meta: Meta = field(default_factory=Meta)
    scoring: Scoring = field(default_factory=Scoring)
    trials: int = 2
    spread: float = 1.5
    without: list[str] = field(default_factory=list)


@dataclass
class Plan(study.Plan):
    """The plan of this study.

    Attributes:
        main: the label size that the expectations are about: as many labels as φ has seen.
        figure: its name.
        notes: what is to be said below the tables, written when the results are there.
    """

    settings: Settings = field(default_factory=Settings)
    main: int = 250
    figure: str = "ecg_synthetic"
    notes: str = ""


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seed by seed, so that a run that is stopped leaves whole comparisons."""
    return (task for task in _all_arms(settings, seeds) if task.arm not in settings.without)


def _all_arms(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    common = asdict(settings)
    del common["situations"], common["trials"], common["spread"], common["without"]
    if settings.scale == Scale():  # the first study's, whose cells were run before there was another
        del common["scale"]
    for place, seed in enumerate(seeds):
        for name, situation in settings.situations.items():
            if place >= situation.seeds:
                continue
            described = asdict(situation)
            del described["factors"], described["seeds"]
            inputs = common | {"situation": described}
            yield Task("no pre-training", name, seed, inputs)
            yield Task("random encoder", name, seed, inputs)
            for factor in situation.factors:
                yield Task(f"static {factor:g}", name, seed, inputs | {"factor": factor})
            spanned = [min(situation.factors), max(situation.factors)]
            yield Task("ramp", name, seed, inputs | {"ramp": spanned})
            for learn, arm in (
                ("ours", "meta"),
                ("retrained", "retrained"),
                ("replayed", "replayed"),
                ("paper", "meta (paper)"),
                ("random_walk", "walk"),
            ):
                yield Task(arm, name, seed, inputs | {"learn": learn})
            for trial in range(1, settings.trials + 1):
                yield Task(
                    f"search {trial}", name, seed, inputs | {"trial": trial, "spread": settings.spread}
                )


def run(task: Task) -> Mapping[str, float]:
    """Test AUROC at each label size, and what candidates are chosen by: see :func:`~examples.studies.ecg_arms.validated`."""
    inputs = task.inputs
    unlabelled, pool, test = cohort_of(inputs, task.seed)
    metaft = pool.take(slice(inputs["sizes"]["metaft"]))
    scoring = Scoring(**inputs["scoring"])
    found = None
    if task.arm in ("no pre-training", "random encoder"):
        encoder = untrained(unlabelled, task.seed, _scale(inputs).encoder)
    else:
        found = _pretrained(task)
        encoder = found.encoder
    fresh = task.arm == "no pre-training"
    if task.arm == "random encoder":  # its fine-tuning is the arm above
        scoring.tuned = []
    numbers = score(encoder, pool, test, scoring, task.seed, probe=not fresh)
    numbers["validation"] = validated(encoder, metaft, inputs["meta"]["penalty"])
    return (
        numbers if found is None else numbers | {"pretrain seconds": found.seconds} | learned_numbers(found)
    )


def _pretrained(task: Task) -> Pretrained:
    inputs, seed = task.inputs, task.seed
    start = inputs["situation"]["start"]
    if "factor" in inputs:
        return _under(scaled(start, inputs["factor"]), inputs, seed)
    if "trial" in inputs:
        return _under(drawn(start, inputs["spread"], seed, inputs["trial"]), inputs, seed)
    if "ramp" in inputs:
        low, high = inputs["ramp"]
        return _under(start, inputs, seed, path=ramp(start, low, high, inputs["training"]["steps"]))
    if inputs["learn"] in ("retrained", "replayed"):  # the magnitudes of the end, or those of each step
        learned = _learned(json.dumps({**inputs, "learn": "ours"}), seed)
        path = learned.path if inputs["learn"] == "replayed" else None
        return _under(learned.magnitudes, inputs, seed, path=path, initial=derive(seed, "retrained"))
    return _learned(json.dumps(dict(inputs)), seed)


@lru_cache(
    maxsize=1
)  # the cell that pre-trains anew under the learned magnitudes follows the one that learned them
def _learned(text: str, seed: int) -> Pretrained:
    inputs = json.loads(text)
    return _under(inputs["situation"]["start"], inputs, seed, learn=inputs["learn"])


def _under(
    magnitudes: Mapping[str, float],
    inputs: Mapping[str, Any],
    seed: int,
    *,
    learn: str = "",
    path: torch.Tensor | None = None,
    initial: int | None = None,
) -> Pretrained:
    """Pre-trained on the cohort of ``seed``; ``initial`` is the seed of weights and batches, where it is another."""
    unlabelled, pool, _ = cohort_of(inputs, seed)
    metaft = pool.take(slice(inputs["sizes"]["metaft"]))
    training, meta = Training(**inputs["training"]), Meta(**inputs["meta"])
    initial = seed if initial is None else initial
    encoder = untrained(unlabelled, initial, _scale(inputs).encoder)
    return pretrain(
        unlabelled, metaft, magnitudes, initial, training, meta, learn=learn, path=path, encoder=encoder
    )


def _scale(inputs: Mapping[str, Any]) -> Scale:
    return Scale(**inputs.get("scale", {}))


def cohort_of(inputs: Mapping[str, Any], seed: int) -> tuple[torch.Tensor, Records, Records]:
    """Unlabelled recordings, where encoders are trained; the labelled pool; the test recordings."""
    scale = _scale(inputs)
    text = json.dumps([inputs["situation"], inputs["sizes"], asdict(scale)])
    unlabelled, pool, test = cohort(text, seed)
    return unlabelled.to(scale.accelerator), pool, test


@lru_cache(maxsize=1)
def cohort(text: str, seed: int) -> tuple[torch.Tensor, Records, Records]:
    """Unlabelled recordings, the labelled pool and the test recordings of a situation, sizes and scale, as JSON."""
    situation, sizes, scale = json.loads(text)
    parts = ("pretrain", "unlabelled"), ("finetune", "pool"), ("finetune", "test")
    names = ("pretrain", "pool", "test")
    unlabelled, pool, test = (
        _records(
            sizes[size],
            situation[stage],
            situation["label"],
            Scale(**scale),
            derive(seed, "cohort", name) % 2**31,
        )
        for (stage, size), name in zip(parts, names, strict=True)
    )
    return unlabelled.x, pool, test


def _records(
    n: int, nuisances: Mapping[str, Sequence[float]], label: str, scale: Scale, seed: int
) -> Records:
    levels: dict[str, Any] = {name: Level(*values) for name, values in nuisances.items()}
    off = Nuisances.none()
    made = SyntheticCohort(
        n, fs=HZ, duration=scale.seconds, seed=seed, repeat_share=0.0,
        nuisances=Nuisances(**{name: levels.get(name, getattr(off, name)) for name in asdict(off)}),
    ).with_leads(scale.leads)  # fmt: skip
    x, y = made[np.arange(n)]
    if label == "superclass":
        return Records(x, y, made.label_names)
    rate = torch.from_numpy(made.meta["heart_rate"].to_numpy(dtype=np.float32, copy=True))
    return Records(x, torch.stack([rate < SLOW, rate > FAST], dim=1).float(), ("slow", "fast"))


def report(plan: Plan, results: Sequence[Result]) -> Section:
    starts = {name: situation.start for name, situation in plan.settings.situations.items()}
    planned = list(tasks(plan.settings, plan.record))
    return section(plan, results, planned, starts, plan.settings.scoring.probe, plan.main)
