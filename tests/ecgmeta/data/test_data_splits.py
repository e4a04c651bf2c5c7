"""Splits: one patient on one side, nested subsets, label shares; by properties and at PTB-XL's full size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecgmeta.data.splits import (
    labelled_subset,
    metaft_split,
    official_folds,
    overlap,
    patient_kfold,
    patient_split,
)
from ecgmeta.runtime.errors import InputError

Cohort = tuple[pd.DataFrame, NDArray[np.float32]]


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Up to 60 records of up to 40 patients with up to 5 labels of any frequency."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    n = draw(st.integers(12, 60))
    patients = rng.integers(0, draw(st.integers(6, 40)), n)
    rates = rng.random(draw(st.integers(1, 5))) ** 2
    labels = (rng.random((n, len(rates))) < rates).astype(np.float32)
    return pd.DataFrame({"patient": [f"p{i}" for i in patients]}), labels


def sides(meta: pd.DataFrame, parts: list[NDArray[np.int64]]) -> None:
    """Every row in exactly one part, every patient too."""
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(meta)))
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            assert not overlap(meta.iloc[a], meta.iloc[b])


@given(cohort=cohorts(), seed=st.integers(0, 99), use_labels=st.booleans())
@settings(deadline=None, max_examples=60)
def test_patient_split_covers_once_and_keeps_patients_together(
    cohort: Cohort, seed: int, use_labels: bool
) -> None:
    meta, labels = cohort
    if meta["patient"].nunique() < 3:
        return
    given_labels = labels if use_labels else None
    parts = patient_split(meta, [0.6, 0.2, 0.2], seed, given_labels)
    sides(meta, parts)
    again = patient_split(meta, [0.6, 0.2, 0.2], seed, given_labels)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    biggest = meta["patient"].value_counts().max()
    if not use_labels:
        assert all(
            abs(len(p) - f * len(meta)) <= biggest for p, f in zip(parts, [0.6, 0.2, 0.2], strict=True)
        )


@given(cohort=cohorts(), k=st.integers(2, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_kfold_tests_every_record_once(cohort: Cohort, k: int, seed: int) -> None:
    meta, labels = cohort
    if meta["patient"].nunique() < k:
        return
    folds = patient_kfold(meta, k, seed, labels)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(len(meta)))
    for train, test in folds:
        sides(meta, [train, test])


@given(cohort=cohorts(), seed=st.integers(0, 99), sizes=st.tuples(st.integers(1, 60), st.integers(1, 60)))
@settings(deadline=None, max_examples=60)
def test_labelled_subsets_are_exact_and_nested(cohort: Cohort, seed: int, sizes: tuple[int, int]) -> None:
    meta, labels = cohort
    small, large = sorted(min(size, len(meta)) for size in sizes)
    a, b = (labelled_subset(meta, labels, n, seed) for n in (small, large))
    assert (len(a), len(b)) == (small, large)
    assert len(set(b.tolist())) == large
    assert set(a.tolist()) <= set(b.tolist())


@given(cohort=cohorts(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_metaft_gives_each_side_every_label_that_one_move_could_give_it(cohort: Cohort, seed: int) -> None:
    meta, labels = cohort
    if meta["patient"].nunique() < 2:
        return
    train, val = metaft_split(meta, labels, 0.8, seed)
    sides(meta, [train, val])
    has = pd.DataFrame(labels).groupby(meta["patient"]).max() > 0
    on = {name: number for number, rows in enumerate((train, val)) for name in meta["patient"].iloc[rows]}
    where = has.index.map(on).to_numpy()
    count = np.array([has[where == side].sum() for side in (0, 1)])
    for label in range(labels.shape[1]):
        for side in np.flatnonzero(count[:, label] == 0):
            for patient in np.flatnonzero(has.to_numpy()[:, label]):
                mine = has.to_numpy()[patient]
                assert (count[1 - side][mine] == 1).any(), f"patient {patient} could have moved to {side}"


def ptbxl(real_data: Path) -> Cohort:
    parts = [
        pd.read_csv(real_data / f"ptbxl_labels/ptbxl_super_class_{s}.csv") for s in ("train", "val", "test")
    ]
    table = pd.concat(parts, ignore_index=True)
    meta = pd.DataFrame(
        {"patient": table["patient_id"].astype(str), "fold": table["strat_fold"].astype("Int64")}
    )
    return meta, table[["NORM", "MI", "STTC", "CD", "HYP"]].to_numpy(np.float32)


def test_official_folds_of_ptbxl(real_data: Path) -> None:
    meta, _ = ptbxl(real_data)
    train, val, test = official_folds(meta)
    assert (len(train), len(val), len(test)) == (17084, 2146, 2158)
    with pytest.raises(InputError, match="no fold in two parts"):
        official_folds(meta, val=(8, 9))
    with pytest.raises(InputError, match="val: found no record"):
        official_folds(meta.iloc[train])
    leaking = meta.copy()
    leaking.loc[test[0], "patient"] = leaking.loc[train[0], "patient"]
    with pytest.raises(InputError, match="in parts 0 and 2"):
        official_folds(leaking)
    with pytest.raises(InputError, match="none for 21388 of 21388 records"):
        official_folds(meta.drop(columns="fold"))


def test_full_size_subsets_keep_the_label_shares(real_data: Path) -> None:
    meta, labels = ptbxl(real_data)
    whole = labels.mean(axis=0)
    previous: set[int] = set()
    for n in (100, 250, 500, 1000, 2500):
        rows = labelled_subset(meta, labels, n, 7)
        assert previous <= set(rows.tolist())
        previous = set(rows.tolist())
        np.testing.assert_allclose(labels[rows].mean(axis=0), whole, atol=0.03 + 2 / n)
    rows = labelled_subset(meta, labels, 8, 7)
    assert labels[rows].any(axis=0).all()  # every class among the first eight
    assert not np.array_equal(rows, labelled_subset(meta, labels, 8, 8))
    train, val = metaft_split(meta, labels, 0.8, 3)
    sides(meta, [train, val])
    assert abs(len(train) / len(meta) - 0.8) < 0.005
    np.testing.assert_allclose(labels[val].mean(axis=0), whole, atol=0.01)


def test_a_generator_is_advanced_and_an_int_is_not() -> None:
    meta = pd.DataFrame({"patient": [str(i) for i in range(50)]})
    rng = np.random.default_rng(0)
    first, second = (patient_split(meta, [0.5, 0.5], rng)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, patient_split(meta, [0.5, 0.5], 0)[0])


def test_bad_arguments_name_themselves() -> None:
    meta = pd.DataFrame({"patient": ["a", "b", None]})
    with pytest.raises(InputError, match=r"meta.patient"):
        patient_split(meta, [0.5, 0.5], 0)
    meta = meta.iloc[:2]
    for fractions in ([0.5, 0.4], [1.5, -0.5], []):
        with pytest.raises(InputError, match="fractions"):
            patient_split(meta, fractions, 0)
    with pytest.raises(InputError, match="patients: found 2, expected at least 3"):
        patient_kfold(meta, 3, 0)
    with pytest.raises(InputError, match="at least 2 folds"):
        patient_kfold(meta, 1, 0)
    with pytest.raises(InputError, match="n: found 3"):
        labelled_subset(meta, np.ones((2, 1)), 3, 0)
    with pytest.raises(InputError, match="labels"):
        labelled_subset(meta, np.ones((3, 1)), 1, 0)
