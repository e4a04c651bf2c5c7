"""One cell of a label sweep: choices on the validation records, then one scoring of the test records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ecgmeta.evaluation.cells import Cell
from ecgmeta.evaluation.finetuning import finetune
from ecgmeta.evaluation.predictor import Predictor
from ecgmeta.evaluation.probe import linear_probe
from ecgmeta.evaluation.subsets import train_validation
from ecgmeta.runtime.seeds import derive

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset

_BLOCK = 1024  # records copied at once


@dataclass(frozen=True)
class Settings:
    """What beside its name, encoder and recordings decides the numbers of a cell.

    Attributes:
        lrs: learning rates of full fine-tuning; the validation set chooses.
        epochs, batch_size, patience: of full fine-tuning; patience None never stops early.
        seed: of everything drawn.
        redraw: whether each seed draws its own labelled subsets.
        about: further settings of the caller (of data, say), which a finished cell must share.
    """

    lrs: tuple[float, ...] = (1e-3,)
    epochs: int = 200
    batch_size: int = 64
    patience: int | None = 20
    seed: int = 0
    redraw: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def draw(self, cell: Cell) -> int:
        """Which draw of the labelled subsets a cell trains on."""
        return cell.seed if self.redraw else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"lrs": list(self.lrs)}


@dataclass(frozen=True)
class Task:
    """A cell to train; ``rows`` of the pool are its labelled records, ``inputs`` what they and the encoder are told by."""

    cell: Cell
    encoder: nn.Module
    pretrained: bool
    rows: NDArray[np.int64]
    inputs: dict[str, str]


@dataclass(frozen=True)
class Records:
    """What the cells of a sweep read: the rows ``used`` of the pool, and the test records."""

    train: ECGDataset
    test: ECGDataset
    used: NDArray[np.int64]
    settings: Settings
    device: torch.device

    def on_disk(self, folder: Path) -> Records:
        """The same over memory maps, which processes share, wherever the samples are now."""
        train, test = (
            _mapped(data, folder / f"{name}.npy")
            for name, data in (("train", self.train), ("test", self.test))
        )
        return replace(self, train=train, test=test)

    def split(self, task: Task) -> tuple[ECGDataset, ECGDataset]:
        """A cell's records to train on, and to validate on."""
        rows = np.searchsorted(self.used, task.rows)
        return train_validation(self.train, rows, self.settings.seed, self.settings.draw(task.cell))


@dataclass(frozen=True)
class Trained:
    """What came of a cell."""

    logits: NDArray[np.float32]
    chosen: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float


def train_cell(records: Records, task: Task) -> Trained:
    """Train a cell and score the test records with what the validation records chose.

    Raises:
        FloatingPointError: every learning rate diverged.
    """
    start = time.perf_counter()
    with _one_thread(records.device):
        if task.cell.protocol == "linear":
            train, validation = records.split(task)
            predictor = linear_probe(task.encoder, train, validation, device=records.device)
        else:
            predictor = _best_rate(records, task)
        batch_size = max(records.settings.batch_size, 256)
        logits = predictor.predict(records.test, batch_size)
    return Trained(logits, predictor.chosen, predictor.history, time.perf_counter() - start)


def _best_rate(records: Records, task: Task) -> Predictor:
    """The predictor of the learning rate with the best validation macro AUROC; ties as between epochs: the lower loss.

    A rate that diverges is out of the choice, and recorded.
    """
    settings = records.settings
    train, validation = records.split(task)
    best: tuple[tuple[float, float], Predictor] | None = None
    tried: list[dict[str, Any]] = []
    for lr in settings.lrs:
        try:
            predictor = finetune(
                task.encoder,
                train,
                validation,
                seed=derive(settings.seed, "fine-tuning", task.cell.seed) % 2**31,
                epochs=settings.epochs,
                lr=lr,
                batch_size=settings.batch_size,
                patience=settings.patience,
                train_norm=not task.pretrained,  # an untrained encoder has no statistics to freeze
                device=records.device,
            )
        except FloatingPointError as error:
            if len(tried) + 1 == len(settings.lrs) and best is None:
                raise
            tried.append({"lr": lr, "failed": str(error)})
            continue
        chosen = predictor.chosen = {"lr": lr, **predictor.chosen}
        tried.append(chosen)
        # Where no label has both classes in validation, the loss alone decides, for every rate alike.
        rank = (chosen["val_macro_auroc"] or 0.0, -chosen["val_loss"])
        if best is None or rank > best[0]:
            best = (rank, predictor)
    if best is None:
        raise ValueError("settings without a learning rate")
    if len(tried) > 1:
        best[1].chosen = {**best[1].chosen, "tried": tried}
    return best[1]


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU, one thread: sums split over more would depend on how many processors there are."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mapped(data: ECGDataset, path: Path) -> ECGDataset:
    """A dataset whose samples are copied into a ``.npy`` file and mapped from there; float32 stays what it is."""
    from ecgmeta.data import ECGDataset
    from ecgmeta.data.store import map_npy

    n = len(data)
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(n, len(data.leads), data.samples)
    )
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        out[rows] = data.take(rows)
    out.flush()
    return ECGDataset(
        map_npy(path), data.labels, fs=data.fs, leads=data.leads, label_names=data.label_names, meta=data.meta
    )
