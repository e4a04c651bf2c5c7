"""Fine-tuning: a label sweep over a run's arms and baselines."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ecgmeta.encoders import Encoder, load_encoder
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.contamination import contaminated
from ecgmeta.experiment.model import build_encoder
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.processes import processors
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.seeds import derive

if TYPE_CHECKING:
    from ecgmeta.evaluation import Arm, CellResult
    from ecgmeta.evaluation.cells import Cell
    from ecgmeta.evaluation.training import Settings

# A random encoder has nothing to fine-tune that "none" does not; an untrained one has no features worth a frozen probe
# but as the control "random". So each baseline has the one protocol that defines it.
_BASELINE_PROTOCOL = {"none": "full", "random": "linear"}


def finetune(run: Run, cohort: Cohort, device: torch.device, progress: Progress) -> None:
    """Train every cell that has no result yet and score the test recordings with it.

    Raises:
        InputError: a run that has not ended, a label with one class only, too few labelled recordings.
        Stopped: SIGINT or SIGTERM came; finished cells stand.
    """
    from ecgmeta.evaluation.sweep import run_cells

    runs = run.arms()
    if not runs:
        raise InputError(
            run.folder, "encoder", "no finished pre-training", "a run that `ecgmeta pretrain` ended"
        )
    config = run.later
    check_labels(config, cohort)
    for line in contaminated(config, runs, cohort):
        say(line)
    cohort = cohort.with_labels(config.finetune.label_names)
    arms, plan = planned(config, runs, cohort)
    processes = config.finetune.processes or processors()
    run_cells(
        plan,
        arms,
        cohort.train,
        cohort.test,
        run.cells,
        settings(config),
        processes if device.type == "cpu" else 1,
        device,
        progress,
    )


def planned(config: Experiment, runs: dict[str, Run], cohort: Cohort) -> tuple[dict[str, Arm], list[Cell]]:
    """The arms of a run and every cell that fine-tuning them takes."""
    from ecgmeta.evaluation.sweep import cells

    arms, how = _arms(config, runs, cohort), config.finetune
    label_set = f"{config.data.finetune.partition(':')[0]}_{config.data.labels or 'default'}"
    return arms, list(cells(arms, how.labels, how.seeds, how.protocols, label_set))


def check_labels(config: Experiment, cohort: Cohort) -> None:
    """What would make a cell meaningless is said before the first is trained, and before pre-training.

    Raises:
        InputError: see :func:`~ecgmeta.evaluation.subsets.check_subsets`.
    """
    from ecgmeta.evaluation.subsets import check_subsets

    chosen = cohort.with_labels(config.finetune.label_names)
    check_subsets(config.data.finetune, chosen.train, chosen.test, config.finetune.labels, config.seed)


def settings(config: Experiment) -> Settings:
    """What beside its name decides a cell's numbers."""
    from ecgmeta.evaluation.training import Settings

    chosen, data = config.finetune, config.data
    return Settings(
        lrs=tuple(chosen.lrs or [chosen.lr]),
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        patience=chosen.patience or None,
        seed=config.seed,
        about={
            "source": data.finetune,
            "label_policy": data.label_policy,
            "min_positives": data.min_positives,
            "label_names": list(chosen.label_names),
        },
    )


def _arms(config: Experiment, runs: dict[str, Run], cohort: Cohort) -> dict[str, Arm]:
    from ecgmeta.evaluation import Arm

    @lru_cache(maxsize=1)
    def untrained(seed: int) -> Encoder:
        # A baseline has no pre-training to share between its seeds: each seed has its own initial weights.
        return build_encoder(config, cohort, derive(config.seed, "baseline", seed))

    def untrained_identity(seed: int) -> str:
        return f"untrained {asdict(config.encoder)} {seed}"

    arms = {arm: _pretrained(one, cohort) for arm, one in runs.items()}
    for name in config.baselines:
        arms[name] = Arm(untrained, False, (_BASELINE_PROTOCOL[name],), untrained_identity)
    return arms


def _pretrained(run: Run, cohort: Cohort) -> Arm:
    from ecgmeta.evaluation import Arm

    @lru_cache(maxsize=1)
    def load(_: int) -> Encoder:
        encoder = load_encoder(run.encoder)
        if len(cohort.train.leads) != encoder.leads or cohort.train.fs != encoder.fs:
            found = f"{len(cohort.train.leads)} leads at {cohort.train.fs:g} Hz"
            raise InputError(
                "data.finetune", "recordings", found, f"{encoder.leads} leads at {encoder.fs:g} Hz"
            )
        return encoder

    with (run.encoder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Arm(load, identity=lambda _: digest)


def predictions(run: Run) -> list[CellResult]:
    """Every finished cell of a run that was trained with the settings it has now.

    Raises:
        InputError: cells of one label set that were scored on different test recordings.
    """
    from ecgmeta.evaluation.cells import read_cells

    found = read_cells(run.cells, settings(run.later).to_dict())
    tests: dict[str, CellResult] = {}
    for one in found:
        first = tests.setdefault(one.cell.label_set, one)
        if one.info["inputs"]["test"] != first.info["inputs"]["test"]:
            where = one.cell.file(run.cells)
            raise InputError(
                where,
                "test recordings",
                f"others than in {first.cell.name}",
                "the same; `ecgmeta finetune` again",
            )
    return found
