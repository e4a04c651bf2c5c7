"""PPI, real graphs with planted distractors: can task weights be learned where it is known that they matter?

The graphs, functions and cells of :mod:`examples.studies.ppi_real`; beside each pre-training function stand so many that are
known to be of no use (`ppi_extension.data.distractors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from examples.studies import ppi_real, study
from examples.studies.ppi_real import run
from examples.studies.study import Task

__all__ = ["Plan", "report", "run", "tasks"]

WITHOUT_PHI = ("none", "supervised", "random_weights", "ceiling", "oracle")


@dataclass
class Build(ppi_real.Build):
    """Attributes:
    distractors, distractor_channels: for each pre-training function; kinds of evidence that they ask for.
    """

    distractors: int = 0
    distractor_channels: int = 3


@dataclass
class Settings(ppi_real.Settings):
    """Attributes:
    phi: keys that differ from the config, too, in arms that read fine-tuning labels while they pre-train, and in those that
        take the weights which `meta` has learned. The others do not depend on them, and a variant has its own.
    """

    phi: list[str] = field(default_factory=list)
    build: Build = field(default_factory=Build)


@dataclass
class Plan(ppi_real.Plan):
    settings: Settings = field(default_factory=Settings)


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    for task in ppi_real.tasks(settings, seeds):
        if task.arm in (*WITHOUT_PHI, *settings.variants):
            yield task
        else:
            overrides = [*task.inputs["overrides"], *settings.phi]
            yield replace(task, inputs={**task.inputs, "overrides": overrides})


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.ppi_real_report import section

    return section(plan, results)
