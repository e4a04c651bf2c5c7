"""Splits: no gene on two sides, every task's turn to be held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgmeta.runtime.errors import InputError
from ppi_extension.splits import (
    both,
    check_genes_apart,
    gene_split,
    gene_subset,
    group_split,
    load_parts,
    metaft_split,
    save_parts,
    shared_genes,
    task_folds,
    without_genes,
)

RNG = np.random.default_rng(0)
GENES = np.array([f"g{i}" for i in RNG.integers(0, 200, 1000)])
TISSUE = np.array([f"tissue{i}" for i in RNG.integers(0, 5, 1000)])
FRACTIONS = {"pretrain": 0.6, "metaft": 0.2, "val": 0.1, "test": 0.1}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_each_row_is_in_one_part_and_each_gene_too(genes: list[int], weights: list[float], seed: int) -> None:
    names = np.array([f"g{gene}" for gene in genes])
    fractions = {f"part{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    unique = len(set(genes))
    if unique < len(fractions):
        with pytest.raises(InputError):
            gene_split(names, fractions, seed)
        return
    parts = gene_split(names, fractions, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(genes)))
    check_genes_apart(names, parts)
    counts = {name: len(set(names[rows])) for name, rows in parts.items()}
    assert min(counts.values()) > 0
    for name, share in fractions.items():
        assert abs(counts[name] - share * unique) <= len(fractions)


def test_the_part_of_a_gene_depends_on_seed_and_genes_not_on_rows() -> None:
    parts = gene_split(GENES, FRACTIONS, 3)
    order = np.random.default_rng(1).permutation(1000)
    shuffled = gene_split(GENES[order], FRACTIONS, 3)
    for name, rows in parts.items():
        assert set(GENES[rows]) == set(GENES[order][shuffled[name]])
        assert (np.diff(rows) > 0).all()
    assert set(GENES[gene_split(GENES, FRACTIONS, 4)["test"]]) != set(GENES[parts["test"]])


def test_tissues_and_genes_held_out_at_once() -> None:
    tissues = {"pretrain": ["tissue0", "tissue1", "tissue2"], "test": ["tissue3", "tissue4"]}
    by_tissue = group_split(TISSUE, tissues)
    assert shared_genes(GENES, by_tissue)  # the same genes stand in all of them
    parts = both(by_tissue, gene_split(GENES, FRACTIONS, 0))
    check_genes_apart(GENES, parts)
    assert set(TISSUE[parts["test"]]) == {"tissue3", "tissue4"}
    assert set(parts) == {"pretrain", "test"}
    rest = without_genes(by_tissue["pretrain"], GENES, of=by_tissue["test"][:100])
    assert not set(GENES[rest]) & set(GENES[by_tissue["test"][:100]])
    assert set(GENES[rest]) == set(GENES[by_tissue["pretrain"]]) - set(GENES[by_tissue["test"][:100]])


def test_species_are_named_by_number_too() -> None:
    species = np.array([9606, 4932, 9606, 6239])
    parts = group_split(species, {"train": [4932, 6239], "test": [9606]})
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [1, 3], "test": [0, 2]}


def test_a_gene_on_two_sides_is_named() -> None:
    with pytest.raises(InputError, match="gene g1: found in a and in b"):
        check_genes_apart(np.array(["g1", "g2", "g1"]), {"a": np.array([0]), "b": np.array([1, 2])})


def test_metaft_takes_whole_genes() -> None:
    rows = np.sort(RNG.choice(1000, 400, replace=False))
    train, val = metaft_split(rows, GENES, 0)
    assert sorted([*train, *val]) == rows.tolist()
    assert not set(GENES[train]) & set(GENES[val])
    assert 0.8 < len(train) / 400 < 0.9


def test_gene_subsets_are_nested() -> None:
    rows = np.arange(0, 1000, 2)
    subsets = [gene_subset(rows, GENES, share, 5) for share in (0.1, 0.5, 1.0)]
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2]) == set(rows)
    for subset, share in zip(subsets, (0.1, 0.5, 1.0), strict=True):
        assert len(set(GENES[subset])) == round(share * len(set(GENES[rows])))
        assert set(subset) == {row for row in rows if GENES[row] in set(GENES[subset])}


def test_ten_folds_hold_out_each_of_forty_tasks_once() -> None:
    folds = task_folds(40)
    assert len(folds) == 10
    assert sorted(task for fold in folds for task in fold.held_out) == list(range(40))
    for number, fold in enumerate(folds):
        assert fold.number == number
        assert fold.held_out == tuple(range(4 * number, 4 * number + 4))
        assert sorted(fold.seen + fold.held_out) == list(range(40))


def test_fold_0_holds_out_the_first_tasks_as_the_papers_code_does() -> None:
    first = task_folds(40, folds=4)[0]
    assert first.held_out == tuple(range(10))
    assert first.describe([f"GO:{i}" for i in range(40)]).startswith("fold 0 holds out GO:0, GO:1, ")
    assert task_folds(40, folds=4)[3].held_out == tuple(range(30, 40))


def test_blocks_may_overlap_and_go_round() -> None:
    folds = task_folds(40, folds=10, held_out=10)
    assert folds[9].held_out == (36, 37, 38, 39, 0, 1, 2, 3, 4, 5)
    assert folds[9].seen == tuple(range(6, 36))
    uneven = task_folds(7, folds=3)
    assert [fold.held_out for fold in uneven] == [(0, 1), (2, 3), (4, 5, 6)]


@pytest.mark.parametrize(("folds", "held_out"), [(1, None), (41, None), (10, 0), (10, 40)])
def test_folds_that_cannot_be(folds: int, held_out: int | None) -> None:
    with pytest.raises(InputError):
        task_folds(40, folds=folds, held_out=held_out)


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"a": ["tissue0"], "b": ["tissue0"]}, "tissue0 twice"),
        ({"a": ["liver"]}, "found liver, expected one that the store has: tissue0, tissue1"),
    ],
)
def test_groups_that_cannot_be(members: dict[str, list[str]], word: str) -> None:
    with pytest.raises(InputError, match=word):
        group_split(TISSUE, members)


def test_fractions_that_cannot_be() -> None:
    for fractions in ({}, {"a": 0.5}, {"a": 1.5, "b": -0.5}):
        with pytest.raises(InputError, match="fractions"):
            gene_split(GENES, fractions, 0)
    with pytest.raises(InputError, match="share of genes"):
        gene_subset(np.arange(10), GENES, 0.0, 0)


def test_parts_are_kept_as_json(tmp_path: Path) -> None:
    parts = gene_split(GENES, FRACTIONS, 0)
    save_parts(tmp_path / "split.json", parts)
    again = load_parts(tmp_path / "split.json")
    assert {name: rows.tolist() for name, rows in again.items()} == {
        name: rows.tolist() for name, rows in parts.items()
    }
    for text, word in (('{"a": [1.5]}', "a: found"), ("[]", "list"), ('{"a": [-1]}', "a: found")):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(InputError, match=word):
            load_parts(tmp_path / "broken.json")
