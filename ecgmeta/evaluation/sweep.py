"""Label sweeps: encoders × label counts × seeds × protocols, each cell trained alone, chosen on validation, scored once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ecgmeta.evaluation.cells import Cell, CellResult, read_cell, read_info, write_cell
from ecgmeta.evaluation.predictor import Progress
from ecgmeta.evaluation.subsets import check_subsets, labelled_rows
from ecgmeta.evaluation.training import Records, Settings, Task, Trained, train_cell
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import folder_lock
from ecgmeta.runtime.signals import StopRequest, stop_between_steps
from ecgmeta.runtime.spawned import spawned

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset

PROTOCOLS = ("full", "linear")


@dataclass(frozen=True)
class Arm:
    """An encoder, or one for each seed, as a sweep needs it.

    Attributes:
        encoder: seed -> encoder (see :func:`~ecgmeta.evaluation.finetune`); asked for when a cell is to be trained.
        pretrained: False for an encoder with weights drawn from the seed: its normalisation layers then train, and its
            linear probe has all seeds.
        protocols: the ones that make sense for it; None: all of the sweep's.
        identity: seed -> text that differs where the encoder does; without it the weights are hashed.
    """

    encoder: Callable[[int], nn.Module]
    pretrained: bool = True
    protocols: Sequence[str] | None = None
    identity: Callable[[int], str] | None = None

    @classmethod
    def of(cls, encoder: nn.Module) -> Arm:
        """One encoder for all seeds."""
        digest = _digest_encoder(encoder)
        return cls(lambda seed: encoder, identity=lambda seed: digest)

    def identify(self, seed: int) -> str:
        return self.identity(seed) if self.identity is not None else _digest_encoder(self.encoder(seed))


def label_sweep(
    encoders: Mapping[str, nn.Module | Arm],
    train: ECGDataset,
    test: ECGDataset,
    out: str | Path,
    *,
    sizes: Sequence[int],
    seeds: int = 3,
    protocols: Sequence[str] = PROTOCOLS,
    lrs: Sequence[float] = (1e-3,),
    epochs: int = 200,
    batch_size: int = 64,
    patience: int | None = 20,
    seed: int = 0,
    redraw: bool = False,
    processes: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[CellResult]:
    """Train every cell that has no result yet, and score the test records with each, once.

    A cell trains on 80 % of its n labelled records and validates on the rest, split by patient; subsets are nested in n.
    The validation records alone choose the epoch, the learning rate, and the penalty of the probe. A cell whose file stands
    in ``out`` is read, not trained or scored again, as long as settings, encoder and records are the same; where they are
    not, it is trained anew, and ``info["scorings"]`` counts. The linear probe of a given encoder is a convex problem: it has
    one seed, unless the subsets are redrawn.

    On the CPU a cell runs on one thread of torch, so its numbers do not depend on how many cells run at a time.

    Args:
        encoders: arm -> encoder, or an :class:`Arm`.
        train: the pool of labelled records, with patients in its ``meta``; it has no patient of the test set.
        test: scored after all choices are made.
        out: folder of the cells' files.
        sizes: label counts n.
        seeds: of fine-tuning: 0, 1, ...
        protocols: of ``"full"`` (every weight is fine-tuned) and ``"linear"`` (a probe).
        lrs: learning rates of full fine-tuning to choose from.
        epochs, batch_size, patience: see :func:`~ecgmeta.evaluation.finetune`.
        seed: of subsets, splits and all seeds of fine-tuning.
        redraw: whether each seed draws its own labelled subsets.
        processes: cells trained at a time, on the CPU; more than 1 need a script that guards its main part.
        device: where cells are trained.
        progress: called with the number of finished cells.

    Returns:
        Every cell's result: by size, then arm and protocol, then seed.

    Raises:
        InputError: see :func:`~ecgmeta.evaluation.subsets.check_subsets`; no such protocol; a name no file can have; a
            broken file.
        FloatingPointError: every learning rate diverged.
        Stopped: SIGINT or SIGTERM came; finished cells stand.
    """
    settings = Settings(tuple(lrs), epochs, batch_size, patience, seed, redraw)
    arms = {name: one if isinstance(one, Arm) else Arm.of(one) for name, one in encoders.items()}
    plan = list(cells(arms, sizes, seeds, protocols, redraw=redraw))
    check_subsets("labelled records", train, test, sizes, seed, sorted(map(settings.draw, plan)))
    run_cells(plan, arms, train, test, Path(out), settings, processes, torch.device(device), progress)
    return [read_cell(cell.file(Path(out))) for cell in plan]


def cells(
    arms: Mapping[str, Arm],
    sizes: Sequence[int],
    seeds: int,
    protocols: Sequence[str],
    label_set: str = "labels",
    redraw: bool = False,
) -> Iterator[Cell]:
    """Every cell of a sweep; ``label_set`` tells sweeps with other labels in the same folder apart."""
    for size in sizes:
        for name, arm in arms.items():
            for protocol in protocols if arm.protocols is None else arm.protocols:
                once = protocol == "linear" and arm.pretrained and not redraw
                for seed in range(1 if once else seeds):
                    yield Cell(label_set, name, protocol, size, seed)


def run_cells(
    plan: Sequence[Cell],
    arms: Mapping[str, Arm],
    train: ECGDataset,
    test: ECGDataset,
    out: Path,
    settings: Settings,
    processes: int,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Train the cells of a plan that have no result yet; see :func:`label_sweep`, whose one mechanism this is."""
    _check(plan, settings, processes, device)
    with folder_lock(out), stop_between_steps() as stop:
        sweep = _Sweep(plan, arms, train, test, out, settings, progress, stop)
        if min(processes, sweep.left) > 1:
            with TemporaryDirectory(prefix="ecgmeta-") as folder:
                records = sweep.records(device).on_disk(Path(folder))
                sweep.keep(spawned(train_cell, records, sweep.tasks(), processes))
        else:
            records = sweep.records(device)
            sweep.keep((task, train_cell(records, task)) for task in sweep.tasks())
        stop.check()
    if progress is not None:
        progress(len(plan), len(plan), "fine-tuning: done")


def _check(plan: Sequence[Cell], settings: Settings, processes: int, device: torch.device) -> None:
    where = "label sweep"
    if not plan:
        raise InputError(where, "cells", "none", "at least one arm, size, seed and protocol")
    for cell in plan:
        if cell.protocol not in PROTOCOLS:
            raise InputError(where, "protocol", repr(cell.protocol), f"one of {list(PROTOCOLS)}")
        if not re.fullmatch(r"[\w.+ -]+", cell.arm):
            raise InputError(where, "arm", repr(cell.arm), "letters, digits, blanks and . + - _ only")
    if not settings.lrs or min(settings.lrs) <= 0:
        raise InputError(where, "lrs", list(settings.lrs), "at least one learning rate, all above 0")
    if processes < 1 or (processes > 1 and device.type != "cpu"):
        raise InputError(where, "processes", processes, "1, or more on the CPU")


class _Sweep:
    """The cells that are left, handed out one by one, and their results, put on disk."""

    def __init__(
        self,
        plan: Sequence[Cell],
        arms: Mapping[str, Arm],
        train: ECGDataset,
        test: ECGDataset,
        out: Path,
        settings: Settings,
        progress: Progress | None,
        stop: StopRequest,
    ) -> None:
        self.plan, self.arms, self.train, self.test, self.out = plan, arms, train, test, out
        self.settings, self.progress, self.stop = settings, progress, stop
        draws = {(cell.labels, settings.draw(cell)) for cell in plan}
        self.rows = {key: labelled_rows(train, key[0], settings.seed, key[1]) for key in draws}
        self._digests = {key: _digest_data(train.subset(rows)) for key, rows in self.rows.items()}
        self._test_digest = _digest_data(test)
        self.finished = {cell for cell in plan if self._is_finished(cell)}
        self.left = len(plan) - len(self.finished)
        self.done = 0

    def records(self, device: torch.device) -> Records:
        used = np.unique(np.concatenate(list(self.rows.values())))
        return Records(self.train.subset(used), self.test, used, self.settings, device)

    def tasks(self) -> Iterator[Task]:
        """Cells to train, until a stop is asked for."""
        for cell in self.plan:
            if self.stop.number is not None:
                return
            if self.progress is not None:
                text = f"fine-tuning: {cell.arm}, {cell.protocol}, {cell.labels} labels, seed {cell.seed}"
                self.progress(self.done, len(self.plan), text)
            if cell in self.finished:
                self.done += 1
                continue
            arm, rows = self.arms[cell.arm], self.rows[cell.labels, self.settings.draw(cell)]
            yield Task(cell, arm.encoder(cell.seed), arm.pretrained, rows, self._inputs(cell))

    def keep(self, results: Iterable[tuple[Task, Trained]]) -> None:
        """Write each result as it comes."""
        meta, targets = self.test.meta, self.test.labels.astype(np.int64)
        patients, records = (meta[column].to_numpy(dtype=str) for column in ("patient", "record"))
        for task, made in results:
            file = task.cell.file(self.out)
            info = {
                "settings": self.settings.to_dict(),
                "inputs": task.inputs,
                "chosen": made.chosen,
                "history": made.history,
                "seconds": made.seconds,
                "scorings": 1 + (read_info(file)["scorings"] if file.is_file() else 0),
            }
            names = tuple(self.test.label_names)
            write_cell(self.out, CellResult(task.cell, made.logits, targets, patients, records, names, info))
            self.done += 1

    def _is_finished(self, cell: Cell) -> bool:
        if not cell.file(self.out).is_file():
            return False
        info = read_info(cell.file(self.out))
        return info["settings"] == self.settings.to_dict() and info["inputs"] == self._inputs(cell)

    def _inputs(self, cell: Cell) -> dict[str, str]:
        return {
            "encoder": self.arms[cell.arm].identify(cell.seed),
            "train": self._digests[cell.labels, self.settings.draw(cell)],
            "test": self._test_digest,
        }


def _digest_encoder(encoder: nn.Module) -> str:
    """Of its class and every tensor of its state."""
    digest = hashlib.sha256(type(encoder).__qualname__.encode())
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_data(data: ECGDataset) -> str:
    """Of names, patients, labels, and the samples of the first and the last record, which tell how all were preprocessed."""
    said = [data.fs, data.leads, data.samples, data.label_names]
    digest = hashlib.sha256(repr(said).encode())
    for column in ("record", "patient", "window"):
        digest.update("\0".join(map(str, data.meta[column])).encode())
    digest.update(data.labels.tobytes())
    digest.update(data.take([0, -1]).tobytes())
    return digest.hexdigest()[:16]
