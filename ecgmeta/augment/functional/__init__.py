"""Augmentations as pure functions: deterministic given their noise, differentiable, dtype-preserving.

Every operation ``op(x, magnitude, *, noise, ...)`` takes and returns ``(batch, leads, samples)`` in mV and does nothing at
magnitude 0; the contract is in :mod:`ecgmeta.augment.functional.operation`.
"""

from ecgmeta.augment.functional.masks import zero_crop
from ecgmeta.augment.functional.noise import white_noise
from ecgmeta.augment.functional.operation import OPERATIONS, Noise, Operation, check_records, operation
from ecgmeta.augment.functional.time import (
    displacement_statistics,
    integrate,
    monotone_displacement,
    paper_warp,
    random_displacement,
    random_resized_crop,
    sample,
    smoothing_kernel,
    time_shift,
    time_warp,
)

__all__ = [
    "OPERATIONS",
    "Noise",
    "Operation",
    "check_records",
    "displacement_statistics",
    "integrate",
    "monotone_displacement",
    "operation",
    "paper_warp",
    "random_displacement",
    "random_resized_crop",
    "sample",
    "smoothing_kernel",
    "time_shift",
    "time_warp",
    "white_noise",
    "zero_crop",
]
