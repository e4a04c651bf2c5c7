"""Differentiable 12-lead ECG augmentation: batched, on the device, and learnable."""

from ecgmeta.augment.importers import load_checkpoint
from ecgmeta.augment.learned import Augmenter, Learned, LearnedWarp, load_augmenter
from ecgmeta.augment.policy import LearnedPolicy, score_surrogate
from ecgmeta.augment.records import OnRecord
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
    "Augmenter",
    "Compose",
    "Learned",
    "LearnedPolicy",
    "LearnedWarp",
    "OnRecord",
    "Random",
    "RealNoise",
    "Transform",
    "TwoViews",
    "WhiteNoise",
    "ZeroCrop",
    "load_augmenter",
    "load_checkpoint",
    "paper_static",
    "score_surrogate",
]
