"""Batches by number: every draw is a function of (seed, what it is for, which step), so a resumed run sees the same ones."""

from __future__ import annotations

import math

import numpy as np
import torch

from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.store import EgoData, Which
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import Experiment, Meta
from ppi_extension.splits import Rows, without_genes


class EgoBatches:
    """The batches of one run, as :class:`ecgmeta.bilevel.Batches`.

    Pre-training rows come in epochs of their own order; a rest smaller than a batch is left out, as batch statistics of a few
    graphs would be. Batches for φ are drawn anew each time.

    Args:
        meta: the φ step's settings in this arm.
        tasks: the labels to pre-train on: ``"finetune"`` for the ceiling.
        split: whether φ is validated on fine-tuning examples apart from those that train the head; a rule without φ trains on
            all that pre-training may see.
        along: whether pre-training batches have the labels of the fine-tuning tasks, too, behind those of their own: of the
            examples that :meth:`train` draws from, the others being unlabelled.
    """

    def __init__(
        self,
        cohort: Cohort,
        config: Experiment,
        meta: Meta,
        seed: int,
        *,
        tasks: Which = "pretrain",
        split: bool = True,
        along: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._cohort, self._meta, self._seed, self._tasks = cohort, meta, seed, tasks
        self._legacy = config.pretrain.legacy_center_index
        self._device = torch.device(device)
        self.batch_size = min(config.pretrain.batch_size, len(cohort.pretrain))
        self.steps_per_epoch = len(cohort.pretrain) // self.batch_size
        self._epoch: tuple[int, Rows] = (-1, cohort.pretrain)
        self._seen = torch.tensor(cohort.seen)
        self._training = cohort.metaft_train if split and not meta.resplit else cohort.metaft
        # The closed-form head leaves each example out in turn: it needs no split, and all that there is.
        apart = meta.head == "unroll" and not meta.resplit
        self._validation = cohort.metaft_validation if apart else cohort.metaft
        self._along = along

    def steps(self, epochs: float) -> int:
        """Steps of so many epochs, at least 1."""
        return max(1, math.ceil(epochs * self.steps_per_epoch))

    def pretrain(self, step: int) -> EgoData:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch[0]:
            order = numpy_generator(self._seed, "epoch", epoch).permutation(self._cohort.pretrain)
            self._epoch = epoch, order
        return self._pretraining(self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size])

    def hyper(self, step: int, k: int) -> EgoData:
        size = self._meta.hyper_batch_size or self.batch_size
        return self._pretraining(self._draw(self._cohort.pretrain, size, "hyper", step, k))

    def train(self, step: int, k: int) -> EgoData:
        return self._finetuning(self._trained(step, k))

    def validation(self, step: int, k: int) -> EgoData:
        rows = self._validation
        if self._meta.resplit:
            steps = range(k * self._meta.unroll, (k + 1) * self._meta.unroll)
            trained = np.concatenate([self._trained(step, j) for j in steps])
            rows = without_genes(rows, self._cohort.store.genes, trained)
        rows = self._draw(rows, self._meta.validation_size, "validation", step, k)
        return self._finetuning(rows)

    def _trained(self, step: int, k: int) -> Rows:
        return self._draw(self._training, self._meta.batch_size, "train", step, k)

    def _draw(self, rows: Rows, size: int, name: str, step: int, k: int) -> Rows:
        rng = numpy_generator(self._seed, name, step, k)
        return rng.choice(rows, min(size, len(rows)), replace=False)

    def _pretraining(self, rows: Rows) -> EgoData:
        labels: list[Which] = [self._tasks, "finetune"] if self._along else [self._tasks]
        data = self._cohort.store.collate(rows, labels=labels, legacy_center_index=self._legacy)
        if self._tasks == "finetune":
            data.pretrain_labels = data.finetune_labels
        if self._along:
            known = torch.from_numpy(np.isin(rows, self._training))[:, None]
            theirs = data.finetune_labels[:, self._seen].where(known, -1)
            data.pretrain_labels = torch.cat([data.pretrain_labels, theirs], 1)
            del data.finetune_labels  # those of held-out tasks and genes have no place in pre-training
        return data.to(self._device)

    def _finetuning(self, rows: Rows) -> EgoData:
        data = self._cohort.store.collate(rows, labels=("finetune",))
        data.finetune_labels = data.finetune_labels[:, self._seen]
        return data.to(self._device)
