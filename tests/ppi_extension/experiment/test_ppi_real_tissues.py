"""The real tissues, few graphs of each: from the archive to the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from ppi_run_helpers import call, pretrain, results

from ppi_extension.data.store import EgoStore


@pytest.mark.slow
def test_an_experiment_on_ohmnet(real_data: Path, tmp_path: Path) -> None:
    source, store = real_data / "ppi" / "ppi_ohmnet24.npz", tmp_path / "store"
    if not source.is_file():
        pytest.skip(f"no {source}")
    cut = ("limit=60", "fanout=5", "tissues=[heart,liver,lung]")
    assert call("data", "build", "ohmnet", source, store, *cut) == 0
    arms = "arms=[supervised,meta,permuted]"
    assert pretrain(tmp_path / "study", store, arms) == 0
    found = results(tmp_path / "study")
    assert len(found["rows"]) == 3
    assert found["one_class"] or all(
        len(row["tasks"]) == len(EgoStore.open(store).finetune_terms) for row in found["rows"]
    )
    page = (tmp_path / "study" / "report.html").read_text(encoding="utf-8")
    assert "GO:" in page
    assert all(task in page for task in found["one_class"])  # said, not dropped
