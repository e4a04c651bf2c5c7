"""The augmentation card as one self-contained HTML page."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import numpy as np

from ecgmeta.report.card import (
    Card,
    Case,
    criteria,
    learned_rows,
    summary,
    typical_and_changed,
    verdict,
)
from ecgmeta.report.content import Histogram
from ecgmeta.report.intervals import QUANTITIES, Quantity
from ecgmeta.report.paper import paper_notes, plot_ecg, thinned
from ecgmeta.runtime.page.shell import Picture, as_histogram, as_picture, fill

MAIN = ("heart_rate", "pr", "qrs", "qt", "qtc", "axis", "st_II", "st_V2", "st_V5")
CHARTS = ("heart_rate", "pr", "qrs", "qtc", "axis", "st_V5")
LISTED = 200  # recordings that the page lists; the JSON has them all


def render_card(card: Card) -> str:
    """The card as one HTML document; the same card gives the same text."""
    said, beware = verdict(card)
    rows = [_measured(row) for row in summary(card)]
    typical, changed = typical_and_changed(card)
    flagged = [case for case in card.cases if case.crossed]
    return fill(
        "ecgmeta.report",
        "card.html",
        card=card,
        verdict=said,
        beware=beware,
        groups=_learned(card),
        measurements=[row for row in rows if row["key"] in MAIN],
        further=[row for row in rows if row["key"] not in MAIN],
        charts=[] if card.identical else _charts(card),
        criteria=criteria(card),
        flagged=[_flags(case) for case in flagged[:LISTED]],
        more=max(0, len(flagged) - LISTED),
        typical=[_drawn(card, case) for case in typical],
        changed=[_drawn(card, case) for case in changed],
        exactness=[_exactness(quantity) for quantity in QUANTITIES if not quantity.key.startswith("st_")]
        + [_exactness(next(q for q in QUANTITIES if q.key == "st_II")) | {"name": "ST level, any lead"}],
    )


def _learned(card: Card) -> list[dict[str, Any]]:
    rows = [
        row
        | {
            "text": _values(row["now"], row["unit"]),
            "earlier": "—" if row["before"] is None else _values(row["before"], row["unit"]),
            "bar": row["now"]["mean"] if row["unit"] == "share" else None,
            "bar_before": row["before"]["mean"] if row["unit"] == "share" and row["before"] else None,
        }
        for row in learned_rows(card)
    ]
    return [{"name": name, "rows": list(of)} for name, of in groupby(rows, key=lambda row: row["group"])]


def _values(spread: dict[str, float], unit: str) -> str:
    """``52.1 ms``; over records ``52.1 ms, SD 3.2 (5–95 %: 47 to 57)``."""
    scale, name = (100.0, " %") if unit == "share" else (1.0, "" if unit == "1" else f" {unit}")
    mean, sd, low, high = (_number(scale * spread[key]) for key in ("mean", "sd", "low", "high"))
    if spread["n"] < 2:
        return f"{mean}{name}"
    return f"{mean}{name}, SD {sd} (5–95 %: {low} to {high})"


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    digits = next(quantity.digits for quantity in QUANTITIES if quantity.key == row["key"])
    original, moved = row["original"], row["shift"]

    def signed(value: float) -> str:
        return _fixed(value, max(digits, 1), sign=True)

    return row | {
        "before": f"{_fixed(original['mean'], digits)} ({_fixed(original['sd'], digits)})",
        "mean": signed(moved["mean"]),
        "sd": _fixed(moved["sd"], max(digits, 1)),
        "range": f"{signed(moved['low'])} to {signed(moved['high'])}" if moved["n"] else "—",
        "measured": _share(row["measurable"]),
        "beyond": _share(row["beyond_noise"]),
        "exact": _fixed(row["noise"], max(digits, 1)),
    }


def _exactness(quantity: Quantity) -> dict[str, str]:
    digits = max(quantity.digits, 1)
    return {
        "name": quantity.name,
        "unit": quantity.unit,
        "bias": _fixed(quantity.bias, digits, sign=True),
        "error": _fixed(quantity.error, digits),
        "sd": _fixed(quantity.sd, digits),
        "noise": _fixed(quantity.noise, digits),
    }


def _charts(card: Card) -> list[Picture]:
    pictures = []
    for quantity in QUANTITIES:
        shifts = np.array([case.shift[quantity.key] for case in card.cases])
        shifts = shifts[np.isfinite(shifts)]
        if quantity.key not in CHARTS or shifts.size < 2:
            continue
        most = max(float(np.percentile(np.abs(shifts), 98)), 1.5 * quantity.noise)
        edges = np.linspace(-most, most, 32)
        counts = np.histogram(np.clip(shifts, -most, most), edges)[0].tolist()
        noise = _fixed(quantity.noise, max(quantity.digits, 1))
        caption = (
            f"{shifts.size} recordings; errors of measurement explain up to ±{noise}{_unit(quantity)}. "
            "The outermost bars hold what lies beyond."
        )
        label = f"augmented − original, {quantity.unit}"
        pictures.append(
            as_histogram(Histogram(quantity.name, label, edges.tolist(), {"shift": counts}, caption))
        )
    return pictures


def _flags(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "person": _person(case),
        "lines": [
            {
                "text": f"{one.criterion.name} {'appears' if one.appeared else 'vanishes'}",
                "beyond": one.beyond_noise,
                "change": _change(case, one.criterion.quantity, one.before, one.after),
            }
            for one in case.crossed
        ],
    }


def _change(case: Case, key: str, before: float, after: float) -> str:
    """``QRS duration 112 → 126 ms``; of ST the margins, since the leads may differ."""
    if key == "st":
        return f"{_fixed(before, 3, sign=True)} → {_fixed(after, 3, sign=True)} mV from the limit"
    quantity = next(quantity for quantity in QUANTITIES if quantity.key == key)
    return f"{quantity.name} {_arrow(case, quantity)}"


def _arrow(case: Case, quantity: Quantity) -> str:
    old, new = (_fixed(measures[quantity.key], quantity.digits) for measures in case.measures)
    return f"{old} → {new}{_unit(quantity)}"


def _unit(quantity: Quantity) -> str:
    """What follows a number."""
    return quantity.unit if quantity.unit == "°" else f" {quantity.unit}"


def _person(case: Case) -> str:
    age = f"{case.person.age:.0f} years" if math.isfinite(case.person.age) else ""
    return ", ".join(filter(None, [case.person.sex if case.person.sex != "unknown" else "", age]))


def _drawn(card: Card, case: Case) -> Picture:
    (first, fs), (second, _) = (thinned(signal, card.fs) for signal in case.signals)
    figure = plot_ecg(first, fs, card.leads, overlay=second, title=case.name)
    shown = [quantity for quantity in QUANTITIES if quantity.key in MAIN[:6]]
    caption = "; ".join(f"{quantity.name} {_arrow(case, quantity)}" for quantity in shown) + "."
    if case.crossed:
        said = (f"{one.criterion.name} {'appears' if one.appeared else 'vanishes'}" for one in case.crossed)
        caption += f" {'; '.join(said)}."
    notes = "; ".join(paper_notes(first, fs, card.leads, overlay=second))
    alt = f"ECG {case.name}, original and augmented overlaid. {caption} {notes}."
    return as_picture(figure, alt, case.name, caption)


def _number(value: float) -> str:
    return "—" if not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def _fixed(value: float, digits: int, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "—"
    value = round(value, digits) + 0.0  # no −0.0
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", "−")


def _share(value: float) -> str:
    return "—" if not math.isfinite(value) else f"{100 * value:.0f} %"
