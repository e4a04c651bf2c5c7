"""By what the best of several runs is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from ecgmeta.experiment import search


class Records:
    """Three features a record, of which the first has to do with the first label; the third label is a constant."""

    label_names = ("a", "b", "c")

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 3, generator=generator)
        noise = torch.randn(n, 2, generator=generator)
        self.y = torch.cat(
            [((self.x[:, :2] * torch.tensor([2.0, 0.0])) + noise > 0).float(), torch.ones(n, 1)], 1
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[rows], self.y[rows]


def scored(
    monkeypatch: pytest.MonkeyPatch, weight: list[float], penalty: float
) -> tuple[float, Records, Records]:
    """The score of an encoder that multiplies the three features."""
    encoder = nn.Linear(3, 3, bias=False)
    encoder.weight.data.copy_(torch.diag(torch.tensor(weight)))
    parts = Records(24, 0), Records(6, 1)
    monkeypatch.setattr(search, "load_encoder", lambda _: encoder)
    monkeypatch.setattr(search, "metaft", lambda config, cohort: parts)
    run: Any = SimpleNamespace(encoder=None, config=SimpleNamespace(search=SimpleNamespace(penalty=penalty)))
    cohort: Any = None
    return (search._score(run, cohort), *parts)


def test_the_score_is_r2_of_labels_left_out_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found, *parts = scored(monkeypatch, [1.0, 0.5, 2.0], 0.3)
    x = np.concatenate([part.x.numpy() for part in parts]).astype(np.float64) * [1.0, 0.5, 2.0]
    y = np.concatenate([part.y.numpy() for part in parts]).astype(np.float64)[:, :2]  # without the constant
    y = (y - y.mean(0)) / y.std(0)
    # The penalty's scale is that of all records, whichever is left out.
    alpha = 0.3 * np.square(x - x.mean(0)).sum()
    errors = []
    for left in range(len(x)):
        rest = np.arange(len(x)) != left
        errors.append(Ridge(alpha=alpha).fit(x[rest], y[rest]).predict(x[[left]])[0] - y[left])
    assert found == pytest.approx(1 - np.square(errors).mean(), abs=1e-6)


def test_features_that_tell_the_labels_score_higher_and_broken_ones_lowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, blind, broken, dead = (
        scored(monkeypatch, weight, 0.003)[0]
        for weight in ([1.0, 0.1, 0.1], [0.0, 1.0, 1.0], [float("nan"), 1.0, 1.0], [0.0, 0.0, 0.0])
    )
    assert told > blind + 0.2
    assert broken == dead == -np.inf
