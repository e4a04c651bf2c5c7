"""Where metrics go beside the run's own JSON lines: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ecgmeta.runtime.errors import InputError


class Sink(Protocol):
    """Takes the numbers of a step; steps come in order, each once."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a metric line; ``{"hyper": {"norm": 1}}`` is ``hyper/norm``. Texts and nulls are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def need(package: str, key: str) -> ModuleType:
    """The optional package that a configuration key asks for.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("torch.utils.tensorboard" if package == "tensorboard" else package)
    except ImportError as error:
        raise InputError(
            "configuration", key, f"no package {package} ({error})", f"pip install 'ecgmeta[{package}]'"
        ) from error


class TensorBoard:
    """Event files for TensorBoard.

    Event files can only grow, and a resumed run takes some steps again. So they are written anew from the metric log, which
    holds every step once, and go on from there; a run that turns TensorBoard on halfway has its whole history, too.

    Args:
        folder: its event files; those of an earlier process are replaced.
        history: lines of the metric log so far.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, Any]] = ()) -> None:
        module = need("tensorboard", "log.tensorboard")
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = module.SummaryWriter(log_dir=str(folder))
        _repeat(history, self)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            # A tag of letters, digits, _ - . and / is shown as it is; TensorBoard renames any other.
            self._writer.add_scalar(name.replace("²", "2").replace(" ", "_"), value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases.

    Its process hands numbers on now and then, so a run that was killed left the last ones nowhere but in its own log. They are
    taken from there: all of them offline, where nothing knows what an earlier process left, and its files are replaced as
    those of TensorBoard are; online those that the server lacks.

    Args:
        project: its project.
        id: of the run, kept by the caller, so that a resumed run goes on in the same one.
        folder: its files stand in ``wandb/`` there until they are sent.
        mode: ``"offline"`` sends nothing, ``wandb sync`` does later; ``"online"`` sends as it goes.
        name: shown there.
        config: shown there.
        history: lines of the metric log so far.
    """

    def __init__(
        self,
        project: str,
        id: str,
        folder: Path,
        *,
        mode: str,
        name: str,
        config: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        module = need("wandb", "log.wandb")
        if mode == "offline":
            for old in (folder / "wandb").glob(f"offline-run-*-{id}"):
                shutil.rmtree(old)
        self._run = module.init(
            project=project,
            id=id,
            resume="allow",
            dir=str(folder.resolve()),
            mode=mode,
            name=name,
            config=dict(config),
        )
        self._first = int(self._run.step)  # steps there only grow; a resumed run comes to the same numbers
        _repeat(history, self)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _repeat(history: Sequence[Mapping[str, Any]], sink: Sink) -> None:
    for line in history:
        sink.write(line["step"], dict(numbers({k: v for k, v in line.items() if k != "step"})))
