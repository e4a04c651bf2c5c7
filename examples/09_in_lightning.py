"""A learned warp in a LightningModule: whole batches, on their device, in ``on_after_batch_transfer``. Seconds on a laptop.

The recordings are synthetic. The warp is a fresh one; a learned one is ``load_augmenter("runs/meta/augmenter")``.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ecgmeta.augment import LearnedWarp
from ecgmeta.data import ArrayDataset, SyntheticCohort
from ecgmeta.encoders import create_encoder


class Classifier(pl.LightningModule):
    """An encoder and a linear head, trained on augmented records and validated on untouched ones."""

    def __init__(self, warp: LearnedWarp, labels: int) -> None:
        super().__init__()
        self.encoder = create_encoder("resnet18", leads=12, width=4)
        self.head = torch.nn.Linear(self.encoder.num_features, labels)
        self.warp = warp.requires_grad_(False)
        self.loss = torch.nn.BCEWithLogitsLoss()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        # Lightning has put the module into train or eval mode, and in eval() a warp is the identity.
        with torch.no_grad():
            return self.warp(x), y

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.head(self.encoder(x)), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("validation_loss", self.loss(self.head(self.encoder(x)), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([*self.encoder.parameters(), *self.head.parameters()], lr=3e-3)


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.manual_seed(0)
    cohort = SyntheticCohort(160, duration=5, seed=1)
    data = ArrayDataset(cohort.signals, cohort.labels, fs=cohort.fs, label_names=cohort.label_names)
    module = Classifier(LearnedWarp(fs=cohort.fs, lead_names=cohort.leads), len(cohort.label_names))
    train, validation = DataLoader(data.subset(range(128)), 32), DataLoader(data.subset(range(128, 160)), 32)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for epochs in (1, 4):
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet)
        trainer.fit(module, train, validation)
        print(
            f"after {epochs} more epochs: validation loss {trainer.callback_metrics['validation_loss']:.3f}"
        )


if __name__ == "__main__":
    main()
