"""Fine-tuning an encoder on the downstream tasks: a head on frozen features, or everything; validation says when to stop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgmeta.runtime.seeds import derive, numpy_generator, seeded
from ecgmeta.runtime.signals import StopRequest
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import Experiment, Finetune
from ppi_extension.experiment.run import Run
from ppi_extension.experiment.scores import mean_of_tasks, task_auroc
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import finetune_loss
from ppi_extension.splits import Rows

CHUNK = 256  # graphs that are encoded at a time


@dataclass(frozen=True)
class Fit:
    """The best epoch by validation.

    Attributes:
        validation, test: (T,) AUROC of each task; NaN where a part has one class only.
        epoch: which, from 1; 0 is the head as it was drawn.
        history: mean validation AUROC after each epoch.
    """

    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    epoch: int
    history: list[float]


def finetune(run: Run, cohort: Cohort, config: Experiment, stop: StopRequest) -> None:
    """Fine-tune every encoder of a run under every protocol that has no score yet.

    Raises:
        Stopped: a stop was asked for; finished scores stand.
    """
    settings = score_settings(config, cohort)
    there = {(one["protocol"], one["steps"]) for one in run.scores(settings)}
    for steps in run.lengths():
        for protocol in config.finetune.protocols:
            if (protocol, steps) in there:
                continue
            stop.check()
            encoder = EgoGNN.from_pretrained(run.encoder(steps)).to(config.accelerator)
            fit = (linear if protocol == "linear" else full)(encoder, cohort, config.finetune, run.seed)
            said = {
                "arm": run.arm,
                "seed": run.seed,
                "protocol": protocol,
                "steps": steps,
                "settings": settings,
            }
            of_tasks = {"validation": fit.validation.tolist(), "test": fit.test.tolist()}
            run.write_scores({**said, **of_tasks, "epoch": fit.epoch, "history": fit.history})


def score_settings(config: Experiment, cohort: Cohort) -> dict[str, Any]:
    """What beside the encoder decides the scores."""
    settings = asdict(config.finetune)
    del settings["protocols"]
    return {
        **settings,
        "finetune_share": config.data.finetune_share,
        "terms": list(cohort.store.finetune_terms),
    }


def encode(encoder: EgoGNN, store: EgoStore, rows: Rows) -> Tensor:
    """(rows, features) of a frozen encoder."""
    encoder.eval()
    device = next(encoder.parameters()).device
    pieces = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    with torch.inference_mode():
        return torch.cat([encoder(store.collate(piece, labels=()).to(device)) for piece in pieces])


def linear(
    encoder: EgoGNN, cohort: Cohort, how: Finetune, seed: int, tasks: Sequence[int] | None = None
) -> Fit:
    """A head on the features of a frozen encoder; for all fine-tuning tasks, or for some, by position."""
    parts = (cohort.train, cohort.validation, cohort.test)
    train, validation, test = (encode(encoder, cohort.store, rows).clone() for rows in parts)
    if how.standardise:
        mean, sd = train.mean(0), train.std(0)
        sd = torch.where(sd > 1e-6 * sd.max(), sd, torch.ones_like(sd))
        train, validation, test = ((x - mean) / sd for x in (train, validation, test))
    columns = list(range(len(cohort.store.finetune_terms)) if tasks is None else tasks)
    known, of_validation, of_test = (
        labels_of(cohort.store, rows)[:, columns].to(train.device) for rows in parts
    )
    head = _head(encoder, known.shape[1], seed).to(train.device)

    def loss(chosen: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(chosen).to(train.device)
        return finetune_loss(head(F.dropout(train[rows], how.dropout)), known[rows])

    return _fit(
        head,
        how,
        seed,
        loss,
        count=len(train),
        batch_size=how.batch_size,
        lr=how.lr,
        score=lambda: task_auroc(head(validation), of_validation),
        test=lambda: task_auroc(head(test), of_test),
    )


def full(encoder: EgoGNN, cohort: Cohort, how: Finetune, seed: int) -> Fit:
    """Encoder and head together."""
    store, device = cohort.store, next(encoder.parameters()).device
    encoder.requires_grad_(True)
    network = nn.ModuleDict({"encoder": encoder, "head": _head(encoder, len(store.finetune_terms), seed)})
    network.to(device)
    frozen = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d) and how.statistics == "frozen"]

    def loss(chosen: NDArray[np.int64]) -> Tensor:
        network.train()
        for layer in frozen:
            layer.eval()
        batch = store.collate(cohort.train[chosen], labels=("finetune",)).to(device)
        features = F.dropout(encoder(batch), how.dropout)
        return finetune_loss(network["head"](features), batch.finetune_labels)

    def score(rows: Rows) -> NDArray[np.float64]:
        with torch.no_grad():
            return task_auroc(network["head"](encode(encoder, store, rows)), labels_of(store, rows))

    return _fit(
        network,
        how,
        seed,
        loss,
        count=len(cohort.train),
        batch_size=how.full_batch_size,
        lr=how.full_lr,
        score=lambda: score(cohort.validation),
        test=lambda: score(cohort.test),
    )


def labels_of(store: EgoStore, rows: Rows) -> Tensor:
    """(rows, T) of the fine-tuning tasks."""
    return torch.from_numpy(store.labels("finetune", rows))


def _head(encoder: EgoGNN, tasks: int, seed: int) -> TaskHead:
    with seeded(seed, "head"):
        return TaskHead(encoder.num_features, tasks)


def _fit(
    module: nn.Module,
    how: Finetune,
    seed: int,
    loss: Callable[[NDArray[np.int64]], Tensor],
    *,
    count: int,
    batch_size: int,
    lr: float,
    score: Callable[[], NDArray[np.float64]],
    test: Callable[[], NDArray[np.float64]],
) -> Fit:
    """Train by epochs, keep the best by validation, and score the test rows with it, once."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=how.weight_decay)
    best, best_value, best_epoch = copy.deepcopy(module.state_dict()), -np.inf, 0
    kept = np.full(0, np.nan)
    history: list[float] = []
    with seeded(seed, "fine-tuning dropout"):
        for epoch in range(1, how.epochs + 1):
            for chosen in _batches(count, batch_size, seed, epoch):
                optimizer.zero_grad(set_to_none=True)
                value = loss(chosen)
                if not bool(value.isfinite()):
                    raise FloatingPointError(f"fine-tuning loss is {float(value)} in epoch {epoch}")
                value.backward()
                optimizer.step()
            found = score()
            history.append(mean_of_tasks(found))
            if history[-1] > best_value:
                best, best_value, best_epoch = copy.deepcopy(module.state_dict()), history[-1], epoch
                kept = found
            if how.patience and epoch - best_epoch >= how.patience:
                break
    module.load_state_dict(best)
    return Fit(kept, test(), best_epoch, history)


def _batches(count: int, size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    order = numpy_generator(derive(seed, "fine-tuning"), epoch).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
