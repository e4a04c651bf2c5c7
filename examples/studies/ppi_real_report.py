"""What the study on real tissues found, as a table and its verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ecgmeta.runtime.page.charts import Estimate, change
from examples.studies.report import forest, shown, table
from examples.studies.statistics import by_seed, mean, paired, power, seeds_needed
from examples.studies.study import Outcome, Result, Section

if TYPE_CHECKING:
    from examples.studies.ppi_real import Plan

UNIFORM, SHARE, LEAST, SEPARATED = "supervised", 0.8, 60.0, 0.8
STATIC, CHOSEN = (UNIFORM, "random_weights", "similarity"), "best static"
ENOUGH = 5  # seeds without which no verdict is given
Values = Mapping[int, float]


class Found:
    """The test AUROC of the cells that are done, per cent, by arm and seed."""

    def __init__(self, plan: Plan, results: Sequence[Result], setting: str) -> None:
        self.arms = list(
            dict.fromkeys(
                [*plan.settings.arms, *plan.settings.then, *plan.settings.variants, *plan.settings.held_out]
            )
        )
        self._numbers = {
            (arm, number): by_seed(results, number, arm, setting)
            for arm in self.arms
            for number in ("auroc", "validation", "length", "weights_sd", "separation")
        }
        self._choose()

    def _choose(self) -> None:
        """Of each seed: the static weights that are best on its validation genes, a search of so many runs."""
        tried = [arm for arm in STATIC if self.get(arm)]
        if len(tried) < 2:
            return
        validation = {arm: self.get(arm, "validation") for arm in tried}
        scored = (set(self.get(arm, number)) for arm in tried for number in ("validation", "auroc", "length"))
        best = {
            seed: max((validation[arm][seed], arm) for arm in tried)[1] for seed in set.intersection(*scored)
        }
        for number in ("auroc", "length"):
            self._numbers[CHOSEN, number] = {
                seed: self.get(arm, number)[seed] for seed, arm in sorted(best.items())
            }
        self.arms.append(CHOSEN)

    def get(self, arm: str, number: str = "auroc") -> Values:
        return self._numbers.get((arm, number), {})

    def gain(self, arm: str, than: str = UNIFORM) -> Estimate:
        """Of one arm over another, points."""
        return paired(self.get(arm), self.get(than))

    def verdict(self, passed: Mapping[str, bool]) -> bool | None:
        """Whether all arms pass; a failure counts once enough seeds of its arm are done."""
        enough = {arm: ok for arm, ok in passed.items() if len(self.get(arm)) >= ENOUGH}
        if not all(enough.values()):
            return False
        return True if len(enough) == len(passed) else None

    def beside(self, arm: str) -> Estimate:
        """What an arm gains beyond 80 % of the ceiling's gain, seed by seed."""
        uniform, ceiling, learned = (self.get(each) for each in (UNIFORM, "ceiling", arm))
        common = sorted(uniform.keys() & ceiling.keys() & learned.keys())
        return mean([learned[s] - uniform[s] - SHARE * (ceiling[s] - uniform[s]) for s in common])


def section(plan: Plan, results: Sequence[Result]) -> Section:
    from examples.studies.ppi_real import FULL, HELD_OUT

    found, partial = Found(plan, results, FULL), Found(plan, results, HELD_OUT)
    outcomes = {
        "uniform": _uniform(found),
        "ceiling": _above(found, "ceiling"),
        "meta": _of_ceiling(found, "meta"),
        "others": _not_below(found, "meta", ("cosine", "cotrain")),
        "controls": _controls(found, ("permuted", "random_walk", "random_weights")),
        "retrained": _retrained(found),
        "held-out tasks": _above(partial, "meta"),
        "paper's settings": _not_below(found, "meta", ("meta (paper)",)),
        "oracle": _above(found, "oracle"),
        "draws": _above(found, "meta (8 draws)"),
        "separation": _separation(found),
        "random search": _above(found, "meta", "random search"),
        "smaller": _above(found, "meta (smaller)"),
        "late": _above(found, "meta (late)"),
        "ensemble": _above(found, "meta (ensemble of 4)"),
        "anchored": _of_ceiling(found, "meta (anchored)"),
        "anchored, learned": _above(found, "meta (anchored)", "similarity"),
        "anchored closer": _not_below(found, "meta (anchored closer)", ("similarity",)),
        "along": _not_below(found, "along (meta)", ("cotrain", "cosine", "random search")),
        "along, held out": _not_below(partial, "along (meta)", ("cotrain", "random search")),
        "along, learned": _above(found, "along (meta)", "along (uniform)"),
        "along, steps": _not_below(found, "along (meta, 1000 steps)", ("along (uniform)", "cotrain")),
        "along, anchored, steps": _not_below(
            found, "along (meta, anchored, 1000 steps)", ("along (similarity)",)
        ),
        "along, walk": _above(found, "along (meta)", "along (random walk)"),
        "along, share": _of_ceiling(found, "along (meta)"),
        "along, anchored": _above(found, "along (meta, anchored)", "along (similarity)"),
    }
    body = "\n\n".join(
        [
            "Test AUROC in per cent, mean over seeds; the difference to uniform weights (`supervised`) in points, seed by "
            "seed; the share of the ceiling's mean gain; the steps at which runs were best on validation genes (mean over "
            "seeds; least and most); the spread (SD) of the final weights. *Best static*: of uniform, random and, where they "
            "were run, `similarity` weights those that are best on a seed's validation genes.",
            _table(found),
            _power(found),
            *(
                ["On the fold of tasks that pre-training did not see:", _table(partial)]
                if partial.get(UNIFORM)
                else []
            ),
        ]
    )
    gains = {arm: found.gain(arm) for arm in found.arms if arm != UNIFORM and found.get(arm)}
    figures = {}
    if any(not math.isnan(gain.low) for gain in gains.values()):
        label = "test AUROC minus that of uniform weights, points"
        figures[plan.figure] = forest({"minus uniform weights": gains}, label, 0.0)
        body += f"\n\n![Arms beside uniform weights](figures/{plan.figure}.svg)"
    return Section({name: outcomes[name] for name in plan.expected}, body, figures)


def _uniform(found: Found) -> Outcome:
    value = mean(found.get(UNIFORM))
    return Outcome(f"{shown(value, 1)} %", None if math.isnan(value.value) else value.value >= LEAST)


def _of_ceiling(found: Found, arm: str) -> Outcome:
    """Whether an arm gains 80 % of what the ceiling does; no share where the ceiling's own gain is not clear of 0."""
    gain, ceiling, beyond = found.gain(arm), found.gain("ceiling"), found.beside(arm)
    if not _done(gain):
        return Outcome("not run yet")
    there = ceiling.low > 0
    share = f", {100 * gain.value / ceiling.value:.0f} % of the ceiling's gain" if there else ""
    text = f"{change(gain, 2)} points{share}; beyond 80 % of the ceiling {change(beyond, 2)}"
    if not there:
        return Outcome(f"{text}; no ceiling above uniform is shown, so there is no share to say")
    return Outcome(text, found.verdict({arm: gain.value >= SHARE * ceiling.value}))


def _not_below(found: Found, arm: str, others: Sequence[str]) -> Outcome:
    """Whether an arm is shown to be below none of the others."""
    gains = {other: found.gain(arm, other) for other in others}
    text = "; ".join(f"against {other} {change(gain, 2)}" for other, gain in gains.items() if _done(gain))
    met = found.verdict({other: not gain.high < 0 for other, gain in gains.items()} | {arm: True})
    return Outcome(text or "not run yet", met)


def _controls(found: Found, controls: Sequence[str]) -> Outcome:
    gains = {arm: found.gain(arm) for arm in controls}
    text = "; ".join(f"{arm} {change(gain, 2)}" for arm, gain in gains.items() if _done(gain))
    met = found.verdict({arm: not gain.low > 0 for arm, gain in gains.items()})
    return Outcome(text or "not run yet", met)


def _retrained(found: Found) -> Outcome:
    gain = found.gain("retrained", "meta")
    if math.isnan(gain.low):
        return Outcome("not run yet" if not _done(gain) else change(gain, 2))
    met = found.verdict({"retrained": gain.low >= -1 and gain.high <= 1})
    return Outcome(f"{change(gain, 2)} points", met)


def _above(found: Found, arm: str, than: str = UNIFORM) -> Outcome:
    """Whether an arm is above another."""
    gain = found.gain(arm, than)
    if not _done(gain):
        return Outcome("not run yet")
    return Outcome(f"{change(gain, 2)} points", found.verdict({arm: gain.low > 0, than: True}))


def _separation(found: Found) -> Outcome:
    value = mean(found.get("meta", "separation"))
    if not _done(value):
        return Outcome("not run yet")
    return Outcome(f"AUROC {shown(value, 2)}", found.verdict({"meta": value.value >= SEPARATED}))


def _done(gain: Estimate) -> bool:
    return not math.isnan(gain.value)


def _table(found: Found) -> str:
    ceiling = found.gain("ceiling")
    planted = any(found.get(arm, "separation") for arm in found.arms)
    rows = []
    for arm in found.arms:
        values = found.get(arm)
        if not values:
            continue
        gain, lengths, spread = found.gain(arm), found.get(arm, "length"), mean(found.get(arm, "weights_sd"))
        steps = lengths.values()
        share = f"{100 * gain.value / ceiling.value:.0f} %" if ceiling.low > 0 else "–"
        own = arm == UNIFORM
        cells: list[object] = [
            arm if arm == CHOSEN else f"`{arm}`",
            len(values),
            shown(mean(values), 1),
            "reference" if own else change(gain, 2),
            "" if own else share,
            f"{sum(steps) / len(steps):.0f} ({min(steps):.0f} to {max(steps):.0f})",
            "" if math.isnan(spread.value) else f"{spread.value:.2f}",
        ]
        rows.append([*cells, _told(found, arm)] if planted else cells)
    head = ["arm", "seeds", "test AUROC", "minus uniform", "share of ceiling", "steps", "SD of weights"]
    return table([*head, "separation"] if planted else head, rows)


def _told(found: Found, arm: str) -> str:
    """How well the final weights tell functions from distractors."""
    value = mean(found.get(arm, "separation"))
    return "" if math.isnan(value.value) else f"{value.value:.2f}"


def _power(found: Found) -> str:
    """What this many seeds could have shown."""
    uniform, ceiling, meta = (found.get(arm) for arm in (UNIFORM, "ceiling", "meta"))
    common = sorted(uniform.keys() & meta.keys())
    if len(common) < 3:
        return "Too few seeds are done to say what they could show."
    gaps = [meta[s] - uniform[s] for s in common]
    centre = sum(gaps) / len(gaps)
    sd = math.sqrt(sum((gap - centre) ** 2 for gap in gaps) / (len(gaps) - 1))
    text = (
        f"The difference between learned and uniform weights has an SD of {sd:.2f} points over {len(gaps)} seeds: a true gain "
        f"of 1 point would be found in {100 * power(sd, 1.0, len(gaps)):.0f} % of such studies, one of 2 points in "
        f"{100 * power(sd, 2.0, len(gaps)):.0f} %; for 1 point at 80 % it takes {seeds_needed(sd, 1.0)} seeds."
    )
    gain = paired(ceiling, uniform)
    if not math.isnan(gain.value) and gain.value > 0:
        target = SHARE * gain.value
        text += f" For 80 % of the ceiling's mean gain ({target:.2f} points) it takes {seeds_needed(sd, target)} seeds."
    return text
