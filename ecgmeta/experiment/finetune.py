"""Fine-tuning cells: one for each arm, protocol, number of labels and seed; each a pair of files, so each resumes alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgmeta.encoders import Encoder, load_encoder
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import ARMS, Experiment
from ecgmeta.experiment.model import build_encoder
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import read_json, write_atomic, write_json
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.seeds import derive
from ecgmeta.runtime.signals import stop_between_steps

if TYPE_CHECKING:
    from ecgmeta.evaluation import Predictor

# A random encoder has nothing to fine-tune that "none" does not; an untrained one has no features worth a frozen probe
# but as the control "random". So each baseline has the one protocol that defines it.
_BASELINE_PROTOCOL = {"none": "full", "random": "linear"}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run: what was trained on how many labels, from which seed."""

    label_set: str
    arm: str
    protocol: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.label_set}-{self.labels}-{self.arm}-{self.protocol}-{self.seed}"


@dataclass(frozen=True)
class Prediction:
    """What a finished cell says of the test recordings.

    Attributes:
        cell: which.
        logits, targets: (records, labels).
        patients: patient of each record.
        label_names: of the columns.
        info: history, what validation chose, seconds.
    """

    cell: Cell
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    patients: NDArray[np.str_]
    label_names: tuple[str, ...]
    info: dict[str, Any]


def cells(config: Experiment, arms: list[str]) -> Iterator[Cell]:
    """Every cell of an experiment."""
    label_set = f"{config.data.finetune.partition(':')[0]}_{config.data.labels or 'default'}"
    pairs = [(arm, protocol) for arm in arms for protocol in config.finetune.protocols]
    pairs += [(arm, _BASELINE_PROTOCOL[arm]) for arm in config.baselines]
    for labels in config.finetune.labels:
        for arm, protocol in pairs:
            # A linear probe on a given encoder is a convex problem: a second seed would be the same number again.
            seeds = 1 if protocol == "linear" and arm in ARMS else config.finetune.seeds
            for seed in range(seeds):
                yield Cell(label_set, arm, protocol, labels, seed)


def finetune(run: Run, cohort: Cohort, device: torch.device, progress: Progress) -> None:
    """Train every cell that has no result yet and score the test recordings with it.

    Raises:
        InputError: a run that has not ended, a label with one class only, too few labelled recordings.
        Stopped: SIGINT or SIGTERM came; finished cells stand.
    """
    arms = run.arms()
    if not arms:
        raise InputError(
            run.folder, "encoder", "no finished pre-training", "a run that `ecgmeta pretrain` ended"
        )
    config = run.later
    check_labels(config, cohort)
    _check_unseen(arms, cohort)
    todo = list(cells(config, list(arms)))
    with stop_between_steps() as stop:
        for done, cell in enumerate(todo):
            progress(
                done,
                len(todo),
                f"fine-tuning: {cell.arm}, {cell.protocol}, {cell.labels} labels, seed {cell.seed}",
            )
            if not _finished(run, cell, config):
                encoder = _encoder(config, cell, arms, cohort)
                _write(run, cell, cohort, config, *_train(config, cell, encoder, cohort, device))
            stop.check()
    progress(len(todo), len(todo), "fine-tuning: done")


def check_labels(config: Experiment, cohort: Cohort) -> None:
    """What would make a cell meaningless is said before the first is trained, and before pre-training.

    Raises:
        InputError: no labels, fewer labelled recordings than asked for, a label with one class only.
    """
    source = config.data.finetune
    if not cohort.train.label_names:
        raise InputError(source, "labels", "none", "labelled recordings (data.labels, data.min_positives)")
    for n in config.finetune.labels:
        if n > len(cohort.train):
            raise InputError(
                "configuration", "finetune.labels", n, f"at most {len(cohort.train)}, the labelled recordings"
            )
        train, _ = cohort.split(cohort.labelled(n, config.seed), config.seed)
        for name, positives in zip(train.label_names, train.labels.sum(axis=0), strict=True):
            if positives in (0, len(train)):
                found = f"one class only ({positives:.0f} positives of {len(train)} to train on)"
                raise InputError(
                    source, f"label {name}", found, "both; data.min_positives leaves rare labels out"
                )
    if (cohort.test.labels == cohort.test.labels[:1]).all():
        raise InputError(source, "labels of the test recordings", "one class only in each", "both classes")


def _check_unseen(arms: dict[str, Run], cohort: Cohort) -> None:
    """Refuse test patients that an encoder was pre-trained on, whatever happened to the data since."""
    test = set(cohort.test.meta["patient"])
    for arm, run in arms.items():
        data = run.info.get("data", {})
        seen = sorted(test & {patient for part in ("pretrain", "metaft") for patient in data.get(part, ())})
        if seen:
            found = f"{len(seen)} that pre-training of {arm} has seen, first {seen[0]}"
            raise InputError(run.folder, "test patients", found, "patients that no pre-training has seen")


def _settings(config: Experiment) -> dict[str, Any]:
    """What beside its name decides a cell's numbers."""
    settings = {key: getattr(config.finetune, key) for key in ("epochs", "lr", "batch_size", "patience")}
    data = {key: getattr(config.data, key) for key in ("label_policy", "min_positives")}
    return settings | data


def _finished(run: Run, cell: Cell, config: Experiment) -> bool:
    file = _file(run, cell, "json")
    return file.is_file() and read_json(file).get("settings") == _settings(config)


def _encoder(config: Experiment, cell: Cell, arms: dict[str, Run], cohort: Cohort) -> Encoder:
    if cell.arm in arms:
        encoder = load_encoder(arms[cell.arm].encoder)
        if len(cohort.train.leads) != encoder.leads or cohort.train.fs != encoder.fs:
            found = f"{len(cohort.train.leads)} leads at {cohort.train.fs:g} Hz"
            raise InputError(
                "data.finetune", "recordings", found, f"{encoder.leads} leads at {encoder.fs:g} Hz"
            )
        return encoder
    # A baseline has no pre-training to share between its seeds: each seed has its own initial weights.
    return build_encoder(config, cohort, derive(config.seed, "baseline", cell.seed))


def _train(
    config: Experiment, cell: Cell, encoder: Encoder, cohort: Cohort, device: torch.device
) -> tuple[Predictor, float]:
    from ecgmeta.evaluation import finetune as train_all
    from ecgmeta.evaluation import linear_probe

    start = time.perf_counter()
    train, validation = cohort.split(cohort.labelled(cell.labels, config.seed), config.seed)
    if cell.protocol == "linear":
        predictor = linear_probe(encoder, train, validation, cohort.test, device=device)
    else:
        predictor = train_all(
            encoder,
            train,
            validation,
            cohort.test,
            seed=derive(config.seed, "fine-tuning", cell.seed) % 2**31,
            epochs=config.finetune.epochs,
            lr=config.finetune.lr,
            batch_size=config.finetune.batch_size,
            patience=config.finetune.patience or None,
            train_norm=cell.arm not in ARMS,  # an untrained encoder has no statistics to freeze
            device=device,
        )
    return predictor, time.perf_counter() - start


def _file(run: Run, cell: Cell, suffix: str) -> Path:
    return run.cells / f"{cell.name}.{suffix}"


def _write(
    run: Run, cell: Cell, cohort: Cohort, config: Experiment, predictor: Predictor, seconds: float
) -> None:
    logits = predictor.test_logits
    if logits is None:
        raise ValueError("the predictor was trained without a test set")
    arrays = {
        "logits": logits,
        "targets": cohort.test.labels.astype(np.int64),
        "patients": cohort.test.meta["patient"].to_numpy(dtype=str),
        "records": cohort.test.meta["record"].to_numpy(dtype=str),
    }
    write_atomic(_file(run, cell, "npz"), lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    info = {
        "cell": asdict(cell),
        "settings": _settings(config),
        "label_names": list(predictor.label_names),
        "chosen": predictor.chosen,
        "history": predictor.history,
        "seconds": seconds,
    }
    write_json(_file(run, cell, "json"), info)  # last: where it stands, the cell is whole


def predictions(run: Run) -> list[Prediction]:
    """Every finished cell of a run that was trained with the settings it has now."""
    found = []
    settings = _settings(run.later)
    for file in sorted(run.cells.glob("*.json")):
        info = read_json(file)
        if info.get("settings") != settings:
            continue
        try:
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in ("logits", "targets", "patients")}
            cell = Cell(**info["cell"])
            names = tuple(info["label_names"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                file, "cell", error, "a file pair written by `ecgmeta finetune`; delete both to repeat it"
            ) from error
        found.append(Prediction(cell, values["logits"], values["targets"], values["patients"], names, info))
    return found
