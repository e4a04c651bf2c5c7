"""Encoders by name. Each maps (batch, leads, samples) in mV to features (batch, ``num_features``)."""

from __future__ import annotations

from typing import Any

import torch

from ecgmeta.encoders.resnet1d import Normalize, ResNet1d
from ecgmeta.runtime.errors import InputError

_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def list_encoders() -> list[str]:
    """Names that :func:`create_encoder` knows."""
    return sorted(_BLOCKS)


def create_encoder(
    name: str,
    *,
    leads: int = 12,
    width: int = 32,
    norm: str = "batch",
    fs: float = 100.0,
    lead_names: tuple[str, ...] | None = None,
    preprocess: dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> ResNet1d:
    """An encoder with fresh weights.

    Args:
        name: one of :func:`list_encoders`.
        leads, width, norm, fs, lead_names, preprocess: see :class:`ResNet1d`.
        generator: draws the initial weights; torch's own where None.

    Raises:
        InputError: an unknown name.
    """
    if name not in _BLOCKS:
        raise InputError("encoder", "name", repr(name), f"one of {list_encoders()}")
    encoder = ResNet1d(
        _BLOCKS[name],
        leads=leads,
        width=width,
        norm=norm,
        fs=fs,
        lead_names=lead_names,
        preprocess=preprocess,
    )
    return encoder.initialise(generator or torch.default_generator)


__all__ = ["Normalize", "ResNet1d", "create_encoder", "list_encoders"]
