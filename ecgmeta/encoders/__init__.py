"""Encoders by name. Each maps (batch, leads, samples) in mV to features (batch, ``num_features``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ecgmeta.encoders.base import Encoder, Normalize
from ecgmeta.encoders.imported import ImportedEncoder
from ecgmeta.encoders.resnet1d import ResNet1d
from ecgmeta.encoders.vit1d import ViT1d
from ecgmeta.encoders.xresnet1d import XResNet1d
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import read_config
from ecgmeta.runtime.seeds import seeded

_ENCODERS: dict[str, tuple[type[Encoder], dict[str, Any]]] = {
    "resnet18": (ResNet1d, {"blocks": (2, 2, 2, 2)}),
    "resnet34": (ResNet1d, {"blocks": (3, 4, 6, 3)}),
    "resnet50": (ResNet1d, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
    "vit": (ViT1d, {}),
    "xresnet1d50": (XResNet1d, {"blocks": (3, 4, 6, 3)}),
    "xresnet1d101": (XResNet1d, {"blocks": (3, 4, 23, 3)}),
}
_CLASSES: dict[str, type[Encoder]] = {c.__name__: c for c in (ImportedEncoder, ResNet1d, ViT1d, XResNet1d)}


def list_encoders() -> list[str]:
    """Names that :func:`create_encoder` knows."""
    return sorted(_ENCODERS)


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
    **settings: Any,
) -> Encoder:
    """An encoder with fresh weights.

    Args:
        name: one of :func:`list_encoders`, or your own ``nn.Module`` as ``"mypackage.module:Class"``
            (:class:`ImportedEncoder`).
        leads, width, fs, lead_names, preprocess: see the classes.
        norm: ``"batch"`` or ``"group"``. ``vit`` takes both and has LayerNorm, which does for it what ``"group"`` does for the
            others: a record's features never depend on its batch.
        generator: draws the initial weights; torch's own where None.
        settings: further arguments of the class, such as ``kernel=7``.

    Raises:
        InputError: an unknown name, or an argument that the class does not take.
    """
    shared: dict[str, Any] = {"leads": leads, "width": width, "fs": fs}
    shared |= {"lead_names": lead_names, "preprocess": preprocess}
    if norm not in ("batch", "group"):
        raise InputError("encoder", "norm", repr(norm), "'batch' or 'group'")
    if ":" in name:
        return _import(name, {**shared, "norm": norm, "settings": settings}, generator)
    if name not in _ENCODERS:
        raise InputError("encoder", "name", repr(name), f"one of {list_encoders()} or mypackage.module:Class")
    cls, fixed = _ENCODERS[name]
    if cls is not ViT1d:
        shared["norm"] = norm
    try:
        encoder = cls(**{**fixed, **shared, **settings})
    except TypeError as error:
        raise InputError("encoder", "settings", error, f"arguments of {cls.__name__}") from error
    return encoder.initialise(generator or torch.default_generator)


def _import(path: str, arguments: dict[str, Any], generator: torch.Generator | None) -> Encoder:
    if generator is None:
        return ImportedEncoder(path, **arguments)
    # A constructor draws from torch's own generator and takes no other.
    with seeded(int(torch.randint(2**62, (), generator=generator)), path):
        return ImportedEncoder(path, **arguments)


def load_encoder(source: str | Path, **options: Any) -> Encoder:
    """The encoder saved in a folder (a run's ``encoder/``) or under a hub id, whichever class it is; in eval mode.

    ``ecgmeta.data.preprocess.Preprocess.of(encoder)`` turns raw records into what it reads.

    Args:
        source: the folder, or ``owner/name``.
        options: see :meth:`~ecgmeta.runtime.pretrained.Pretrained.from_pretrained`.

    Raises:
        InputError: there is none, or none that these classes know.
    """
    config = read_config(source, "encoder", **options)
    name = config.get("class", "ResNet1d")  # what earlier versions saved without a name
    if name not in _CLASSES:
        raise InputError(source, "class", repr(name), f"one of {sorted(_CLASSES)}")
    return _CLASSES[name].from_pretrained(source, **options)


__all__ = [
    "Encoder",
    "ImportedEncoder",
    "Normalize",
    "ResNet1d",
    "ViT1d",
    "XResNet1d",
    "create_encoder",
    "list_encoders",
    "load_encoder",
]
