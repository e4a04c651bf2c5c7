"""By what the best of several runs is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from ecgmeta.data import ArrayDataset, ECGDataset
from ecgmeta.experiment import search
from ecgmeta.experiment.config import Experiment, Pretrain


class Levels(nn.Module):
    """An encoder of as many features as leads: the mean of each, times a weight."""

    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-1) * self.weight


def recordings(n: int, seed: int, patients: int) -> ECGDataset:
    """Three leads, of which the first has to do with the first label; the third label is a constant."""
    rng = np.random.default_rng(seed)
    level = rng.standard_normal((n, 3)).astype(np.float32)
    y = np.concatenate([level[:, :2] * [2, 0] + rng.standard_normal((n, 2)) > 0, np.ones((n, 1))], 1)
    meta = pd.DataFrame({"patient": [f"{seed}-{k % patients}" for k in range(n)]})
    signals = np.repeat(level[:, :, None], 5, axis=2)
    return ArrayDataset(signals, y.astype(int), fs=100, leads=("I", "II", "III"), meta=meta)


def scored(
    monkeypatch: pytest.MonkeyPatch, weight: list[float], penalty: float, patients: tuple[int, int] = (24, 6)
) -> tuple[float, tuple[ECGDataset, ECGDataset]]:
    """The score of an encoder that multiplies the three levels."""
    parts = recordings(24, 0, patients[0]), recordings(6, 1, patients[1])
    monkeypatch.setattr(search, "load_encoder", lambda _: Levels(weight))
    monkeypatch.setattr(search, "metaft", lambda config, cohort: parts)
    run: Any = SimpleNamespace(encoder=None, config=SimpleNamespace(search=SimpleNamespace(penalty=penalty)))
    cohort: Any = None
    return search._score(run, cohort), parts


@pytest.mark.parametrize("patients", [(24, 6), (9, 2)], ids=["each alone", "several of a patient"])
def test_the_score_is_r2_of_labels_left_out_patient_by_patient(
    monkeypatch: pytest.MonkeyPatch, patients: tuple[int, int]
) -> None:
    found, parts = scored(monkeypatch, [1.0, 0.5, 2.0], 0.3, patients)
    whole = slice(None)
    x = np.concatenate([part[np.arange(len(part))][0].numpy().mean(-1) for part in parts]).astype(np.float64)
    x = x * [1.0, 0.5, 2.0]
    y = np.concatenate([part.labels[whole] for part in parts]).astype(np.float64)[:, :2]  # not the constant
    of = np.concatenate([part.meta["patient"].to_numpy() for part in parts])
    y = (y - y.mean(0)) / y.std(0)
    # The penalty's scale is that of all records, whichever are left out.
    alpha = 0.3 * np.square(x - x.mean(0)).sum()
    errors = []
    for left in range(len(x)):
        rest = of != of[left]
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


def test_of_many_records_an_even_part_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = scored(monkeypatch, [1.0, 0.5, 2.0], 0.3)
    monkeypatch.setattr(search, "LARGEST", 15)
    part, _ = scored(monkeypatch, [1.0, 0.5, 2.0], 0.3)
    monkeypatch.setattr(search, "LARGEST", 30)
    assert part != whole
    assert scored(monkeypatch, [1.0, 0.5, 2.0], 0.3)[0] == whole


@pytest.mark.parametrize(
    ("arms", "compute", "said"),
    [
        (("meta_best", "search"), 1.3, True),
        (("meta_best", "search"), 3.9, False),
        (("search", "meta_best"), 3.0, True),
        (("meta_best", "simclr"), 1.3, False),
        (("meta", "search"), 1.3, False),
    ],
)
def test_a_search_of_less_compute_than_the_runs_it_is_compared_with_is_named(
    arms: tuple[str, str], compute: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Experiment(pretrain=Pretrain(arm=arms[0]), compare=[arms[1]])
    config.search.compute = compute
    search.say_compute(config)
    text = "".join(capsys.readouterr())
    assert ("search.compute=3.9" in text) == said
