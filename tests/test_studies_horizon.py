"""The study of the horizon: its derivative against finite differences, its head against a second route, its tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ecgmeta.bilevel import Adam, lookahead
from ecgmeta.bilevel.trees import detach, gradient, leaves
from examples.studies.ppi_horizon import separation, tasks
from examples.studies.ppi_horizon_report import ORDER
from examples.studies.ppi_lookahead import AT_OPTIMUM, Ahead, Head
from examples.studies.study import load
from ppi_extension.data.synthetic import PlantedSettings, build_planted
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import divide
from ppi_extension.experiment.config import read


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ahead, EgoBatches, int]:
    """Planted graphs in float64, their batches, and how many tasks there are."""
    folder: Path = tmp_path_factory.mktemp("planted") / "store"
    store = build_planted(folder, PlantedSettings(species=1, genes=200), seed=0)
    config = read(None, ["encoder.width=3", "encoder.layers=1", "encoder.dropout=0"])
    cohort = divide(store, config, 0)
    found = Ahead(cohort, config, 0, penalty=1e-2)
    found.problem.pretrain.double()
    found.problem.finetune.double()
    return found, EgoBatches(cohort, config, config.meta, 0), len(store.pretrain_terms)


def test_the_look_ahead_is_the_derivative_of_training_with_other_weights(
    ahead: tuple[Ahead, EgoBatches, int],
) -> None:
    problem, source, count = ahead
    adam, steps = Adam(1e-3), 6
    batches = [source.pretrain(k) for k in range(steps)]
    theta = {"all": torch.cat([value.flatten() for value in problem.problem.theta.values()]).detach()}
    z = 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(z: Tensor) -> float:
        now, state = theta, adam.init(theta)
        for batch in batches:
            nodes = leaves(now)
            now, state = adam.update(
                now, gradient(problem.pretrain_loss(nodes, {"z": z}, batch), nodes), state
            )
            now, state = detach(now), {name: detach(tree) for name, tree in state.items()}
        return float(problem.finetune_loss(now, {}, None))

    found = lookahead(
        problem, theta, {"z": z}, {}, pretrain_batches=batches, train_batches=[], val_batch=None,
        finetune=AT_OPTIMUM, optimizer=adam,
    )  # fmt: skip
    assert float(found.finetune.validation_loss) == pytest.approx(value(z), rel=1e-12)
    for task in range(3):
        step = torch.zeros(count, dtype=torch.float64)
        step[task] = 1e-4
        slope = (value(z + step) - value(z - step)) / 2e-4
        assert float(found.phi["z"][task]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_the_head_is_a_penalised_logistic_regression_of_each_task_on_what_is_labelled() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 5, 0.2, 1] + 3
    labels = (x @ rng.normal(size=(4, 2)) + rng.normal(size=(300, 2)) > 6).astype(int)
    labels[rng.random((300, 2)) < 0.3] = -1
    penalty, expected = 0.05, 0.0
    standard = (x - x.mean(0)) / (x.std(0) + 1e-6)
    for task in range(2):
        known = labels[:, task] >= 0
        a, y = standard[known], labels[known, task]
        fit = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-12, max_iter=10_000).fit(a, y)
        p = fit.predict_proba(a)[:, 1]
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) + penalty / 2 * np.sum(fit.coef_**2)
        rate = y.mean()
        expected += loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) / 2
    features = torch.tensor(x, requires_grad=True)
    head = Head(torch.tensor(labels), penalty)
    value = head(features)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    value.backward()
    moved = torch.tensor(x)
    ends = []
    for sign in (1, -1):
        moved[7, 1] = x[7, 1] + sign * 1e-4
        ends.append(float(head(moved)))
    assert features.grad is not None
    assert float(features.grad[7, 1]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4)


def test_only_arms_that_learn_depend_on_how_weights_are_learned() -> None:
    settings = load("ppi_horizon").plan.settings
    before = {task.name: task.key for task in tasks(settings, [0])}
    settings.learn.rounds += 1
    after = {task.name: task.key for task in tasks(settings, [0])}
    changed = {name.partition("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"lookahead", "one_step", "tied", "tied_one_step"}


def test_every_arm_has_its_row_in_the_table() -> None:
    settings = load("ppi_horizon").plan.settings
    assert sorted(ORDER) == sorted([*settings.arms, *settings.then])


def test_separation_is_one_where_every_useful_task_is_above_the_others() -> None:
    assert separation(torch.tensor([3.0, 1.0, 2.0]), [True, False, False]) == 1
    assert separation(torch.tensor([0.0, 1.0, 2.0]), [True, False, False]) == 0
