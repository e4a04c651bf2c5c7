"""The rotations of :mod:`examples.studies.recovery` once more, on seeds that no setting was chosen on."""

from __future__ import annotations

from collections.abc import Sequence

from examples.studies.recovery import Plan, run, tasks
from examples.studies.study import Result, Section

__all__ = ["Plan", "report", "run", "tasks"]


def report(plan: Plan, results: Sequence[Result]) -> Section:
    from examples.studies.recovery_report import again

    return again(plan, results)
