"""What the study of the horizon found: gradients by how far they look, and what weights learned from them are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ecgmeta.runtime.page.charts import Estimate, change
from ecgmeta.runtime.page.figures import FAINT, PALETTE, style
from examples.studies.ppi_horizon import LEARNED, WHOLE
from examples.studies.report import shown, table
from examples.studies.statistics import by_seed, mean, paired
from examples.studies.study import Outcome, Result, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from examples.studies.ppi_horizon import Plan

UNIFORM, ORACLE = "uniform", "oracle"
SHORT, LONG, LATE, EARLY = 1, 200, (400, 800), 200
TICKS = (1, 10, 100, 800)
SEPARATED, SHARE = 0.8, 0.8
ORDER = (
    "uniform",
    "lookahead",
    "one_step",
    "tied",
    "tied_one_step",
    "similarity",
    "share_30",
    "share_60",
    "share_90",
    "oracle",
)
Values = Mapping[int, float]


class Found:
    """The numbers of the cells that are done."""

    def __init__(self, plan: Plan, results: Sequence[Result]) -> None:
        self.settings, self.results = plan.settings, results

    def gradient(self, end: int, tail: int, number: str) -> Values:
        return by_seed(self.results, f"{number}|{tail}", "gradient", f"end {end}")

    def whole(self, arm: str, number: str = "auroc") -> Values:
        return by_seed(self.results, number, arm, WHOLE)

    def gain(self, arm: str, than: str = UNIFORM, number: str = "auroc") -> Estimate:
        return paired(self.whole(arm, number), self.whole(than, number))

    def longest(self) -> int:
        """The number of steps of whole runs."""
        numbers = (name for result in self.results for name in result.numbers if name.startswith("metaft_"))
        return max((int(name.removeprefix("metaft_")) for name in numbers), default=0)


def section(plan: Plan, results: Sequence[Result]) -> Section:
    found = Found(plan, results)
    outcomes = {
        "criterion": _criterion(found),
        "room": _room(found),
        "one step": _one_step(found),
        "horizon": _horizon(found),
        "whole": _from_start(found),
        "ties": _ties(found),
        "separation": _separation(found),
        "gain": _gain(found),
        "short": _short(found),
        "permuted": _permuted(found),
    }
    body = [
        "Test AUROC in per cent (of a seed: the mean of its whole runs), mean over seeds; the difference to uniform weights in "
        "points, seed by seed, each run at its best length; the loss that look-aheads are judged by, at the end; the share of "
        "all weight that functions have; the AUROC with which the weights tell functions from distractors.",
        _whole_table(found),
        "Gradients at uniform weights. For each length of pre-training (rows: from initialisation to this step) and number of "
        "last steps that are differentiated: the AUROC with which the mean of the draws tells functions from distractors "
        "(that of one draw; that of the mean after tying).",
        _gradient_table(found, "{mean} ({draw}; {tied})"),
        "Cosine between two draws, signal-to-noise ratio, share of draws in which the loss falls as weight goes from "
        "distractors to functions, and median norm of the same:",
        _gradient_table(found, "{cosine}; {snr}; {right}; {norm}"),
    ]
    figures = {}
    if found.gradient(max(found.settings.ends, default=0), SHORT, "mean"):
        figures["ppi_horizon"] = _figure(found)
        body.insert(2, "![How well gradients separate, by how far they look](figures/ppi_horizon.svg)")
    return Section({name: outcomes[name] for name in plan.expected}, "\n\n".join(body), figures)


def _criterion(found: Found) -> Outcome:
    gain = found.gain(ORACLE, number=f"metaft_{found.longest()}")
    return Outcome(f"{change(gain, 4)}", None if math.isnan(gain.high) else gain.high < 0)


def _room(found: Found) -> Outcome:
    gain = found.gain(ORACLE)
    return Outcome(f"{change(gain, 2)} points", None if math.isnan(gain.low) else gain.low > 0)


def _one_step(found: Found) -> Outcome:
    values = {end: mean(found.gradient(end, SHORT, "mean")) for end in LATE}
    text = "; ".join(f"after {end} steps {shown(value)}" for end, value in values.items())
    known = not any(math.isnan(value.low) for value in values.values())
    return Outcome(text, all(value.value < 0.6 for value in values.values()) if known else None)


def _horizon(found: Found) -> Outcome:
    gains = {
        end: paired(found.gradient(end, LONG, "mean"), found.gradient(end, SHORT, "mean")) for end in LATE
    }
    text = "; ".join(
        f"after {end} steps {shown(mean(found.gradient(end, LONG, 'mean')))}, that is {change(gain, 2)}"
        for end, gain in gains.items()
    )
    known = not any(math.isnan(gain.low) for gain in gains.values())
    return Outcome(text, all(gain.low > 0 for gain in gains.values()) if known else None)


def _from_start(found: Found) -> Outcome:
    values = {end: mean(found.gradient(end, end, "mean")) for end in (EARLY, *LATE)}
    text = "; ".join(f"{end} steps {shown(value)}" for end, value in values.items())
    known = not any(math.isnan(value.low) for value in values.values())
    return Outcome(text, all(value.value < 0.6 for value in values.values()) if known else None)


def _ties(found: Found) -> Outcome:
    long, short = ([mean(found.gradient(end, tail, "tied")) for end in LATE] for tail in (LONG, SHORT))
    text = "; ".join(
        f"after {end} steps {shown(a)}, through one step {shown(b)}"
        for end, a, b in zip(LATE, long, short, strict=True)
    )
    known = not any(math.isnan(value.low) for value in long + short)
    return Outcome(text, all(value.value >= 0.9 for value in long) if known else None)


def _separation(found: Found) -> Outcome:
    values = {arm: mean(found.whole(arm, "separation")) for arm in ("tied", "lookahead")}
    text = "; ".join(f"`{arm}` {shown(value)}" for arm, value in values.items())
    known = not math.isnan(values["tied"].low)
    return Outcome(text, values["tied"].value >= SEPARATED if known else None)


def _gain(found: Found) -> Outcome:
    gain, room = found.gain("tied"), found.gain(ORACLE)
    if math.isnan(gain.low) or math.isnan(room.low):
        return Outcome("not run yet")
    text = f"{change(gain, 2)} points; {100 * gain.value / room.value:.0f} % of the oracle's"
    return Outcome(text, gain.low > 0 and gain.value >= SHARE * room.value)


def _short(found: Found) -> Outcome:
    gains = {arm: found.gain(arm, f"{arm}_one_step", "separation") for arm in ("tied",)}
    gains["free"] = found.gain("lookahead", "one_step", "separation")
    text = "; ".join(f"{arm} {change(gain, 2)}" for arm, gain in gains.items() if not math.isnan(gain.value))
    met = None if math.isnan(gains["tied"].low) else gains["tied"].low > 0
    return Outcome(text or "not run yet", met)


def _permuted(found: Found) -> Outcome:
    gains = {
        arm: paired(found.whole(arm, "permuted_auroc"), found.whole(UNIFORM)) for arm in ("tied", "lookahead")
    }
    text = "; ".join(
        f"`{arm}` {change(gain, 2)}" for arm, gain in gains.items() if not math.isnan(gain.value)
    )
    known = not any(math.isnan(gain.low) for gain in gains.values())
    return Outcome(text or "not run yet", all(gain.low <= 0 for gain in gains.values()) if known else None)


def _whole_table(found: Found) -> str:
    last = found.longest()
    rows = []
    for arm in ORDER:
        if not found.whole(arm):
            continue
        numbers = {n: mean(found.whole(arm, n)) for n in ("auroc", f"metaft_{last}", "share", "separation")}
        gain = "reference" if arm == UNIFORM else change(found.gain(arm), 2)
        rows.append(
            (
                f"`{arm}`",
                len(found.whole(arm)),
                shown(numbers["auroc"], 1),
                gain,
                *(f"{numbers[n].value:.{digits}f}" for n, digits in ((f"metaft_{last}", 4), ("share", 2))),
                shown(numbers["separation"]) if arm in LEARNED else f"{numbers['separation'].value:.2f}",
            )
        )
        if arm in LEARNED:
            dealt = {n: found.whole(arm, f"permuted_{n}") for n in ("auroc", f"metaft_{last}")}
            name, points = "the same, permuted over tasks", paired(dealt["auroc"], found.whole(UNIFORM))
            loss = f"{mean(dealt[f'metaft_{last}']).value:.4f}"
            rows.append(
                (name, len(dealt["auroc"]), shown(mean(dealt["auroc"]), 1), change(points, 2), loss, "", "")
            )
    head = ("weights", "seeds", "test AUROC", "minus uniform", f"loss, {last} steps", "share", "separation")
    return table(head, rows)


def _gradient_table(found: Found, cell: str) -> str:
    names = ("mean", "draw", "tied", "cosine", "snr", "right", "norm")

    def text(end: int, tail: int) -> str:
        values = {name: mean(found.gradient(end, tail, name)).value for name in names}
        if math.isnan(values["mean"]):
            return ""
        digits = {
            name: f"{value:.1e}" if name == "norm" else f"{value:.2f}" for name, value in values.items()
        }
        return cell.format(**digits).replace("-", "−")

    tails = found.settings.tails
    rows = [(end, *(text(end, tail) for tail in tails)) for end in found.settings.ends]
    return table(("steps", *(f"last {tail}" for tail in tails)), rows)


def _figure(found: Found) -> Figure:
    from matplotlib.figure import Figure

    ends = [end for end in found.settings.ends if end >= EARLY] or found.settings.ends
    with style():
        figure = Figure(figsize=(9.2, 2.8), layout="constrained")
        panels = {"draw": "one draw", "mean": "mean of the draws", "tied": "mean of the draws, tasks tied"}
        for axes, (number, title) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
            for k, end in enumerate(ends):
                tails = [tail for tail in found.settings.tails if tail <= end]
                points = [mean(found.gradient(end, tail, number)) for tail in tails]
                color = PALETTE[k]
                axes.plot(
                    tails, [p.value for p in points], "o-", color=color, ms=3, label=f"after {end} steps"
                )
                axes.fill_between(
                    tails, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0
                )
            axes.axhline(0.5, color=FAINT, lw=0.8)
            axes.set_xscale("log")
            axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
            axes.minorticks_off()
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("steps looked ahead", fontsize=9)
        figure.supylabel("AUROC", fontsize=9)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8)
    return figure
