"""Augmentations as pure functions: deterministic given their noise, differentiable, dtype-preserving.

Every operation ``op(x, magnitude, *, noise, ...)`` takes and returns ``(batch, leads, samples)`` in mV and does nothing at
magnitude 0; the contract is in :mod:`ecgmeta.augment.functional.operation`.
"""

from ecgmeta.augment.functional.amplitude import gain, lead_gain
from ecgmeta.augment.functional.leads import FROM_DIPOLE, FROM_ELECTRODES, TO_DIPOLE, lead_off
from ecgmeta.augment.functional.masks import (
    lead_dropout,
    lead_mask,
    paper_layout,
    relaxed_bernoulli,
    soft_stretch,
    time_mask,
    zero_crop,
)
from ecgmeta.augment.functional.mixing import cutmix, cutmix_labels, mixup, mixup_labels
from ecgmeta.augment.functional.noise import (
    baseline_wander,
    dc_shift,
    electrode_motion,
    muscle_noise,
    powerline,
    real_noise,
    snr_to_magnitude,
    white_noise,
)
from ecgmeta.augment.functional.operation import OPERATIONS, Noise, Operation, check_records, operation
from ecgmeta.augment.functional.spectrum import band_stop, fourier_surrogate, spectral_mask
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
from ecgmeta.augment.functional.vectorcardiogram import electrode_rotation, electrode_scale

__all__ = [
    "FROM_DIPOLE",
    "FROM_ELECTRODES",
    "OPERATIONS",
    "TO_DIPOLE",
    "Noise",
    "Operation",
    "band_stop",
    "baseline_wander",
    "check_records",
    "cutmix",
    "cutmix_labels",
    "dc_shift",
    "displacement_statistics",
    "electrode_motion",
    "electrode_rotation",
    "electrode_scale",
    "fourier_surrogate",
    "gain",
    "integrate",
    "lead_dropout",
    "lead_gain",
    "lead_mask",
    "lead_off",
    "mixup",
    "mixup_labels",
    "monotone_displacement",
    "muscle_noise",
    "operation",
    "paper_layout",
    "paper_warp",
    "powerline",
    "random_displacement",
    "random_resized_crop",
    "real_noise",
    "relaxed_bernoulli",
    "sample",
    "smoothing_kernel",
    "snr_to_magnitude",
    "soft_stretch",
    "spectral_mask",
    "time_mask",
    "time_shift",
    "time_warp",
    "white_noise",
    "zero_crop",
]
