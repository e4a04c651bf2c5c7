"""ECG, synthetic cohort, by the number of labels: everything that sees labels, φ's steps included, sees n of them.

In :mod:`examples.studies.ecg_synthetic` φ sees 250 labels whatever the number that the probe is then given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ecgmeta.runtime.page.charts import Estimate
from ecgmeta.runtime.seeds import derive
from examples.studies import ecg_synthetic, study
from examples.studies.ecg_arms import (
    Meta,
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
from examples.studies.ecg_report import best_without, counted, gain, no_loss, phi_table, said, values, whole
from examples.studies.ecg_synthetic import Situation, Sizes
from examples.studies.report import forest, table
from examples.studies.statistics import mean, paired
from examples.studies.study import Outcome, Result, Section, Task

WITHOUT = ("random encoder", "start", "best static", "random search", "ramp", "walk")
LEARN = {"meta": "ours", "meta (paper)": "paper", "replayed": "replayed"}  # a cell for each number of labels


@dataclass
class Settings:
    """Attributes:
    situations, sizes, training, meta, scoring, trials, spread: as of that study.
    labels: the numbers of labels.
    choice: penalty of the ridge head by whose R² static magnitudes and trials of the search are chosen.
    """

    situations: dict[str, Situation] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    training: Training = field(default_factory=Training)
    meta: Meta = field(default_factory=Meta)
    scoring: Scoring = field(default_factory=Scoring)
    trials: int = 2
    spread: float = 1.5
    labels: list[int] = field(default_factory=lambda: [50, 100, 250, 500])
    choice: float = 0.003


@dataclass
class Plan(study.Plan):
    """Attributes:
    held: the situation that the expectations about single arms are of.
    notes: what is to be said below the tables.
    """

    settings: Settings = field(default_factory=Settings)
    held: str = "shifted"
    notes: str = ""


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seed by seed. What sees no labels while it pre-trains is one cell; what learns from them is one for each number."""
    common = {name: asdict(getattr(settings, name)) for name in ("sizes", "training", "meta", "scoring")}
    for seed in seeds:
        for name, situation in settings.situations.items():
            described = asdict(situation)
            del described["factors"], described["seeds"]
            inputs = common | {"situation": described, "labels": settings.labels, "choice": settings.choice}
            yield Task("random encoder", name, seed, inputs)
            for factor in situation.factors:
                yield Task(f"static {factor:g}", name, seed, inputs | {"factor": factor})
            spanned = [min(situation.factors), max(situation.factors)]
            yield Task("ramp", name, seed, inputs | {"ramp": spanned})
            for trial in range(1, settings.trials + 1):
                yield Task(
                    f"search {trial}", name, seed, inputs | {"trial": trial, "spread": settings.spread}
                )
            yield Task("walk", name, seed, inputs | {"learn": "random_walk"})
            for n in settings.labels:
                for arm, learn in LEARN.items():
                    yield Task(f"{arm}, {n} labels", name, seed, inputs | {"labels": [n], "learn": learn})


def run(task: Task) -> Mapping[str, float]:
    """For each number of labels: test AUROC, and what candidates are chosen by."""
    inputs, seed = task.inputs, task.seed
    unlabelled, pool, test = ecg_synthetic.cohort_of(inputs, seed)
    seen = pool.take(slice(inputs["labels"][0]))
    start, training, meta = (
        inputs["situation"]["start"],
        Training(**inputs["training"]),
        Meta(**inputs["meta"]),
    )
    own, learn, path = seed, inputs.get("learn", ""), None
    if "factor" in inputs:
        start = scaled(start, inputs["factor"])
    elif "trial" in inputs:
        start = drawn(start, inputs["spread"], seed, inputs["trial"])
    elif "ramp" in inputs:
        low, high = inputs["ramp"]
        path = ramp(start, low, high, training.steps)
    elif learn == "replayed":  # the learned magnitudes of each step, for other weights and batches
        path = pretrain(unlabelled, seen, start, seed, training, meta, learn="ours").path
        own, learn = derive(seed, "retrained"), ""
    encoder = untrained(unlabelled, own)
    numbers: dict[str, float] = {}
    if task.arm != "random encoder":
        found = pretrain(
            unlabelled, seen, start, own, training, meta, learn=learn, encoder=encoder, path=path
        )
        numbers = {"pretrain seconds": found.seconds} | learned_numbers(found)
    for n in inputs["labels"]:
        numbers |= score(
            encoder, pool, test, Scoring(**inputs["scoring"] | {"probe": [n], "tuned": []}), seed
        )
        numbers[f"validation {n}"] = validated(encoder, pool.take(slice(n)), inputs["choice"])
    return numbers


def report(plan: Plan, results: Sequence[Result]) -> Section:
    settings, labels = plan.settings, plan.settings.labels
    planned = list(tasks(settings, plan.record))
    results = whole(results, planned)
    seeds = counted(results, planned, settings.situations)
    known = {n: with_labels(results, n) for n in labels}
    over = {
        (name, n): gain(known[n], "probe", name, without=WITHOUT)
        for name in settings.situations
        for n in labels
    }
    outcomes = {
        "start": _above(known, plan.held, "start"),
        "no loss": no_loss({f"{name}, {n}": pair for (name, n), pair in over.items()}),
        "walk": _above(known, plan.held, "walk"),
        "paper's settings": _not_below(known, list(settings.situations), "meta (paper)"),
        "replayed": _not_below(known, list(settings.situations), "replayed"),
        "more labels": _rises(known, plan.held, min(labels), max(labels)),
    }
    parts = [seeds.text]
    done = {name: situation for name, situation in settings.situations.items() if seeds.done[name]}
    parts += [_table(known, name) for name in done]
    for name, situation in done.items():
        ends = {f"{n} labels": situation.start for n in labels}
        moved = [replace(r, task=replace(r.task, setting=f"{n} labels")) for n in labels for r in known[n]
                 if (r.task.arm, r.task.setting) == ("meta", name)]  # fmt: skip
        parts.append(f"What φ did in `{name}`:\n\n{phi_table(moved, ends)}")
    figures = {}
    gains = {
        name: {f"{n} labels, {pair[0]}": pair[1] for n in labels if (pair := over[name, n]) is not None}
        for name in done
    }
    if any(not math.isnan(e.low) for own in gains.values() for e in own.values()):
        figures["ecg_labels"] = forest(
            gains, "test AUROC of meta minus the best arm without learning, points", 0.0
        )
        parts.append("![Learned magnitudes beside the best arm without learning](figures/ecg_labels.svg)")
    of_one = ("start", "walk", "more labels")  # the others are about all situations
    chosen = {
        name: seeds.judged(outcomes[name], [plan.held] if name in of_one else None) for name in plan.expected
    }
    return Section(chosen, "\n\n".join([*parts, plan.notes.strip()]), figures)


def with_labels(results: Sequence[Result], n: int) -> list[Result]:
    """The cells as they are with n labels: ``probe`` and ``validation`` of these, and `meta` the run that saw as many."""
    found = []
    for r in results:
        if f"probe {n}" in r.numbers:
            arm = r.task.arm.removesuffix(f", {n} labels")
            numbers = {
                **r.numbers,
                "probe": r.numbers[f"probe {n}"],
                "validation": r.numbers[f"validation {n}"],
            }
            found.append(replace(r, task=replace(r.task, arm=arm), numbers=numbers))
    return found


def _against(results: Sequence[Result], setting: str, arm: str) -> dict[int, float]:
    own, other = (values(results, "probe", name, setting) for name in ("meta", arm))
    return {seed: own[seed] - other[seed] for seed in own.keys() & other.keys()}


def _above(known: Mapping[int, Sequence[Result]], setting: str, arm: str) -> Outcome:
    """Met where `meta` is above an arm (95 %) with each number of labels."""
    found = {n: mean(_against(results, setting, arm)) for n, results in known.items()}
    text = "; ".join(f"{n} labels {said(e)}" for n, e in found.items())
    return Outcome(text, _verdict(found.values(), all(e.low > 0 for e in found.values())))


def _not_below(known: Mapping[int, Sequence[Result]], settings: Sequence[str], arm: str) -> Outcome:
    """Met where `meta` is in no situation below an arm (95 %) with any number of labels."""
    found = {(s, n): mean(_against(results, s, arm)) for s in settings for n, results in known.items()}
    text = "; ".join(f"{s}, {n}: {said(e)}" for (s, n), e in found.items())
    return Outcome(text, _verdict(found.values(), all(e.high >= 0 for e in found.values())))


def _rises(known: Mapping[int, Sequence[Result]], setting: str, few: int, many: int) -> Outcome:
    """Met where what `meta` has over the best static arm is more with many labels than with few (95 %)."""
    more = paired(*(_against(known[n], setting, "best static") for n in (many, few)))
    return Outcome(f"{said(more)} points from {few} to {many} labels", _verdict([more], more.low > 0))


def _verdict(found: Any, met: bool) -> bool | None:
    return None if any(math.isnan(e.low) for e in found) else met


def _table(known: Mapping[int, Sequence[Result]], setting: str) -> str:
    """AUROC of every arm by the number of labels, then the paired differences of `meta`."""
    rows: list[list[object]] = []
    for arm in (*WITHOUT, *LEARN):
        found = [values(results, "probe", arm, setting) for results in known.values()]
        rows.append([arm, *(said(mean(v), "") if v else "–" for v in found)])
    for arm in ("start", "best static", "walk", "meta (paper)", "replayed"):
        each: list[Estimate] = [mean(_against(results, setting, arm)) for results in known.values()]
        rows.append([f"**meta − {arm}**", *("–" if math.isnan(e.value) else said(e) for e in each)])
    rows.append(["**meta − best without**", *(_best(results, setting) for results in known.values())])
    return table((setting, *(f"{n} labels" for n in known)), rows)


def _best(results: Sequence[Result], setting: str) -> str:
    own = values(results, "probe", "meta", setting)
    best = best_without(results, "probe", setting, own, WITHOUT)
    return "–" if best is None else f"{said(mean(_against(results, setting, best)))}, {best}"
