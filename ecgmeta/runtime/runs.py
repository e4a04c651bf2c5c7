"""A run is a folder: its configuration, what happened in it, and what a later stage may change."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from ecgmeta._version import __version__
from ecgmeta.runtime.config import difference, to_yaml
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import PART, read_json, write_json, write_text

Config = TypeVar("Config")


class RunFolder(Generic[Config]):
    """``config.yaml``, ``later.yaml`` (as the later stages last read it) and ``run.json`` (command, versions, notes).

    A subclass knows the rest of the folder, how a configuration is read, and which keys are fixed.

    Attributes:
        program: the command line that makes such runs.
        free: beginnings of keys that do not change what pre-training computes: a run may be taken up again with others.
        later_keys: beginnings of keys that the stages after pre-training may be given anew.
    """

    program: ClassVar[str]
    free: ClassVar[tuple[str, ...]]
    later_keys: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config

    @staticmethod
    def read(file: Path | None, overrides: list[str]) -> Any:
        """The checked configuration in a file, with overrides."""
        raise NotImplementedError

    @classmethod
    def create(cls, folder: Path, config: Config) -> Self:
        """A new run, or the one that stands there, if it was started with the same configuration.

        Raises:
            InputError: see :meth:`check`.
        """
        cls.check(folder, config)
        run = cls(folder, config)
        write_text(folder / "config.yaml", to_yaml(config))
        if not (folder / "run.json").exists():
            write_json(folder / "run.json", environment(cls.program))
        return run

    @classmethod
    def check(cls, folder: Path, config: Config) -> None:
        """Whether a run of ``config`` may stand in ``folder``; writes nothing.

        Raises:
            InputError: another run stands there, or something that is no run.
        """
        if (folder / "config.yaml").is_file():
            for key, old, new in difference(cls.open(folder).config, config):
                if not key.startswith(cls.free):
                    raise InputError(
                        folder,
                        key,
                        f"a run with {old!r}",
                        f"{new!r}; choose another --out, or the run's value",
                    )
        elif folder.is_dir() and any(p.name != ".lock" and p.suffix != PART for p in folder.iterdir()):
            raise InputError(
                folder, "run folder", "other files", "an empty or new folder, or a run to go on with"
            )
        elif folder.exists() and not folder.is_dir():
            raise InputError(folder, "run folder", "a file", "a folder")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The run in ``folder``.

        Raises:
            InputError: there is none, or its configuration is broken.
        """
        file = folder / "config.yaml"
        if not file.is_file():
            expected = f"a run folder made by `{cls.program} pretrain`"
            raise InputError(folder, "config.yaml", "no such file", expected)
        return cls(folder, cls.read(file, []))

    @property
    def later(self) -> Config:
        """The configuration of the stages after pre-training."""
        file = self.folder / "later.yaml"
        return self.read(file, []) if file.is_file() else self.config

    def set_later(self, config: Config) -> None:
        write_text(self.folder / "later.yaml", to_yaml(config))

    def with_overrides(self, overrides: list[str]) -> Config:
        """The configuration of the later stages with some keys set anew; what earlier commands have set of others stays.

        Raises:
            InputError: a key that pre-training has fixed.
        """
        later = self.folder / "later.yaml"
        config = self.read(later if later.is_file() else self.folder / "config.yaml", overrides)
        for key, old, new in difference(self.config, config):
            if not key.startswith(self.later_keys):
                raise InputError(
                    "command line", key, repr(new), f"{old!r}, as pre-training in {self.folder} had it"
                )
        return config

    @property
    def info(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json")

    def note(self, **values: Any) -> None:
        """Add to ``run.json``."""
        write_json(self.folder / "run.json", {**self.info, **values})


def environment(program: str) -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    import torch

    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "ecgmeta": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
