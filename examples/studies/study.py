"""What a study is, and how its cells are run: each once, each written as soon as it is done.

A study is ``NAME.yaml``, the plan (what is asked, what is expected, settings, seeds), beside ``NAME.py``, a module with

- ``Plan``: a dataclass that extends :class:`Plan` by typed ``settings``;
- ``tasks(settings, seeds)``: its cells, as :class:`Task`;
- ``run(task)``: the numbers of one cell, which follow from the task alone;
- ``report(plan, results)``: what they say, as a :class:`Section`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from ecgmeta.runtime.config import load_config
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import progress_bar
from ecgmeta.runtime.spawned import spawned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass
class Plan:
    """What is fixed before the first cell of record runs.

    Attributes:
        title, question: of the study.
        order: its place in the report.
        expected: name -> what is expected and which bar is to be met, written before the run.
        conclusion: what follows, written after the run.
        pilot, record: seeds. Settings are chosen on those of the pilot; only those of record are reported as results.
        quick: overrides, such as ``settings.steps=20``, that make the smallest cells (for a test).
        threads: of torch in each process; the same for any number of processes, so that the numbers are, too.
    """

    title: str = ""
    question: str = ""
    order: int = 0
    expected: dict[str, str] = field(default_factory=dict)
    conclusion: str = ""
    pilot: list[int] = field(default_factory=list)
    record: list[int] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)
    threads: int = 1


@dataclass(frozen=True)
class Task:
    """One cell: its place in the tables, and everything that its numbers follow from.

    Attributes:
        arm, setting, seed: its place.
        inputs: plain values for ``run``; what is not in them cannot change the numbers, so they are what the key is made of.
    """

    arm: str
    setting: str
    seed: int
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.setting}/{self.seed}"

    @property
    def key(self) -> str:
        """The same for the same place and inputs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """A finished cell: its numbers, or why it has none; and how long it took."""

    task: Task
    numbers: Mapping[str, float]
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of an expectation; ``met`` is None where it cannot be said (or no bar was set)."""

    text: str
    met: bool | None = None


@dataclass(frozen=True)
class Section:
    """A study's part of the report.

    Attributes:
        outcomes: one for each name in ``plan.expected``.
        body: tables and prose in Markdown, which shows a figure as ``![...](figures/NAME.svg)``.
        figures: by that NAME.
    """

    outcomes: Mapping[str, Outcome]
    body: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Module(Protocol):
    """The module of a study."""

    Plan: type[Any]

    def tasks(self, settings: Any, seeds: Sequence[int]) -> Iterable[Task]: ...

    def run(self, task: Task) -> Mapping[str, float]: ...

    def report(self, plan: Any, results: Sequence[Result]) -> Section: ...


@dataclass(frozen=True)
class Study:
    """A plan and its module."""

    name: str
    plan: Any
    module: Module

    def tasks(self, pilot: bool = False) -> list[Task]:
        return list(self.module.tasks(self.plan.settings, self.plan.pilot if pilot else self.plan.record))


def studies() -> list[str]:
    return sorted(file.stem for file in HERE.glob("*.yaml"))


def load(name: str, *, quick: bool = False) -> Study:
    """Raises :class:`InputError` for an unknown study, and for seeds of record that are the pilot's, too."""
    if name not in studies():
        raise InputError("studies", "name", repr(name), f"one of {', '.join(studies())}")
    file, module = HERE / f"{name}.yaml", cast(Module, importlib.import_module(f"examples.studies.{name}"))
    plan = load_config(module.Plan, file)
    both = set(plan.pilot) & set(plan.record)
    if both:
        raise InputError(file, "record", sorted(both), "seeds that the pilot did not use")
    return Study(name, load_config(module.Plan, file, plan.quick) if quick else plan, module)


def results_file(name: str, folder: Path = RESULTS, *, pilot: bool = False, quick: bool = False) -> Path:
    return folder / f"{name}{'.pilot' if pilot else ''}{'.quick' if quick else ''}.jsonl"


def read_results(file: Path, tasks: Iterable[Task]) -> list[Result]:
    """The finished ones among ``tasks``, in their order; lines of other settings are left alone.

    Raises:
        InputError: a line that is none of a result's, but for the last one, which a kill may have cut.
    """
    found: dict[str, dict[str, Any]] = {}
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            found[value["key"]] = value
        except (ValueError, KeyError, TypeError):
            raise InputError(file, f"line {number}", repr(line[:60]), "the result of a cell") from None
    done = ((task, found[task.key]) for task in tasks if task.key in found)
    return [
        Result(
            task,
            {n: math.nan if x is None else x for n, x in v["numbers"].items()},
            v["seconds"],
            v["failed"],
        )
        for task, v in done
    ]


def run_study(
    study: Study, file: Path, *, pilot: bool = False, only: str = "*", processes: int = 1
) -> Iterator[Result]:
    """Run the cells that ``file`` lacks and whose name (arm/setting/seed) fits ``only``, each written when it is done.

    Raises:
        InputError: another process writes to the file.
    """
    with _appending(file) as out:
        tasks = [task for task in study.tasks(pilot) if fnmatchcase(task.name, only)]
        finished = {result.task.key for result in read_results(file, tasks)}
        left = [task for task in tasks if task.key not in finished]
        answers = _answers((study.name, study.plan.threads), left, processes)
        with progress_bar() as report:
            for number, result in enumerate(answers, start=1):
                _append(out, result)
                report(number, len(left), f"{study.name}: {result.task.name}")
                yield result


def _answers(shared: tuple[str, int], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    if processes > 1:
        yield from (result for _, result in spawned(_work, shared, tasks, processes))
    else:
        yield from (_work(shared, task) for task in tasks)


def _work(shared: tuple[str, int], task: Task) -> Result:
    """One cell. Numbers that broke are a result, too; anything else that goes wrong stops the study."""
    import torch

    name, threads = shared
    torch.set_num_threads(threads)
    started = time.perf_counter()
    numbers: Mapping[str, float] = {}
    failed = ""
    try:
        numbers = importlib.import_module(f"examples.studies.{name}").run(task)
    except FloatingPointError as error:
        failed = str(error) or "numbers that are not finite"
    return Result(task, numbers, time.perf_counter() - started, failed)


@contextmanager
def _appending(file: Path) -> Iterator[IO[bytes]]:
    """The file, ours alone, without the beginning of a line that a killed process left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(file, "results", "another process that writes them", "one at a time") from None
        out.seek(0)
        out.truncate(out.read().rfind(b"\n") + 1)
        yield out


def _append(out: IO[bytes], result: Result) -> None:
    plain = {n: float(f"{x:.6g}") if math.isfinite(x) else None for n, x in result.numbers.items()}
    task = result.task
    line = {
        "arm": task.arm, "setting": task.setting, "seed": task.seed, "key": task.key,
        "seconds": round(result.seconds, 2), "failed": result.failed, "numbers": plain,
    }  # fmt: skip
    out.write((json.dumps(line, allow_nan=False) + "\n").encode())
    out.flush()
    os.fsync(out.fileno())
