"""Limits whose crossing would change how a recording is read, each with its source.

A criterion is a margin: how far a recording lies beyond the limit, in the quantity's own unit. So a change of margin says how
far a recording was moved, whatever the criterion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ecgmeta.report.intervals import QUANTITIES, Measures, printed

# Neighbours on the chest, and in the frontal plane by Cabrera's sequence (Thygesen et al. 2018).
CONTIGUOUS = (
    *pairwise(("V1", "V2", "V3", "V4", "V5", "V6")),
    *(("aVL", "I"), ("II", "aVF"), ("aVF", "III")),
)
_NOISE = {quantity.key: quantity.noise for quantity in QUANTITIES}


@dataclass(frozen=True)
class Person:
    """Whose recording it is: ``sex`` "female", "male" or "unknown"; ``age`` in years or NaN."""

    sex: str = "unknown"
    age: float = math.nan


@dataclass(frozen=True)
class Criterion:
    """A limit.

    Attributes:
        name: what meeting it is called.
        limit: in words.
        source: who set it.
        quantity: key of the quantity it is about (of all leads: ``"st"``).
        margin: how far beyond the limit a recording lies, in the quantity's unit; NaN where it cannot be said.
        inclusive: the limit itself meets it.
    """

    name: str
    limit: str
    source: str
    quantity: str
    margin: Callable[[Measures, Person], float]
    inclusive: bool = False

    def met(self, margin: float) -> bool:
        return margin >= 0 if self.inclusive else margin > 0

    @property
    def noise(self) -> float:
        """How far two measurements of a margin may lie apart by their errors; see ``Quantity.noise``."""
        return _NOISE["st_II" if self.quantity == "st" else self.quantity]


def _above(key: str, limit: float) -> Callable[[Measures, Person], float]:
    return lambda measures, person: measures[key] - limit


def _long_qt(measures: Measures, person: Person) -> float:
    return measures["qtc"] - (450 if person.sex == "male" else 460)


def _turn(measures: Measures, person: Person) -> float:
    """The axis from the middle of its normal range, 30°, by the shorter way: −180 to 180."""
    return (measures["axis"] - 30 + 180) % 360 - 180


def st_limit(lead: str, person: Person) -> float:
    """ST elevation, mV, that suggests ischaemia in a lead."""
    if lead not in ("V2", "V3"):
        return 0.1
    if person.sex == "female":
        return 0.15
    return 0.25 if person.sex == "male" and person.age < 40 else 0.2


def _contiguous(margins: dict[str, float], pairs: Sequence[tuple[str, str]] = CONTIGUOUS) -> float:
    """The largest margin that two neighbouring leads both have."""
    both = [min(margins[a], margins[b]) for a, b in pairs if a in margins and b in margins]
    return max(both, default=math.nan)


def _levels(measures: Measures) -> dict[str, float]:
    """ST level by lead, of the leads that could be measured."""
    st = {key.removeprefix("st_"): value for key, value in measures.items() if key.startswith("st_")}
    return {lead: value for lead, value in st.items() if math.isfinite(value)}


def _st_up(measures: Measures, person: Person) -> float:
    return _contiguous({lead: level - st_limit(lead, person) for lead, level in _levels(measures).items()})


def _st_down(measures: Measures, person: Person) -> float:
    return _contiguous({lead: -level - 0.05 for lead, level in _levels(measures).items()})


_SURAWICZ = "AHA/ACCF/HRS 2009, part III (Surawicz et al., Circulation 119:e235)"
_RAUTAHARJU = "AHA/ACCF/HRS 2009, part IV (Rautaharju et al., Circulation 119:e241)"
_THYGESEN = (
    "Fourth universal definition of myocardial infarction (Thygesen et al., Circulation 138:e618, 2018)"
)
_CONVENTION = "convention: sinus rhythm of 60 to 100 beats/min"

CRITERIA = (
    Criterion(
        "Bradycardia",
        "heart rate below 60 beats/min",
        _CONVENTION,
        "heart_rate",
        lambda m, _: 60 - m["heart_rate"],
    ),
    Criterion(
        "Tachycardia", "heart rate above 100 beats/min", _CONVENTION, "heart_rate", _above("heart_rate", 100)
    ),
    Criterion(
        "First-degree AV block",
        "PR above 200 ms",
        "ACC/AHA/HRS 2018 bradycardia guideline (Kusumoto et al., Circulation 140:e382)",
        "pr",
        _above("pr", 200),
    ),
    Criterion(
        "Wide QRS (complete block)",
        "QRS of 120 ms or more",
        _SURAWICZ,
        "qrs",
        _above("qrs", 120),
        inclusive=True,
    ),
    Criterion(
        "Prolonged QTc",
        "QTc of 450 ms (men) or 460 ms (women, sex unknown) or more",
        _RAUTAHARJU,
        "qtc",
        _long_qt,
        inclusive=True,
    ),
    Criterion("Left axis deviation", "axis beyond −30°", _SURAWICZ, "axis", lambda m, p: -60 - _turn(m, p)),
    Criterion("Right axis deviation", "axis beyond +90°", _SURAWICZ, "axis", lambda m, p: _turn(m, p) - 60),
    Criterion(
        "ST elevation",
        "0.1 mV or more in two contiguous leads; in V2 and V3 0.2 mV (men under 40: 0.25, women: 0.15)",
        _THYGESEN,
        "st",
        _st_up,
        inclusive=True,
    ),
    Criterion(
        "ST depression", "0.05 mV or more in two contiguous leads", _THYGESEN, "st", _st_down, inclusive=True
    ),
)


@dataclass(frozen=True)
class Crossing:
    """A criterion that an augmentation made a recording meet (``appeared``) or no longer meet.

    ``beyond_noise``: the margin moved by more than errors of measurement explain.
    """

    criterion: Criterion
    appeared: bool
    before: float
    after: float

    @property
    def beyond_noise(self) -> bool:
        return abs(self.after - self.before) > self.criterion.noise


def crossings(before: Measures, after: Measures, person: Person) -> list[Crossing]:
    """Every criterion that one recording meets before or after, not both, by the numbers as they are printed."""
    found = []
    before, after = printed(before), printed(after)
    for criterion in CRITERIA:
        first, second = criterion.margin(before, person), criterion.margin(after, person)
        if math.isfinite(first) and math.isfinite(second) and criterion.met(first) != criterion.met(second):
            found.append(Crossing(criterion, criterion.met(second), first, second))
    return found
