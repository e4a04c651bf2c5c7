"""What the recovery study found, as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from ecgmeta.runtime.page.charts import Estimate, change
from ecgmeta.runtime.page.figures import FAINT, PALETTE, style
from examples.studies.report import forest, shown, table
from examples.studies.statistics import by_seed, differences, mean, paired
from examples.studies.study import Outcome, Result, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from examples.studies.recovery import Plan, Situation

MAIN, FEW, WEIGHTS = "turned 45°", "45°, 100 labels", "wrong labels"
BAR = 3.0  # degrees
KNOWS = ("truth", "ceiling")  # arms that know what the others must find
Values = Mapping[int, float]


class Found:
    """The numbers of a study's cells."""

    def __init__(self, plan: Plan, results: Sequence[Result]) -> None:
        self.situations, self.results = plan.settings.situations, results
        self.budget, self.most = plan.settings.search.budget, plan.settings.search.most

    def get(self, arm: str, setting: str, number: str) -> Values:
        return by_seed(self.results, number, arm, setting)

    def error(self, arm: str, setting: str, number: str = "mean") -> Values:
        """Absolute error of the learned mean, degrees."""
        turn = self.situations[setting].turn
        return {seed: abs(value - turn) for seed, value in self.get(arm, setting, number).items()}

    def gain(self, setting: str, than: str, number: str = "accuracy", arm: str = "meta") -> Estimate:
        return paired(self.get(arm, setting, "accuracy"), self.get(than, setting, number))

    def rotations(self) -> dict[str, Situation]:
        return {name: situation for name, situation in self.situations.items() if not situation.wrong}


def section(plan: Plan, results: Sequence[Result]) -> Section:
    found = Found(plan, results)
    outcomes = {
        "mean": _mean(found),
        "mean, 100 labels": _few(found),
        "spread": _spread(found),
        "search": _search(found),
        "accuracy": _accuracy(found),
        "paper": _paper(found),
        "retrained": _retrained(found),
        "weights": _weights(found),
        "random walk": _walk(found),
    }
    body = "\n\n".join(
        [
            "Learned rotations: error of the mean in degrees, then how many runs are within 3°, the learned spread, and test "
            "accuracy of a linear head in per cent (with the encoder that learned φ; with a second one trained with φ held).",
            _rotation_table(found),
            "![Learned mean and spread of every run, beside the truth](figures/recovery-found.svg)",
            "Test accuracy in per cent, each run at the best of its twelve lengths by validation loss; then at full length. "
            f"`search` is random search, {found.budget} runs being equal compute. `truth` holds the true φ, and `ceiling` "
            "pre-trains on the fine-tuning digits and labels themselves.",
            _accuracy_table(found),
            "![Test accuracy of learned φ minus that of each other arm](figures/recovery-accuracy.svg)",
            _cost(found),
        ]
    )
    figures = {"recovery-found": _found_figure(found), "recovery-accuracy": _accuracy_figure(found)}
    return Section(outcomes, body, figures)


def again(plan: Plan, results: Sequence[Result]) -> Section:
    """The section of the study that repeats the rotations on fresh seeds."""
    found, heavy, light = (Found(plan, results) for _ in range(3))
    heavy.situations = {n: s for n, s in found.situations.items() if s.penalty >= 1}
    light.situations = {n: s for n, s in found.situations.items() if s.penalty < 1}
    outcomes = {
        "mean": _mean(heavy),
        "start": _start(heavy),
        "spread": _rising(heavy),
        "paper": _paper(light),
        "light, mean": _mean(light),
        "light, spread": _near_spread(light),
    }
    errors = {
        name: mean(found.error("meta", name)) for name in found.rotations() if found.error("meta", name)
    }
    page = forest(
        {"mean of the rotation": errors}, "error of the learned mean, degrees (dashed: the bar)", BAR
    )
    picture = "![Error of the learned mean in each situation](figures/recovery_again.svg)"
    return Section(outcomes, f"{_rotation_table(found)}\n\n{picture}", {"recovery_again": page})


def _below(estimate: Estimate, bar: float) -> bool | None:
    return None if math.isnan(estimate.value) else estimate.value <= bar


def _all(values: Sequence[bool | None]) -> bool | None:
    """False as soon as one is; None where one is unknown and none is false."""
    return False if False in values else None if None in values or not values else True


def _above(estimate: Estimate) -> bool | None:
    """Above 0 at 95 %; None without an interval."""
    return None if math.isnan(estimate.low) else estimate.low > 0


def _mean(found: Found) -> Outcome:
    errors = {n: mean(found.error("meta", n)) for n, s in found.rotations().items() if s.labels == 500}
    text = "; ".join(f"{name}: {shown(error, 1)}" for name, error in errors.items())
    return Outcome(text, _all([_below(error, BAR) for error in errors.values()]))


def _start(found: Found) -> Outcome:
    """Whether the starts at 45° with a spread of 15° differ by more than 1° in their mean error."""
    errors = [
        mean(found.error("meta", name)).value
        for name, s in found.rotations().items()
        if (s.turn, s.spread) == (45, 15)
    ]
    apart = max(errors) - min(errors)
    return Outcome(f"they differ by {apart:.1f}° at most", None if math.isnan(apart) else apart <= 1.0)


def _few(found: Found) -> Outcome:
    few, many = mean(found.error("meta", FEW)), mean(found.error("meta", MAIN))
    text = f"{shown(few, 1)}, against {shown(many, 1)} with 500"
    return Outcome(text, _all([_below(few, 5.0), _below(many, few.value)]))


def _near_spread(found: Found) -> Outcome:
    """Whether the learned spread is within 5° of the true one in each situation."""
    errors = {
        name: mean([abs(value - s.spread) for value in found.get("meta", name, "spread").values()])
        for name, s in found.rotations().items()
    }
    text = "; ".join(f"{name}: {shown(error, 1)}" for name, error in errors.items())
    return Outcome(text, _all([_below(error, 5.0) for error in errors.values()]))


def _rising(found: Found) -> Outcome:
    """Whether the learned spread rises with the true one."""
    names = ("45°, spread 5°", MAIN, "45°, spread 30°")
    spreads = [found.get("meta", name, "spread") for name in names]
    steps = [paired(after, before) for before, after in pairwise(spreads)]
    text = f"{', '.join(shown(mean(values), 1) for values in spreads)}; steps {', '.join(change(s, 1) for s in steps)}"
    return Outcome(text, _all([_above(step) for step in steps]))


def _spread(found: Found) -> Outcome:
    rising = _rising(found)
    middle = [found.get("meta", n, "spread") for n, s in found.rotations().items() if s.spread == 15]
    off = [abs(mean(values).value - 15) for values in middle if values]
    far = f"; at most {max(off):.1f}° from 15° on average" if off else ""
    return Outcome(rising.text + far, _all([rising.met, *(o <= 5 for o in off)]))


def _search(found: Found) -> Outcome:
    ours = found.error("meta", MAIN)
    gap = paired(found.error("search", MAIN, "mean_budget"), ours)
    more = paired(found.error("search", MAIN), ours)
    return Outcome(
        f"search's error is {change(gap, 1)}° larger at equal compute, {change(more, 1)}° after {found.most} runs",
        _above(gap),
    )


def _best(found: Found, setting: str, arms: Mapping[str, str]) -> tuple[str, Estimate]:
    """The arm (name -> number of its accuracy) with the best mean accuracy, and what learning gains over it."""
    arms = {arm: number for arm, number in arms.items() if found.get(arm, setting, number)}
    if not arms:
        return "–", Estimate(math.nan)
    best = max(arms, key=lambda arm: mean(found.get(arm, setting, arms[arm])).value)
    return best, found.gain(setting, best, arms[best])


FAIR = {
    "initial": "accuracy",
    "symmetric": "accuracy",
    "random walk": "accuracy",
    "search": "accuracy_budget",
}


def _accuracy(found: Found) -> Outcome:
    best, gap = _best(found, MAIN, FAIR)
    over = found.gain(MAIN, "initial")
    no_loss = None if math.isnan(gap.low) else gap.high >= 0
    return Outcome(
        f"{change(over, 1)} points over the initial φ; {change(gap, 1)} over the best such arm ({best})",
        _all([no_loss, _above(over)]),
    )


def _paper(found: Found) -> Outcome:
    texts, verdicts = [], []
    for name, situation in found.situations.items():
        if "paper" not in situation.arms:
            continue
        gain = found.gain(name, "paper")
        texts.append(f"{name}: accuracy {change(gain, 1)}")
        verdicts.append(None if math.isnan(gain.low) else gain.high >= 0)
        if not situation.wrong:
            gap = paired(found.error("paper", name), found.error("meta", name))
            texts[-1] += f", error of the mean {change(gap, 1)}° larger with the paper's"
            verdicts.append(_above(gap))
    return Outcome("; ".join(texts), _all(verdicts))


def _retrained(found: Found) -> Outcome:
    gaps = {
        name: paired(found.get("meta", name, "retrained"), found.get("meta", name, "accuracy"))
        for name in (MAIN, WEIGHTS)
    }
    inside = [None if math.isnan(g.low) else g.low > -1 and g.high < 1 for g in gaps.values()]
    return Outcome("; ".join(f"{name}: {change(gap, 1)}" for name, gap in gaps.items()), _all(inside))


def _weights(found: Found) -> Outcome:
    auroc = mean(found.get("meta", WEIGHTS, "auroc"))
    gains = {
        "uniform": found.gain(WEIGHTS, "initial"),
        "permuted (both trained anew)": paired(
            found.get("meta", WEIGHTS, "retrained"), found.get("meta", WEIGHTS, "permuted")
        ),
        "search": found.gain(WEIGHTS, "search"),
    }
    text = f"AUROC {shown(auroc, 2)}; over " + ", ".join(f"{n} {change(g, 1)}" for n, g in gains.items())
    high = None if math.isnan(auroc.value) else auroc.value > 0.8
    return Outcome(text, _all([high, *map(_above, gains.values())]))


def _walk(found: Found) -> Outcome:
    gains = {name: found.gain(name, "initial", arm="random walk") for name in (MAIN, WEIGHTS)}
    text = "; ".join(f"{name}: {change(gain, 1)}" for name, gain in gains.items())
    return Outcome(text, _all([None if math.isnan(g.low) else g.low <= 0 for g in gains.values()]))


def _rotation_table(found: Found) -> str:
    rows = []
    for name, situation in found.rotations().items():
        for arm in [arm for arm in situation.arms if arm not in ("search", "symmetric")]:
            error = found.error(arm, name)
            if not error:
                continue
            bias = mean({seed: v - situation.turn for seed, v in found.get(arm, name, "mean").items()})
            rows.append(
                (
                    name,
                    arm,
                    len(error),
                    shown(mean(error), 1),
                    change(bias, 1),
                    f"{sum(value <= BAR for value in error.values())} of {len(error)}",
                    f"{shown(mean(found.get(arm, name, 'spread')), 1)}, true {situation.spread:g}",
                    shown(mean(found.get(arm, name, "accuracy")), 1),
                    shown(mean(found.get(arm, name, "retrained")), 1),
                )
            )
    head = ("situation", "arm", "seeds", "error", "signed", "within 3°", "spread", "accuracy", "retrained")
    return table(head, rows)


def _accuracy_table(found: Found) -> str:
    rows = []
    for setting, situation in found.situations.items():
        if "initial" not in situation.arms:
            continue
        for name, arm, number in _arms(found, setting):
            values = found.get(arm, setting, number)
            if values:
                own = name == "meta"
                gain = "" if own else change(paired(found.get("meta", setting, "accuracy"), values), 1)
                end = mean(found.get(arm, setting, number.replace("accuracy", "accuracy_end")))
                full = shown(end, 1) if number.startswith("accuracy") else ""
                rows.append((setting, name, len(values), shown(mean(values), 1), gain, full))
    return table(("situation", "arm", "seeds", "accuracy", "meta minus it", "at full length"), rows)


def _arms(found: Found, setting: str) -> list[tuple[str, str, str]]:
    """(name, arm, number of its accuracy) of every row of a situation."""
    rows: list[tuple[str, str, str]] = []
    for arm in found.situations[setting].arms:
        if arm == "search":
            rows.append((f"search, {found.budget} runs", arm, "accuracy_budget"))
            if not found.situations[setting].wrong:
                rows.append((f"search, {found.most} runs", arm, "accuracy"))
        elif arm != "grid":
            rows.append((arm, arm, "accuracy"))
    return [*rows, ("meta, retrained", "meta", "retrained")]


def _cost(found: Found) -> str:
    runs = {arm: found.get(arm, MAIN, "plain_runs").values() for arm in ("meta", "paper")}
    parts = [
        f"{arm} {median(own):.1f} ({min(own):.1f} to {max(own):.1f})" for arm, own in runs.items() if own
    ]
    weights = [mean(found.get("meta", WEIGHTS, f"weight_{kind}")) for kind in ("right", "wrong")]
    return (
        f"Cost of a run in plain runs of as many steps, median over seeds (least and most): {', '.join(parts)}. Mean weight of "
        f"examples with right labels "
        f"{shown(weights[0], 2)}, with wrong ones {shown(weights[1], 2)} (all start at 1)."
    )


def _found_figure(found: Found) -> Figure:
    from matplotlib.figure import Figure

    rotations = {name: s for name, s in found.rotations().items() if found.get("meta", name, "mean")}
    columns = 4
    rows = max(1, math.ceil(len(rotations) / columns))
    with style():
        figure = Figure(figsize=(9.2, 2.4 * rows), layout="constrained")
        every = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in every[len(rotations) :]:
            axes.set_visible(False)
        for axes, (name, situation) in zip(every, rotations.items(), strict=False):
            _found_panel(axes, found, name, situation)
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=8)
    return figure


def _found_panel(axes: Axes, found: Found, name: str, situation: Situation) -> None:
    axes.axvspan(situation.turn - BAR, situation.turn + BAR, color="#e4e8ec", lw=0, label="truth ± 3°")
    axes.plot([situation.start_mean], [situation.start_spread], "D", color=FAINT, ms=5, label="start")
    axes.plot([situation.turn], [situation.spread], "+", color="black", ms=12, mew=2, label="truth", zorder=3)
    for arm, colour, marker in (("paper", PALETTE[1], "^"), ("meta", PALETTE[0], "o")):
        means, spreads = found.get(arm, name, "mean"), found.get(arm, name, "spread")
        if means:
            axes.plot(
                [*means.values()], [*spreads.values()], marker, color=colour, ms=4, alpha=0.8, label=arm
            )
    axes.set_title(name, fontsize=9, loc="left")
    axes.set(xlabel="mean (°)", ylabel="spread (°)", ylim=(0, 62))
    axes.grid()
    axes.set_axisbelow(True)


def _accuracy_figure(found: Found) -> Figure:
    from matplotlib.figure import Figure

    names = [name for name in (MAIN, WEIGHTS) if "initial" in found.situations[name].arms]
    with style():
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        for axes, setting in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            arms = [
                row
                for row in _arms(found, setting)
                if row[0] != "meta" and found.get(row[1], setting, row[2])
            ]
            for y, (_, arm, number) in enumerate(arms):
                ours, theirs = (
                    found.get("meta", setting, "accuracy"),
                    found.get(arm, setting, number),
                )
                if not ours.keys() & theirs.keys():
                    continue
                gain, each = paired(ours, theirs), differences(ours, theirs)
                colour = PALETTE[2] if arm in KNOWS else PALETTE[0]
                axes.plot(each, np.full(len(each), y + 0.22), ".", color=FAINT, ms=3)
                axes.plot([gain.low, gain.high], [y, y], color=colour, lw=2)
                axes.plot([gain.value], [y], "s", color=colour, ms=5)
            axes.axvline(0, color=FAINT, ls="--", lw=1)
            axes.set_yticks(range(len(arms)), [name for name, _, _ in arms])
            axes.set_ylim(len(arms) - 0.4, -0.6)
            axes.set_title(setting, fontsize=9, loc="left")
        figure.supxlabel(
            "meta minus arm, points of accuracy (95 %); dots: seeds; green: knows the truth", fontsize=9
        )
    return figure
