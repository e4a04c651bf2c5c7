"""What the ECG studies report: test AUROC of every arm, paired differences, what φ did, and the power of the design."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgmeta.runtime.page.charts import Estimate
from examples.studies.report import table
from examples.studies.statistics import by_seed, differences, mean, paired, seeds_needed
from examples.studies.study import Outcome, Result, Section, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EFFECT = 1.9  # AUROC points: what the paper reports at most, and the bar
WIDEST = 30.0  # points to either side that the figure shows
ALL = "best of all without"
CHOSEN = {
    "best static": ("static ",),
    "random search": ("search ",),
    "best schedule": ("ramp", "schedule "),
    ALL: ("static ", "search ", "ramp", "schedule "),
}  # arm -> what its candidates' names begin with
WITHOUT = ("no pre-training", "random encoder", "start", "best static", "random search", "ramp", "walk")
CHOSEN_RUN = "best of 3 meta"
META = ("meta (paper)", "meta", "retrained", "replayed", CHOSEN_RUN)
ARMS = (*WITHOUT, *META)
AGAINST = dict.fromkeys(("meta", "retrained", "replayed", CHOSEN_RUN), WITHOUT)
Values = Mapping[int, float]


def candidates(results: Sequence[Result], arm: str, setting: str) -> list[str]:
    """The arms of which the criterion chooses one; an arm of its own is its only one.

    ``best of K NAME`` chooses among ``NAME``, ``NAME 2``, ... ``NAME K`` (or from ``NAME 1`` on), if all are there;
    ``best of K NAME + L OTHER`` among those of both.
    """
    if arm == "start":
        return ["static 1"]
    names = {r.task.arm for r in results if r.task.setting == setting}
    if re.match(r"best of \d", arm):
        runs: list[str] = []
        for part in arm.removeprefix("best of ").split(" + "):
            count, name = part.split(" ", 1)
            first = name if name in names else f"{name} 1"
            runs += [first, *(f"{name} {k}" for k in range(2, int(count) + 1))]
        return runs if names.issuperset(runs) else []
    return sorted(name for name in names if name.startswith(CHOSEN[arm])) if arm in CHOSEN else [arm]


def values(results: Sequence[Result], number: str, arm: str, setting: str) -> dict[int, float]:
    """A number of each seed of an arm; of several candidates the one with the best validation, seed by seed.

    A seed counts once all its candidates are there.
    """
    names = candidates(results, arm, setting)
    if len(names) == 1:
        return by_seed(results, number, names[0], setting)
    validation = [by_seed(results, "validation", name, setting) for name in names]
    found = [by_seed(results, number, name, setting) for name in names]
    seeds = set.intersection(*map(set, validation), *map(set, found)) if names else set()
    best = {seed: max(range(len(names)), key=lambda k: validation[k][seed]) for seed in seeds}
    return {seed: found[k][seed] for seed, k in best.items()}


def whole(results: Sequence[Result], planned: Sequence[Task]) -> list[Result]:
    """The cells of settings and seeds of which every arm is done, so that all arms are compared on the same seeds."""
    wanted = Counter((task.setting, task.seed) for task in planned)
    done = Counter((result.task.setting, result.task.seed) for result in results)
    return [r for r in results if done[place := (r.task.setting, r.task.seed)] == wanted[place]]


def best_without(
    results: Sequence[Result],
    number: str,
    setting: str,
    against: Values,
    without: Sequence[str] = WITHOUT,
) -> str | None:
    """The arm without meta-learning that has the highest mean over the seeds it shares with ``against``."""
    means = {}
    for arm in without:
        shared = values(results, number, arm, setting).items()
        if kept := [value for seed, value in shared if seed in against]:
            means[arm] = fmean(kept)
    return max(means, key=means.__getitem__) if means else None


def gain(
    results: Sequence[Result],
    number: str,
    setting: str,
    arm: str = "meta",
    without: Sequence[str] = WITHOUT,
) -> tuple[str, Estimate] | None:
    """Which arm without meta-learning is the best, and the paired difference of ``arm`` from it."""
    own = values(results, number, arm, setting)
    best = best_without(results, number, setting, own, without)
    return None if best is None else (best, paired(own, values(results, number, best, setting)))


def said(estimate: Estimate, sign: str = "+") -> str:
    value, low, high = (
        f"{x:{sign}.1f}".replace("-", "−") for x in (estimate.value, estimate.low, estimate.high)
    )
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"


def no_loss(found: Mapping[str, tuple[str, Estimate] | None]) -> Outcome:
    """Met where no interval lies below 0 as a whole."""
    known = {name: pair for name, pair in found.items() if pair is not None}
    text = "; ".join(f"{name}: {said(e)} against {best}" for name, (best, e) in known.items())
    if not known or any(math.isnan(e.low) for _, e in known.values()):
        return Outcome(text or "no cell yet")
    return Outcome(text, all(e.high >= 0 for _, e in known.values()))


def large_gain(found: Mapping[str, tuple[str, Estimate] | None]) -> Outcome:
    """Met where one difference is at least the bar and its interval above 0."""
    known = {name: pair for name, pair in found.items() if pair is not None}
    if not known:
        return Outcome("no cell yet")
    name, (best, e) = max(known.items(), key=lambda item: item[1][1].value)
    text = f"largest in {name}: {said(e)} against {best}"
    return Outcome(text, None if math.isnan(e.low) else e.value >= EFFECT and e.low > 0)


@dataclass(frozen=True)
class Seeds:
    """How many seeds of each situation are whole, and how many are planned."""

    done: Mapping[str, int]
    planned: Mapping[str, int]

    @property
    def text(self) -> str:
        counted = ", ".join(f"{n} of `{name}`" for name, n in self.done.items())
        return f"Seeds of which every arm is done, and which alone are reported: {counted}."

    def judged(self, outcome: Outcome, settings: Iterable[str] | None = None) -> Outcome:
        """No verdict on situations (None: all) before every seed is done: looking at each as it comes would find something
        sooner or later."""
        about = self.planned if settings is None else settings
        if outcome.met is None or all(self.done[name] == self.planned[name] for name in about):
            return outcome
        return Outcome(f"{outcome.text} ({'met' if outcome.met else 'missed'} so far; seeds are missing)")


def counted(results: Sequence[Result], planned: Sequence[Task], settings: Iterable[str]) -> Seeds:
    """Of results that are :func:`whole`."""
    names = list(settings)
    return Seeds(
        {name: len({r.task.seed for r in results if r.task.setting == name}) for name in names},
        {name: len({task.seed for task in planned if task.setting == name}) for name in names},
    )


def at_least(results: Sequence[Result], number: str, settings: Sequence[str], a: str, b: str) -> Outcome:
    """Arm a against arm b in every setting; met where no interval lies below 0 as a whole."""
    pairs = {s: (b, paired(values(results, number, a, s), values(results, number, b, s))) for s in settings}
    return no_loss({s: pair for s, pair in pairs.items() if not math.isnan(pair[1].value)})


def score_table(
    results: Sequence[Result],
    setting: str,
    head: str,
    sizes: Sequence[int],
    arms: Sequence[str] = ARMS,
    against: Mapping[str, Sequence[str]] = AGAINST,
) -> str:
    """Mean test AUROC of every arm by label size, and below it the paired differences of meta arms from the best other.

    Args:
        against: an arm that learns -> those without learning that it is compared with.
    """
    rows: list[list[object]] = []
    for arm in arms:
        found = [values(results, f"{head} {n}", arm, setting) for n in sizes]
        if any(found):
            rows.append([arm, *(said(mean(v), "") if v else "–" for v in found)])
    static = [
        paired(
            values(results, f"{head} {n}", "meta", setting),
            values(results, f"{head} {n}", "best static", setting),
        )
        for n in sizes
    ]
    rows.append(["**meta − best static**", *("–" if math.isnan(e.value) else said(e) for e in static)])
    for arm, without in against.items():
        if not any(values(results, f"{head} {n}", arm, setting) for n in sizes):
            continue
        gains = [gain(results, f"{head} {n}", setting, arm, without) for n in sizes]
        rows.append(
            [f"**{arm} − best without**", *("–" if g is None else f"{said(g[1])}, {g[0]}" for g in gains)]
        )
    return table((f"{setting}, {head}", *(f"{n} labels" for n in sizes)), rows)


def phi_table(
    results: Sequence[Result], settings: Mapping[str, Mapping[str, float]], arm: str = "meta"
) -> str:
    """Of each operation: where its magnitude started, the median over seeds of where it ended, and its median drift z."""
    operations = list(dict.fromkeys(name for start in settings.values() for name in start))
    rows: list[list[object]] = []
    for operation in operations:
        row: list[object] = [operation]
        for setting, start in settings.items():
            ends = by_seed(results, f"φ {operation}", arm, setting).values()
            z = by_seed(results, f"z {operation}", arm, setting).values()
            drift = (
                f" (z {-median(z):+.1f})".replace("-", "−") if z else ""
            )  # unknown where φ took no two steps
            row.append(f"{start[operation]:g} → {median(ends):.2f}{drift}" if ends else "–")
        rows.append(row)
    return table(("magnitude, in typical ones", *settings), rows)


def power_table(results: Sequence[Result], settings: Sequence[str], number: str) -> str:
    """Paired SD over seeds of meta minus the best static arm, and how many seeds would find the bar's effect."""
    rows = []
    for setting in settings:
        own, other = (values(results, number, arm, setting) for arm in ("meta", "best static"))
        found = differences(own, other)
        if len(found) > 2:
            sd = float(np.std(found, ddof=1))
            rows.append((setting, len(found), f"{sd:.2f}", seeds_needed(sd, EFFECT)))
    head = (f"{number} labels", "seeds", "paired SD, points", f"seeds for 80 % power at {EFFECT}")
    return table(head, rows)


def cost_table(results: Sequence[Result], settings: Sequence[str]) -> str:
    """Median over seeds of the pre-training time of an arm over that of the static start in the same process."""
    rows = []
    for arm in ("meta (paper)", "meta", "walk"):
        ratios = []
        for setting in settings:
            own, plain = (by_seed(results, "pretrain seconds", name, setting) for name in (arm, "static 1"))
            ratios.append([own[s] / plain[s] for s in own.keys() & plain.keys()])
        rows.append((arm, *(f"{median(r):.1f}" if r else "–" for r in ratios)))
    return table(("time of pre-training ÷ that of the static start", *settings), rows)


def figure(
    results: Sequence[Result], settings: Sequence[str], head: str, sizes: Sequence[int], main: int
) -> Figure:
    """A row a setting: AUROC by label size, and paired differences of meta from every other arm at the main size."""
    from matplotlib.figure import Figure

    from ecgmeta.runtime.page.figures import FAINT, PALETTE, style

    with style():
        page = Figure(figsize=(9, 2.9 * len(settings)), layout="constrained")
        axes = page.subplots(len(settings), 2, squeeze=False, width_ratios=(1.15, 1))
        colours: dict[str, Any] = dict(
            zip(ARMS, (*PALETTE, "#888888", "#8C564B", "#7F7F00", "#5D3FD3", "#B22222"), strict=False)
        )
        for (left, right), setting in zip(axes, settings, strict=True):
            others = []
            for arm in ARMS:
                points = [(n, values(results, f"{head} {n}", arm, setting)) for n in sizes]
                points = [(n, v) for n, v in points if v]
                if not points:
                    continue
                bold = {"linewidth": 2.4, "zorder": 3} if arm == "meta" else {"linewidth": 1.1}
                xs, ys = [n for n, _ in points], [fmean(v.values()) for _, v in points]
                left.plot(xs, ys, marker="o", markersize=3, color=colours[arm], label=arm, **bold)
                if arm != "meta":
                    others.append(arm)
            left.set_xscale("log")
            left.set_xticks(sizes, [str(n) for n in sizes])
            left.minorticks_off()
            left.set(title=setting, ylabel="test AUROC, %", xlabel="labels")
            number = f"{head} {main}"
            own = values(results, number, "meta", setting)
            for place, arm in enumerate(reversed(others)):
                found = paired(own, values(results, number, arm, setting))
                if math.isnan(found.value):
                    continue
                right.plot([found.low, found.high], [place, place], color=colours[arm])
                right.plot([found.value], [place], "o", markersize=4, color=colours[arm])
            right.axvline(0, color=FAINT, linewidth=0.8)
            right.axvline(EFFECT, color=FAINT, linewidth=0.8, linestyle=":")
            right.set_yticks(range(len(others)), list(reversed(others)))
            right.set(title=f"meta minus ..., {main} labels", xlabel="AUROC points (95 %), dotted: the bar")
            low, high = right.get_xlim()
            right.set_xlim(max(low, -WIDEST), min(high, WIDEST))
        if axes[0][0].lines:
            page.legend(
                *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
            )
    return page


def section(
    plan: Any,
    results: Sequence[Result],
    planned: Sequence[Task],
    settings: Mapping[str, Mapping[str, float]],
    sizes: Sequence[int],
    main: int,
) -> Section:
    """The section of a study whose cells have the numbers ``probe n`` and ``tuned n``.

    Args:
        planned: all cells of the plan.
        settings: name -> start of φ.
        sizes, main: label sizes, and the one that the expectations are about.
    """
    results = whole(results, planned)
    names, number = list(settings), f"probe {main}"
    gains = {name: gain(results, number, name) for name in names}
    again = {name: gain(results, number, name, "retrained") for name in names}
    replayed = {name: gain(results, number, name, "replayed") for name in names}
    chosen = {name: gain(results, number, name, CHOSEN_RUN) for name in names}
    known = {
        "gain": large_gain(gains),
        "no loss": no_loss(gains),
        "retrained, gain": large_gain(again),
        "retrained, no loss": no_loss(again),
        "replayed, gain": large_gain(replayed),
        "replayed, no loss": no_loss(replayed),
        "best of 3, gain": large_gain(chosen),
        "best of 3, no loss": no_loss(chosen),
        "best of 3, over all": at_least(results, number, names, CHOSEN_RUN, ALL),
        "paper's settings": at_least(results, number, names, "meta", "meta (paper)"),
        "walk": at_least(results, number, names, "meta", "walk"),
    }
    seeds = counted(results, planned, names)
    parts = [
        seeds.text,
        f"![AUROC by label size, and differences of meta from the others](figures/{plan.figure}.svg)",
    ]
    for head, what in (("probe", "a linear probe"), ("tuned", "fine-tuning of everything")):
        own = {
            name: [
                n for n in sizes if any(f"{head} {n}" in r.numbers for r in results if r.task.setting == name)
            ]
            for name in names
        }
        if any(own.values()):
            parts.append(f"Test AUROC in % under {what}, mean over seeds (95 %):")
            parts += [score_table(results, name, head, found) for name, found in own.items() if found]
    parts.append("What φ did (z is its drift in SDs of noise, + towards a larger magnitude):")
    parts += [phi_table(results, settings), cost_table(results, names), power_table(results, names, number)]
    pages = {plan.figure: figure(results, names, "probe", sizes, main)}
    outcomes = {name: seeds.judged(known[name]) for name in plan.expected}
    return Section(outcomes, "\n\n".join([*parts, plan.notes.strip()]), pages)
