"""The parts of a store: who sees whose labels."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.store import EgoData, EgoStore
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import Cohort, divide
from ppi_extension.experiment.config import Experiment, read
from tests.ppi_extension.data.ppi_graphs import small_store

PAPER = Path(__file__).resolve().parents[3] / "configs" / "ppi" / "paper.yaml"


def _cohort(store: EgoStore, *overrides: str, seed: int = 0) -> Cohort:
    return divide(store, read(None, list(overrides)), seed)


def test_no_gene_is_on_two_sides(store: EgoStore) -> None:
    for overrides in ([], ["data.finetune_share=0.5"], [f"data.test_graphs=[{store.graph_names[1]}]"]):
        cohort = _cohort(store, *overrides)
        parts = (cohort.pretrain, cohort.validation, cohort.test)
        for one, other in combinations([set(store.genes[rows]) for rows in parts], 2):
            assert not one & other


def test_phi_sees_only_training_genes_and_its_own_two_parts_apart(store: EgoStore) -> None:
    cohort = _cohort(store, "meta.share=0.5")
    train, fit, validate = (
        set(store.genes[rows]) for rows in (cohort.train, cohort.metaft_train, cohort.metaft_validation)
    )
    assert fit | validate < train
    assert not fit & validate
    assert len(fit | validate) == pytest.approx(len(train) / 2, abs=1)


def test_fewer_labelled_genes_are_some_of_the_many(store: EgoStore) -> None:
    few, many = (_cohort(store, f"data.finetune_share={share}").train for share in (0.3, 0.6))
    assert set(few) < set(many)
    assert np.array_equal(_cohort(store, "data.finetune_share=0.3").pretrain, _cohort(store).pretrain)


def test_seeds_have_their_own_test_genes_unless_they_are_not_to(store: EgoStore) -> None:
    assert not np.array_equal(_cohort(store).test, _cohort(store, seed=1).test)
    one, other = (_cohort(store, "data.resplit=false", seed=seed).test for seed in (0, 1))
    assert np.array_equal(one, other)


def test_a_test_species_only_tests(store: EgoStore) -> None:
    cohort = _cohort(store, f"data.test_graphs=[{store.graph_names[1]}]")
    assert set(store.graph[cohort.test]) == {store.graph_names[1]}
    assert set(store.graph[cohort.pretrain]) | set(store.graph[cohort.validation]) == {store.graph_names[0]}
    assert len(cohort.test) == (store.graph == store.graph_names[1]).sum()
    others = (store.graph == store.graph_names[0]).sum()
    assert len(cohort.pretrain) + len(cohort.validation) == others  # none is wasted
    with pytest.raises(InputError, match="test_graphs"):
        _cohort(store, "data.test_graphs=[mars]")


@pytest.mark.parametrize("seen", [0.25, 0.5])
def test_a_part_of_a_test_species_may_be_pre_trained_on_and_nothing_else(
    store: EgoStore, seen: float
) -> None:
    human = store.graph_names[1]
    asked = f"data.test_graphs=[{human}]"
    whole, cohort = _cohort(store, asked), _cohort(store, asked, f"data.test_graphs_seen={seen}")
    joined = np.setdiff1d(cohort.pretrain, whole.pretrain)
    assert set(store.graph[joined]) == {human}
    assert len(joined) == pytest.approx(seen * len(whole.test), abs=1)
    assert np.array_equal(np.union1d(joined, cohort.test), whole.test)
    assert np.array_equal(np.setdiff1d(whole.test, joined), cohort.test)
    for part in ("train", "validation", "metaft_train", "metaft_validation"):
        assert np.array_equal(getattr(cohort, part), getattr(whole, part))


@pytest.mark.parametrize("prefixes", [("", ""), ("9606.", "4932.")])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_configuration_pre_trains_on_one_half_of_human_and_tests_on_the_other(
    tmp_path: Path, prefixes: tuple[str, str], seed: int
) -> None:
    """Also where a gene stands in both species: what tests is in no row that anything was trained or chosen on."""
    store, _ = small_store(tmp_path / "store", names=("9606", "4932"), prefixes=prefixes)
    cohort = divide(store, read(PAPER, []), seed)
    human = set(np.flatnonzero(store.graph == "9606").tolist())
    halves = [human & set(rows.tolist()) for rows in (cohort.pretrain, cohort.test)]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert len(halves[1]) == len(cohort.test)
    assert not human & {*cohort.train.tolist(), *cohort.validation.tolist(), *cohort.metaft_train.tolist()}
    tested = set(store.genes[cohort.test])
    for part in (cohort.pretrain, cohort.train, cohort.validation):
        assert not tested & set(store.genes[part])
    if prefixes[0]:
        assert len(cohort.test) == 30
        yeast = store.graph == "4932"
        assert len(cohort.validation) == pytest.approx(0.15 * yeast.sum(), abs=5)
    assert np.array_equal(cohort.test, divide(store, read(PAPER, []), 7).test)  # one draw, as in the paper


def test_folds_hold_out_the_tasks_that_are_scored(store: EgoStore) -> None:
    tasks = len(store.finetune_terms)
    held: list[int] = []
    for seed in range(4):
        cohort = _cohort(store, "meta.folds=4", seed=seed)
        assert not set(cohort.seen) & set(cohort.scored)
        assert len(cohort.seen) + len(cohort.scored) == tasks
        held += cohort.scored
    assert sorted(held) == list(range(tasks))
    assert _cohort(store, "meta.folds=4", seed=4).scored == _cohort(store, "meta.folds=4", seed=0).scored


def _batches(cohort: Cohort, config: Experiment, **more: object) -> EgoBatches:
    return EgoBatches(cohort, config, config.meta, 0, **more)  # type: ignore[arg-type]


def test_an_epoch_takes_every_graph_at_most_once_and_the_next_another_order(store: EgoStore) -> None:
    config = read(None, ["pretrain.batch_size=16"])
    cohort = divide(store, config, 0)
    batches = _batches(cohort, config)
    epoch = batches.steps_per_epoch
    assert epoch == len(cohort.pretrain) // 16
    first, again = batches.pretrain(0), batches.pretrain(0)
    assert first.pretrain_labels.equal(again.pretrain_labels)
    assert first.edge_index.equal(again.edge_index)
    assert not first.edge_index.equal(batches.pretrain(epoch).edge_index)
    assert batches.pretrain(0).edge_index.equal(first.edge_index)  # backwards, as a resumed run goes
    labels = np.concatenate([batches.pretrain(step).pretrain_labels for step in range(epoch)])
    assert len(labels) == 16 * epoch


def test_the_ceiling_trains_on_the_downstream_tasks(store: EgoStore) -> None:
    config = read(None, [])
    batch = _batches(divide(store, config, 0), config, tasks="finetune").pretrain(0)
    assert batch.pretrain_labels.shape[1] == len(store.finetune_terms)


def test_phi_is_shown_no_held_out_task(store: EgoStore) -> None:
    config = read(None, ["meta.folds=2"])
    cohort = divide(store, config, 1)
    batches = _batches(cohort, config)
    for batch in (batches.train(3, 0), batches.validation(3, 0)):
        assert batch.finetune_labels.shape[1] == len(cohort.seen)
    rows = store.collate(cohort.metaft_validation).finetune_labels[:, list(cohort.seen)]
    shown = {tuple(row) for row in batches.validation(3, 0).finetune_labels.tolist()}
    assert shown <= {tuple(row) for row in rows.tolist()}


def test_the_closed_form_head_gets_all_that_phi_may_see(store: EgoStore) -> None:
    config = read(None, ["meta.head=ridge", "meta.validation_size=10000"])
    cohort = divide(store, config, 0)
    batch = _batches(cohort, config).validation(0, 0)
    assert batch.graphs == len(cohort.metaft_train) + len(cohort.metaft_validation)


def test_rules_that_read_fine_tuning_labels_get_as_many_as_phi(store: EgoStore) -> None:
    config = read(None, ["meta.batch_size=10000"])
    cohort = divide(store, config, 0)
    both = len(cohort.metaft_train) + len(cohort.metaft_validation)
    assert _batches(cohort, config, split=False).train(0, 0).graphs == both
    assert _batches(cohort, config).train(0, 0).graphs == len(cohort.metaft_train)


def test_resplit_draws_both_parts_anew_from_all_that_phi_may_see(
    store: EgoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[NDArray[np.int64]] = []
    collate = EgoStore.collate

    def noted(self: EgoStore, rows: NDArray[np.int64], **more: Any) -> EgoData:
        asked.append(rows)
        return collate(self, rows, **more)

    monkeypatch.setattr(EgoStore, "collate", noted)
    config = read(
        None, ["meta.resplit=true", "meta.unroll=2", "meta.batch_size=12", "meta.validation_size=9999"]
    )
    cohort = divide(store, config, 0)
    batches = _batches(cohort, config)
    visible = np.union1d(cohort.metaft_train, cohort.metaft_validation)
    trained: list[set[int]] = []
    for step, k in ((0, 0), (0, 1), (1, 0)):
        asked.clear()
        batches.train(step, 2 * k), batches.train(step, 2 * k + 1), batches.validation(step, k)
        trained.append(set(np.concatenate(asked[:2]).tolist()))
        genes = {*store.genes[list(trained[-1])]}
        assert set(asked[2].tolist()) == {row for row in visible.tolist() if store.genes[row] not in genes}
    assert trained[0] != trained[1] != trained[2]
    assert set.union(*trained) & set(cohort.metaft_validation.tolist())
