"""Operations that mix a record with the one before it in the batch, and its labels alike; for supervised training.

The partner is ``x.roll(1, 0)``, so batches must be shuffled, and a batch of one stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ecgmeta.augment.functional.masks import soft_stretch
from ecgmeta.augment.functional.operation import OPERATIONS, Noise, operation
from ecgmeta.runtime.errors import InputError


def _towards_partner(x: Tensor, weight: Tensor) -> Tensor:
    return x + weight.to(x.dtype) * (x.roll(1, 0) - x)


@operation(noise=Noise("uniform", (1, 1)), unit="1", typical=0.3, limit=1.0, per_lead=False)
def mixup(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
    """``(1 − w) x + w · partner`` with ``w = magnitude · u``, u uniform (Zhang et al., 2018, where w is a Beta variable).

    Args:
        x: (batch, leads, samples), mV.
        magnitude: largest weight of the partner.
        noise: (batch, 1, 1) uniform.
    """
    return _towards_partner(x, magnitude.to(noise.dtype) * noise)


def mixup_labels(y: Tensor, magnitude: Tensor | float, *, noise: Tensor) -> Tensor:
    """The labels of :func:`mixup` with the same magnitude and noise, mixed with the same weights.

    Args:
        y: (batch, ...) floating.
        magnitude: one number, (batch,) or (1 or batch, 1, 1), as given to :func:`mixup`.
        noise: (batch, 1, 1), as given to :func:`mixup`.

    Raises:
        InputError: naming ``mixup_labels``: labels that are not floating, or another number of them; what :func:`mixup`
            refuses.
    """
    return _mixed_labels(y, _checked("mixup", y, magnitude, noise) * noise)


@operation(noise=Noise("uniform", (2, 1)), unit="1", typical=0.3, limit=1.0, per_lead=False)
def cutmix(x: Tensor, magnitude: Tensor, *, noise: Tensor, fs: float, edge: float = 0.05) -> Tensor:
    """A stretch of the partner in the record's place, with soft edges: its share is ``magnitude · u``, u uniform.

    ``(1 − w(t)) x + w(t) · partner``, w a :func:`~ecgmeta.augment.functional.masks.soft_stretch` that begins uniformly where it
    fits. (Yun et al., 2019, for images.)

    Args:
        x: (batch, leads, samples), mV.
        magnitude: largest share of the record that is the partner's.
        noise: (batch, 2, 1) uniform.
        fs: sampling rate in Hz.
        edge: of the stretch in s.
    """
    window = _window("cutmix", magnitude.to(noise.dtype), noise, x.shape[-1], fs, edge)
    return _towards_partner(x, window)


def cutmix_labels(
    y: Tensor, magnitude: Tensor | float, *, noise: Tensor, samples: int, fs: float, edge: float = 0.05
) -> Tensor:
    """The labels of :func:`cutmix` with the same arguments, each weighted by the mean of w(t): what is seen of it.

    Args:
        y: (batch, ...) floating.
        magnitude: one number, (batch,) or (1 or batch, 1, 1), as given to :func:`cutmix`.
        noise: (batch, 2, 1), as given to :func:`cutmix`.
        samples: of the records.
        fs, edge: as given to :func:`cutmix`.

    Raises:
        InputError: naming ``cutmix_labels``: labels that are not floating, or another number of them; what :func:`cutmix`
            refuses.
    """
    share = _checked("cutmix", y, magnitude, noise, samples, fs=fs)
    window = _window("cutmix_labels", share, noise, samples, fs, edge)
    return _mixed_labels(y, window.mean(-1, keepdim=True))


def _window(where: str, share: Tensor, noise: Tensor, samples: int, fs: float, edge: float) -> Tensor:
    duration = samples / fs
    length = duration * share * noise[:, :1]
    start = noise[:, 1:] * (duration - length)
    return soft_stretch(start, length, samples=samples, fs=fs, edge=edge, where=where)


def _checked(
    name: str, y: Tensor, magnitude: Tensor | float, noise: Tensor, samples: int = 1, **settings: float
) -> Tensor:
    """The magnitude as the operation takes it, after its own checks; they, and that of y, name the function of the labels."""
    where = f"{name}_labels"
    if not y.is_floating_point():
        raise InputError(where, "dtype of y", y.dtype, "floating point, such as 0.0 and 1.0 for each class")
    if y.ndim == 0 or y.shape[:1] != noise.shape[:1]:
        raise InputError(where, "shape of y", tuple(y.shape), f"({len(noise)}, ...), one row a record")
    if samples < 1:
        raise InputError(where, "samples", samples, "those of the records, 1 or more")
    records = noise.new_zeros(()).expand(len(y), 1, samples)
    return replace(OPERATIONS[name], name=where).check(records, magnitude, noise, **settings)


def _mixed_labels(y: Tensor, weight: Tensor) -> Tensor:
    return _towards_partner(y, weight.view(-1, *[1] * (y.ndim - 1)))
