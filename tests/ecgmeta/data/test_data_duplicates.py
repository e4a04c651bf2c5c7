"""The same signal under two names: found whatever the rate, filter and gain; never a false pair among real records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_helpers import sound_ecg
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgmeta.data import LUDB, PTBXL, ArrayDataset, ECGDataset, WFDBFolder, concat
from ecgmeta.data.duplicates import find_duplicates, group_duplicates, signal_overlap, similarity
from ecgmeta.data.splits import overlap, patient_split

pytestmark = pytest.mark.slow  # compares all pairs of whole sets


@pytest.fixture(scope="module")
def pool(real_data: Path) -> ECGDataset:
    parts = [
        LUDB(real_data / "ludb"),
        WFDBFolder(real_data / "cinc2021", on_error="skip"),
        PTBXL(real_data / "ptbxl_fixture"),
    ]
    return concat(parts, labels="drop")


def test_the_real_pool_holds_eleven_pairs(pool: ECGDataset) -> None:
    groups = find_duplicates(pool)
    found = {frozenset(pool.meta["record"].iloc[group]) for group in groups}
    expected = {frozenset({f"HR{i:05d}", f"{i:05d}_lr"}) for i in range(1, 11)}
    # Georgia holds one recording under two names.
    assert found == expected | {frozenset({"E07509", "E07510"})}
    # S0001 (38 s at 1000 Hz) matches nobody: the best lead-II correlation at any offset is 0.56 over the real records.
    assert all("S0001" not in group for group in found)


def test_nothing_else_comes_near_the_threshold(pool: ECGDataset) -> None:
    rng = np.random.default_rng(0)
    members = {i for group in find_duplicates(pool) for i in group}
    others = [i for i in range(len(pool)) if i not in members]
    pairs = [tuple(rng.choice(others, 2, replace=False)) for _ in range(400)]
    assert max(similarity(pool, int(i), int(j)) for i, j in pairs) < 0.6


def test_groups_become_one_patient_in_every_split(pool: ECGDataset) -> None:
    grouped = group_duplicates(pool)
    assert pool.meta["patient"].nunique() - grouped.meta["patient"].nunique() == 11
    assert (grouped.meta["patient_before"] == pool.meta["patient"]).all()
    assert "patient_before" not in pool.meta
    for seed in range(5):
        a, b = patient_split(grouped.meta, [0.5, 0.5], seed)
        assert not signal_overlap(grouped.subset(a), grouped.subset(b))
    # Without the grouping some pair is torn apart: the check above can fail.
    a, b = patient_split(pool.meta, [0.5, 0.5], 0)
    pairs = signal_overlap(pool.subset(a), pool.subset(b))
    assert pairs
    assert not overlap(pool.meta.iloc[a], pool.meta.iloc[b])


def test_merging_follows_patients_through_chains() -> None:
    names = ["c", "b", "b", "a", "a", "z"]
    x = np.stack([sound_ecg(2, 100, seed) for seed in range(6)]).astype(np.float32) / 1000
    data = ArrayDataset(x, fs=100, meta=pd.DataFrame({"patient": names}))
    grouped = group_duplicates(data, [[0, 1], [2, 3]])
    assert grouped.meta["patient"].tolist() == ["a"] * 5 + ["z"]


def test_gain_offset_noise_and_padding_do_not_hide_a_pair() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 12, 40)).repeat(25, axis=2).astype(np.float32)
    x[17] = 0.4 * x[250] + 1.5 + 0.02 * rng.standard_normal(x[17].shape)
    valid = np.full(300, 1000)
    x[90, :, :600] = x[120, :, :600]
    x[90, :, 600:] = 0
    valid[90] = 600
    data = ArrayDataset(x, fs=100, meta=pd.DataFrame({"valid_samples": valid}))
    assert find_duplicates(data) == [[17, 250], [90, 120]]


@given(seed=st.integers(0, 9999), planted=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_the_overlap_of_two_sets_is_what_was_planted(seed: int, planted: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((n, 12, 80)).repeat(5, axis=2).astype(np.float32) for n in (7, 5))
    pairs = sorted(
        zip(rng.permutation(7)[:planted].tolist(), rng.permutation(5)[:planted].tolist(), strict=True)
    )
    for i, j in pairs:
        b[j] = rng.uniform(0.3, 3) * a[i] + rng.uniform(-2, 2) + 0.03 * rng.standard_normal((12, 400))
    first, second = (ArrayDataset(x, fs=100) for x in (a, b))
    assert sorted(signal_overlap(first, second)) == pairs
    assert sorted(signal_overlap(second, first)) == sorted((j, i) for i, j in pairs)
