"""Policies and records that the tests of the learned policy share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecgmeta.augment import LearnedPolicy
from ecgmeta.runtime.seeds import seeded

REAL = ("time_warp", "white_noise", "time_shift", "identity")


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signals(batch: int = 6, leads: int = 3, samples: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, leads, samples, generator=generator_of(5), dtype=dtype)


def policy_of(**settings: Any) -> LearnedPolicy:
    with seeded(0, "policy"):
        return LearnedPolicy(**{"leads": 3, **settings})
