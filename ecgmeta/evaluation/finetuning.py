"""Fine-tuning of encoder and head on few labels, with selection on a validation set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgmeta.evaluation.predictor import (
    Labelled,
    Predictor,
    Progress,
    batches,
    check_classes,
    check_splits,
    copy_of,
    device_of,
    linear_head,
    num_features_of,
    one_class,
    read_targets,
    run_batches,
    validation,
)
from ecgmeta.runtime.errors import InputError


def finetune(
    encoder: nn.Module,
    train: Labelled,
    val: Labelled,
    test: Labelled | None = None,
    *,
    seed: int = 0,
    epochs: int = 200,
    head_epochs: int = 0,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    patience: int | None = 20,
    train_norm: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Predictor:
    """Train encoder and a new linear head by Adam; return the weights of the best validation epoch.

    Defaults of `lr`, `epochs` and `batch_size`, and the frozen BatchNorm, are those of the released ECG code of
    the paper, which has no early stopping: `patience=None` trains all epochs (the best one is still returned).

    The best epoch has the highest validation macro AUROC over the labels with both classes in `val`; ties,
    common on few records, go to the lower validation cross-entropy, then to the earlier epoch. Where no label
    has both, the cross-entropy decides, and `chosen["selected_by"]` says so.

    Args:
        encoder: (batch, leads, samples) in mV -> (batch, num_features); copied, never modified.
        train: trained on.
        val: selects the epoch.
        test: scored once, after the selection, into `test_logits`.
        seed: of the head's initial weights, the batch order and dropout (the global generators are left as found).
        epochs: of encoder and head together.
        head_epochs: before those, epochs of the head alone on the encoder in eval mode (warm start).
        lr: of Adam.
        weight_decay: of Adam (L2 on the gradient).
        batch_size: records a step.
        patience: stop after so many epochs without a better one; head epochs are not counted.
        train_norm: False keeps layers with running statistics in eval mode (their scale and shift still train).
            An encoder with random weights ("no pre-training") needs True: its running statistics, 0 and 1,
            describe nothing. Then allow a patience of at least 20 epochs, while the statistics settle.
        device: where everything runs.
        progress: called with the number of epochs done.

    Raises:
        InputError: labels that differ between the splits, a training label with one class, an empty split.
        FloatingPointError: a loss is not finite.
    """
    check_splits(train=train, val=val, test=test)
    _check_settings(epochs, head_epochs, batch_size, patience, lr)
    names = tuple(train.label_names)
    check_classes("train", read_targets(train, batch_size), names)
    generator = torch.Generator().manual_seed(seed)
    body = copy_of(encoder, device).requires_grad_(True)
    head = linear_head(num_features_of(body), len(names), generator).to(device)
    predictor = Predictor(body, head, names)
    selection = _Selection(predictor, val, max(batch_size, 256), head_epochs, patience)
    total = head_epochs + epochs
    with _seeded_dropout(seed, device_of(head)):
        for epoch in range(1, total + 1):
            whole = epoch > head_epochs
            if epoch in (1, head_epochs + 1):
                # A fresh Adam at each phase: the head's moments of the first belong to another problem.
                trained = predictor if whole else predictor.head
                optimizer = torch.optim.Adam(trained.parameters(), lr=lr, weight_decay=weight_decay)
            _set_modes(predictor, whole, train_norm)
            order = torch.randperm(len(train), generator=generator).numpy()
            loss = _train_epoch(predictor, train, _steps(order, batch_size), optimizer, whole, epoch)
            stop = selection.see(epoch, loss, "full" if whole else "head")
            if progress is not None:
                progress(epoch, total, selection.text)
            if stop:
                break
    predictor.load_state_dict(selection.state)
    predictor.eval()
    predictor.history = selection.history
    predictor.chosen = selection.chosen()
    if test is not None:
        predictor.test_logits = predictor.predict(test, max(batch_size, 256))
    return predictor


class _Selection:
    """Validation after each epoch: the history, the best weights so far, and whether to stop."""

    def __init__(
        self, predictor: Predictor, val: Labelled, batch_size: int, head_epochs: int, patience: int | None
    ) -> None:
        self.predictor, self.val, self.batch_size = predictor, val, batch_size
        self.head_epochs, self.patience = head_epochs, patience
        self.history: list[dict[str, Any]] = []
        self.state: dict[str, Tensor] = {}
        self.text = ""
        self._best: tuple[float, float] = (-np.inf, -np.inf)
        self._best_epoch = 0
        self._targets: npt.NDArray[np.int64] | None = None

    def see(self, epoch: int, train_loss: float, phase: str) -> bool:
        """Score one epoch; True where training should stop."""
        logits, self._targets = run_batches(self.predictor, self.val, self.batch_size)
        if not np.isfinite(logits).all():
            worst = float(logits[~np.isfinite(logits)][0])
            raise FloatingPointError(_not_finite("validation logits", worst, epoch))
        auroc, loss = validation(logits, self._targets)
        undefined = bool(np.isnan(auroc))
        entry: dict[str, Any] = {
            "epoch": epoch,
            "phase": phase,
            "train_loss": train_loss,
            "val_loss": loss,
        }
        self.history.append({**entry, "val_macro_auroc": None if undefined else auroc})
        self.text = f"val loss {loss:.3f}" if undefined else f"val AUROC {auroc:.3f}, loss {loss:.3f}"
        rank = (0.0 if undefined else auroc, -loss)
        if rank > self._best:
            self._best, self._best_epoch = rank, epoch
            self.state = {key: value.detach().clone() for key, value in self.predictor.state_dict().items()}
        waited = epoch - max(self._best_epoch, self.head_epochs)
        return self.patience is not None and waited >= self.patience

    def chosen(self) -> dict[str, Any]:
        """The best epoch's entry, the number that chose it, and the labels that could not take part."""
        entry = self.history[self._best_epoch - 1]
        by = "val_loss" if entry["val_macro_auroc"] is None else "val_macro_auroc"
        absent = [] if self._targets is None else one_class(self._targets, self.predictor.label_names)
        return {**entry, "selected_by": by, "val_absent": absent, "epochs_run": len(self.history)}


def _train_epoch(
    predictor: Predictor,
    train: Labelled,
    steps: list[npt.NDArray[np.intp]],
    optimizer: torch.optim.Optimizer,
    whole: bool,
    epoch: int,
) -> float:
    """One pass over the training set; the mean loss a record, in nats, as the weights moved."""
    device = device_of(predictor.head)
    total = 0.0
    for index in steps:
        x, y = (torch.as_tensor(part).to(device) for part in train[index])
        # Without gradients through the encoder a head epoch costs a third.
        with torch.set_grad_enabled(whole):
            features = predictor.encoder(x)
        loss = binary_cross_entropy_with_logits(predictor.head(features), y.to(features.dtype))
        value = float(loss.detach())
        if not np.isfinite(value):
            raise FloatingPointError(_not_finite("training loss", value, epoch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += value * len(index)
    return total / sum(len(index) for index in steps)


def _steps(order: npt.NDArray[np.intp], batch_size: int) -> list[npt.NDArray[np.intp]]:
    """Batches of an order; a last one of a single record joins the one before (BatchNorm needs two)."""
    steps = list(batches(order, batch_size))
    if len(steps) > 1 and len(steps[-1]) == 1:
        steps[-2:] = [np.concatenate(steps[-2:])]
    return steps


def _set_modes(predictor: Predictor, whole: bool, train_norm: bool) -> None:
    """Train mode where weights train; layers that keep running statistics follow `train_norm`."""
    predictor.train()
    predictor.encoder.train(whole)
    for module in predictor.encoder.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.train(whole and train_norm)


@contextmanager
def _seeded_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generators: seed those inside, and put their states back on leaving."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else [], enabled=True):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _not_finite(what: str, value: float, epoch: int) -> str:
    return f"finetune: {what}: found {value} in epoch {epoch}, expected a finite number; try a lower lr"


def _check_settings(epochs: int, head_epochs: int, batch_size: int, patience: int | None, lr: float) -> None:
    if epochs < 0 or head_epochs < 0 or epochs + head_epochs == 0:
        raise InputError("finetune", "epochs", f"{head_epochs} + {epochs}", "at least one epoch")
    if batch_size < 1:
        raise InputError("finetune", "batch_size", batch_size, "at least 1")
    if patience is not None and patience < 1:
        raise InputError("finetune", "patience", patience, "at least 1, or None")
    if not lr > 0:
        raise InputError("finetune", "lr", lr, "a number above 0")
