"""The augmentation card: what an augmenter has learned, how it looks on ECG paper, and what it does to the measurements
and limits that a cardiologist reads a recording by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgmeta.augment.learned import Augmenter, Learned
from ecgmeta.data.auditing.rhythm import sample
from ecgmeta.data.dataset import ECGDataset
from ecgmeta.report.criteria import CRITERIA, Crossing, Person, crossings
from ecgmeta.report.intervals import QUANTITIES, Measures, measure, printed, shift, sound
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_json, write_text
from ecgmeta.runtime.progress import Report
from ecgmeta.runtime.seeds import torch_generator

BATCH = 64
TYPICAL, CHANGED = 2, 3  # recordings drawn


@dataclass(frozen=True, eq=False)
class Case:
    """One recording, original and augmented.

    Attributes:
        name: of the recording.
        person: whose it is.
        signals: (2, leads, samples) mV, original and augmented, as far as it was recorded.
        measures: original and augmented.
        crossed: the criteria met by one of the two.
    """

    name: str
    person: Person
    signals: NDArray[np.float32]
    measures: tuple[Measures, Measures]
    crossed: list[Crossing]

    @property
    def shift(self) -> Measures:
        return shift(*self.measures)

    @property
    def changed(self) -> float:
        """Its largest shift in multiples of what errors of measurement explain; 0 where nothing could be measured."""
        shifts = self.shift
        ratios = [abs(shifts[quantity.key]) / quantity.noise for quantity in QUANTITIES]
        return max((ratio for ratio in ratios if math.isfinite(ratio)), default=0.0)


@dataclass(frozen=True, eq=False)
class Card:
    """Everything that the page shows.

    Attributes:
        augmenter: what it calls itself.
        data: the recordings in words; ``available``: how many there were, of which ``cases`` are an evenly spaced sample.
        fs, leads: of the recordings, Hz.
        seed: of the augmentation.
        learned: what it has learned now, and before where that is known.
        notes: what a reader should know of the recordings.
    """

    augmenter: str
    data: str
    available: int
    fs: float
    leads: tuple[str, ...]
    seed: int
    learned: list[Learned]
    before: list[Learned] | None
    cases: list[Case]
    notes: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Nothing was augmented: every sample is what it was."""
        return all(np.array_equal(case.signals[0], case.signals[1]) for case in self.cases)


def make_card(
    augmenter: Augmenter,
    data: ECGDataset,
    *,
    before: Augmenter | None = None,
    records: int = 100,
    seed: int = 0,
    name: str = "recordings",
    progress: Report | None = None,
) -> Card:
    """Augment a sample of recordings once each and measure both.

    Args:
        augmenter: for recordings at ``data.fs``; its leads are taken from the data by name, in the standard order where it does
            not know them.
        data: recordings.
        before: the same augmenter before it learned.
        records: how many, evenly spaced.
        seed: of the augmentation.
        name: of the data, on the page.
        progress: told what is being done.

    Raises:
        InputError: leads or a rate that the augmenter cannot take, no recordings, or ``before`` is another augmenter.
    """
    if records < 1:
        raise InputError("card", "records", records, "at least 1")
    if augmenter.lead_names is not None:
        data = data.with_leads(augmenter.lead_names, derive=True)
    chosen = data.subset(sample(len(data), records))
    # Its own copy: normalisation layers that still follow their batch would learn from being looked at.
    frozen = _frozen(augmenter, data)
    x = torch.from_numpy(chosen.signals)
    frozen.check(x)
    learned = frozen.learned(x)
    earlier = None if before is None else _learned_before(before, augmenter, data, x, learned)
    views = _augment(frozen, x, seed)
    return Card(
        augmenter=repr(augmenter),
        data=name,
        available=len(data),
        fs=data.fs,
        leads=data.leads,
        seed=seed,
        learned=learned,
        before=earlier,
        cases=_cases(chosen, views, progress),
        notes=[*data.notes, *([f"{len(data.skipped)} recordings were left out."] if data.skipped else [])],
    )


def _frozen(augmenter: Augmenter, data: ECGDataset) -> Augmenter:
    own = augmenter.at(data.fs, data.leads)
    own.frozen_statistics = True
    return own.train()


def _learned_before(
    before: Augmenter, augmenter: Augmenter, data: ECGDataset, x: torch.Tensor, learned: list[Learned]
) -> list[Learned]:
    """What ``before`` had learned, which must be what ``augmenter`` learns."""
    wanted = f"the {type(augmenter).__name__} of {augmenter.leads} leads before it learned"
    if type(before) is not type(augmenter) or before.leads != augmenter.leads:
        raise InputError("card", "before", f"a {type(before).__name__} of {before.leads} leads", wanted)
    frozen = _frozen(before, data)
    frozen.check(x)
    earlier = frozen.learned(x)
    there = {(one.group, one.name) for one in earlier}
    for one in learned:
        if (one.group, one.name) not in there:
            raise InputError("card", "before", f"one that does not learn {one.group}: {one.name}", wanted)
    return earlier


@torch.no_grad()
def _augment(augmenter: Augmenter, x: torch.Tensor, seed: int) -> NDArray[np.float32]:
    generator = torch_generator(seed, "augmentation card")
    parts = [augmenter(part, generator=generator) for part in x.split(BATCH)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def _cases(data: ECGDataset, views: NDArray[np.float32], progress: Report | None) -> list[Case]:
    cases = []
    for row in range(len(data)):
        if progress is not None:
            progress(row, len(data), "measuring")
        meta = data.meta.iloc[row]
        valid = int(meta["valid_samples"])
        signals = np.stack([data.take([row])[0], views[row]])[..., :valid]
        original = sound(measure(signals[0], data.fs, data.leads))
        # Measured twice, the same samples give the same numbers: no need to ask for a view that changes nothing.
        same = np.array_equal(signals[0], signals[1])
        augmented = original if same else measure(signals[1], data.fs, data.leads)
        person = Person(str(meta["sex"]), float(meta["age"]))
        crossed = crossings(original, augmented, person)
        cases.append(Case(str(meta["record"]), person, signals, (original, augmented), crossed))
    if progress is not None:
        progress(len(data), len(data), "measuring")
    return cases


# --- Numbers --------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float] | NDArray[np.floating] | torch.Tensor) -> dict[str, float]:
    """n, mean, SD and the 5 to 95 % range of the finite values; NaN where there are none."""
    there = np.asarray(values, dtype=np.float64).ravel()
    there = there[np.isfinite(there)]
    if not there.size:
        return {"n": 0, "mean": math.nan, "sd": math.nan, "low": math.nan, "high": math.nan}
    low, high = np.percentile(there, [5, 95])
    return {
        "n": int(there.size),
        "mean": float(there.mean()),
        "sd": float(there.std()),
        "low": float(low),
        "high": float(high),
    }


def summary(card: Card) -> list[dict[str, Any]]:
    """A row a quantity: the originals, the shift (augmented − original), and how much of it errors do not explain."""
    rows = []
    for quantity in QUANTITIES:
        key = quantity.key
        shifts = np.array([case.shift[key] for case in card.cases])
        there = np.isfinite(shifts)
        beyond = float((np.abs(shifts[there]) > quantity.noise).mean()) if there.any() else math.nan
        rows.append(
            {
                "key": key,
                "name": quantity.name,
                "unit": quantity.unit,
                "original": spread([case.measures[0][key] for case in card.cases]),
                "shift": spread(shifts),
                "measurable": float(there.mean()),
                "beyond_noise": beyond,
                "noise": quantity.noise,
            }
        )
    return rows


def criteria(card: Card) -> list[dict[str, Any]]:
    """A row a criterion: how many recordings meet it, before and after, and where that changes."""
    rows = []
    for criterion in CRITERIA:
        margins = [[criterion.margin(printed(m), case.person) for m in case.measures] for case in card.cases]
        both = [(a, b) for a, b in margins if math.isfinite(a) and math.isfinite(b)]
        crossed = [(case, one) for case in card.cases for one in case.crossed if one.criterion is criterion]
        rows.append(
            {
                "name": criterion.name,
                "limit": criterion.limit,
                "source": criterion.source,
                "measurable": len(both),
                "original": sum(criterion.met(a) for a, _ in both),
                "augmented": sum(criterion.met(b) for _, b in both),
                "appeared": [case.name for case, one in crossed if one.appeared],
                "vanished": [case.name for case, one in crossed if not one.appeared],
                "beyond_noise": [case.name for case, one in crossed if one.beyond_noise],
            }
        )
    return rows


def verdict(card: Card) -> tuple[str, bool]:
    """What the page says first, and whether a reader must beware."""
    if card.identical:
        return "No change: every augmented recording is its original, sample by sample.", False
    flagged = sum(any(one.beyond_noise for one in case.crossed) for case in card.cases)
    if flagged:
        share = f"{flagged} of {len(card.cases)} recordings"
        return f"Read differently after augmentation, by more than measuring errors explain: {share}.", True
    moved = sum(case.changed > 1 for case in card.cases)
    if moved:
        return (
            f"No limit is crossed beyond measuring errors; in {moved} of {len(card.cases)} recordings "
            "some measurement moves by more than they explain.",
            False,
        )
    return "No change that measuring errors do not explain.", False


def learned_rows(card: Card) -> list[dict[str, Any]]:
    """A row a learned quantity: its spread now, and before where it is known."""
    earlier: Mapping[tuple[str, str], Learned] = {(one.group, one.name): one for one in card.before or []}
    rows = []
    for one in card.learned:
        old = earlier.get((one.group, one.name))
        rows.append(
            {
                "group": one.group,
                "name": one.name,
                "unit": one.unit,
                "now": spread(one.values.detach().cpu()),
                "before": None if old is None else spread(old.values.detach().cpu()),
            }
        )
    return rows


def typical_and_changed(card: Card) -> tuple[list[Case], list[Case]]:
    """Recordings to look at: those whose change is the median, and those that changed most (flagged ones first)."""
    order = sorted(card.cases, key=lambda case: case.changed)
    if card.identical or len(order) <= TYPICAL:
        return order[:TYPICAL], []
    start = max(0, (len(order) - TYPICAL) // 2)
    typical = order[start : start + TYPICAL]
    rest = [case for case in reversed(order) if case not in typical and case.changed > 0]
    rest.sort(key=lambda case: any(one.beyond_noise for one in case.crossed), reverse=True)
    return typical, rest[:CHANGED]


def as_json(card: Card) -> dict[str, Any]:
    """The card's numbers; NaN where something could not be measured."""
    return {
        "augmenter": card.augmenter,
        "data": card.data,
        "available": card.available,
        "records": len(card.cases),
        "fs": card.fs,
        "leads": list(card.leads),
        "seed": card.seed,
        "verdict": verdict(card)[0],
        "learned": learned_rows(card),
        "measurements": summary(card),
        "criteria": criteria(card),
        "recordings": [
            {
                "record": case.name,
                "original": case.measures[0],
                "augmented": case.measures[1],
                "crossed": [
                    {
                        "criterion": one.criterion.name,
                        "appeared": one.appeared,
                        "beyond_noise": one.beyond_noise,
                    }
                    for one in case.crossed
                ],
            }
            for case in card.cases
        ],
        "notes": card.notes,
    }


def write_card(card: Card, page: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, the JSON; each is whole or not there."""
    from ecgmeta.report.card_page import render_card

    numbers = page.with_suffix(".json")
    html = render_card(card)
    write_json(numbers, as_json(card))
    write_text(page, html)
    return page, numbers
