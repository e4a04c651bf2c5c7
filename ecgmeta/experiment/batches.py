"""The batches of pre-training, each a function of (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from ecgmeta.augment import Augmenter, Transform
from ecgmeta.bilevel import MicroBatches
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import numpy_generator, torch_generator
from ecgmeta.simclr import Views, draw_views

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset


@dataclass(frozen=True)
class Labelled:
    """A fine-tuning batch: x (batch, leads, samples) in mV, y (batch, labels) of 0 and 1, and whose recordings they are:
    patients (batch,), numbered, or None where no two recordings are of one.

    Where it has a pool and rows, the engine encodes each recording once for all batches of an unroll, and x is read from the
    pool when it is asked for.
    """

    signals: Tensor | None
    y: Tensor
    pool: Pool | None = None
    rows: Tensor | None = None
    patients: Tensor | None = None

    @property
    def x(self) -> Tensor:
        if self.signals is not None:
            return self.signals
        if self.pool is None or self.rows is None:
            raise ValueError("a fine-tuning batch needs signals, or a pool and rows")
        return self.pool[self.rows].x


@dataclass(frozen=True)
class Pool:
    """MetaFT recordings, from which fine-tuning batches are drawn.

    Args:
        data: ``data[rows]`` has the signals (rows, leads, samples) in mV first.
        labels: (recordings, labels) of 0 and 1.
        device: where batches go.
        patients: (recordings,), see :class:`Labelled`.
    """

    data: ECGDataset | TensorDataset
    labels: Tensor
    device: torch.device
    patients: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, rows: Tensor) -> Labelled:
        """A batch that reads its signals when it is asked for them."""
        return Labelled(None, self.labels[rows].to(self.device), self, rows, self._patients(rows))

    def __getitem__(self, rows: Tensor) -> Labelled:
        """A batch that stands alone, its signals read."""
        x = self.data[rows][0].to(self.device)
        return Labelled(x, self.labels[rows].to(self.device), patients=self._patients(rows))

    def _patients(self, rows: Tensor) -> Tensor | None:
        return None if self.patients is None else self.patients[rows].to(self.device)


def patients_of(data: ECGDataset) -> Tensor | None:
    """A number for each patient, (recordings,), or None where no two recordings are of one."""
    codes, names = pd.factorize(data.meta["patient"])
    return None if len(names) == len(codes) else torch.from_numpy(codes)


class SimCLRBatches:
    """Batches for :func:`ecgmeta.bilevel.meta_train`.

    Args:
        pretrain: unlabelled recordings; passed through once an epoch in a new order, a last short batch left out.
        train, validation: the MetaFT recordings, or None where nothing is meta-learned.
        batch_size: recordings of a pre-training step, at most all.
        hyper_batch_size: recordings of a φ step's pre-training batch.
        label_batch_size: recordings of a fine-tuning batch.
        rank, ranks: of a data-parallel run. Each rank draws the whole pre-training batch and works on its part, so that the
            numbers are those of one process; fine-tuning batches are whole on each.
        micro_batches: parts of a pre-training step's batch, each with negatives of its own.

    Raises:
        InputError: a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        pretrain: ECGDataset,
        train: ECGDataset | None,
        validation: ECGDataset | None,
        *,
        static: Transform | None,
        augmenter: Augmenter | None,
        batch_size: int,
        hyper_batch_size: int,
        label_batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        ranks: int = 1,
        micro_batches: int = 1,
    ) -> None:
        self._pretrain, self._rank, self._ranks = pretrain, rank, ranks
        self._train, self._validation = (
            None if data is None else Pool(data, torch.from_numpy(data.labels), device, patients_of(data))
            for data in (train, validation)
        )
        self._static, self._augmenter = static, augmenter
        self.batch_size = min(batch_size, len(pretrain))
        self.hyper_batch_size = min(hyper_batch_size, len(pretrain))
        self.label_batch_size = label_batch_size
        for key, size in (
            ("pretrain.batch_size", self.batch_size),
            ("meta.hyper_batch_size", self.hyper_batch_size),
        ):
            parts = ranks * (micro_batches if key == "pretrain.batch_size" else 1)
            if size % parts or size < 2 * parts:
                wanted = f"a multiple of {parts} ({ranks} processes, {parts // ranks} micro-batches), 2 records each"
                raise InputError("configuration", key, size, wanted)
        self._micro_batches = micro_batches
        self.steps_per_epoch = len(pretrain) // self.batch_size
        self._seed, self._device = seed, device
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def steps(self, epochs: float) -> int:
        """Pre-training steps in a number of epochs."""
        return math.ceil(epochs * self.steps_per_epoch)

    def pretrain(self, step: int) -> Any:
        """Views, or :class:`MicroBatches` of them."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        views, parts = self._views(rows, "views", step), self._micro_batches
        return views if parts == 1 else MicroBatches([views.part(i, parts) for i in range(parts)])

    def hyper(self, step: int, k: int = 0) -> Views:
        rng = numpy_generator(self._seed, "φ batch", step, k)
        rows = rng.choice(len(self._pretrain), self.hyper_batch_size, replace=False)
        return self._views(rows, "φ views", step, k)

    def train(self, step: int, k: int) -> Labelled:
        return self._labelled(self._train, "MetaFT train", step, k)

    def validation(self, step: int, k: int = 0) -> Labelled:
        return self._labelled(self._validation, "MetaFT validation", step, k)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        return numpy_generator(self._seed, "epoch order", epoch).permutation(len(self._pretrain))

    def _views(self, rows: NDArray[np.int64], purpose: str, *numbers: int) -> Views:
        x = self._pretrain[rows][0].to(self._device)
        generator = torch_generator(self._seed, purpose, *numbers, device=self._device)
        numbered = torch.from_numpy(rows).to(self._device)
        views = draw_views(x, self._static, self._augmenter, rows=numbered, generator=generator)
        return views if self._ranks == 1 else views.part(self._rank, self._ranks)

    def _labelled(self, pool: Pool | None, purpose: str, step: int, k: int) -> Labelled:
        if pool is None:
            raise ValueError(f"no data for a {purpose} batch: this arm meta-learns nothing")
        rng = numpy_generator(self._seed, purpose, step, k)
        rows = rng.choice(len(pool), min(self.label_batch_size, len(pool)), replace=False)
        return pool.draw(torch.from_numpy(rows))
