"""Long training, driven step by step: logged, shown, saved, stopped between steps, and taken up where it stood."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.failures import Failure, PhiGuard, State, Step, diverged, finite, not_finite
from ecgmeta.runtime.files import MetricLog, load_checkpoint, save_checkpoint
from ecgmeta.runtime.pace import Pace, Timetable
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.signals import StopRequest


class Job(Protocol):
    """What is trained.

    Attributes:
        name: as shown.
        schedule: how many steps, and which are φ steps.
        state: what the engine changes.
        guard, pace: of this training.
        keys: by kind of failure, the configuration keys that may cure it.
    """

    @property
    def name(self) -> str: ...

    @property
    def schedule(self) -> Timetable: ...

    @property
    def state(self) -> State: ...

    @property
    def guard(self) -> PhiGuard: ...

    @property
    def pace(self) -> Pace: ...

    @property
    def keys(self) -> Mapping[str, str]: ...

    def steps(self) -> Iterator[Step]:
        """The steps that are left; between two of them everything is as :meth:`state_dict` would save it."""
        ...

    def logged(self, report: Any) -> dict[str, Any]:
        """The numbers of a step for the metric log."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Every weight and running statistic: none may be other than finite in a checkpoint."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: dict[str, Any], file: Path) -> None:
        """Raises :class:`InputError` naming ``file`` where it does not fit."""
        ...


class Trainer:
    """Takes a job from where it stands to its end.

    Args:
        job: what to train.
        checkpoint: the file to save to; the one before stands beside it as ``previous`` until :meth:`finished`.
        checkpoint_every, log_every: steps.
        agreed: the signal that all data-parallel ranks stop for, given this one's.
    """

    def __init__(
        self,
        job: Job,
        checkpoint: Path,
        *,
        checkpoint_every: int,
        log_every: int,
        agreed: Callable[[int | None], int | None] = lambda number: number,
    ) -> None:
        self.job, self.checkpoint, self.previous = job, checkpoint, checkpoint.with_name("previous.ckpt")
        self._every, self._log_every, self._agreed = checkpoint_every, log_every, agreed
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time that training took so far, over all processes."""
        return time.perf_counter() - self._start

    def resume(self, device: torch.device | str = "cpu") -> None:
        """Load the checkpoint, or ``previous`` where only that exists, or nothing.

        Raises:
            InputError: it is broken, or of another training.
        """
        self._start = time.perf_counter()
        file = next((each for each in (self.checkpoint, self.previous) if each.exists()), None)
        if file is None:
            return
        older = file == self.checkpoint and self.previous.exists()
        remedy = f"delete it to go on from {self.previous.name}" if older else "delete it to start again"
        try:
            saved = load_checkpoint(file, device)
        except InputError as error:
            raise InputError(file, error.field, error.found, f"{error.expected}; {remedy}") from error
        missing = {"meta", "model", "seconds"} - set(saved)
        if missing:
            expected = f"a checkpoint of pre-training; {remedy}"
            raise InputError(file, "content", f"no {sorted(missing)[0]!r}", expected)
        try:
            self.job.load_state_dict(saved, file)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(file, "state", error, "a checkpoint of the same configuration") from error
        self.job.guard.load_state_dict(saved.get("guard", {}))
        self.job.pace.load(saved.get("pace", {}))
        self._start -= saved["seconds"]
        say(f"{self.job.name}: going on from step {self.job.state.step} of {self.job.schedule.steps}")

    def train(self, log: MetricLog | None, progress: Progress, stop: StopRequest) -> None:
        """Every step that is left; each is logged, shown, and where it is due saved, by whoever has the log.

        Raises:
            Stopped: a stop was asked for; the checkpoint holds the last finished step.
            Diverged: a loss or a weight is not finite, or a φ step failed and the guard says stop; the last checkpoint stands,
                and holds finite numbers.
        """
        job, total = self.job, self.job.schedule.steps
        last_norm = ""

        def lost(step: int, failure: Failure) -> None:
            if log is not None:
                log.write(step, failure=asdict(failure), seconds=self.seconds)

        for report in finite(job.steps(), job.state, lost, job.keys):
            done = report.step + 1
            job.pace.stepped(report.step)
            failure = job.guard(report)
            if report.hyper is not None:
                last_norm = f", |hypergradient| {report.diagnostics['norm']:.2g}"
            due = report.hyper is not None or done % self._log_every == 0 or done in (1, total)
            if due and log is not None:
                log.write(report.step, **self._logged(report, failure))
            if failure is not None and failure.action == "stop":
                raise diverged(failure, report.step, job.keys)
            text = f"{job.name}: loss {report.pretrain_loss:.3f}{last_norm}"
            progress(done, total, text, job.pace.left(done))
            stop.number = self._agreed(stop.number)
            stopping = stop.number is not None  # asked once: what is stopped is what was saved
            if stopping or done == total or done % self._every == 0:
                if (failure := self._broken()) is not None:
                    lost(done, failure)  # as the step that cannot be taken
                    raise diverged(failure, report.step, job.keys)
                if log is not None:
                    self._save()
            if stopping and done < total:
                stop.check()

    def finished(self) -> None:
        """One checkpoint is enough from here."""
        self.previous.unlink(missing_ok=True)

    def _logged(self, report: Step, failure: Failure | None) -> dict[str, Any]:
        values = {"pretrain_loss": report.pretrain_loss, "seconds": self.seconds} | self.job.logged(report)
        if report.hyper is not None:
            values["hyper"] = report.diagnostics
            values["skipped"] = report.skipped
            values["solver"] = report.hyper.inverse.result.name.lower()
        if failure is not None:
            values["failure"] = asdict(failure)
            values["step_size"] = self.job.guard.step_size
        return values

    def _save(self) -> None:
        state = {
            **self.job.state_dict(),
            "guard": self.job.guard.state_dict(),
            "pace": self.job.pace.medians(),
            "seconds": self.seconds,
        }
        save_checkpoint(self.checkpoint, state, self.previous)
        self.job.pace.saved()

    def _broken(self) -> Failure | None:
        """What would make a checkpoint worthless: the loss says so a step later, when the last good one is gone."""
        name = not_finite(self.job.tensors())
        if name is None:
            return None
        return Failure("weights", f"{name} is not finite; try smaller learning rates", "stop")
