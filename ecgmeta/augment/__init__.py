"""Differentiable 12-lead ECG augmentation: batched, on the device, and learnable."""

from ecgmeta.augment.learned import LearnedWarp
from ecgmeta.augment.transforms import (
    Compose,
    Random,
    RealNoise,
    Transform,
    TwoViews,
    WhiteNoise,
    ZeroCrop,
    paper_static,
)

__all__ = [
    "Compose",
    "LearnedWarp",
    "Random",
    "RealNoise",
    "Transform",
    "TwoViews",
    "WhiteNoise",
    "ZeroCrop",
    "paper_static",
]
