"""The stages of an experiment in order; each takes up what the one before left in the folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import folder_lock
from ecgmeta.runtime.logs import check_sinks
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import console, progress_bar, say
from ecgmeta.runtime.signals import Stopped, StopRequest, stop_at_once, stop_between_steps
from ecgmeta.runtime.spawned import spawned
from ppi_extension.experiment.config import FROM_META, SEARCH, STAGES, Experiment
from ppi_extension.experiment.run import Study

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from ppi_extension.data.store import EgoStore

Task = tuple[str, int]  # arm and seed


def run_experiment(folder: Path, config: Experiment) -> dict[str, Any] | None:
    """Everything through ``config.through`` in ``folder``; finished work is not repeated.

    Returns:
        The results, where the experiment goes as far as evaluation.
    """
    with stop_at_once():
        # First what can be wrong: bad input leaves no folder behind, and is not found out hours later.
        Study.check(folder, config)
        check_sinks(config.log)
        _check_device(config)
        if config.data.store:
            _check_parts(open_store(Path(config.data.store)), config)
        fresh = not folder.exists()
        with folder_lock(folder):
            fresh = fresh and [path.name for path in folder.iterdir()] == [".lock"]
            try:
                study = Study.create(folder, config)
                study.set_later(config)
                _check_parts(_store(study), config)
            except InputError:  # what is found only in graphs that were made here
                if fresh:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            return _stages(study, STAGES[: STAGES.index(config.through) + 1])


def run_stage(folder: Path, stage: str, overrides: list[str]) -> dict[str, Any] | None:
    """One later stage on the folder of an experiment. Overrides are kept for the stages after it."""
    with stop_at_once():
        study = Study.open(folder)
        config = study.with_overrides(overrides) if overrides else study.later
        if stage == "finetune":
            _check_device(config)
        with folder_lock(folder):
            if overrides:
                study.set_later(config)
            _store(study)
            return _stages(study, (stage,))


def _check_device(config: Experiment) -> None:
    import torch

    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("configuration", "accelerator", "cuda, and no such device", "cpu on this machine")


@lru_cache(maxsize=2)
def open_store(folder: Path) -> EgoStore:
    """The graphs, opened once a process."""
    from ppi_extension.data.store import EgoStore

    return EgoStore.open(folder)


def _store(study: Study) -> EgoStore:
    """The graphs of an experiment, made where they are the planted problem's; the same as when it began."""
    if not study.later.data.store:
        _plant(study)
    store = open_store(study.store)
    content = json.dumps(store.info["arrays"], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    begun = study.info.get("store", digest)
    if begun != digest:
        raise InputError(study.store, "store", f"other graphs ({digest})", f"those it began with ({begun})")
    if "store" not in study.info:
        study.note(store=digest)
    return store


def _plant(study: Study) -> None:
    from ppi_extension.data.synthetic import PlantedSettings, build_planted

    if study.store.is_dir():
        return
    how = study.config.data.planted
    settings = PlantedSettings(species=how.species, genes=how.genes)
    with progress_bar() as progress:
        build_planted(study.store, settings, how.seed, report=progress)


def _check_parts(store: EgoStore, config: Experiment) -> None:
    from ppi_extension.experiment.cohort import divide
    from ppi_extension.experiment.pretrain import check_phi

    for seed in range(config.first_seed, config.first_seed + config.seeds):
        cohort = divide(store, config, seed)
        check_phi(cohort, config)
        if seed == config.first_seed:
            say(f"{cohort.summary()} (seed {seed})")
        if not config.data.resplit and not config.meta.folds:
            return


def _stages(study: Study, stages: Sequence[str]) -> dict[str, Any] | None:
    results = None
    trained = tuple(stage for stage in stages if stage in ("pretrain", "finetune"))
    with progress_bar() as progress:
        if trained:
            _train(study, trained, progress)
        if "evaluate" in stages:
            from ppi_extension.experiment.evaluate import evaluate

            results = evaluate(study, open_store(study.store))
    if "report" in stages:
        from ppi_extension.experiment.report import report

        say(f"report: {report(study, open_store(study.store))}")
    return results


@dataclass(frozen=True)
class Shared:
    """What every process of a study needs.

    Attributes:
        folder: of the study.
        stages: which of pre-training and fine-tuning.
        stop: set when all are to stop between two steps.
    """

    folder: Path
    stages: tuple[str, ...]
    stop: Event


class _StopWith(StopRequest):
    """A stop that another process asks for."""

    def __init__(self, stop: Event) -> None:
        self._stop, self._number = stop, 15
        super().__init__()

    @property
    def number(self) -> int | None:
        return self._number if self._stop.is_set() else None

    @number.setter
    def number(self, value: int | None) -> None:
        pass


def _train(study: Study, stages: tuple[str, ...], progress: Progress) -> None:
    """Every run of the study, by as many processes as it asks for.

    Raises:
        Stopped: SIGINT or SIGTERM came; what is finished stands, what was under way goes on from its checkpoint.
    """
    waves = study.plan()
    total, processes = sum(map(len, waves)), study.later.processes
    done = 0
    with stop_between_steps() as stop:
        for wave in waves:
            if processes == 1:
                for task in wave:
                    stop.check()
                    train_one(study, task, stages, progress, stop)
                continue
            done = _train_apart(study, wave, stages, progress, stop, done, total)
        stop.check()


def _train_apart(
    study: Study,
    wave: Sequence[Task],
    stages: tuple[str, ...],
    progress: Progress,
    stop: StopRequest,
    done: int,
    total: int,
) -> int:
    everyone = get_context("spawn").Event()
    shared = Shared(study.folder, stages, everyone)

    def waiting() -> Iterator[Task]:
        for task in wave:
            if stop.number is not None:
                return
            yield task

    progress(done, total, f"runs: {', '.join(stages)}")
    with _passed_on(stop, everyone):
        for (arm, seed), ended in spawned(_work, shared, waiting(), study.later.processes):
            done += ended
            progress(done, total, f"runs: {arm}, seed {seed} {'done' if ended else 'stopped'}")
    return done


@contextmanager
def _passed_on(stop: StopRequest, everyone: Event) -> Iterator[None]:
    """Within it a stop reaches the other processes, though this one waits for their results."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if stop.number is not None:
                everyone.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _work(shared: Shared, task: Task) -> bool:
    """One run in a process of its own; whether it came to its end."""
    import torch

    torch.set_num_threads(1)
    console.quiet = True
    try:
        train_one(Study.open(shared.folder), task, shared.stages, _silent, _StopWith(shared.stop))
    except Stopped:
        return False
    return True


def _silent(done: int, total: int, text: str, left: float | None = None) -> None:
    pass


def train_one(study: Study, task: Task, stages: Sequence[str], progress: Progress, stop: StopRequest) -> None:
    """Pre-train and fine-tune one arm from one seed, as ``stages`` say; finished work is not repeated."""
    from ppi_extension.experiment.cohort import divide
    from ppi_extension.experiment.finetune import finetune
    from ppi_extension.experiment.pretrain import pretrain
    from ppi_extension.experiment.search import search
    from ppi_extension.task_weights import TaskWeights

    arm, seed = task
    config = study.later
    cohort = divide(open_store(study.store), config, seed)
    run = study.run(arm, seed, create=True)
    if "pretrain" in stages and arm == SEARCH:
        search(run, cohort, progress, stop)
    elif "pretrain" in stages:
        learned = TaskWeights.from_pretrained(study.learned(seed)) if arm in FROM_META else None
        pretrain(run, cohort, learned, progress, stop)
    if "finetune" in stages:
        if not run.pretrained:
            raise InputError(run.folder, "encoder", "no finished pre-training", "`ppi-extension pretrain`")
        finetune(run, cohort, config, stop)
