"""A run is a folder. This is the one place that knows what stands where in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ecgmeta.experiment.config import Experiment, read
from ecgmeta.runtime.runs import RunFolder

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


class Run(RunFolder[Experiment]):
    """One pre-training run, and what was done with its encoder.

    ``config.yaml`` · ``later.yaml`` (as fine-tuning and evaluation last read it) · ``run.json`` (command, versions,
    data) · ``metrics.jsonl`` · ``last.ckpt``, and until pre-training ends ``previous.ckpt``, the one before it ·
    ``tensorboard/``, ``wandb/`` (as ``log`` asks for) · ``encoder/`` · ``augmenter/`` and ``augmenter_before/`` (meta and
    simclr_warp) · ``weights/`` (meta_weights) · ``trials/N/`` (search, meta_best) · ``compare/ARM/`` (the other arms) ·
    ``seen.npz`` (prints of the recordings that training saw) · ``finetune/*.npz`` (one a cell) ·
    ``results.json``, ``results.csv`` and ``results.md`` · ``report.html``.
    """

    program, free, later_keys = "ecgmeta", _FREE, _LATER
    read = staticmethod(read)

    def __init__(self, folder: Path, config: Experiment) -> None:
        super().__init__(folder, config)
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
