"""A run is a folder. This is the one place that knows what stands where in it."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgmeta._version import __version__
from ecgmeta.experiment.config import Experiment, read
from ecgmeta.runtime.config import difference, to_yaml
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import PART, read_json, write_json, write_text

# Keys that do not change what pre-training computes: a run may be taken up again with others.
_FREE = (
    "through",
    "data.root",
    "data.cache",
    "log.",
    "meta.on_failure",  # until something fails it decides nothing, and then a run that stopped may go on with another
    "pretrain.checkpoint_every",
    "finetune.",
    "evaluate.",
    "baselines",
    "compare",
)
# Keys that the stages after pre-training may be given anew. The test patients stay those that pre-training never saw.
# On other data (data.finetune) they are drawn from those, and compared with what pre-training saw.
_LATER = (
    *(*_FREE, "data.finetune", "data.train_folds", "data.test_folds", "data.labels", "data.label_policy"),
    *("data.min_positives", "accelerator"),
)


class Run:
    """One pre-training run, and what was done with its encoder.

    ``config.yaml`` · ``later.yaml`` (as fine-tuning and evaluation last read it) · ``run.json`` (command, versions,
    data) · ``metrics.jsonl`` · ``last.ckpt``, and until pre-training ends ``previous.ckpt``, the one before it ·
    ``tensorboard/``, ``wandb/`` (as ``log`` asks for) · ``encoder/`` · ``augmenter/`` and ``augmenter_before/`` (meta and
    simclr_warp) · ``weights/`` (meta_weights) · ``trials/N/`` (search) · ``compare/ARM/`` (runs of the other arms) ·
    ``seen.npz`` (prints of the recordings that training saw) · ``finetune/*.npz`` (one a cell) ·
    ``results.json``, ``results.csv`` and ``results.md`` · ``report.html``.
    """

    def __init__(self, folder: Path, config: Experiment) -> None:
        self.folder, self.config = folder, config
        self.checkpoint = folder / "last.ckpt"
        self.previous = folder / "previous.ckpt"
        self.metrics = folder / "metrics.jsonl"
        self.encoder = folder / "encoder"
        self.augmenter = folder / "augmenter"
        self.weights = folder / "weights"
        self.augmenter_before = folder / "augmenter_before"
        self.cells = folder / "finetune"
        self.results = folder / "results.json"
        self.seen = folder / "seen.npz"
        self.report = folder / "report.html"

    @classmethod
    def create(cls, folder: Path, config: Experiment) -> Run:
        """A new run, or the one that stands there, if it was started with the same configuration.

        Raises:
            InputError: see :meth:`check`.
        """
        cls.check(folder, config)
        run = cls(folder, config)
        write_text(folder / "config.yaml", to_yaml(config))
        if not (folder / "run.json").exists():
            write_json(folder / "run.json", environment())
        return run

    @classmethod
    def check(cls, folder: Path, config: Experiment) -> None:
        """Whether a run of ``config`` may stand in ``folder``; writes nothing.

        Raises:
            InputError: another run stands there, or something that is no run.
        """
        if (folder / "config.yaml").is_file():
            for key, old, new in difference(cls.open(folder).config, config):
                if not key.startswith(_FREE):
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
    def open(cls, folder: Path) -> Run:
        """The run in ``folder``.

        Raises:
            InputError: there is none, or its configuration is broken.
        """
        file = folder / "config.yaml"
        if not file.is_file():
            raise InputError(folder, "config.yaml", "no such file", "a run folder made by `ecgmeta pretrain`")
        return cls(folder, read(file, []))

    @property
    def later(self) -> Experiment:
        """The configuration of the stages after pre-training."""
        file = self.folder / "later.yaml"
        return read(file, []) if file.is_file() else self.config

    def set_later(self, config: Experiment) -> None:
        write_text(self.folder / "later.yaml", to_yaml(config))

    def with_overrides(self, overrides: list[str]) -> Experiment:
        """The configuration of the later stages with some keys set anew.

        Raises:
            InputError: a key that pre-training has fixed.
        """
        config = read(self.folder / "config.yaml", overrides)
        for key, old, new in difference(self.config, config):
            if not key.startswith(_LATER):
                raise InputError(
                    "command line", key, repr(new), f"{old!r}, as pre-training in {self.folder} had it"
                )
        return config

    @property
    def arm(self) -> str:
        return self.config.pretrain.arm

    @property
    def pretrained(self) -> bool:
        """Whether pre-training has ended: its encoder is the last thing it writes."""
        return (self.encoder / "model.safetensors").is_file()

    def test_patients(self, config: Experiment) -> frozenset[str] | None:
        """The patients held out when pre-training began; None before that, and where ``config`` tests on other data."""
        if config.data.finetune != self.config.data.finetune:
            return None
        seen = self.info.get("data") if (self.folder / "run.json").is_file() else None
        return frozenset(seen["test"]) if seen else None

    @property
    def info(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json")

    def note(self, **values: Any) -> None:
        """Add to ``run.json``."""
        write_json(self.folder / "run.json", {**self.info, **values})

    def other(self, arm: str, write: bool = True) -> Run:
        """The run of another arm beside this one; made where it is not there and this process is to ``write``."""
        config = replace(self.config, pretrain=replace(self.config.pretrain, arm=arm), compare=[])
        folder = self.folder / "compare" / arm
        return Run.create(folder, config) if write else Run(folder, config)

    def arms(self) -> dict[str, Run]:
        """This run and those beside it, by arm; the ones that have ended."""
        folders = [f for f in sorted((self.folder / "compare").glob("*")) if (f / "config.yaml").is_file()]
        runs = [self, *map(Run.open, folders)]
        return {run.arm: run for run in runs if run.pretrained}


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    import torch

    return {
        "command": shlex.join(["ecgmeta", *sys.argv[1:]]),
        "ecgmeta": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
