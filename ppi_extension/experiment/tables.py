"""Results as text: CSV with a line for each task, Markdown for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ppi_extension.experiment.config import ARMS

_COLUMNS = (
    *("protocol", "arm", "steps", "task", "seeds", "auroc", "auroc_low", "auroc_high"),
    *("difference", "difference_low", "difference_high"),
    *("meta_minus", "meta_minus_low", "meta_minus_high"),
)
MEAN = "mean over tasks"


def ordered(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the order they are read: by protocol, the highest AUROC first."""
    return sorted(results["rows"], key=lambda row: (row["protocol"], -row["auroc"]["value"]))


def to_csv(results: dict[str, Any]) -> str:
    """A line for the mean over tasks of each row, and one for each of its tasks."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in ordered(results):
        writer.writerows(_lines(row))
    return text.getvalue()


def _lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    common = {key: row[key] for key in ("protocol", "arm", "steps")}
    paired = {"difference": row.get("difference"), "meta_minus": row.get("meta_minus")}
    yield common | _numbers(MEAN, row["auroc"], paired)
    for term, estimate in row["tasks"].items():
        of_task = {"difference": "task_differences", "meta_minus": "task_meta_minus"}
        paired = {name: row.get(key, {}).get(term) for name, key in of_task.items()}
        yield common | _numbers(term, estimate, paired)


def _numbers(
    task: str, found: Mapping[str, Any], paired: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    out = {"task": task, "seeds": found["n"], "auroc": found["value"]}
    out |= {"auroc_low": _known(found["low"]), "auroc_high": _known(found["high"])}
    for name, difference in paired.items():
        if difference is not None:
            out |= {name: difference["value"], f"{name}_low": _known(difference["low"])}
            out |= {f"{name}_high": _known(difference["high"])}
    return out


def _known(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def to_markdown(results: dict[str, Any]) -> str:
    """A table of the means over tasks, and what the differences are."""
    head = (
        "arm",
        "protocol",
        "steps",
        "seeds",
        "AUROC (95 %)",
        f"against {results['reference']}",
        "meta minus it",
    )
    lines = ["# Results", "", _line(head), _line(["---"] * len(head))]
    for row in ordered(results):
        cells = [row["arm"], row["protocol"], f"{row['steps']:,}", row["auroc"]["n"], interval(row["auroc"])]
        cells += [interval(row.get("difference"), "+"), interval(row.get("meta_minus"), "+")]
        lines.append(_line(cells))
    lines += ["", explanation(results), ""]
    lines += [f"- {row['arm']}: {ARMS[row['arm']]}" for row in ordered(results)]
    if results["separation"]:
        lines += ["", "AUROC with which the weights tell useful tasks from the others:", ""]
        lines += [f"- {arm}: {interval(found)}" for arm, found in results["separation"].items()]
    return "\n".join([*lines, ""])


def explanation(results: dict[str, Any]) -> str:
    """How the numbers of a table came about."""
    which = "over the tasks that pre-training has not seen" if results["partial_access"] else "over tasks"
    text = (
        f"AUROC is the mean {which} on test genes. Each arm is at the length of pre-training (steps) that is best on its "
        "validation genes. "
    )
    if len(results["seeds"]) == 1:
        text += "One seed has no interval: take 5 or more."
    else:
        text += (
            f"Intervals are Student's over {len(results['seeds'])} seeds; differences are paired within seeds. "
            "They speak of other seeds on these graphs, not of other graphs: seeds share most of their genes."
        )
    if along := results.get("trained_along"):  # results of an earlier version do not say
        text += f" The fine-tuning tasks were trained along (pretrain.cotrain) in {', '.join(along)}."
    if results["one_class"]:
        text += f" Not scored, for want of a class: {', '.join(results['one_class'])}."
    return text


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def interval(found: Mapping[str, Any] | None, sign: str = "", digits: int = 4) -> str:
    """``0.8423 (0.8012 to 0.8794)``."""
    if found is None:
        return ""
    ends = [found["low"], found["high"]]
    if any(end is None or math.isnan(end) for end in ends):
        return f"{found['value']:{sign}.{digits}f}"
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (found["value"], *ends))
    return f"{value} ({low} to {high})"
