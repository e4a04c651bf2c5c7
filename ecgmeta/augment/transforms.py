"""Augmentations as modules: each owns its range and draws its noise from the generator it is given.

Every transform takes ``(batch, leads, samples)`` in mV, whole batches at once and on their device, and is the identity
in ``eval()``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgmeta.augment import functional
from ecgmeta.augment.functional.noise import deviation
from ecgmeta.augment.functional.operation import at_hand, fresh, in_cache, records_in_cache
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.resampling import resample

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


Step = Callable[[Tensor, slice], Tensor]
"""Augments some records of a batch, given with their place in it: what :meth:`Piecewise.start` gives.

On a CPU, where no graph is built, it may write to them, and then returns them."""


class Piecewise(Transform):
    """Base of the transforms of a few steps over the numbers, done to some records at a time, which stay in the cache."""

    def start(self, x: Tensor, generator: torch.Generator | None) -> Step:
        """Draw all that the augmentation of x takes from ``generator``."""
        raise NotImplementedError

    def work(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return _done(x, [self.start(x, generator)])


def _done(x: Tensor, steps: Sequence[Step], *, mine: bool = False) -> Tensor:
    """x after these steps; in its own memory if that is ``mine``."""
    if not at_hand(x):
        for step in steps:
            x = step(x, slice(0, len(x)))
        return x
    mine = mine and x.is_contiguous()
    result, records = x if mine else fresh(x, len(x)), records_in_cache(x)
    for first in range(0, len(x), records):
        rows = slice(first, first + records)
        part = result[rows] if mine else result[rows].copy_(x[rows])
        for step in steps:
            made = step(part, rows)
            if made is not part:
                part.copy_(made)
    return result


class ZeroCrop(Piecewise):
    """A random stretch of each lead set to 0 mV.

    The paper's static pipeline: length ``U{0..T−1} // 2``, then a uniform start.

    Args:
        max_fraction: longest crop, as a fraction of the record.
    """

    def __init__(self, max_fraction: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.max_fraction = max_fraction

    def start(self, x: Tensor, generator: torch.Generator | None) -> Step:
        batch, leads, n = x.shape
        u = torch.rand(2, batch, leads, 1, generator=generator, device=x.device)
        length = (u[0] * n * self.max_fraction).long()
        start = (u[1] * (n - length + 1)).long()
        if not at_hand(x) or x.dtype == torch.bfloat16:  # unknown to NumPy
            return lambda part, rows: functional.zero_crop(part, length[rows], start[rows])
        # Lead by lead is several times as fast: torch does not vectorise what reads a mask. (Numbers in flat lists, which
        # Python's collector of garbage does not count: pairs would start it every few batches, for a third of a second.)
        firsts, lasts = start.flatten().tolist(), (start + length).flatten().tolist()
        silence = np.zeros(n, dtype=x.new_empty(0).numpy().dtype).data

        def crop(part: Tensor, rows: slice) -> Tensor:
            numbers, begin = part.view(-1).numpy().data, 0
            own = slice(rows.start * leads, rows.stop * leads)
            for first, last in zip(firsts[own], lasts[own], strict=True):
                numbers[begin + first : begin + last] = silence[: last - first]
                begin += n
            return part

        return crop


class WhiteNoise(Piecewise):
    """White noise of ``U(0, max_fraction)`` times each lead's standard deviation (the paper's static pipeline)."""

    def __init__(self, max_fraction: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.max_fraction = max_fraction

    def start(self, x: Tensor, generator: torch.Generator | None) -> Step:
        level = self.max_fraction * torch.rand(
            *x.shape[:2], 1, generator=generator, device=x.device, dtype=x.dtype
        )
        if not at_hand(x):
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            white_noise = functional.OPERATIONS["white_noise"]
            return lambda part, rows: white_noise.run(part, level[rows], noise=noise[rows])
        spare = torch.empty_like(x[: records_in_cache(x)], memory_format=torch.contiguous_format)
        fill, sd = _normal(spare, generator)

        def add(part: Tensor, rows: slice) -> Tensor:
            noise = spare[: len(part)]
            levels = level[rows].mul_(deviation(part, out=noise))
            fill(noise)
            return part.addcmul_(levels.mul_(sd), noise)

        return add


def _normal(like: Tensor, generator: torch.Generator | None) -> tuple[Callable[[Tensor], object], float]:
    """What fills tensors, of a CPU and at most as large as ``like``, with normal noise from a stream that ``generator`` begins,
    and the noise's SD.

    In float32, where drawing it is most of the work of a static pipeline: one of the 65,536 middles of equally likely intervals
    (of a normal law of SD 0.99998, at most 4.33 either way), of 16 random bits each.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    if like.dtype != torch.float32:
        own = torch.Generator().manual_seed(seed)
        return lambda noise: noise.normal_(generator=own), 1.0
    bits = np.random.SFC64(seed)  # twice as fast as torch's Mersenne twister
    which = torch.empty(like.numel(), dtype=torch.int32)

    def fill(noise: Tensor) -> None:
        count = noise.numel()
        words = torch.from_numpy(bits.random_raw(-(-count // 4)))
        which[:count].copy_(words.view(torch.uint16)[:count])
        torch.index_select(_middles(), 0, which[:count], out=noise.view(-1))

    return fill, math.sqrt(2)


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def _middles() -> Tensor:
    """The middles as ``erfinv`` gives them, in the order of 16 bits read without a sign."""
    share = torch.arange(2**16, dtype=torch.int32).to(torch.int16).to(torch.float32) / 2**15
    return (share + 2.0**-16).erfinv_()


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
        self._check(fs)
        if self.operation.timed:
            self.settings["fs"] = fs

    def _check(self, fs: float | None) -> None:
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
        if spec.timed and not 0 < (fs or 0) < math.inf:
            raise InputError(spec.name, "fs", fs, "a sampling rate in Hz")
        spec.check_settings(fs or 1.0, spec.leads or 12, self.settings)

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
        recordings: tensor or array (recordings, 1 or leads, samples), at least as long as the records, any unit; for instance
            the channels of the MIT-BIH noise stress test.
        snr_db: signal-to-noise ratio in dB: one number, or ``(low, high)``, between which it is uniform.
        probability: that a record is augmented; the others come back exactly as they were.
        fs: sampling rate of the records in Hz.
        recordings_fs: sampling rate of the recordings in Hz; they are resampled, once, where it is not ``fs``. With both None
            they are taken to be at the rate of the records.
        generator: default source of noise.

    Raises:
        InputError: recordings that are not finite, or too short or of other leads for the records; ratios, a probability or
            rates that make no sense, or one rate without the other.

    Example:
        >>> em = np.random.randn(2, 1, 3600)  # 10 s of two channels at 360 Hz
        >>> noise = RealNoise(em, (0.0, 12.0), fs=100, recordings_fs=360)
        >>> noise.recordings.shape
        torch.Size([2, 1, 1000])
    """

    alone = True
    recordings: Tensor

    def __init__(
        self,
        recordings: Tensor | NDArray[np.floating[Any]],
        snr_db: float | Sequence[float],
        *,
        probability: float = 1.0,
        fs: float | None = None,
        recordings_fs: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        kept = _at_rate(_tensor(recordings), recordings_fs, fs)
        self.register_buffer("recordings", kept, persistent=False)
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


def _tensor(recordings: Tensor | NDArray[np.floating[Any]]) -> Tensor:
    """Recordings of noise, checked; what is no tensor is copied to one."""
    if not isinstance(recordings, Tensor):
        try:
            recordings = torch.from_numpy(np.array(recordings))
        except (TypeError, ValueError) as error:  # of objects, of rows of several lengths
            raise InputError("real_noise", "recordings", error, "an array of numbers") from error
    functional.check_records("real_noise recordings", recordings)
    return recordings


def _at_rate(recordings: Tensor, recordings_fs: float | None, fs: float | None) -> Tensor:
    """Recordings of noise resampled from ``recordings_fs`` to ``fs``."""
    if fs is None and recordings_fs is None:
        return recordings
    if fs is None or recordings_fs is None or not (0 < fs < math.inf and 0 < recordings_fs < math.inf):
        found = f"{fs}, {recordings_fs}"
        raise InputError("real_noise", "fs, recordings_fs", found, "two sampling rates in Hz, or neither")
    if fs == recordings_fs:
        return recordings
    channels = recordings.detach().flatten(0, 1).float().cpu().numpy()
    made = torch.from_numpy(resample(channels, recordings_fs, fs))
    return made.unflatten(0, recordings.shape[:2]).to(recordings)


def _span(values: float | Sequence[float]) -> tuple[float, float]:
    """(low, high) from one number or two."""
    low, high = (values, values) if isinstance(values, int | float) else values
    return low, high


def _called(module: nn.Module, x: Tensor, generator: torch.Generator | None) -> Any:
    """``module(x)``, with the generator to draw from where the module takes one, as ours do."""
    forward = getattr(module, "_orig_mod", module).forward  # what torch.compile wraps
    parameters = inspect.signature(forward).parameters
    if "generator" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return module(x, generator=generator)
    return module(x)


class Compose(Transform):
    """Transforms one after another.

    Args:
        transforms: of this module, learned augmenters, or any modules of (batch, leads, samples); a module that takes no
            ``generator`` draws from torch's own.
        generator: default source of noise.
    """

    def __init__(self, transforms: Iterable[nn.Module], generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.transforms = nn.ModuleList(transforms)

    def augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        mine = False  # the memory of x, to write to
        steps: list[
            Step
        ] = []  # drawn, but not done: several are done together, while the records are in the cache
        for transform in self.transforms:
            own = generator or getattr(transform, "generator", None)
            piecewise = transform if isinstance(transform, Piecewise) and transform.training else None
            if piecewise is not None:
                steps.append(piecewise.start(x, own))
                continue
            if steps:
                x, mine, steps = _done(x, steps, mine=mine), True, []
            if isinstance(transform, Transform) and transform.training:  # x was checked, once
                made = transform.work(x, own)
                x, mine = made, mine or made is not x
            else:
                x, mine = _called(transform, x, generator), False
        return _done(x, steps, mine=mine) if steps else x


class TwoViews(nn.Module):
    """Two independent augmentations of the same records: ``x -> (view, view)``.

    Args:
        transform: any :class:`Transform`, learned augmenter, or module, as in :class:`Compose`.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        transform = self.transform
        first = _called(transform, x, generator)
        if not isinstance(transform, Transform) or not transform.training:
            return first, _called(transform, x, generator)
        return first, transform.work(x, generator or transform.generator)  # x was checked, once


def paper_static(max_crop: float = 0.5, max_noise: float = 0.1) -> Compose:
    """The paper's static pipeline: per-lead zero crop, then white noise."""
    return Compose([ZeroCrop(max_crop), WhiteNoise(max_noise)])
