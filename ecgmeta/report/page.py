"""One report, one file: HTML with its style and pictures inside, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ecgmeta.report.content import (
    PROTOCOLS,
    AugmenterSummary,
    ReportContent,
    ResultRow,
    ResultsTable,
    ViewPair,
)
from ecgmeta.report.curves import sweep_figure
from ecgmeta.report.paper import paper_notes, plot_ecg
from ecgmeta.runtime.page.charts import Estimate, change, forest_figure, interval
from ecgmeta.runtime.page.shell import (
    Picture,
    as_curve,
    as_histogram,
    as_picture,
    fill,
    thousands,
    write_page,
)

PICTURE_BUDGET = 2_000_000  # characters of recordings in a page; what does not fit is left out, and counted

ARMS_BESIDE = 6  # arms in a table of labels: what A4 holds


def render(content: ReportContent) -> str:
    """The report as one HTML document; the same content gives the same text.

    Empty parts leave no section. Every text of `content` is escaped.
    """
    examples, left_out = _examples(content.examples)
    return fill(
        "ecgmeta.report",
        "page.html",
        content=content,
        results=_results(content.results) if content.results and content.results.rows else None,
        curves=[as_curve(curve) for curve in content.curves if curve.series],
        augmenter=_augmenter(content.augmenter) if content.augmenter else None,
        examples=examples,
        left_out=left_out,
    )


def write(content: ReportContent, path: str | Path) -> Path:
    """Render into a file, all or nothing: an earlier report stays until the new one is complete.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    return write_page(render(content), path)


def _results(table: ResultsTable) -> dict[str, Any]:
    groups = [_group(rows) for rows in _grouped(table.rows)]
    forest = [(g["heading"], [(row["arm"], row["estimate"]) for row in g["rows"]]) for g in groups]
    said = "; ".join(
        f"{heading}: " + ", ".join(f"{a} {interval(e)}" for a, e in arms) for heading, arms in forest
    )
    return {
        "table": table,
        "groups": groups,
        "has_precision": any(row.average_precision for row in table.rows),
        "has_difference": any(row.difference for row in table.rows),
        "has_best": any(row["best"] for group in groups for row in group["rows"]),
        "absent": sorted({name for row in table.rows for name in row.absent}),
        "forest": as_picture(
            forest_figure(forest, "macro-AUROC, 95 % interval"), f"Macro-AUROC by arm. {said}."
        ),
        "sweep": _sweep(table.rows),
    }


def _sweep(rows: Iterable[ResultRow]) -> Picture | None:
    """AUROC against the number of labels, where there is more than one."""
    panels: dict[str, dict[str, list[tuple[int, Estimate]]]] = {}
    for row in sorted(rows, key=lambda row: (list(PROTOCOLS).index(row.protocol), row.labels)):
        panel = panels.setdefault(PROTOCOLS[row.protocol], {})
        panel.setdefault(row.arm, []).append((row.labels, row.auroc))
    arms = list(dict.fromkeys(arm for panel in panels.values() for arm in panel))
    if len({labels for panel in panels.values() for points in panel.values() for labels, _ in points}) < 2:
        return None
    return as_picture(
        sweep_figure(panels, arms, "macro-AUROC"),
        f"Macro-AUROC against labelled recordings, a line for each of {', '.join(arms)}; the table has the numbers.",
        "AUROC against labelled recordings",
        "Bands are 95 % intervals over test patients, with the seeds as they are. Whether two arms differ is not for bands to "
        "say, overlapping or not: see the differences in the table.",
    )


def _grouped(rows: Iterable[ResultRow]) -> list[list[ResultRow]]:
    """Rows at equal protocol and label count; few labels first, the best arm first, unscored arms last."""

    def order(row: ResultRow) -> tuple[float, str]:
        return (math.inf if math.isnan(row.auroc.value) else -row.auroc.value, row.arm)

    groups: dict[tuple[int, int], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((list(PROTOCOLS).index(row.protocol), row.labels), []).append(row)
    return [sorted(groups[key], key=order) for key in sorted(groups)]


def _group(rows: Sequence[ResultRow]) -> dict[str, Any]:
    # What is shown as equal is equally good: the mark goes by the three decimals of the table.
    shown = [round(row.auroc.value, 3) for row in rows if not math.isnan(row.auroc.value)]
    best = max(shown) if len(shown) > 1 else math.nan
    names = list(dict.fromkeys(name for row in rows for name in row.per_label))
    return {
        "heading": f"{PROTOCOLS[rows[0].protocol]}, {thousands(rows[0].labels)} labelled recordings",
        "rows": [
            {
                "arm": row.arm,
                "estimate": row.auroc,
                "auroc": interval(row.auroc),
                "best": round(row.auroc.value, 3) == best if not math.isnan(row.auroc.value) else False,
                "precision": interval(row.average_precision) if row.average_precision else "",
                "difference": change(row.difference) if row.difference else "",
                "seeds": row.seeds,
            }
            for row in rows
        ],
        "labels": [
            _labels(names, rows[k : k + ARMS_BESIDE]) for k in range(0, len(rows), ARMS_BESIDE) if names
        ],
    }


def _labels(names: Sequence[str], rows: Sequence[ResultRow]) -> dict[str, Any]:
    return {"arms": [row.arm for row in rows], "rows": [_label(name, rows) for name in names]}


def _label(name: str, rows: Sequence[ResultRow]) -> dict[str, Any]:
    positives = sorted({row.per_label[name].positives for row in rows if name in row.per_label})
    cells = [interval(row.per_label[name].auroc) if name in row.per_label else "not scored" for row in rows]
    return {"name": name, "positives": " or ".join(map(thousands, positives)), "cells": cells}


def _augmenter(summary: AugmenterSummary) -> dict[str, Any]:
    return {
        "summary": summary,
        "has_units": any(parameter.unit for parameter in summary.parameters),
        "pictures": [as_histogram(histogram) for histogram in summary.distributions if histogram.series],
    }


def _examples(pairs: Sequence[ViewPair]) -> tuple[list[Picture], int]:
    pictures: list[Picture] = []
    for pair in pairs:
        drawing: dict[str, Any] = {"overlay": pair.augmented}
        figure = plot_ecg(pair.original, pair.fs, pair.leads, title=pair.record, **drawing)
        notes = "; ".join(paper_notes(pair.original, pair.fs, pair.leads, **drawing))
        alt = f"ECG {pair.record}, {len(pair.leads)} leads, original and augmented view overlaid. {notes}."
        picture = as_picture(figure, alt, pair.record, pair.caption)
        if pictures and sum(len(p.address) for p in [*pictures, picture]) > PICTURE_BUDGET:
            return pictures, len(pairs) - len(pictures)
        pictures.append(picture)
    return pictures, 0
