"""From the finished cells to a table of arms: AUROC with patient-bootstrap intervals and paired differences."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ecgmeta.experiment.finetune import predictions
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_json
from ecgmeta.runtime.progress import Report as Progress

if TYPE_CHECKING:
    from ecgmeta.evaluation import CellResult


def evaluate(run: Run, progress: Progress) -> dict[str, Any]:
    """Score every (label set, number of labels, protocol, arm) over its seeds; writes ``results.json`` and returns it.

    An arm's difference is taken to ``evaluate.reference`` under the same protocol and number of labels, on the same
    resamples of patients. A baseline that has one protocol only is compared within that protocol.

    Raises:
        InputError: no finished cells.
    """
    from ecgmeta.evaluation import multilabel_scores, paired_difference

    groups: dict[tuple[str, int, str, str], list[CellResult]] = defaultdict(list)
    for found in predictions(run):
        groups[found.cell.label_set, found.cell.labels, found.cell.protocol, found.cell.arm].append(found)
    if not groups:
        raise InputError(run.cells, "cells", "none", "results of `ecgmeta finetune`")
    settings = run.later.evaluate
    rows = []
    for done, (key, members) in enumerate(groups.items()):
        label_set, labels, protocol, arm = key
        progress(done, len(groups), f"scoring: {arm}, {protocol}, {labels} labels")
        common: dict[str, Any] = {
            "targets": members[0].targets,
            "label_names": members[0].label_names,
            "patients": members[0].patients,
            "n_boot": settings.bootstrap,
            "seed": run.config.seed,
        }
        logits = [member.logits for member in members]
        row: dict[str, Any] = {
            "label_set": label_set,
            "labels": labels,
            "protocol": protocol,
            "arm": arm,
            "scores": multilabel_scores(logits, **common).to_dict(),
            "seconds": sum(member.info["seconds"] for member in members),
        }
        reference = groups.get((label_set, labels, protocol, settings.reference))
        if reference is not None and arm != settings.reference:
            other = [member.logits for member in reference]
            row["difference"] = paired_difference(logits, other, **common).to_dict()
        rows.append(row)
    progress(len(groups), len(groups), "scoring: done")
    results = {"reference": settings.reference, "rows": rows}
    write_json(run.results, results)
    return results


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows of text for a terminal: arm, protocol, labels, seeds, macro AUROC, difference, average precision."""

    def interval(value: float, ends: list[float | None], sign: str = "") -> str:
        low, high = (f"{end:{sign}.3f}" if end is not None else "–" for end in ends)
        return f"{value:{sign}.3f} ({low} to {high})"

    lines = []
    order = sorted(
        results["rows"],
        key=lambda r: (r["label_set"], r["labels"], r["protocol"], -r["scores"]["macro_auroc"]),
    )
    for row in order:
        scores, difference = row["scores"], row.get("difference")
        lines.append(
            [
                row["arm"],
                row["protocol"],
                str(row["labels"]),
                str(len(scores["seeds"])),
                interval(scores["macro_auroc"], scores["macro_interval"]),
                interval(difference["delta"], difference["interval"], "+") if difference else "",
                f"{scores['macro_ap']:.3f}",
            ]
        )
    return lines
