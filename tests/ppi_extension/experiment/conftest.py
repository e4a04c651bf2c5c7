"""A small planted problem, and one thread, so that runs in this process and in others agree to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppi_extension.data.store import EgoStore
from ppi_extension.data.synthetic import PlantedSettings, build_planted


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> EgoStore:
    """Two species of 90 genes."""
    folder = tmp_path_factory.mktemp("planted") / "store"
    return build_planted(folder, PlantedSettings(species=2, genes=90), processes=1)


@pytest.fixture(scope="package")
def store_folder(store: EgoStore) -> Path:
    return store.folder
