"""Augmentations as modules: each owns its range and draws its noise from the generator it is given.

Every transform takes ``(batch, leads, samples)`` in mV, whole batches at once and on their device, and is the identity
in ``eval()``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ecgmeta.augment import functional
from ecgmeta.augment.functional.noise import deviation
from ecgmeta.augment.functional.operation import at_hand, copied, in_cache, records_in_cache
from ecgmeta.runtime.errors import InputError

MIXING = ("mixup", "cutmix")
"""Operations that put parts of other records into a record."""


class Transform(nn.Module):
    """Base of the transforms: identity in ``eval()``, noise from ``generator``.

    Args:
        generator: default source of noise; ``forward(x, generator=...)`` overrides it, and torch's own serves
            where both are None.

    Attributes:
        alone: whether ``augment`` may be given some records at a time: a record's augmentation has nothing to do with the
            others of its batch.
    """

    alone = False

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        functional.check_records(type(self).__name__, x)
        if not self.training:
            return x
        return self.work(x, generator or self.generator)

    def work(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """x, which was checked, augmented in new memory; some records at a time where that helps."""
        if not self.alone:
            return self.augment(x, generator)
        return in_cache(lambda part: self.augment(part, generator), x)

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def overwrite(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The same of an x that nobody needs any more, in its memory where that helps."""
        return self.work(x, generator)


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
        return self.overwrite(copied(x), generator)

    def overwrite(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        batch, leads, n = x.shape
        u = torch.rand(2, batch, leads, 1, generator=generator, device=x.device)
        length = (u[0] * n * self.max_fraction).long()
        start = (u[1] * (n - length + 1)).long()
        if not at_hand(x) or not x.is_contiguous() or x.dtype == torch.bfloat16:  # unknown to NumPy
            return functional.zero_crop(x, length, start)
        # Lead by lead is twice as fast: torch does not vectorise what reads a mask.
        stretches = torch.cat([start, start + length], dim=-1).view(-1, 2).tolist()
        for lead, (first, last) in zip(x.view(-1, n).numpy(), stretches, strict=True):
            lead[first:last] = 0
        return x


class WhiteNoise(Transform):
    """White noise of ``U(0, max_fraction)`` times each lead's standard deviation (the paper's static pipeline)."""

    def __init__(self, max_fraction: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.max_fraction = max_fraction

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.overwrite(copied(x), generator)

    def overwrite(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        level = self.max_fraction * torch.rand(
            *x.shape[:2], 1, generator=generator, device=x.device, dtype=x.dtype
        )
        if not at_hand(x):
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            return functional.OPERATIONS["white_noise"].run(x, level, noise=noise)
        # Some records at a time, and so few steps that they stay in the cache as well.
        records = records_in_cache(x)
        spare = torch.empty_like(x[:records], memory_format=torch.contiguous_format)
        for part, levels in zip(x.split(records), level.split(records), strict=True):
            noise = spare[: len(part)]
            levels *= deviation(part, out=noise)
            levels *= _fill_normal(noise, generator)
            part.addcmul_(levels, noise)
        return x


def _fill_normal(noise: Tensor, generator: torch.Generator | None) -> float:
    """Fill ``noise``, in a CPU's memory, with normal noise, whose SD is returned.

    In float32, where drawing it is most of the work of a static pipeline: one of the 65,536 middles of equally likely intervals
    (SD 0.99998, at most 4.33 either way), of 16 random bits each.
    """
    if noise.dtype != torch.float32 or not torch.backends.mkl.is_available():  # whose erfinv is vectorised
        noise.normal_(generator=generator)
        return 1.0
    words = torch.empty(-(-noise.numel() // 4), dtype=torch.int64).random_(
        -(2**63), None, generator=generator
    )
    noise.view(-1).copy_(words.view(torch.int16)[: noise.numel()])
    torch.add(_HALF_STEP, noise, alpha=2.0**-15, out=noise).erfinv_()
    return math.sqrt(2)


_HALF_STEP = torch.tensor(2.0**-16, dtype=torch.float32, device="cpu")


class Random(Transform):
    """Any operation of :mod:`ecgmeta.augment.functional`, each record with a magnitude of its own, or left alone.

    Args:
        operation: its name, such as ``"baseline_wander"``.
        magnitude: in the operation's unit: one number, or ``(low, high)``, between which it is uniform.
        probability: that a record is augmented; the others come back exactly as they were.
        fs: sampling rate in Hz, for operations that need it.
        generator: default source of noise.
        settings: of the operation, such as ``frequency=60.0``.

    Raises:
        InputError: naming the operation: one that is unknown or whose noise the user must supply; a magnitude, probability,
            rate or setting that it does not take.

    Labels are not mixed: :func:`~ecgmeta.augment.functional.mixup` and ``cutmix`` need their own ``_labels`` functions.

    Example:
        >>> hum = Random("powerline", (0.0, 0.03), probability=0.5, fs=500, frequency=60.0)
    """

    def __init__(
        self,
        operation: str,
        magnitude: float | Sequence[float],
        *,
        probability: float = 1.0,
        fs: float | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(generator)
        if operation not in functional.OPERATIONS:
            raise InputError(
                "Random", "operation", repr(operation), "one of " + ", ".join(functional.OPERATIONS)
            )
        self.operation = functional.OPERATIONS[operation]
        self.low, self.high = _span(magnitude)
        self.probability, self.settings = probability, dict(settings)
        self.alone = operation not in MIXING
        if self.operation.timed:
            self.settings["fs"] = fs
        self._check()

    def _check(self) -> None:
        spec = self.operation
        if spec.noise is None:
            raise InputError("Random", "operation", spec.name, "one that draws its own noise")
        if not 0 <= self.low <= self.high <= spec.limit or self.high == math.inf:
            wanted = "a number or (low, high), finite" + (
                f" and at most {spec.limit:g}" if spec.limit < math.inf else ""
            )
            raise InputError(spec.name, "magnitude", f"({self.low:g}, {self.high:g})", wanted)
        if not 0 <= self.probability <= 1:
            raise InputError(spec.name, "probability", self.probability, "0 to 1")
        if spec.timed and not 0 < (self.settings["fs"] or 0) < math.inf:
            raise InputError(spec.name, "fs", self.settings["fs"], "a sampling rate in Hz")
        known = set(inspect.signature(spec.function).parameters) - {"x", "magnitude", "noise"}
        for setting in self.settings:
            if setting not in known:
                raise InputError(
                    spec.name,
                    f"setting {setting}",
                    "no such one",
                    ", ".join(sorted(known - {"fs"})) or "none",
                )

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # The three are drawn in this order, whatever the settings: a probability changes which records, not what befalls them.
        level, chance = torch.rand(2, len(x), generator=generator, device=x.device)
        noise = self.operation.draw(x, generator)
        magnitude = (self.low + (self.high - self.low) * level) * (chance < self.probability)
        function = getattr(functional, self.operation.name)
        augmented: Tensor = function(x, magnitude.to(x.dtype), noise=noise, **self.settings)
        return augmented

    def extra_repr(self) -> str:
        unit = "" if self.operation.unit == "1" else f" {self.operation.unit}"
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        span = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"{self.operation.name}, {span}{unit}, probability={self.probability:g}{settings}"


class RealNoise(Transform):
    """Recorded noise mixed in at a random signal-to-noise ratio: a random stretch of a random recording for each record.

    Args:
        recordings: (recordings, 1 or leads, samples) at the rate of the records and at least as long, any unit; for instance
            the channels of the MIT-BIH noise stress test, resampled.
        snr_db: signal-to-noise ratio in dB: one number, or ``(low, high)``, between which it is uniform.
        probability: that a record is augmented; the others come back exactly as they were.
        generator: default source of noise.

    Raises:
        InputError: recordings that are not finite, or too short or of other leads for the records; ratios or a probability
            that make no sense.
    """

    alone = True
    recordings: Tensor

    def __init__(
        self,
        recordings: Tensor,
        snr_db: float | Sequence[float],
        *,
        probability: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        functional.check_records("real_noise recordings", recordings)
        self.register_buffer("recordings", recordings, persistent=False)
        self.low, self.high = _span(snr_db)
        self.probability = probability
        if not -math.inf < self.low <= self.high < math.inf:
            raise InputError(
                "real_noise", "snr_db", f"({self.low:g}, {self.high:g})", "finite dB, low <= high"
            )
        if not 0 <= probability <= 1:
            raise InputError("real_noise", "probability", probability, "0 to 1")

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        batch, leads, n = x.shape
        count, channels, length = self.recordings.shape
        if channels not in (1, leads) or length < n:
            raise InputError(
                "real_noise",
                "shape of recordings",
                (count, channels, length),
                f"(recordings, 1 or {leads}, {n} or more)",
            )
        which, where, level, chance = torch.rand(4, batch, generator=generator, device=x.device)
        row = (which * count).long().clamp(max=count - 1)
        start = (where * (length - n + 1)).long().clamp(max=length - n)
        index = start.view(-1, 1, 1) + torch.arange(n, device=x.device)
        channel = torch.arange(channels, device=x.device).unsqueeze(-1)
        noise = self.recordings[row.view(-1, 1, 1), channel, index]
        magnitude = functional.snr_to_magnitude(self.low + (self.high - self.low) * level)
        return functional.real_noise(x, (magnitude * (chance < self.probability)).to(x.dtype), noise=noise)

    def extra_repr(self) -> str:
        return f"{tuple(self.recordings.shape)}, {self.low:g} to {self.high:g} dB, probability={self.probability:g}"


def _span(values: float | Sequence[float]) -> tuple[float, float]:
    """(low, high) from one number or two."""
    low, high = (values, values) if isinstance(values, int | float) else values
    return low, high


class Compose(Transform):
    """Transforms one after another."""

    def __init__(self, transforms: Iterable[nn.Module], generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.transforms = nn.ModuleList(transforms)

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mine = False  # the memory of x, to write to
        for transform in self.transforms:
            if isinstance(transform, Transform) and transform.training:  # x was checked, once
                step = transform.overwrite if mine else transform.work
                made = step(x, generator or transform.generator)
                x, mine = made, mine or made is not x
            else:
                x, mine = transform(x, generator=generator), False
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
