"""An experiment is a folder, and each of its runs, an arm from a seed, one below it. What stands where is known here alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import read_json, write_json
from ecgmeta.runtime.runs import RunFolder
from ppi_extension.experiment.config import FROM_META, Experiment, read, read_run

# Keys that do not change what the pre-training of an arm from a seed computes.
_FREE = (
    *("arms", "seeds", "first_seed", "processes", "through", "log.", "finetune.", "evaluate."),
    *("data.store", "pretrain.checkpoint_every", "pretrain.log_every", "meta.on_failure"),
)


class Run(RunFolder[Experiment]):
    """The pre-training of one arm from one seed, and what was done with its encoders.

    Beside what every run has: ``metrics.jsonl`` · ``last.ckpt``, and until pre-training ends ``previous.ckpt`` ·
    ``encoders/STEPS/`` (one a length) · ``weights/`` and ``trajectory.npz`` (of the tasks) · ``tensorboard/`` and
    ``wandb/`` (as ``log`` asks for) · ``finetune/PROTOCOL-STEPS.json``. A random search has its runs in ``trials/N/``, with
    their own logs and checkpoints.
    """

    program, free, later_keys = "ppi-extension", _FREE, _FREE
    read = staticmethod(read_run)

    def __init__(self, folder: Path, config: Experiment) -> None:
        super().__init__(folder, config)
        self.checkpoint = folder / "last.ckpt"
        self.metrics = folder / "metrics.jsonl"
        self.weights = folder / "weights"
        self.trajectory = folder / "trajectory.npz"

    @property
    def arm(self) -> str:
        return self.config.arms[0]

    @property
    def seed(self) -> int:
        return self.config.first_seed

    @property
    def name(self) -> str:
        draw = self.config.pretrain.draw
        return f"{self.arm}, seed {self.seed}" + (f", draw {draw}" if draw else "")

    @property
    def label(self) -> str:
        """The same without blanks."""
        draw = self.config.pretrain.draw
        return f"{self.arm}-s{self.seed}" + (f"-d{draw}" if draw else "")

    def encoder(self, steps: int) -> Path:
        """Folder of the encoder after so many steps."""
        return self.folder / "encoders" / f"{steps:07d}"

    def lengths(self) -> list[int]:
        """Steps after which an encoder stands here, ascending."""
        found = (self.folder / "encoders").glob("*/model.safetensors")
        return sorted(int(file.parent.name) for file in found)

    @property
    def pretrained(self) -> bool:
        """Whether pre-training has ended."""
        return (self.folder / "run.json").is_file() and "signal" in self.info

    def score_file(self, protocol: str, steps: int) -> Path:
        return self.folder / "finetune" / f"{protocol}-{steps:07d}.json"

    def scores(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """What fine-tuning found with these settings."""
        found = map(read_json, sorted((self.folder / "finetune").glob("*.json")))
        return [one for one in found if one["settings"] == settings]

    def write_scores(self, scores: dict[str, Any]) -> None:
        write_json(self.score_file(scores["protocol"], scores["steps"]), scores)


class Study(RunFolder[Experiment]):
    """All arms from all seeds: ``runs/ARM/SEED/`` · ``store/`` (the planted problem's) · ``results.json``, ``.csv``, ``.md`` ·
    ``report.html``."""

    program, free, later_keys = "ppi-extension", _FREE, _FREE
    read = staticmethod(read)

    def __init__(self, folder: Path, config: Experiment) -> None:
        super().__init__(folder, config)
        self.results = folder / "results.json"
        self.report = folder / "report.html"

    @property
    def store(self) -> Path:
        """Where the graphs lie."""
        return Path(self.later.data.store or self.folder / "store")

    def seeds(self) -> list[int]:
        config = self.later
        return list(range(config.first_seed, config.first_seed + config.seeds))

    def run(self, arm: str, seed: int, *, create: bool = False) -> Run:
        """One of the runs."""
        config = replace(self.later, arms=[arm], seeds=1, first_seed=seed, through="pretrain")
        config = replace(config, data=replace(config.data, store=str(self.store)))
        folder = self.folder / "runs" / arm / str(seed)
        return Run.create(folder, config) if create else Run(folder, config)

    def plan(self) -> list[list[tuple[str, int]]]:
        """(arm, seed) of all runs, in waves: those of a later wave need what an earlier one has learned."""
        arms = self.later.arms
        first = [(arm, seed) for seed in self.seeds() for arm in arms if arm not in FROM_META]
        second = [(arm, seed) for seed in self.seeds() for arm in arms if arm in FROM_META]
        return [first, second]

    def runs(self) -> Iterator[Run]:
        """Those whose pre-training has ended."""
        for wave in self.plan():
            for arm, seed in wave:
                run = self.run(arm, seed)
                if run.pretrained:
                    yield run

    def learned(self, seed: int) -> Path:
        """The weights that the arm meta has learned from a seed.

        Raises:
            InputError: it has not ended.
        """
        run = self.run("meta", seed)
        if not run.pretrained:
            raise InputError(run.folder, "weights", "none", "the arm meta of this seed, pre-trained")
        return run.weights
