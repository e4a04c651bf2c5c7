"""RESULTS.md: what each study asked, what was expected, what came out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecgmeta.runtime.files import write_text
from ecgmeta.runtime.page.charts import Estimate
from ecgmeta.runtime.page.figures import svg
from examples.studies.study import HERE, RESULTS, load, read_results, results_file, studies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TALL = 25  # rows of a figure whose axis is wanted at its top, too
MET = {True: "met", False: "**missed**", None: "–"}
HEAD = """# What the studies found

Written by `python -m examples.studies report` from `results/*.jsonl`. Each study is repeated by
`python -m examples.studies run NAME`; what was expected stands in `NAME.yaml`, and was written before the cells of record
ran, but for arms and situations that came later: comments there say which, and what was known by then. Settings were chosen
on other seeds (the pilot's) than those reported.

How to read it:

- Intervals are 95 %, by Student's t over seeds; a difference between two arms is taken seed by seed.
- Digits, patients of `ecg_real` and genes of the PPI studies are one set, divided anew by each seed: intervals say what other
  divisions of that set would give. For other patients or genes they are about twice as wide (Nadeau and Bengio, 2003: for ten
  divisions with a fifth to three tenths for the test, 1.9 to 2.3 times). Pilots drew from the same set. Simulated cohorts are
  new for each seed.
- "No loss" and "not below" are met where no interval lies below 0 as a whole; the lower end is the loss that is not excluded.
- "Our settings" are not the same everywhere: the identity in place of an inverse and a ridge head (penalty 0.3) for ECG,
  conjugate gradients where θ is near a minimum (`recovery`, `nuisance`), one step of the head for protein graphs.

Asked, and not answered here: the paper's size (`ecg_large` has four whole seeds and no choice among runs); whole fine-tuning
with other numbers of labels than 250 (`ecg_synthetic`) and 140 (`ecg_real`); task weights on real graphs with a ceiling above
uniform weights (on OhmNet none is shown).
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def shown(estimate: Estimate, digits: int = 2) -> str:
    """``0.07 (−0.27 to 0.40)``."""
    parts = [f"{x:.{digits}f}".replace("-", "−") for x in (estimate.value, estimate.low, estimate.high)]
    if math.isnan(estimate.value):
        return "–"
    return parts[0] if math.isnan(estimate.low) else f"{parts[0]} ({parts[1]} to {parts[2]})"


def forest(
    groups: Mapping[str, Mapping[str, Estimate]], label: str, line: float | None = None, *, log: bool = False
) -> Figure:
    """Estimates and 95 % intervals, one a row, under the headings of their groups; ``line``: what means no difference.

    On a logarithmic axis an interval that reaches below 0 begins at the left edge.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from ecgmeta.runtime.page.figures import FAINT, PALETTE, style

    rows = [row for heading, own in groups.items() for row in ((heading, None), *own.items())]
    with style():
        figure = Figure(figsize=(7.2, 0.24 * len(rows) + 0.7), layout="constrained")
        axes = figure.subplots()
        for y, (_, found) in enumerate(rows):
            if found is not None:
                axes.plot([found.low, found.high], [y, y], color=PALETTE[0], lw=2, solid_capstyle="butt")
                axes.plot([found.value], [y], "s", color=PALETTE[0], ms=5)
        if line is not None:
            axes.axvline(line, color=FAINT, ls="--", lw=1, zorder=1)
        if log:
            axes.set_xscale("log", nonpositive="clip")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(
                "{x:g}"
            )  # powers are mathematics, which an SVG's plain text is not
            axes.set_xlim(left=min((found.value for _, found in rows if found is not None), default=3.0) / 3)
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        for text, (_, found) in zip(axes.get_yticklabels(), rows, strict=True):
            text.set_fontweight("bold" if found is None else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        if len(rows) > TALL:
            axes.tick_params(axis="x", top=True, labeltop=True)
        axes.set_xlabel(label)
    return figure


def section(
    name: str, folder: Path = RESULTS, *, quick: bool = False
) -> tuple[str, Mapping[str, Figure]] | None:
    """A study's part of the report and its figures by file name; None where no cell is done."""
    study = load(name, quick=quick)
    tasks = study.tasks()
    results = read_results(results_file(name, folder, quick=quick), tasks)
    if not results:
        return None
    found = study.module.report(study.plan, results)
    rows = [
        (name, text, found.outcomes[name].text, MET[found.outcomes[name].met])
        for name, text in study.plan.expected.items()
    ]
    failed = [result.task.name for result in results if result.failed]
    cost = sum(result.seconds for result in results)
    text = "\n\n".join(
        [
            f"## {study.plan.title}",
            study.plan.question.strip(),
            table(("", "expected", "found", "bar"), rows),
            *([study.plan.conclusion.strip()] if study.plan.conclusion else []),
            f"{len(results)} of {len(tasks)} cells are done, {len(study.plan.record)} seeds of record, "
            f"{cost / 3600:.2f} process-hours in all, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}.",
            found.body.strip(),
        ]
    )
    return text, found.figures


def write_report(path: Path = HERE / "RESULTS.md") -> None:
    """Write the report, and its figures into ``figures/`` beside it."""
    order = sorted(studies(), key=lambda name: (load(name).plan.order, name))
    parts = [part for part in map(section, order) if part]
    for name, figure in ((name, figure) for _, figures in parts for name, figure in figures.items()):
        write_text(path.parent / "figures" / f"{name}.svg", svg(figure))
    write_text(path, "\n\n".join([HEAD.strip(), *(text for text, _ in parts)]) + "\n")
