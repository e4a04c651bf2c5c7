"""Files that are whole or absent: checkpoints, JSON, logs, and the lock of a run folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.sinks import Sink, numbers

if TYPE_CHECKING:
    import torch


PART = ".part"
"""How the name of what is being written ends: what a killed process left of it is known by that, see :func:`folder_lock`."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write through a temporary file in the same folder, flushed to disk and renamed: a kill leaves old or new, never half.

    Raises:
        InputError: the disk is full, or the folder cannot be written; what stood at ``path`` still stands.
    """
    try:
        _write_aside(path, write)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """The line for a file that the system would not write."""
    cause = error.strerror or str(error)
    return InputError(path, "writing", cause, "room and permission to write; what stood there before stands")


def _write_aside(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # the one way to read it is to set it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would shut colleagues out of a shared run folder
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder through one beside ``target``, which it then takes the place of: a kill leaves no half of one."""
    aside = Path(f"{target}{PART}")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """JSON with NaN and infinities as null, which is what JSON can say."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises :class:`InputError` where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "file", "no such file", "a JSON file") from None
    except ValueError as error:
        raise InputError(path, "content", error, "JSON") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_checkpoint(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Atomically save a tree of tensors and plain values.

    Args:
        previous: where the checkpoint that stands at ``path`` is kept, in the same folder; None: it is replaced.

    Raises:
        InputError: it cannot be written; the checkpoint that stood there stands.
    """
    import torch

    def save(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's zip writer speaks of positions where the disk was full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    if previous is not None and path.exists():
        _keep(path, previous)
    write_atomic(path, save)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that the first never stands for nothing and no byte is copied."""
    link = previous.with_name(f".{previous.name}{PART}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(previous)
        link.unlink(missing_ok=True)  # a rename between two names of one file leaves both
    except OSError:  # a file system without hard links: then there is but one checkpoint
        return


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a checkpoint without executing anything it holds.

    Raises:
        InputError: the file is missing, cut short or not a checkpoint.
    """
    import torch

    if not path.is_file():
        raise InputError(path, "file", "no such file", "a checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its zip, pickle and storage readers raise
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(path, "content", found, "a checkpoint of tensors and plain values") from error
    if not isinstance(state, dict):
        raise InputError(path, "content", type(state).__name__, "a checkpoint of tensors and plain values")
    return state


class MetricLog:
    """Metrics as JSON lines, one object a logged step.

    Args:
        path: the file.
        start: first step that this process will write: lines at or after it (from a run killed after its last
            checkpoint) and a half-written last line are dropped, so every step stands there once.

    Attributes:
        sinks: others that take the numbers of each line, too.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        lines = read_log(path) if path.exists() else []
        kept = [line for line in lines if line["step"] < start]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.sinks: list[Sink] = []
        self._file = path.open("ab", buffering=0)  # a line is on its way when write returns, and fails there

    def write(self, step: int, **values: Any) -> None:
        """Raises :class:`InputError` where the disk is full; earlier lines stand."""
        line = json.dumps({"step": step, **_plain(values)}, allow_nan=False) + "\n"
        rest = memoryview(line.encode())
        try:
            while rest:  # an almost full disk takes the beginning, and says so by a smaller number
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise unwritable(self.path, error) from error
        shown = dict(numbers(values)) if self.sinks else {}
        for sink in self.sinks:
            sink.write(step, shown)

    def close(self) -> None:
        self._file.close()
        for sink in self.sinks:
            sink.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metric log; a last line cut short by a kill is left out.

    Raises:
        InputError: an earlier line is not JSON.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if number < len(texts):
                raise InputError(path, f"line {number}", repr(text[:60]), "one JSON object a line") from None
    return lines


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One process a run folder. The lock is the kernel's, so a killed process leaves none behind; and what it was writing
    when it was killed is removed here.

    Raises:
        InputError: another process works in the folder.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(folder, "run folder", "another process working in it", "a free folder") from None
        for left in [*folder.rglob(f".*{PART}")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
