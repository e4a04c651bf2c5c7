"""Randomness as a function of numbers, so that a step's noise is one thing in all its evaluations and in a resumed run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for ``(seed, purpose, step, ...)``; neighbouring numbers give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def held_noise(seed: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Inside, torch's global generators (the CPU's and those of the CUDA ``devices``) start from ``seed``; afterwards they are
    as they were, so that the caller's own random numbers do not depend on how many losses were taken."""
    cuda = [device.index for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which would seed every other device too, and nobody would put those back.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
