"""The page of an experiment: numbers and pictures gathered from its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgmeta.bilevel.signal import NO_FURTHER
from ecgmeta.runtime.files import read_json, read_log
from ecgmeta.runtime.page.charts import Curve, Histogram, change, forest_figure
from ecgmeta.runtime.page.charts import Estimate as Drawn
from ecgmeta.runtime.page.charts import interval as shown
from ecgmeta.runtime.page.shell import as_curve, as_histogram, as_picture, fill, write_page
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import divide
from ppi_extension.experiment.config import ARMS, SEARCH
from ppi_extension.experiment.finetune import score_settings
from ppi_extension.experiment.learned import Learned, Task, gather
from ppi_extension.experiment.run import Run, Study
from ppi_extension.experiment.tables import explanation, ordered

LISTED = 12  # tasks raised, and lowered, that the page lists
START = {
    "uniform": "All weights start at 1.",
    "similarity": "Weights start from those of the static rule `similarity`.",
}
NAME = 60  # characters of a name that stand before its identifier
WITHOUT_GRADIENTS = ("similarity", SEARCH)  # arms that set weights by fine-tuning labels, too
ARMS_BESIDE = 5  # arms in a table of tasks: what A4 holds
PROTOCOL = {"linear": "a head on the frozen encoder", "full": "encoder and head together"}


def report(study: Study, store: EgoStore) -> Path:
    """Write ``report.html`` of an experiment from whatever stages it has."""
    return write_page(fill(__package__ or "", "report.html", **content(study, store)), study.report)


def content(study: Study, store: EgoStore) -> dict[str, Any]:
    """Everything the page shows."""
    results = read_json(study.results) if study.results.is_file() else None
    runs = list(study.runs())
    learned = gather(runs, store)
    logs = {run: read_log(run.metrics) for run in runs if run.metrics.is_file()}
    cohort = divide(store, study.later, study.seeds()[0])
    info = study.info
    return {
        "title": f"Task weights for multitask pre-training: {study.folder.resolve().name}",
        "summary": _summary(results, learned, cohort.summary()),
        "warnings": _stale(results, score_settings(study.later, cohort))
        + _warnings(study, runs, logs, results),
        "results": None if results is None else _results(results, store),
        "learned": [_learned(one, START[study.later.meta.start]) for one in learned],
        "curves": [as_curve(curve) for curve in _curves(logs)],
        "cost": _cost(logs),
        "arms": [(arm, ARMS[arm]) for arm in study.later.arms],
        "command": info["command"],
        "environment": {key: str(info[key]) for key in ("ecgmeta", "python", "torch", "platform", "threads")},
        "config_yaml": (study.folder / "config.yaml").read_text(encoding="utf-8"),
    }


def _summary(results: dict[str, Any] | None, learned: Sequence[Learned], parts: str) -> list[str]:
    lines = [f"{parts}."]
    if results is not None:
        compared = [row for row in results["rows"] if row["arm"] == "meta" and row.get("difference")]
        lines += [_verdict(row, results["reference"]) for row in compared]
        lines += [_beside(row) for row in results["rows"] if row["arm"] in WITHOUT_GRADIENTS]
        for arm, found in results["separation"].items():
            text = f"{arm}: the learned weights tell the useful tasks from the others with an AUROC of"
            lines.append(f"{text} {shown(_drawn(found))}.")
    lines += [f"{one.arm}: the hypergradient {one.signals}." for one in learned if one.signals]
    return [line for line in lines if line]


def _verdict(row: dict[str, Any], reference: str) -> str:
    found = _drawn(row["difference"], 100)
    size = (
        f"Learned weights, {PROTOCOL[row['protocol']]}: {change(found, 2)} AUROC points against {reference}"
    )
    if math.isnan(found.low):
        return f"{size}; one seed cannot say whether that is more than chance."
    if found.low > 0:
        return f"{size}: a gain that chance in the seeds does not explain."
    if found.high < 0:
        return f"{size}: a loss that chance in the seeds does not explain."
    return f"{size}: no difference beyond chance."


def _beside(row: dict[str, Any]) -> str:
    """What learning has over an arm that needs no hypergradient; nothing where there are too few seeds to say."""
    found = _drawn(row["meta_minus"], 100) if row.get("meta_minus") else None
    if found is None or math.isnan(found.low):
        return ""
    size = f"Learned weights against {row['arm']}, {PROTOCOL[row['protocol']]}: {change(found, 2)} points"
    return f"{size}{'' if found.low > 0 else '; that learning was needed is not shown'}."


def _stale(results: dict[str, Any] | None, settings: dict[str, Any]) -> list[str]:
    """Whether the results are those of fine-tuning as it is set now."""
    if results is None or results.get("settings") == settings:
        return []
    return ["The results are of an earlier fine-tuning, with other settings: run `ppi-extension evaluate`."]


def _warnings(
    study: Study,
    runs: Sequence[Run],
    logs: Mapping[Run, list[dict[str, Any]]],
    results: dict[str, Any] | None,
) -> list[str]:
    lines = []
    asked = {(arm, seed) for wave in study.plan() for arm, seed in wave}
    missing = sorted({arm for arm, seed in asked - {(run.arm, run.seed) for run in runs}})
    if missing:
        lines.append(f"Not all runs have ended: {', '.join(missing)} lack seeds.")
    if results is not None and results["one_class"]:
        lines.append(f"Not scored, for want of a class: {', '.join(results['one_class'])}.")
    for run, log in logs.items():
        steps = [line for line in log if "hyper" in line]
        skipped = [line["skipped"] for line in steps if line["skipped"]]
        if skipped:
            lines.append(f"{run.name}: {len(skipped)} of {len(steps)} φ steps were skipped: {skipped[-1]}.")
    for arm in dict.fromkeys(run.arm for run in runs if run.arm.startswith("meta")):
        said = [run.info["signal"] for run in runs if run.arm == arm and run.info["signal"]]
        if lost := sum(not signal.startswith("drifts") for signal in said):
            lines.append(f"{arm}: in {lost} of {len(said)} runs {NO_FURTHER}.")
    if study.later.pretrain.legacy_center_index:
        lines.append("Pre-training read the centre nodes of the wrong graphs (pretrain.legacy_center_index).")
    return lines


def _results(results: dict[str, Any], store: EgoStore) -> dict[str, Any]:
    rows = ordered(results)
    interval = ", 95 % interval" if len(results["seeds"]) > 1 else ""
    groups = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        here = [row for row in rows if row["protocol"] == protocol]
        forest = [(row["arm"], _drawn(row["auroc"])) for row in here]
        title = f"Fine-tuning {PROTOCOL[protocol]}"
        said = ", ".join(f"{arm} {shown(found)}" for arm, found in forest)
        groups.append(
            {
                "heading": title,
                "rows": [_row(row, results["reference"]) for row in here],
                "forest": as_picture(
                    forest_figure([(title, forest)], f"AUROC{interval}"), f"AUROC by arm: {said}."
                ),
                "lengths": _lengths(here),
                "tasks": [_tasks(here[k : k + ARMS_BESIDE], store) for k in range(0, len(here), ARMS_BESIDE)],
            }
        )
    return {"groups": groups, "reference": results["reference"], "explanation": explanation(results)}


def _row(row: dict[str, Any], reference: str) -> dict[str, Any]:
    difference = row.get("difference")
    return {
        "arm": row["arm"],
        "auroc": shown(_drawn(row["auroc"]), 4),
        "difference": "reference" if row["arm"] == reference else _changed(difference),
        "minus": _changed(row.get("meta_minus")),
        "steps": row["steps"],
        "seeds": row["auroc"]["n"],
    }


def _changed(found: dict[str, Any] | None, digits: int = 4) -> str:
    return "" if found is None else change(_drawn(found), digits)


def _drawn(found: Mapping[str, Any], times: float = 1.0) -> Drawn:
    low, high = (math.nan if found[end] is None else times * found[end] for end in ("low", "high"))
    return Drawn(times * found["value"], low, high)


def _lengths(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validation AUROC of every length of pre-training, where there are several."""
    out = []
    for row in rows:
        if len(row["lengths"]) > 1:
            cells = [
                {"steps": int(steps), "value": f"{value:.4f}", "chosen": int(steps) == row["steps"]}
                for steps, value in row["lengths"].items()
            ]
            out.append({"arm": row["arm"], "cells": cells})
    return out


def _tasks(rows: Sequence[dict[str, Any]], store: EgoStore) -> dict[str, Any]:
    terms = [term for term in store.finetune_terms if any(term in row["tasks"] for row in rows)]
    lines = []
    for term in terms:
        cells = []
        for row in rows:
            found = row["tasks"].get(term)
            cells.append(
                {
                    "auroc": "not scored" if found is None else f"{found['value']:.3f}",
                    "difference": _changed(row.get("task_differences", {}).get(term), 3),
                    "minus": _changed(row.get("task_meta_minus", {}).get(term), 3),
                }
            )
        lines.append({"term": term, "name": store.term_names.get(term, ""), "cells": cells})
    compared = any("task_meta_minus" in row for row in rows)
    return {"arms": [row["arm"] for row in rows], "rows": lines, "compared": compared}


def _learned(one: Learned, start: str) -> dict[str, Any]:
    tasks = sorted(one.tasks, key=lambda task: task.weight)
    n = min(LISTED, len(tasks) // 2)
    edges = np.linspace(0, max(2.0, max(task.weight for task in tasks)), 41).tolist()
    counts = {"tasks": np.histogram([task.weight for task in tasks], edges)[0].tolist()}
    pictures = [
        as_curve(one.curve),
        as_histogram(Histogram("Weights at the end", "weight, mean over seeds", edges, counts, start)),
    ]
    if one.kinds:
        pictures.append(as_histogram(_by_kind(one, edges)))
    return {
        "arm": one.arm,
        "text": one.text,
        "raised": [_task(task) for task in tasks[::-1][:n]],
        "lowered": [_task(task) for task in tasks[:n]],
        "pictures": pictures,
        "verdicts": one.verdicts,
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "first": task.name if 0 < len(task.name) <= NAME else task.term,
        "second": task.term if 0 < len(task.name) <= NAME else task.name,
        "kind": task.kind,
        "weight": f"{task.weight:.2f}",
        "sd": f"{task.sd:.2f}" if task.seeds > 1 else "–",
        "above": f"{task.above} of {task.seeds}",
        "positives": task.positives,
    }


def _by_kind(one: Learned, edges: Sequence[float]) -> Histogram:
    series = {
        kind: np.histogram([task.weight for task in one.tasks if task.kind == kind], edges)[0].tolist()
        for kind in one.kinds
    }
    return Histogram("Weights at the end, by kind of task", "weight, mean over seeds", edges, series)


def _curves(logs: Mapping[Run, list[dict[str, Any]]]) -> list[Curve]:
    """Lines over training of the first seed of every arm: beside each other they show how arms differ, not seeds."""
    first: dict[str, list[dict[str, Any]]] = {}
    for run, log in logs.items():
        first.setdefault(run.arm, log)

    def series(*path: str) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        for arm, log in first.items():
            points = [(line["step"] + 1, _at(line, path)) for line in log]
            points = [(x, y) for x, y in points if y is not None]
            if points:
                found[arm] = ([x for x, _ in points], [y for _, y in points])
        return found

    step, caption = "pre-training step", "First seed of each arm."
    curves = [
        Curve("Pre-training loss, as weighted", step, "loss, nats", series("pretrain_loss"), caption=caption),
        Curve(
            "Fine-tuning validation loss seen by φ",
            step,
            "loss, nats",
            series("hyper", "validation_loss"),
            caption=caption,
        ),
        Curve(
            "Norm of the hypergradient", step, "norm", series("hyper", "norm"), log_y=True, caption=caption
        ),
        Curve("Spread of the weights", step, "SD over tasks", series("weights", "sd"), caption=caption),
    ]
    return [curve for curve in curves if curve.series]


def _at(line: dict[str, Any], path: Iterable[str]) -> Any:
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _cost(logs: Mapping[Run, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    seconds: dict[str, list[float]] = {}
    for run, log in logs.items():
        if log:
            seconds.setdefault(run.arm, []).append(log[-1]["seconds"] / (log[-1]["step"] + 1))
    plain = np.median(seconds["supervised"]) if "supervised" in seconds else math.nan
    out = []
    for arm, values in seconds.items():
        value = float(np.median(values))
        times = "" if math.isnan(plain) else f", {value / plain:.2f} times supervised"
        times += ", in each of its runs" if arm == SEARCH else ""
        out.append((arm, f"{1000 * value:.1f} ms a step{times}"))
    return out
