"""ECG, synthetic cohort: cells of :mod:`examples.studies.ecg_remedies` on fresh seeds, and chosen by a lighter penalty.

How many seeds a situation has follows from the paired SD of that study, which is the pilot of this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.studies import ecg_remedies, study
from examples.studies.ecg_remedies import run, tasks
from examples.studies.ecg_remedies_report import chosen_by, cost_of
from examples.studies.ecg_report import (
    ALL,
    CHOSEN_RUN,
    EFFECT,
    at_least,
    candidates,
    counted,
    gain,
    large_gain,
    no_loss,
    phi_table,
    said,
    score_table,
    values,
    whole,
)
from examples.studies.report import forest, table
from examples.studies.statistics import differences, mean, seeds_needed
from examples.studies.study import Outcome, Result, Section

__all__ = ["Plan", "report", "run", "tasks"]

CHEAP = ("start", "ramp", "walk", "best of 2 search")  # about two plain runs, as one run of `meta` is
WITHOUT = (*CHEAP, "best static", "best of 3 ramp", "best of 7 search")
MIXED = "best of 2 meta + 3 search"  # about seven plain runs
POWER = 0.8


@dataclass
class Plan(ecg_remedies.Plan):
    """The plan of this study.

    Attributes:
        choice: penalty of the ridge head by whose leave-one-out R² every arm chooses among its runs.
    """

    choice: float = 0.003


def report(plan: Plan, results: Sequence[Result]) -> Section:
    planned = list(tasks(plan.settings, plan.record))
    results = chosen_by(whole(results, planned), plan.choice)
    starts = {name: situation.start for name, situation in plan.settings.situations.items()}
    names, number = list(starts), f"probe {plan.main}"
    seeds = counted(results, planned, names)
    best = {s: gain(results, number, s, CHOSEN_RUN, WITHOUT) for s in names}
    mixed = {s: gain(results, number, s, MIXED, WITHOUT) for s in names}
    known = {
        "gain": large_gain(best),
        "no loss": no_loss(best),
        "loss excluded": _loss_excluded(no_loss(best), best),
        "mixed, gain": large_gain(mixed),
        "mixed, no loss": no_loss(mixed),
        "mixed, loss excluded": _loss_excluded(no_loss(mixed), mixed),
        "over all": at_least(results, number, names, CHOSEN_RUN, ALL),
        "single": no_loss({s: gain(results, number, s, "meta", CHEAP) for s in names}),
        "walk": at_least(results, number, names, "meta", "walk"),
        "paper's settings": at_least(results, number, names, "meta", "meta (paper)"),
    }
    outcomes = {name: seeds.judged(known[name]) for name in plan.expected}
    parts = [seeds.text]
    done = {name: start for name, start in starts.items() if seeds.done[name]}
    arms = ("start", "best static", "best of 2 search", "best of 7 search", "ramp", "best of 3 ramp", ALL, "walk",
            "meta (paper)", "meta", CHOSEN_RUN, MIXED)  # fmt: skip
    sizes = plan.settings.scoring.probe
    parts += [
        score_table(results, s, "probe", sizes, arms, {"meta": CHEAP, CHOSEN_RUN: WITHOUT, MIXED: WITHOUT})
        for s in done
    ]
    shown = {s: {arm: mean(own) for arm in arms if (own := values(results, number, arm, s))} for s in done}
    figures = {}
    if any(e.low < e.high for own in shown.values() for e in own.values()):
        figures["ecg_again"] = forest(shown, f"test AUROC, {plan.main} labels, linear probe, %")
        parts.append("![AUROC of every arm](figures/ecg_again.svg)")
    parts += [_cost(results, done, arms)] if done else []
    parts += [f"What φ did in `meta`:\n\n{phi_table(results, done)}"] if done else []
    parts.append(_design(results, number, seeds.planned, plan))
    parts += [_with_the_earlier(results, number, done, plan)] if done else []
    return Section(outcomes, "\n\n".join([*parts, plan.notes.strip()]), figures)


def _loss_excluded(outcome: Outcome, best: Mapping[str, object]) -> Outcome:
    """Met where no interval reaches down to a loss as large as the gain that is looked for."""
    if outcome.met is None:
        return outcome
    return Outcome(outcome.text, all(pair is not None and pair[1].low > -EFFECT for pair in best.values()))


def _cost(results: Sequence[Result], settings: Mapping[str, object], arms: Sequence[str]) -> str:
    rows = [
        (arm, *(f"{cost_of(results, arm, s):.1f}" if candidates(results, arm, s) else "–" for s in settings))
        for arm in arms
    ]
    return f"Pre-training, in plain runs:\n\n{table(('arm', *settings), rows)}"


def _design(results: Sequence[Result], number: str, wanted: Mapping[str, int], plan: Plan) -> str:
    """The paired SD in the study before, how many seeds follow from it, and the SD that was found."""
    earlier = _earlier(plan.choice)
    rows: list[list[object]] = []
    for setting, planned in wanted.items():
        row: list[object] = [setting]
        for found in (earlier, results):
            sd, best = _spread(found, number, setting)
            row += [f"{sd:.1f}, against {best}" if best else "–"]
            if found is not results:
                row += [seeds_needed(sd, EFFECT, POWER) if best else "–", planned]
        rows.append(row)
    head = (
        "situation",
        "paired SD before, points",
        f"seeds for a power of {POWER} at {EFFECT}",
        "seeds here",
        "paired SD here",
    )
    return f"How many seeds, from the paired SD of {CHOSEN_RUN} minus the best arm without learning:\n\n{table(head, rows)}"


def _earlier(penalty: float) -> list[Result]:
    """The cells of ``ecg_remedies`` on its seeds of record, chosen by this penalty."""
    cells = study.load("ecg_remedies").tasks()
    return chosen_by(whole(study.read_results(study.results_file("ecg_remedies"), cells), cells), penalty)


def _with_the_earlier(results: Sequence[Result], number: str, settings: Iterable[str], plan: Plan) -> str:
    """Differences over the seeds of both studies, those on which the mixture was chosen among them."""
    both = [*_earlier(plan.choice), *results]
    rows: list[list[object]] = []
    for setting in settings:
        for arm in (CHOSEN_RUN, MIXED):
            if (found := gain(both, number, setting, arm, WITHOUT)) is not None:
                seeds = len(values(both, number, arm, setting))
                rows.append([setting, arm, seeds, f"{said(found[1])}, {found[0]}"])
    head = ("situation", "arm", "seeds", "minus best without")
    return f"With the seeds of the study before, on which the mixture was chosen (no test):\n\n{table(head, rows)}"


def _spread(results: Sequence[Result], number: str, setting: str) -> tuple[float, str]:
    found = gain(results, number, setting, CHOSEN_RUN, WITHOUT)
    if found is None:
        return 0.0, ""
    own, other = (values(results, number, arm, setting) for arm in (CHOSEN_RUN, found[0]))
    each = differences(own, other)
    return (float(np.std(each, ddof=1)), found[0]) if len(each) > 1 else (0.0, "")
