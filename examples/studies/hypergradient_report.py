"""What the study of hypergradient quality found, as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ecgmeta.runtime.page.charts import Estimate, change
from ecgmeta.runtime.page.figures import FAINT, PALETTE, style
from examples.studies.contrast import MAGNITUDES
from examples.studies.report import shown, table
from examples.studies.statistics import by_seed, mean, paired
from examples.studies.study import Outcome, Result, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from examples.studies.hypergradient import Plan

WHEN = ("early", "late")
CHEAP = "ridge, λ = 1; identity"
HEADS = ("K = 1 head", "K = 10 head")
NAMES = {"whole run": "end to end"}  # shown as
Values = Mapping[int, float]


class Found:
    """The numbers of a study's cells."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results

    def get(self, arm: str, setting: str, number: str) -> Values:
        return by_seed(self.results, number, arm, setting)

    def names(self, arm: str) -> list[str]:
        """Of the routes in an arm's numbers, in their order."""
        numbers = next((r.numbers for r in self.results if r.task.arm == arm and r.numbers), {})
        return list(dict.fromkeys(n.split("|")[0] for n in numbers if "|" in n))

    def settings(self, arm: str) -> list[str]:
        return list(dict.fromkeys(r.task.setting for r in self.results if r.task.arm == arm))

    def effects(self) -> dict[str, Values]:
        """Of each magnitude on the final loss of whole runs."""
        return {name: self.get("factorial", "whole runs", f"effect_{name}") for name in MAGNITUDES}

    def direction(self, arm: str, setting: str, number: str) -> dict[str, Values]:
        """The five numbers of each seed, divided by their norm: so that what differs in scale can be compared."""
        values = {name: self.get(arm, setting, number + name) for name in MAGNITUDES}
        seeds = set.intersection(*(set(v) for v in values.values()))
        sizes = {seed: math.sqrt(sum(v[seed] ** 2 for v in values.values())) for seed in seeds}
        return {name: {seed: v[seed] / sizes[seed] for seed in seeds} for name, v in values.items()}

    def agreement(self, when: str, route: str = CHEAP) -> tuple[int, int]:
        """(seed, magnitude) pairs in which the mean hypergradient has the sign of the effect, and how many there are.

        Of the magnitudes whose mean effect over seeds is clear. The sign is that of the mean over seeds: the effect of one
        seed is itself noisy.
        """
        same = total = 0
        for name, values in self.effects().items():
            effect = mean(values)
            if math.isnan(effect.low) or effect.low <= 0 <= effect.high:
                continue
            slopes = self.get("routes", when, f"{route}|g_{name}").values()
            same += sum(slope * effect.value > 0 for slope in slopes)
            total += len(slopes)
        return same, total

    def likeness(self, when: str, route: str) -> Estimate:
        """The cosine of each seed's mean hypergradient with the effects, which are those of the mean over seeds."""
        effects = [mean(values).value for values in self.effects().values()]
        slopes = [self.get("routes", when, f"{route}|g_{name}") for name in MAGNITUDES]
        seeds = set.intersection(*map(set, slopes))
        return mean({seed: cosine([slope[seed] for slope in slopes], effects) for seed in seeds})


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    sizes = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / sizes if sizes > 0 else math.nan


def section(plan: Plan, results: Sequence[Result]) -> Section:
    found = Found(results)
    draws = plan.settings.small.draws
    outcomes = {
        "closed form": _closed_form(found),
        "inverse": _inverse(found),
        "head": _head(found),
        "curvature": _curvature(found),
        "cost": _cost(found),
        "whole runs": _whole_runs(found),
    }
    small = plan.settings.small
    body = "\n\n".join(
        [
            "Ridge at its minimum: relative error of the hypergradient (step size and damping from 12 Lanczos products).",
            _closed_table(found),
            f"The small SimCLR run, after {small.early} steps (early) and {small.late} (late). A *draw* is one pre-training "
            f"batch, one noise and one fine-tuning batch or split; means are over {draws} draws. *Error* is relative to the "
            "end-to-end gradient, and means little where a head has a loss of another scale. *Signal-to-noise* is the root "
            "mean square over coordinates of mean/SD, freed of what noise adds. *Cost* is in plain steps, the median over "
            "seeds. *Unusable* draws ended in negative curvature or divergence; they are left out of the other columns.",
            *(f"**{when.capitalize()}**\n\n{_route_table(found, when)}" for when in WHEN),
            "![Cosine of one draw and of the mean, and signal-to-noise, of every route](figures/hypergradient-routes.svg)",
            "Whole runs: effect of each log magnitude on the final loss (main effect of a half 2⁵ design of levels ±0.5, 16 "
            "runs a seed), beside the mean gradients there. All in units of loss per log magnitude.",
            _effect_table(found),
            "![Effects of whole runs beside hypergradients](figures/hypergradient-effects.svg)",
        ]
    )
    figures = {"hypergradient-routes": _route_figure(found), "hypergradient-effects": _effect_figure(found)}
    return Section(outcomes, body, figures)


def _closed_form(found: Found) -> Outcome:
    settings = found.settings("closed form")
    order = (
        "identity",
        "Neumann, J = 1",
        "Neumann, J = 5",
        "Neumann, J = 20",
        "CG, 5 iterations",
        "CG, 20 iterations",
    )
    errors = {s: [mean(found.get("closed form", s, f"{n}|error")).value for n in order] for s in settings}
    falling = all(e == sorted(e, reverse=True) for e in errors.values())
    last = errors.get("κ = 10", [math.nan])[-1]
    said = "; ".join(f"{s}: {', '.join(f'{e:.2g}' for e in e_s)}" for s, e_s in errors.items())
    return Outcome(said, None if math.isnan(last) else falling and last < 1e-4)


def _inverse(found: Found) -> Outcome:
    gaps = [
        paired(
            found.get("routes", when, "population; CG, 20 iterations|cosine"),
            found.get("routes", when, "population; identity|cosine"),
        )
        for when in WHEN
    ]
    met = None if any(math.isnan(gap.low) for gap in gaps) else all(gap.high < 0.05 for gap in gaps)
    return Outcome(
        "CG 20 minus identity: " + ", ".join(f"{w} {change(g, 2)}" for w, g in zip(WHEN, gaps, strict=True)),
        met,
    )


def _head(found: Found) -> Outcome:
    gaps: dict[str, Estimate] = {
        f"{when}, over {head}": paired(
            found.get("routes", when, f"{CHEAP}|snr"), found.get("routes", when, f"{head}; identity|snr")
        )
        for when in WHEN
        for head in HEADS
    }
    met = (
        None
        if any(math.isnan(gap.low) for gap in gaps.values())
        else all(gap.low > 0 for gap in gaps.values())
    )
    return Outcome("; ".join(f"{name}: {change(gap, 2)}" for name, gap in gaps.items()), met)


def _curvature(found: Found) -> Outcome:
    def share(route: str) -> float:
        values = [v for when in WHEN for v in found.get("routes", when, f"{route}|unusable").values()]
        return mean(values).value

    cg, neumann = share("population; CG, 20 iterations"), share("population; Neumann, J = 5")
    text = f"unusable draws: CG 20 {100 * cg:.1f} %, Neumann J = 5 {100 * neumann:.1f} %"
    low = [mean(found.get("routes", when, "smallest")).value for when in WHEN]
    high = [mean(found.get("routes", when, "largest")).value for when in WHEN]
    ends = ", ".join(
        f"{w} {a:.1f} to {b:.1f}".replace("-", "−") for w, a, b in zip(WHEN, low, high, strict=True)
    )
    return Outcome(f"{text}; eigenvalues {ends}", None if math.isnan(cg) else cg > 0 and neumann == 0)


def _cost_of(found: Found, route: str, when: str) -> float:
    """The median over seeds: other work on the machine makes single ones long."""
    values = found.get("routes", when, f"{route}|cost").values()
    return median(values) if values else math.nan


def _cost(found: Found) -> Outcome:
    names = {"identity": CHEAP, "Neumann J = 5": "ridge, λ = 1; Neumann, J = 5", "whole run": "whole run"}
    costs = {n: [_cost_of(found, route, w) for w in WHEN] for n, route in names.items()}
    met = all(c < 4 for c in costs["identity"]) and all(c < 8 for c in costs["Neumann J = 5"])
    met = met and all(60 <= c <= 500 for c in costs["whole run"])
    text = "; ".join(f"{name} {' and '.join(f'{c:.1f}' for c in c_s)}" for name, c_s in costs.items())
    return Outcome(f"{text} (early and late)", None if any(map(math.isnan, costs["identity"])) else met)


def _whole_runs(found: Found) -> Outcome:
    (early, all_early), (late, all_late) = (found.agreement(when) for when in WHEN)
    text = f"late {late} of {all_late}, early {early} of {all_early}"
    if not all_early or not all_late:
        return Outcome(f"{text}: no magnitude has a clear effect")
    return Outcome(text, late / all_late >= 0.8 and early / all_early <= late / all_late)


def _closed_table(found: Found) -> str:
    settings = found.settings("closed form")
    rows = [
        (name, *(f"{mean(found.get('closed form', s, f'{name}|error')).value:.2g}" for s in settings))
        for name in found.names("closed form")
    ]
    return table(("inverse", *settings), rows)


COLUMNS = {
    "cosine of a draw": "cosine",
    "cosine of the mean": "cosine_of_mean",
    "error of the mean": "error",
    "signal-to-noise": "snr",
}


def _route_table(found: Found, when: str) -> str:
    rows = []
    for name in found.names("routes"):
        numbers = {key: found.get("routes", when, f"{name}|{key}") for key in (*COLUMNS.values(), "unusable")}
        rows.append(
            (
                NAMES.get(name, name),
                *(shown(mean(numbers[key])) for key in COLUMNS.values()),
                f"{_cost_of(found, name, when):.1f}",
                f"{100 * mean(numbers['unusable']).value:.0f} %",
            )
        )
    return table(("route (v; inverse)", *COLUMNS, "cost", "unusable"), rows)


GRADIENTS = ("whole run", CHEAP, "population; identity", "paper")


def _effect_table(found: Found) -> str:
    rows = []
    for name, values in found.effects().items():
        slopes = (
            change(mean(found.get("routes", when, f"{route}|g_{name}")), 4)
            for when in WHEN
            for route in GRADIENTS[:2]
        )
        rows.append((name, change(mean(values), 4), *slopes))
    head = [f"{NAMES.get(route, route)}, {when}" for when in WHEN for route in GRADIENTS[:2]]
    signs = [
        (
            NAMES.get(route, route),
            *("{} of {}".format(*found.agreement(when, route)) for when in WHEN),
            *(shown(found.likeness(when, route)) for when in WHEN),
        )
        for route in GRADIENTS
    ]
    constant = cosine([1.0] * len(MAGNITUDES), [mean(values).value for values in found.effects().values()])
    signs.append(("the same for each magnitude", "", "", *[f"{constant:.2f}"] * len(WHEN)))
    return "\n\n".join(
        [
            table(("magnitude", "effect of whole runs", *head), rows),
            "Signs that agree with a clear effect, over seeds and magnitudes, and the cosine of a seed's mean gradient with "
            "the effects (of the mean over seeds). All clear effects have one sign, so a gradient that is the same for each "
            "magnitude has all signs right: the cosine is the harder test.",
            table(("mean gradient", *(f"signs, {w}" for w in WHEN), *(f"cosine, {w}" for w in WHEN)), signs),
        ]
    )


def _route_figure(found: Found) -> Figure:
    from matplotlib.figure import Figure

    names = found.names("routes")
    panels = {
        "cosine": "cosine of one draw",
        "cosine_of_mean": "cosine of the mean",
        "snr": "signal-to-noise",
    }
    with style():
        figure = Figure(figsize=(9.2, 0.24 * len(names) + 0.9), layout="constrained")
        for axes, (number, title) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
            for k, when in enumerate(WHEN):
                for y, name in enumerate(names):
                    _point(axes, mean(found.get("routes", when, f"{name}|{number}")), y + 0.25 * (k - 0.5), k)
            axes.axvline(0, color=FAINT, lw=0.8)
            axes.grid(axis="x")
            axes.set_axisbelow(True)
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_yticks(range(len(names)), [NAMES.get(name, name) for name in names])
            axes.set_ylim(len(names) - 0.4, -0.6)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(list(unique.values()), list(unique), loc="outside upper right", ncols=2, fontsize=8)
    return figure


def _point(axes: Axes, estimate: Estimate, y: float, k: int) -> None:
    axes.plot([estimate.low, estimate.high], [y, y], color=PALETTE[k], lw=1.5)
    axes.plot([estimate.value], [y], "os"[k], color=PALETTE[k], ms=4, label=WHEN[k])


def _effect_figure(found: Found) -> Figure:
    from matplotlib.figure import Figure

    rows = {"effects of whole runs": ("factorial", "whole runs", "effect_")}
    rows |= {
        f"{NAMES.get(route, route)}, {when}": ("routes", when, f"{route}|g_")
        for route in GRADIENTS
        for when in WHEN
    }
    with style():
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(MAGNITUDES), sharey=True), MAGNITUDES, strict=True):
            for y, (arm, setting, number) in enumerate(rows.values()):
                estimate = mean(found.direction(arm, setting, number)[name])
                axes.plot([estimate.low, estimate.high], [y, y], color=PALETTE[min(y, 1)], lw=2)
                axes.plot([estimate.value], [y], "s", color=PALETTE[min(y, 1)], ms=4)
            axes.axvline(0, color=FAINT, lw=0.8)
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_yticks(range(len(rows)), rows)
            axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-1.05, 1.05))
        figure.supxlabel(
            "component of the unit vector of each seed's effects or mean gradient (95 %)", fontsize=9
        )
    return figure
