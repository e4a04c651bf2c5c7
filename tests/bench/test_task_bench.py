"""The textbook computes what ours computes, so that the table of task weights compares costs and nothing else."""

from __future__ import annotations

import pytest

from tests.bench.tasks import TERMS, Setting, _cosines, egos


def test_the_textbook_gives_our_hypergradient() -> None:
    cosines = _cosines(Setting(batch=4, tasks=30, width=8, layers=2))
    assert len(cosines) == len(TERMS) + 1
    assert all(value == pytest.approx(1, abs=1e-4) for value in cosines.values())


def test_the_graphs_have_hus_sizes() -> None:
    data = egos(0, 400, 3)
    assert len(data.x) / 400 == pytest.approx(49, abs=2)
    assert data.edge_index.shape[1] / 400 == pytest.approx(891, rel=0.05)
    assert bool((data.edge_index[:, 0::2] == data.edge_index.flip(0)[:, 1::2]).all())
