"""Augmentations as modules: each owns its range and draws its noise from the generator it is given.

Every transform takes ``(batch, leads, samples)`` in mV, whole batches at once and on their device, and is the identity
in ``eval()``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ecgmeta.augment import functional


class Transform(nn.Module):
    """Base of the transforms: identity in ``eval()``, noise from ``generator``.

    Args:
        generator: default source of noise; ``forward(x, generator=...)`` overrides it, and torch's own serves
            where both are None.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        functional.check_records(type(self).__name__, x)
        return self.augment(x, generator or self.generator) if self.training else x

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError


class ZeroCrop(Transform):
    """A random stretch of each lead set to 0 mV.

    The paper's static pipeline: length ``U{0..T−1} // 2``, then a uniform start.

    Args:
        max_fraction: longest crop, as a fraction of the record.
    """

    def __init__(self, max_fraction: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.max_fraction = max_fraction

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        batch, leads, n = x.shape
        u = torch.rand(2, batch, leads, 1, generator=generator, device=x.device)
        length = (u[0] * n * self.max_fraction).long()
        start = (u[1] * (n - length + 1)).long()
        return functional.zero_crop(x, length, start)


class WhiteNoise(Transform):
    """White noise of ``U(0, max_fraction)`` times each lead's standard deviation (the paper's static pipeline)."""

    def __init__(self, max_fraction: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.max_fraction = max_fraction

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        level = self.max_fraction * torch.rand(
            *x.shape[:2], 1, generator=generator, device=x.device, dtype=x.dtype
        )
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return functional.white_noise(x, level, noise=noise)


class Compose(Transform):
    """Transforms one after another."""

    def __init__(self, transforms: Iterable[Transform], generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.transforms = nn.ModuleList(transforms)

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        for transform in self.transforms:
            x = transform(x, generator=generator)
        return x


class TwoViews(nn.Module):
    """Two independent augmentations of the same records: ``x -> (view, view)``.

    Args:
        transform: any :class:`Transform`.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(x, generator=generator), self.transform(x, generator=generator)


def paper_static(max_crop: float = 0.5, max_noise: float = 0.1) -> Compose:
    """The paper's static pipeline: per-lead zero crop, then white noise."""
    return Compose([ZeroCrop(max_crop), WhiteNoise(max_noise)])
