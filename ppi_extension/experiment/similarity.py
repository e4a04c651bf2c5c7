"""Static weights by likeness: a pre-training task counts for as much as its labels go with the fine-tuning labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ppi_extension.experiment.cohort import Cohort


def similarity(cohort: Cohort) -> Tensor:
    """(T,): z of mean 0 and SD 1, by the logarithm of a task's mean square correlation with the fine-tuning labels that
    pre-training may see."""
    store, rows = cohort.store, cohort.metaft
    pretrain, finetune = (torch.from_numpy(store.labels(kind, rows)) for kind in ("pretrain", "finetune"))
    found = correlations(pretrain, finetune[:, list(cohort.seen)])
    z = found.square().mean(1).clamp(min=1e-6).log()
    return ((z - z.mean()) / z.std().clamp(min=1e-6)).float()


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """(A, B): Pearson's, of labels (n, A) and (n, B) of 1, 0, and below 0 where unlabelled, over the rows that both know."""
    known, seen = (one >= 0).double(), (other >= 0).double()
    positive, wanted = (one == 1).double(), (other == 1).double()
    both = (known.T @ seen).clamp(min=1)
    p, q = positive.T @ seen / both, known.T @ wanted / both
    spread = (p * (1 - p) * q * (1 - q)).sqrt()
    return torch.where(spread > 0, (positive.T @ wanted / both - p * q) / spread, 0.0)
