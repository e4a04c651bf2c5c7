"""Toy records and encoders for the probe and fine-tuning tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toys import Means, Records, ToyEncoder, records


@pytest.fixture
def make_records() -> Callable[..., Records]:
    return records


@pytest.fixture
def make_encoder() -> Callable[..., ToyEncoder]:
    return ToyEncoder


@pytest.fixture
def means() -> Means:
    return Means()
