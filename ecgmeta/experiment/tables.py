"""Results as text: CSV with a line for each label, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

_KEYS = ("label_set", "labels", "protocol", "arm")
_COLUMNS = (
    *(*_KEYS, "seeds", "label", "positives", "records", "patients", "auroc", "auroc_low", "auroc_high"),
    *("average_precision", "difference", "difference_low", "difference_high", "resampled"),
    *("difference_low_patients", "difference_high_patients", "labels_used", "note"),
)
MACRO = "macro"  # the mean over the labels that can be scored


def ordered(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order they are read: by labels and protocol, the highest AUROC first."""
    return sorted(
        results["rows"],
        key=lambda r: (r["label_set"], r["labels"], r["protocol"], -r["scores"]["macro_auroc"]),
    )


def to_csv(results: dict[str, Any]) -> str:
    """A line for the macro mean of each row, and for each of its labels; what cannot be scored is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in ordered(results):
        writer.writerows(_lines(row))
    return text.getvalue()


def _lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    scores, difference = row["scores"], row.get("difference")
    common = {key: row[key] for key in _KEYS} | {
        "seeds": len(scores["seeds"]),
        "records": scores["n_records"],
    }
    common |= {"patients": scores["n_patients"], "labels_used": row["labels_used"]}
    macro = common | {"label": MACRO, "note": "; ".join(filter(None, [row["note"], scores["note"]]))}
    macro |= _estimate("auroc", scores["macro_auroc"], scores["macro_interval"])
    macro["average_precision"] = scores["macro_ap"]
    if difference is not None:
        macro |= _estimate("difference", difference["delta"], difference["interval"])
        macro["resampled"] = difference["resampled"]
        ends = zip(("low", "high"), difference["interval_patients"], strict=True)
        macro |= {f"difference_{name}_patients": end for name, end in ends}
    yield macro
    for label in scores["labels"]:
        line = common | {"label": label["name"], "positives": label["positives"]}
        line |= _estimate("auroc", label["auroc"], label["interval"])
        absent = label["name"] in scores["absent"]
        note = "one class only" if absent else ""
        yield line | {"average_precision": label["average_precision"], "note": note}


def _estimate(name: str, value: float | None, ends: Sequence[float | None]) -> dict[str, Any]:
    return {name: value, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def to_markdown(results: dict[str, Any]) -> str:
    """A table of the macro means, the warnings and what is to be known of the data before it, and the notes after it."""
    lines = ["# Results", ""]
    for warning in results["warnings"]:
        lines += [f"> **{_escape(warning)}**", ""]
    for note in results.get("notes", ()):
        lines += [f"> {_escape(note)}", ""]
    head = ("labels", "protocol", "arm", "seeds", "macro AUROC (95 %)", f"against {results['reference']}")
    lines += [_line([*head, "average precision", ""]), _line(["---"] * (len(head) + 2))]
    notes: list[str] = []
    for row in ordered(results):
        scores, difference = row["scores"], row.get("difference")
        said = "; ".join(filter(None, [row["note"], scores["note"]]))
        if said and said not in notes:
            notes.append(said)
        cells = [row["labels"], row["protocol"], row["arm"], len(scores["seeds"])]
        cells += [interval(scores["macro_auroc"], scores["macro_interval"])]
        cells += [interval(difference["delta"], difference["interval"], "+") if difference else ""]
        cells += [f"{scores['macro_ap']:.3f}", f"[{notes.index(said) + 1}]" if said else ""]
        lines.append(_line(cells))
    lines += ["", *(f"{number}. {_escape(note)}" for number, note in enumerate(notes, 1))]
    return "\n".join([*lines, "", _intervals(results), ""])


def _intervals(results: dict[str, Any]) -> str:
    text = "Intervals resample test patients"
    if all(row["difference"]["resampled"] == "patients" for row in results["rows"] if "difference" in row):
        return f"{text}."
    return (
        f"{text}; those of differences also the seeds of fine-tuning, where there are several: "
        "two or three make them wide, as little is then known of other seeds."
    )


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_escape(str(cell)) for cell in cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def interval(value: float, ends: Sequence[float | None], sign: str = "") -> str:
    """``0.842 (0.801 to 0.879)``."""
    low, high = (f"{end:{sign}.3f}" if end is not None else "–" for end in ends)
    return f"{value:{sign}.3f} ({low} to {high})"
