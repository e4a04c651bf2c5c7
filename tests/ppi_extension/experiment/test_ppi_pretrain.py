"""What one run's pre-training is made of, without a command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ppi_run_helpers import TINY

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.store import EgoStore, Which
from ppi_extension.experiment.cohort import divide
from ppi_extension.experiment.config import read
from ppi_extension.experiment.pretrain import Training, check_phi, prepare
from ppi_extension.experiment.run import Run
from ppi_extension.experiment.similarity import similarity
from ppi_extension.task_weights import TaskWeights


def _training(
    store: EgoStore, folder: Path, arm: str, *overrides: str, learned: TaskWeights | None = None
) -> Training:
    arms = f"[meta,{arm}]" if learned is not None else f"[{arm}]"
    config = read(None, [*TINY, f"arms={arms}", *overrides])
    config.arms = [arm]
    return prepare(Run(folder / arm, config), divide(store, config, 0), learned)


def test_arms_without_phi_steps_may_train_as_long_as_those_cost(store: EgoStore, tmp_path: Path) -> None:
    settings = ("pretrain.plain_factor=1.5", "pretrain.max_steps=20")
    steps = {
        arm: _training(store, tmp_path, arm, *settings).schedule.steps
        for arm in ("supervised", "famo", "meta")
    }
    assert steps == {"supervised": 30, "famo": 30, "meta": 20}
    lengths = _training(store, tmp_path, "supervised", *settings).lengths
    assert sorted(lengths) == [15, 30]


def test_phi_stands_still_after_its_share_of_the_steps(store: EgoStore, tmp_path: Path) -> None:
    training = _training(store, tmp_path, "meta", "meta.until=0.5")
    moved = [report.step for report in training.steps() if report.hyper is not None]
    assert moved == [1, 3]
    assert [step for step, _ in training.trajectory] == list(range(9))
    weights = dict(training.trajectory)
    assert not weights[2].equal(weights[4])
    assert weights[4].equal(weights[8])


class _Unlabelled:
    """A store of which one fine-tuning label is not known."""

    def __init__(self, store: EgoStore, row: int) -> None:
        self._store, self._row = store, row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def labels(self, which: Which, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        labels = self._store.labels(which, rows).copy()
        labels[rows == self._row, 3] = -1
        return labels


def test_the_closed_form_head_is_refused_where_a_label_that_phi_sees_is_not_known(store: EgoStore) -> None:
    config = read(None, [*TINY, "meta.head=ridge"])
    cohort = divide(store, config, 0)
    check_phi(cohort, config)
    unseen = replace(cohort, store=cast(EgoStore, _Unlabelled(store, int(cohort.test[0]))))
    check_phi(unseen, config)
    seen = replace(cohort, store=cast(EgoStore, _Unlabelled(store, int(cohort.metaft_train[0]))))
    with pytest.raises(InputError, match=r"meta\.head: found ridge, and 1 labels"):
        check_phi(seen, config)
    check_phi(seen, read(None, TINY))


def test_z_is_bounded_and_said_to_be(store: EgoStore, tmp_path: Path) -> None:
    training = _training(store, tmp_path, "meta", "meta.lr=5", "meta.limit=2")
    for report in training.steps():
        if report.hyper is not None:
            assert float(training.model.task_weights.z.detach().abs().max()) <= 2
            assert training.logged(report)["at_limit"] > 0


def test_adam_moves_z_although_hypergradients_are_below_its_eps(store: EgoStore, tmp_path: Path) -> None:
    moved = {}
    for scaling in ("normalise", "none"):
        training = _training(store, tmp_path, "meta", f"meta.scaling={scaling}", "meta.eps=1")
        norms = [report.diagnostics["norm"] for report in training.steps() if report.hyper is not None]
        assert max(norms) < 0.1  # far below this eps, as 1e-9 is below Adam's own
        moved[scaling] = float(training.model.task_weights.z.detach().norm())
    assert moved["normalise"] > 10 * moved["none"]


def test_learned_weights_are_taken_whole_or_dealt_out_anew(store: EgoStore, tmp_path: Path) -> None:
    learned = TaskWeights(len(store.pretrain_terms))
    with torch.no_grad():
        learned.z.copy_(torch.linspace(-2, 2, len(learned.z)))
    retrained, permuted = (
        _training(store, tmp_path, arm, learned=learned).model.task_weights.z.detach()
        for arm in ("retrained", "permuted")
    )
    assert retrained.equal(learned.z.detach())
    assert not permuted.equal(retrained)
    assert permuted.sort().values.equal(retrained)


def test_random_weights_cover_the_range_of_the_learned(store: EgoStore, tmp_path: Path) -> None:
    weights = _training(store, tmp_path, "random_weights").model.weights()
    assert 0 < float(weights.min()) < 0.2
    assert 1.8 < float(weights.max()) < 2


def test_other_draws_are_other_weights(store: EgoStore, tmp_path: Path) -> None:
    draws = [
        _training(store, tmp_path, "random_weights", f"pretrain.draw={number}").model.weights()
        for number in (0, 1, 2)
    ]
    assert draws[0].equal(_training(store, tmp_path, "random_weights").model.weights())
    for transform in ("softmax", "exp"):
        other = _training(store, tmp_path, "random_weights", f"meta.transform={transform}").model.weights()
        torch.testing.assert_close(other / other.mean(), draws[0] / draws[0].mean())
    assert not draws[0].equal(draws[1])
    assert not draws[1].equal(draws[2])


def test_learned_weights_may_start_from_the_static_rule_and_are_drawn_back_to_it(
    store: EgoStore, tmp_path: Path
) -> None:
    rule = similarity(divide(store, read(None, TINY), 0))
    gone = {}
    for anchor in (0.0, 0.5):
        settings = (
            "meta.start=similarity",
            f"meta.anchor={anchor}",
            "meta.limit=0",
            "meta.optimizer=sgd",
            "meta.scaling=none",
        )
        training = _training(store, tmp_path, "meta", *settings, "meta.lr=30")
        z = training.model.task_weights.z
        before = z.detach().clone()
        assert before.equal(rule)
        for report in training.steps():
            if report.hyper is not None:
                expected = torch.lerp(before - 30 * report.hyper.phi["task_weights.z"], rule, anchor)
                torch.testing.assert_close(z.detach(), expected)
                before = z.detach().clone()
        gone[anchor] = float((before - rule).norm())
    assert 0 < gone[0.5] < gone[0.0]
    assert not torch.count_nonzero(_training(store, tmp_path, "meta").model.task_weights.z)


def test_fine_tuning_tasks_are_trained_along_on_the_genes_that_phi_is_not_validated_on(
    store: EgoStore, tmp_path: Path
) -> None:
    config = read(None, [*TINY, "pretrain.cotrain=0.5", "data.finetune_share=0.5"])
    cohort, tasks = divide(store, config, 0), len(store.pretrain_terms)
    allowed = {"meta": cohort.metaft_train, "supervised": cohort.metaft}
    assert set(cohort.metaft_train) < set(cohort.metaft) < set(cohort.pretrain)
    for arm, rows in allowed.items():
        overrides = ("pretrain.cotrain=0.5", "data.finetune_share=0.5")
        batches = _training(store, tmp_path, arm, *overrides).batches
        batches.batch_size = len(cohort.pretrain)
        batches.steps_per_epoch = 1
        order = numpy_generator(0, "epoch", 0).permutation(cohort.pretrain)
        labels = batches.pretrain(0).pretrain_labels
        assert np.array_equal(labels[:, :tasks], store.labels("pretrain", order))
        known = np.isin(order, rows)
        assert np.array_equal(labels[known, tasks:], store.labels("finetune", order[known]))
        assert bool((labels[~known, tasks:] == -1).all())
        assert labels.shape[1] == batches.hyper(1, 0).pretrain_labels.shape[1]
        if arm == "meta":  # as many as there are, so all of them
            batches._meta.validation_size = len(cohort.metaft)
            validated = len(batches.validation(0, 0).finetune_labels)
            assert validated == len(cohort.metaft_validation)
            assert not np.isin(store.genes[cohort.metaft_validation], store.genes[order[known]]).any()


def test_under_partial_access_only_tasks_that_pre_training_sees_are_trained_along(
    store: EgoStore, tmp_path: Path
) -> None:
    training = _training(store, tmp_path, "meta", "pretrain.cotrain=1", "meta.folds=4")
    cohort, tasks = divide(store, training.run.config, 0), len(store.pretrain_terms)
    assert len(cohort.seen) == 6
    batch = training.batches.pretrain(0)
    order = numpy_generator(0, "epoch", 0).permutation(cohort.pretrain)[: training.batches.batch_size]
    known = np.isin(order, cohort.metaft_train)
    theirs = store.labels("finetune", order[known])[:, list(cohort.seen)]
    assert np.array_equal(batch.pretrain_labels[known, tasks:], theirs)
    assert theirs.max() == 1
    assert "finetune_labels" not in batch
    assert all(report.pretrain_loss > 0 for report in training.steps())
    assert len(training.model.weights()) == len(store.pretrain_terms)


def test_equal_seeds_start_from_equal_encoders_and_other_seeds_do_not(
    store: EgoStore, tmp_path: Path
) -> None:
    one, two = (_training(store, tmp_path, arm).model.encoder.state_dict() for arm in ("supervised", "meta"))
    other = _training(store, tmp_path, "meta", "first_seed=1").model.encoder.state_dict()
    name = next(name for name, value in one.items() if value.ndim == 2)
    assert all(one[key].equal(two[key]) for key in one)
    assert not one[name].equal(other[name])


@pytest.mark.parametrize("head", ["unroll", "ridge"])
def test_the_hypergradient_is_the_same_when_a_step_is_taken_again(
    store: EgoStore, tmp_path: Path, head: str
) -> None:
    found = []
    for _ in range(2):
        training = _training(store, tmp_path, "meta", f"meta.head={head}", "encoder.dropout=0.3")
        found.append([r.hyper.phi for r in training.steps() if r.hyper is not None])
    for one, other in zip(*found, strict=True):
        assert all(one[name].equal(other[name]) for name in one)


def test_curvature_reaches_the_products_of_the_neumann_arms(
    store: EgoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = _training(store, tmp_path, "meta_neumann1", "meta.curvature=0.25", "meta.step_size=1e-3")
    divide_batch, parts = training.model.problem.curvature_batch, []

    def watched(batch: Any, share: float) -> Any:
        part = divide_batch(batch, share)
        parts.append((len(batch.center_node_idx), len(part.center_node_idx)))
        return part

    monkeypatch.setattr(training.model.problem, "curvature_batch", watched)
    reports = [report for report in training.steps() if report.hyper is not None]
    assert parts == [(16, 4)] * len(reports)
    assert parts
    assert all(report.diagnostics["inverse_iterations"] == 1 for report in reports)
