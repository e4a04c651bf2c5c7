"""What the study of remedies reports: every arm at the end and at its best moment, and the pilot's table of all remedies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy import stats

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.charts import Estimate
from examples.studies.ecg_remedies import PENALTIES
from examples.studies.ecg_report import (
    ALL,
    EFFECT,
    candidates,
    counted,
    gain,
    large_gain,
    no_loss,
    phi_table,
    said,
    values,
    whole,
)
from examples.studies.report import forest, table
from examples.studies.statistics import by_seed, differences, mean, paired, seeds_needed
from examples.studies.study import Outcome, Result, Section, Task

OVER = {"meta": "meta", "all": ALL}
ADDED = {
    "walk": "best of 3 walk",
    "paper": "best of 3 meta (paper)",
}  # as late as the situations that were added
Gains = Mapping[str, tuple[str, Estimate] | None]


def section(
    plan: Any, results: Sequence[Result], planned: Sequence[Task], pilot: Sequence[Result]
) -> Section:
    """The section; ``pilot`` are the cells of the pilot's seeds, which are shown apart."""
    results = whole(results, planned)
    starts = {name: situation.start for name, situation in plan.settings.situations.items()}
    names, number = list(starts), f"probe {plan.main}"
    seeds = counted(results, planned, names)
    known: dict[str, Outcome] = {}
    for arm in plan.chosen:
        every = {s: gain(results, number, s, arm, plan.without) for s in names}
        gains = {s: found for s, found in every.items() if s not in plan.added}
        over = {
            short: {s: _over(results, number, s, arm, other) for s in (names if short in ADDED else gains)}
            for short, other in (OVER | ADDED).items()
        }
        known |= {
            f"{arm}, gain": large_gain(gains),
            f"{arm}, estimate": _estimate(gains),
            f"{arm}, no loss": no_loss(gains),
            f"{arm}, no loss, added": no_loss({s: every[s] for s in plan.added if s in every}),
        } | {f"{arm}, over {short}": no_loss(found) for short, found in over.items()}
    outcomes = {name: seeds.judged(known[name]) for name in plan.expected}
    parts = [seeds.text]
    learning = [arm for arm in plan.settings.remedies if any(r.task.arm == arm for r in results)]
    arms = list(dict.fromkeys([*plan.without, ALL, *learning, *plan.chosen]))
    done = {name: start for name, start in starts.items() if seeds.done[name]}
    parts += [_arms_table(results, s, arms, number, plan) for s in done]
    shown = {s: {arm: mean(own) for arm in arms if (own := values(results, number, arm, s))} for s in done}
    figures = {}
    if any(len(values(results, number, "meta", s)) > 1 for s in done):
        figures["ecg_remedies"] = forest(shown, f"test AUROC, {plan.main} labels, linear probe, %")
        parts += ["![AUROC of every arm](figures/ecg_remedies.svg)"]
    parts += [f"What φ did in `{arm}`:\n\n{phi_table(results, done, arm)}" for arm in learning]
    parts += [_reached(results, s) for s in done]
    parts += [_agreement(results, names, number), _lighter(results, done, number, plan)]
    if pilot:
        parts += ["**The pilot**, on seeds of its own: every remedy, one setting different from `meta`.", *(
            _pilot_table(pilot, s, plan.settings.remedies, number)
            for s in names if any(cell.task.setting == s for cell in pilot)
        ), _agreement(pilot, names, number)]  # fmt: skip
    return Section(outcomes, "\n\n".join([*parts, plan.notes.strip()]), figures)


def _over(
    results: Sequence[Result], number: str, setting: str, arm: str, other: str
) -> tuple[str, Estimate] | None:
    a, b = (values(results, number, name, setting) for name in (arm, other))
    return (other, paired(a, b)) if a.keys() & b.keys() else None


def _estimate(gains: Gains) -> Outcome:
    """The weak form of the bar: the estimate alone."""
    strong = large_gain(gains)
    best = max((pair[1].value for pair in gains.values() if pair is not None), default=None)
    return strong if best is None or strong.met is None else Outcome(strong.text, best >= EFFECT)


def _arms_table(results: Sequence[Result], setting: str, arms: Sequence[str], number: str, plan: Any) -> str:
    """Of every arm: its cost, test AUROC, its best moment's, its spread, and its difference from the best without learning."""
    rows: list[list[object]] = []
    for arm in arms:
        own = values(results, number, arm, setting)
        if not own:
            continue
        stopped = values(results, f"stopped {number}", arm, setting)
        row = [arm, f"{cost_of(results, arm, setting):.1f}", said(mean(own), ""), said(mean(stopped), "")]
        row += [
            f"{np.std(list(own.values()), ddof=1):.1f}" if len(own) > 1 else "–",
            f"{min(own.values()):.1f}",
        ]
        found = None if arm in (*plan.without, ALL) else gain(results, number, setting, arm, plan.without)
        rows.append([*row, *_differences(results, number, setting, arm, found)])
    head = (
        setting,
        "cost",
        f"{number} labels",
        "at its best moment",
        "SD",
        "worst seed",
        "minus best without",
        "paired SD (seeds)",
    )
    return table(head, rows)


def _differences(
    results: Sequence[Result], number: str, setting: str, arm: str, found: tuple[str, Estimate] | None
) -> tuple[str, str]:
    if found is None:
        return "", ""
    best, estimate = found
    each = differences(values(results, number, arm, setting), values(results, number, best, setting))
    sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    return f"{said(estimate)}, {best}", f"{sd:.1f} ({seeds_needed(sd, EFFECT)})" if sd else "–"


def cost_of(results: Sequence[Result], arm: str, setting: str) -> float:
    """In runs without learning, each of which counts as one: the sum over candidates of the median over seeds of their time
    beside the static start's; an ensemble's runs are in its own time."""
    plain = _seconds(results, "static 1", setting)
    total = 0.0
    for name in candidates(results, arm, setting):
        if not any("remedy" in r.task.inputs for r in results if r.task.arm == name):
            total += 1
            continue
        own = _seconds(results, name, setting)
        shared = [own[s] / plain[s] for s in own.keys() & plain.keys()]
        total += median(shared) if shared else float("nan")
    return total


def _seconds(results: Sequence[Result], arm: str, setting: str) -> dict[int, float]:
    """What pre-training took, by seed; the first cells of an ensemble have its runs in the whole cell's time alone."""
    return {
        r.task.seed: max(r.numbers["pretrain seconds"], r.seconds)
        if r.task.inputs.get("remedy", {}).get("ensemble")
        else r.numbers["pretrain seconds"]
        for r in results
        if (r.task.arm, r.task.setting) == (arm, setting) and "pretrain seconds" in r.numbers
    }


def chosen_by(results: Sequence[Result], penalty: float) -> list[Result]:
    """The cells, among which a head with another penalty now chooses: one of PENALTIES, or none of them says anything of it."""
    if penalty not in PENALTIES:
        raise InputError("study", "penalty of the choice", penalty, f"one of {PENALTIES}")
    key = f"R² at {penalty:g}"
    return [
        replace(r, numbers={**r.numbers, "validation": r.numbers[key]}) for r in results if key in r.numbers
    ]


def _lighter(results: Sequence[Result], settings: Iterable[str], number: str, plan: Any) -> str:
    """What the chosen arms would have been, were every choice made by the criterion with the lightest penalty."""
    other = chosen_by(results, PENALTIES[-1])
    rows: list[list[object]] = []
    for setting in settings:
        for arm in (*plan.without, *plan.chosen):
            own = values(other, number, arm, setting)
            if not own or len(candidates(other, arm, setting)) < 2:
                continue
            found = None if arm in plan.without else gain(other, number, setting, arm, plan.without)
            rows.append(
                [setting, arm, said(mean(own), ""), "" if found is None else f"{said(found[1])}, {found[0]}"]
            )
    head = ("situation", "arm", f"{number} labels", "minus best without")
    return (
        f"Every choice made by the criterion with a penalty of {PENALTIES[-1]:g}:\n\n{table(head, rows)}"
        if rows
        else ""
    )


def _pilot_table(results: Sequence[Result], setting: str, remedies: Mapping[str, Any], number: str) -> str:
    """Of every remedy: AUROC and criterion, and their paired differences from ``meta``, on the seeds that both have."""
    rows: list[list[object]] = []
    base = {name: values(results, name, "meta", setting) for name in (number, "validation")}
    for arm in remedies:
        own = {name: values(results, name, arm, setting) for name in base}
        if not own[number]:
            continue
        stopped = values(results, f"stopped {number}", arm, setting)
        row: list[object] = [
            arm,
            len(own[number]),
            f"{fmean(own[number].values()):.1f}",
            f"{min(own[number].values()):.1f}",
        ]
        row += [f"{fmean(stopped.values()):.1f}", f"{fmean(own['validation'].values()):.1f}"]
        rows.append([*row, *("" if arm == "meta" else said(paired(own[name], base[name])) for name in base)])
    head = (
        setting,
        "seeds",
        f"{number} labels",
        "worst seed",
        "at its best moment",
        "criterion, R² in %",
        "minus meta",
        "criterion minus meta",
    )
    return table(head, rows)


def _reached(results: Sequence[Result], setting: str) -> str:
    """How many runs without learning reach the criterion of one run of ``meta`` on their seed: what a search would need."""
    wanted = values(results, "validation", "meta", setting)
    said_of = []
    for arm, name in (
        ("random search", "trials of the search"),
        ("best schedule", "runs of a rising schedule"),
    ):
        runs = [by_seed(results, "validation", run, setting) for run in candidates(results, arm, setting)]
        won = [[run[seed] >= wanted[seed] for run in runs if seed in run] for seed in wanted]
        total, reached = sum(map(len, won)), sum(map(sum, won))
        if total:
            none = sum(not any(one) for one in won)
            said_of.append(f"{reached} of {total} {name} (on {none} of {len(won)} seeds none)")
    return f"In `{setting}` the criterion of one run of `meta` is reached by {'; and by '.join(said_of)}."


def _agreement(results: Sequence[Result], settings: Sequence[str], number: str) -> str:
    """How well the criterion orders runs by test AUROC."""
    said_of = []
    for setting in settings:
        wanted = {"validation", number}
        cells = [r for r in results if r.task.setting == setting and wanted <= r.numbers.keys()]
        if len(cells) > 2:
            chosen_by, scored = ([r.numbers[n] for r in cells] for n in ("validation", number))
            order = stats.spearmanr(chosen_by, scored)
            said_of.append(f"{float(order.statistic):.2f} in `{setting}` ({len(cells)} runs)")
    return (
        f"Rank correlation over all runs of the criterion with test AUROC: {', '.join(said_of)}."
        if said_of
        else ""
    )
