"""Static weights by how a task's labels go with the fine-tuning labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import divide, useful_tasks
from ppi_extension.experiment.config import read
from ppi_extension.experiment.similarity import correlations, similarity


def test_correlations_are_those_of_the_rows_that_both_know() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 2, size=(60, 4))
    found = correlations(torch.tensor(labels[:, :3]), torch.tensor(labels))
    for a in range(3):
        for b in range(4):
            known = (labels[:, a] >= 0) & (labels[:, b] >= 0)
            expected = np.corrcoef(labels[known, a], labels[known, b])[0, 1]
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-12)


def test_useful_tasks_of_the_planted_problem_weigh_more(store: EgoStore) -> None:
    cohort = divide(store, read(None, []), 0)
    z, useful = similarity(cohort), torch.tensor(useful_tasks(store))
    assert float(z.mean()) == pytest.approx(0, abs=1e-5)
    assert float(z.std()) == pytest.approx(1, abs=1e-5)
    assert z[useful].mean() > z[~useful].mean()


def test_only_training_genes_and_tasks_that_pre_training_may_see_count(store: EgoStore) -> None:
    cohort = divide(store, read(None, ["meta.folds=4"]), 0)
    assert len(cohort.seen) < len(store.finetune_terms)
    other = replace(cohort, validation=cohort.test, test=cohort.validation)
    assert similarity(other).equal(similarity(cohort))
    assert not similarity(replace(cohort, seen=cohort.seen[1:])).equal(similarity(cohort))


def test_labels_that_partial_access_withholds_do_not_count(store: EgoStore) -> None:
    cohort, whole = (divide(store, read(None, [f"meta.share={share}"]), 0) for share in (0.5, 1))
    withheld = replace(cohort, train=cohort.metaft)
    assert len(withheld.train) < len(cohort.train)
    assert similarity(withheld).equal(similarity(cohort))
    assert not similarity(cohort).equal(similarity(whole))


def test_with_full_access_all_training_genes_count_in_any_order(store: EgoStore) -> None:
    cohort = divide(store, read(None, []), 0)
    assert not np.array_equal(cohort.metaft, cohort.train)
    ordered = replace(cohort, metaft_train=cohort.train, metaft_validation=cohort.train[:0])
    assert similarity(cohort).equal(similarity(ordered))
