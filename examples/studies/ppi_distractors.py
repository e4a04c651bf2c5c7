"""PPI, real graphs with planted distractors: can task weights be learned where it is known that they matter?

The graphs, functions and cells of :mod:`examples.studies.ppi_real`; beside each pre-training function stand so many that are
known to be of no use (`ppi_extension.data.distractors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.studies import ppi_real, study
from examples.studies.ppi_real import run, tasks

__all__ = ["Plan", "report", "run", "tasks"]


@dataclass
class Build(ppi_real.Build):
    """Attributes:
    distractors, distractor_channels: for each pre-training function; kinds of evidence that they ask for.
    """

    distractors: int = 0
    distractor_channels: int = 3


@dataclass
class Settings(ppi_real.Settings):
    build: Build = field(default_factory=Build)


@dataclass
class Plan(study.Plan):
    settings: Settings = field(default_factory=Settings)


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.ppi_real_report import section

    return section(plan, results)
