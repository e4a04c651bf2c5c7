"""Several runs on one page: their results side by side, their curves, and where their configurations differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgmeta.experiment.report import curves, result_row
from ecgmeta.experiment.run import Run
from ecgmeta.report.content import ReportContent, ResultsTable
from ecgmeta.report.page import write
from ecgmeta.runtime.config import difference
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import read_json, read_log


def compare(runs: Sequence[Run], out: Path) -> Path:
    """Write the page ``out``. Nothing is trained or scored: it shows what the runs' own results say.

    Raises:
        InputError: two runs of one name, or none that was evaluated.
    """
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        raise InputError("report", "runs", names, "folders of different names")
    results = {
        name: read_json(run.results) for name, run in zip(names, runs, strict=True) if run.results.is_file()
    }
    if not results:
        raise InputError("report", "runs", "none with results.json", "runs that `ecgmeta evaluate` scored")
    logs = {
        f"{name}: {arm}": read_log(other.metrics)
        for name, run in zip(names, runs, strict=True)
        for arm, other in run.arms().items()
        if other.metrics.is_file()
    }
    content = ReportContent(
        title=f"{len(runs)} runs compared: {', '.join(names)}",
        summary=_summary(names, runs, results),
        warnings=_warnings(names, runs, results),
        results=ResultsTable(
            [
                replace(result_row(row), arm=f"{name}: {row['arm']}", difference=None)
                for name, found in results.items()
                for row in found["rows"]
            ],
            tested_on="what each run tested on; see the warnings for whether it is the same",
            interval="95 %, resamples of test patients; differences within a run stand on its own page",
        ),
        curves=curves(logs),
        command=f"ecgmeta report {' '.join(str(run.folder) for run in runs)}",
        environment=_differences(names, runs),
        config_yaml=(runs[0].folder / "config.yaml").read_text(encoding="utf-8"),
    )
    return write(content, out)


def _summary(names: Sequence[str], runs: Sequence[Run], results: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, run in zip(names, runs, strict=True):
        rows = results.get(name, {}).get("rows", [])
        if not rows:
            lines.append(f"{name} ({run.arm}) has no results yet.")
            continue
        best = max(rows, key=lambda row: row["scores"]["macro_auroc"])
        lines.append(
            f"{name}: the highest macro AUROC is {best['scores']['macro_auroc']:.3f} "
            f"({best['arm']}, {best['protocol']}, {best['labels']} labels)."
        )
    return lines


def _warnings(names: Sequence[str], runs: Sequence[Run], results: dict[str, dict[str, Any]]) -> list[str]:
    said = {name: [*found.get("warnings", []), *found.get("notes", [])] for name, found in results.items()}
    lines = [f"{name}: {text}" for name, texts in said.items() for text in texts]
    tested = {name: run.test_patients(run.later) for name, run in zip(names, runs, strict=True)}
    first = tested[names[0]]
    lines += [
        f"{name} was tested on other patients than {names[0]}: their numbers cannot be compared."
        for name in names[1:]
        if tested[name] != first
    ]
    return lines


def _differences(names: Sequence[str], runs: Sequence[Run]) -> dict[str, str]:
    """Every configuration key in which a run differs from the first: its value in each."""
    changed: dict[str, dict[str, Any]] = {}
    for name, run in zip(names[1:], runs[1:], strict=True):
        for key, old, new in difference(runs[0].config, run.config):
            changed.setdefault(key, {names[0]: old})[name] = new
    return {
        key: " | ".join(f"{name}: {values.get(name, values[names[0]])}" for name in names)
        for key, values in changed.items()
    }
