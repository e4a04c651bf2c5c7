"""From the finished cells to a table of arms: AUROC with patient-bootstrap intervals and paired differences."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.contamination import METAFT, contaminated, read_seen, record_names
from ecgmeta.experiment.finetune import planned, predictions
from ecgmeta.experiment.run import Run
from ecgmeta.experiment.tables import interval, ordered, to_csv, to_markdown
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_json, write_text
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say

if TYPE_CHECKING:
    from ecgmeta.evaluation import CellResult
    from ecgmeta.evaluation.bootstrap import Seeds
    from ecgmeta.evaluation.cells import Cell


def evaluate(run: Run, cohort: Cohort, progress: Progress) -> dict[str, Any]:
    """Score every (label set, number of labels, protocol, arm) over its seeds.

    An arm's difference is taken to ``evaluate.reference`` under the same protocol and number of labels, on the same resamples
    of patients, and over seeds where there are several. A baseline that has one protocol is compared within that protocol.
    Writes ``results.json``, and the same as ``results.csv`` and ``results.md``.

    Returns:
        What stands in ``results.json``.

    Raises:
        InputError: no finished cells; test recordings that training has seen.
    """
    groups: dict[tuple[str, int, str, str], list[CellResult]] = defaultdict(list)
    finished = predictions(run)
    for found in finished:
        groups[found.cell.label_set, found.cell.labels, found.cell.protocol, found.cell.arm].append(found)
    if not groups:
        raise InputError(run.cells, "cells", "none", "results of `ecgmeta finetune`")
    config, arms = run.later, run.arms()
    warnings = contaminated(config, arms, cohort)
    for line in warnings:
        say(line)
    reference = config.evaluate.reference
    rows = []
    for done, (key, members) in enumerate(groups.items()):
        label_set, labels, protocol, arm = key
        progress(done, len(groups), f"scoring: {arm}, {protocol}, {labels} labels")
        other = [] if arm == reference else groups.get((label_set, labels, protocol, reference), [])
        row = {"label_set": label_set, "labels": labels, "protocol": protocol, "arm": arm}
        row |= _scores(run, members, other) | _labels_used(run, arms.get(arm), cohort, labels)
        rows.append(row)
    progress(len(groups), len(groups), "scoring: done")
    results = {
        "reference": reference,
        "warnings": warnings + _rescored(rows) + _unfinished(planned(config, arms, cohort)[1], finished),
        "notes": [note for note in cohort.notes if note],  # of the data: that they are synthetic, for one
        "rows": rows,
    }
    write_text(run.results.with_suffix(".csv"), to_csv(results))
    write_text(run.results.with_suffix(".md"), to_markdown(results))
    write_json(run.results, results)
    say(f"results: {run.results}, and the same as .csv and .md")
    return results


def _scores(run: Run, members: list[CellResult], reference: list[CellResult]) -> dict[str, Any]:
    from ecgmeta.evaluation import multilabel_scores, paired_difference

    first = members[0]
    common: dict[str, Any] = {
        "targets": first.targets,
        "label_names": first.label_names,
        "patients": first.patients,
        "n_boot": run.later.evaluate.bootstrap,
        "seed": run.config.seed,
    }
    logits = [member.logits for member in members]
    row: dict[str, Any] = {
        "scores": multilabel_scores(logits, **common).to_dict(),
        "seconds": sum(member.info["seconds"] for member in members),
        "scorings": max(member.info["scorings"] for member in members),
        "lrs": sorted({rate for m in members if (rate := m.info["chosen"].get("lr")) is not None}),
    }
    if reference:
        # Seed s gives both arms the same order of batches and the same initial head.
        how: Seeds = "paired" if len(reference) == len(members) else "apart"
        others = [member.logits for member in reference]
        row["difference"] = paired_difference(logits, others, resample_seeds=how, **common).to_dict()
    return row


def _labels_used(run: Run, arm: Run | None, cohort: Cohort, labels: int) -> dict[str, Any]:
    """How many labelled recordings, and which labels, each stage of a row used."""
    chosen = cohort.with_labels(run.later.finetune.label_names)
    data = chosen.train.subset(chosen.labelled(labels, run.config.seed))
    finetuned, seen = set(record_names(data)), None if arm is None else read_seen(arm)
    guided = set() if seen is None else set(seen.of(METAFT).records.tolist())
    used: dict[str, Any] = {"labels_meta": len(guided), "labels_used": len(finetuned | guided), "note": ""}
    if arm is not None and guided:
        used["note"] = _note(run, arm, cohort, len(guided), labels, used["labels_used"])
    return used


def _note(run: Run, arm: Run, cohort: Cohort, guided: int, labels: int, used: int) -> str:
    """What a reader must know of labels that meta-learning saw; empty where they are those of the row."""
    said = []
    if used > labels:
        said.append(
            f"meta-learning saw {guided} labelled recordings, so {used} in all were used, not {labels}"
        )
    elif guided < labels:
        said.append(f"fine-tuned on {labels} labelled recordings, of which meta-learning saw {guided}")
    known, names = arm.config.meta.label_names, run.later.finetune.label_names or cohort.train.label_names
    if known and set(known) != set(names):
        new = [name for name in names if name not in known]
        said.append(f"meta-learning saw the labels {', '.join(known)}; new to it: {', '.join(new) or 'none'}")
    return "; ".join(said)


def _unfinished(plan: list[Cell], finished: list[CellResult]) -> list[str]:
    done = {one.cell for one in finished}
    left = [cell for cell in plan if cell not in done]
    if not left:
        return []
    rows = dict.fromkeys(f"{cell.arm}, {cell.protocol}, {cell.labels} labels" for cell in left)
    return [
        f"Fine-tuning has not finished: {len(left)} of {len(plan)} cells are missing ({'; '.join(rows)}). Means over "
        "different seeds are no comparison; `ecgmeta finetune` goes on."
    ]


def _rescored(rows: list[dict[str, Any]]) -> list[str]:
    times = max(row["scorings"] for row in rows)
    if times == 1:
        return []
    return [
        f"The test recordings were scored up to {times} times under one name, with other settings or data each time: "
        "choose no setting by these numbers."
    ]


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows of text for a terminal: arm, protocol, labels, seeds, macro AUROC, difference, average precision."""
    lines = []
    for row in ordered(results):
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
