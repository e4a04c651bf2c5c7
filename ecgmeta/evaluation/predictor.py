"""What the linear probe and fine-tuning share: the labelled data they read and the predictor they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ecgmeta.evaluation.bootstrap import label_auroc, macro
from ecgmeta.runtime.errors import InputError

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, text)``."""


class Labelled(Protocol):
    """Records with multilabel targets, read by batches of indices."""

    @property
    def label_names(self) -> Sequence[str]:
        """C names, in the order of the target columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: npt.NDArray[np.intp], /) -> tuple[Tensor, Tensor]:
        """Records (batch, leads, samples) in mV and targets (batch, C) of 0 and 1, for indices (batch,)."""
        ...


class Predictor(nn.Module):
    """An encoder with a linear head: (batch, leads, samples) in mV -> logits (batch, C).

    Attributes:
        encoder: maps to features (batch, num_features).
        head: linear, features to logits.
        label_names: C names of the logits.
        history: one dict an epoch (fine-tuning) or a penalty (linear probe); values fit for JSON.
        chosen: what the validation set chose, and by which number.
        test_logits: (N, C) on the test set, where one was given.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, label_names: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.label_names = tuple(label_names)
        self.history: list[dict[str, Any]] = []
        self.chosen: dict[str, Any] = {}
        self.test_logits: npt.NDArray[np.float32] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, C) of records (batch, leads, samples) in mV."""
        return self.head(self.encoder(x))

    def predict(
        self, dataset: Labelled, batch_size: int = 256, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits (N, C) of every record, in eval mode; the training mode of each module is put back after.

        Raises:
            InputError: the dataset has other labels than the predictor.
            FloatingPointError: a logit is not finite.
        """
        if tuple(dataset.label_names) != self.label_names:
            raise InputError("dataset", "label_names", list(dataset.label_names), list(self.label_names))
        logits, _ = run_batches(self, dataset, batch_size, progress, "predict")
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise FloatingPointError(f"predict: logits: found {bad} of {len(logits)} records not finite")
        return logits


def run_batches(
    model: nn.Module, dataset: Labelled, batch_size: int, progress: Progress | None = None, text: str = ""
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Outputs (N, F) of a module in eval mode without gradients, and targets (N, C); modes are put back after.

    Raises:
        InputError: the module does not give one row of features a record.
    """
    modes = [(module, module.training) for module in model.modules()]
    outputs, targets = [], []
    device = device_of(model)
    model.eval()
    try:
        with torch.no_grad():
            for index in batches(np.arange(len(dataset)), batch_size):
                x, y = dataset[index]
                out = model(torch.as_tensor(x).to(device))
                if out.ndim != 2 or len(out) != len(index):
                    raise InputError("encoder", "output", tuple(out.shape), f"({len(index)}, num_features)")
                outputs.append(out.float().cpu().numpy())
                targets.append(torch.as_tensor(y).cpu().numpy().astype(np.int64))
                if progress is not None:
                    progress(int(index[-1]) + 1, len(dataset), text)
    finally:
        for module, training in modes:
            module.training = training
    return np.concatenate(outputs), np.concatenate(targets)


def batches(order: npt.NDArray[np.intp], batch_size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Cut an order of records into batches; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def read_targets(dataset: Labelled, batch_size: int) -> npt.NDArray[np.int64]:
    """Targets (N, C) of every record."""
    parts = [torch.as_tensor(dataset[index][1]) for index in batches(np.arange(len(dataset)), batch_size)]
    return torch.cat(parts).cpu().numpy().astype(np.int64)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a module without any."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def copy_of(encoder: nn.Module, device: torch.device | str) -> nn.Module:
    """A deep copy on `device`, so that the caller's encoder stays as it is.

    Raises:
        InputError: the encoder does not say its number of features.
    """
    num_features_of(encoder)
    return deepcopy(encoder).to(device)


def num_features_of(encoder: nn.Module) -> int:
    """The length of the encoder's features, as its attribute `num_features` says."""
    width = getattr(encoder, "num_features", None)
    if not isinstance(width, int):
        raise InputError(
            type(encoder).__name__, "num_features", width, "a whole number, the length of its features"
        )
    return width


def linear_head(num_features: int, num_labels: int, generator: torch.Generator) -> nn.Linear:
    """PyTorch's default initialisation of a linear layer, U(±1/sqrt(num_features)), from a CPU generator."""
    head = skip_init(nn.Linear, num_features, num_labels)
    bound = num_features**-0.5
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.uniform_(-bound, bound, generator=generator)
    return head


def check_splits(**splits: Labelled | None) -> None:
    """Refuse empty splits, splits without labels, and splits whose labels differ from those of the first."""
    present = [(name, split) for name, split in splits.items() if split is not None]
    first, reference = present[0]
    if not reference.label_names:
        raise InputError(first, "label_names", "none", "at least one label to learn")
    for name, split in present:
        if len(split) == 0:
            raise InputError(name, "records", 0, "at least one")
        if tuple(split.label_names) != tuple(reference.label_names):
            expected = f"{list(reference.label_names)}, as in {first}"
            raise InputError(name, "label_names", list(split.label_names), expected)


def check_classes(where: str, targets: npt.NDArray[np.int64], label_names: Sequence[str]) -> None:
    """Refuse training targets (N, C) in which a label has one class only."""
    n = len(targets)
    for name, positives in zip(label_names, targets.sum(axis=0).tolist(), strict=True):
        if positives in (0, n):
            raise InputError(
                where, f"labels.{name}", f"{positives} positives of {n}", "at least one of each class"
            )


def validation(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Macro AUROC over the labels with both classes (NaN where there is none), and mean cross-entropy in nats."""
    z = logits.astype(np.float64)
    loss = np.logaddexp(0.0, z) - targets * z
    return float(macro(label_auroc(z, targets))), float(loss.mean())


def one_class(targets: npt.NDArray[np.int64], label_names: Sequence[str]) -> list[str]:
    """Labels of which (N, C) targets hold one class only."""
    positives = targets.sum(axis=0)
    both = (positives > 0) & (positives < len(targets))
    return [name for name, present in zip(label_names, both, strict=True) if not present]
