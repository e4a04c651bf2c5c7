"""Randomness as an argument: every draw is a function of (seed, what it is for, which step).

No generator state needs saving, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose; different names give independent streams."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy's generator for one purpose."""
    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """torch's generator for one purpose."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Within it, torch's own generator serves one purpose; outside, it is as it was.

    For constructors of modules, which draw their initial weights from that generator and take no other.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds every accelerator's generator, where nothing would put it back.
        torch.default_generator.manual_seed(derive(seed, *names))
        yield
