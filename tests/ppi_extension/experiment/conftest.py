"""A small planted problem, and one thread, so that runs in this process and in others agree to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppi_extension.data.builder import BuildSettings, build
from ppi_extension.data.store import EgoStore
from ppi_extension.data.synthetic import PlantedSettings, planted


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> EgoStore:
    """Two species of 90 genes."""
    problem = planted(PlantedSettings(species=2, genes=90), 0)
    settings = BuildSettings(pretrain_terms=problem.pretrain_terms, finetune_terms=problem.finetune_terms)
    return build(problem.data, tmp_path_factory.mktemp("planted") / "store", settings, processes=1)


@pytest.fixture(scope="package")
def store_folder(store: EgoStore) -> Path:
    return store.folder
