"""Augmentation networks that learn: their parameters are φ."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.augment.functional import (
    displacement_statistics,
    monotone_displacement,
    random_displacement,
    sample,
)
from ecgmeta.augment.functional.operation import check_finite, check_layout, wide
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained, read_config

SHORTEST = 211
"""Samples that the paper's four convolutions of 15 with stride 2, without padding, need."""
NETWORK_HZ = 25.0
"""Rate at which the default network reads a record: rate and amplitudes show; a quarter of the work at 100 Hz."""
UNIT_SECONDS = 0.05
"""SD of the displacement at magnitude 1, as the paper's at 100 Hz (5 samples)."""

Self = TypeVar("Self", bound="Augmenter")


@dataclass(frozen=True)
class Learned:
    """Something an augmenter has learned, as a reader would want to see it.

    Attributes:
        group: where it belongs: a stage, an operation.
        name: what it is.
        unit: ``"ms"``, ``"mV"``, ``"1"``, ...; ``"share"`` for probabilities.
        values: (n,), one a record (or a lead) where it depends on it, else one.
    """

    group: str
    name: str
    unit: str
    values: Tensor


class Augmenter(nn.Module, Pretrained):
    """Base of the learned augmenters: (batch, leads, samples) in mV in, the same out, and φ inside.

    In ``eval()`` it is the identity. :meth:`from_pretrained` returns it ready to augment: in train mode, with the statistics
    of its normalisation layers frozen, so that an example's augmentation does not depend on its batch.

    Attributes:
        leads: number of leads.
        fs: rate in Hz at which it was learned.
        input_fs: rate in Hz of the records it is given; see :meth:`at`.
        lead_names: of the leads, in their order, where known.
        mean, std: in mV; its network sees ``(x − mean)/std``.
        generator: default source of noise.
    """

    def __init__(
        self,
        leads: int,
        fs: float,
        input_fs: float | None,
        lead_names: Sequence[str] | None,
        mean: float,
        std: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for field, value in (("fs", fs), ("input_fs", fs if input_fs is None else input_fs), ("std", std)):
            if not 0 < value < math.inf:
                raise InputError(name, field, value, "a number above 0")
        if leads < 1:
            raise InputError(name, "leads", leads, "at least 1")
        if not math.isfinite(mean):
            raise InputError(name, "mean", mean, "a number in mV")
        if lead_names is not None and len(lead_names) != leads:
            raise InputError(name, "lead_names", list(lead_names), f"{leads} names")
        self.leads, self.fs, self.input_fs = leads, fs, input_fs or fs
        self.lead_names = None if lead_names is None else tuple(lead_names)
        self.mean, self.std, self.generator = mean, std, generator
        self.frozen_statistics = False

    @classmethod
    def from_pretrained(cls: type[Self], *args: Any, fs: float | None = None, **kwargs: Any) -> Self:
        """Load from a folder or hub id, ready to augment records at ``fs`` Hz (None: the rate it was saved for)."""
        model = super().from_pretrained(*args, **kwargs)
        model.frozen_statistics = True
        return (model if fs is None else model.at(fs)).train()

    def at(self: Self, fs: float, leads: Sequence[str] | None = None) -> Self:
        """A copy for records at ``fs`` Hz: what it learned in seconds stays the same in seconds.

        Args:
            fs: sampling rate of the records in Hz.
            leads: names of their leads, checked where the augmenter knows its own.

        Raises:
            InputError: other leads, or a parameter that cannot be converted (the message says which and why).
        """
        if leads is not None and self.lead_names is not None:
            own, other = ([name.lower() for name in names] for names in (self.lead_names, leads))
            if own != other:
                raise InputError(type(self).__name__, "leads", list(leads), list(self.lead_names))
        if not 0 < fs < math.inf:
            raise InputError(type(self).__name__, "fs", fs, "a sampling rate in Hz")
        converted = copy.deepcopy(self)
        converted.input_fs = fs
        # What save_pretrained writes: the converted augmenter is saved as such.
        saved = self._hub_mixin_config if isinstance(self._hub_mixin_config, dict) else {}
        converted._hub_mixin_config = {**saved, "input_fs": fs}
        return converted

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Any:
        """Everything random about one augmentation of x, drawn apart from its use, so that every derivative of one φ step
        sees the same augmentation."""
        raise NotImplementedError

    def forward(self, x: Tensor, noise: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
        """``x`` augmented with ``noise`` from :meth:`draw`, drawn here where it is None; x itself in ``eval()``."""
        self.check(x, finite=not self.training)
        if not self.training:
            return x
        if noise is None:
            return self.augment(x, self.draw(x, generator))
        self.check_noise(x, noise)
        return self.augment(x, noise)

    def augment(self, x: Tensor, noise: Any) -> Tensor:
        """``x``, whose layout was checked, under ``noise``; it looks for samples that are not finite by itself."""
        raise NotImplementedError

    def learned(self, x: Tensor) -> list[Learned]:
        """What it has learned, on the records x (batch, leads, samples)."""
        raise NotImplementedError

    def trace(self) -> dict[str, float]:
        """A few numbers of φ that are worth a curve over training."""
        raise NotImplementedError

    def check(self, x: Tensor, *, finite: bool = True) -> None:
        """Raise :class:`InputError` unless this augmenter can take x, and unless x is finite where that is asked for."""
        check_layout(type(self).__name__, x)
        if finite:
            check_finite(type(self).__name__, x)
        if x.shape[1] != self.leads:
            raise InputError(type(self).__name__, "leads of x", x.shape[1], self.leads)

    def check_noise(self, x: Tensor, noise: Any) -> None:
        """Raise :class:`InputError` unless ``noise`` may be what :meth:`draw` gives for x; here anything may."""

    def normalised(self, x: Tensor) -> Tensor:
        """``(x − mean)/std``, as its network sees records."""
        return x if (self.mean, self.std) == (0.0, 1.0) else (x - self.mean) / self.std

    def resample(self, x: Tensor, fs: float) -> Tensor:
        """x at ``fs`` Hz, for a network that learned there: averages where there are fewer samples, else lines between them."""
        n = max(1, round(x.shape[-1] * fs / self.input_fs))
        if n == x.shape[-1]:
            return x
        if x.shape[-1] % n == 0:
            return _averages(x, x.shape[-1] // n)
        return F.adaptive_avg_pool1d(x, n) if n < x.shape[-1] else F.interpolate(x, size=n, mode="linear")


def _averages(x: Tensor, factor: int) -> Tensor:
    """Means of ``factor`` samples. A matrix product of a few means at a time takes a tenth of the time of torch's pooling."""
    n = x.shape[-1] // factor
    block = math.gcd(n, 10)
    weights = torch.eye(block, dtype=x.dtype, device=x.device).repeat_interleave(factor, 0) / factor
    return (x.unflatten(-1, (n // block, factor * block)) @ weights).flatten(-2)


class OpinionConv(nn.Conv1d):
    """Torch's convolution of (batch, channels, 1, samples): half as much again as fast in channels-last layout."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(
            input, self.weight.unsqueeze(2), self.bias, (1, *self.stride), (0, int(self.padding[0]))
        )


class OpinionNetwork(nn.Sequential):
    """The paper's small network: four convolutions of 15 with stride 2, then an average over time.

    Args:
        leads: number of leads.
        padded: pad the convolutions, so that any length passes (the paper does not).

    Shapes: (batch, leads, samples) -> (batch, 32). Parameters have the names and shapes of one-dimensional layers.
    """

    def __init__(self, leads: int, *, padded: bool = True) -> None:
        layers: list[nn.Module] = []
        for channels in (leads, 32, 32, 32):
            conv = OpinionConv(channels, 32, 15, stride=2, padding=7 if padded else 0)
            layers += [conv, nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        last = input.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return super().forward(last).mean((-2, -1))


class LearnedWarp(Augmenter):
    """The paper's learned time warp (Raghu et al., 2021, sec. 5): how much to warp is learned, per record and overall.

    ``x(t + d(t))`` with d drawn from noise scaled by ``m(x)·g²``, where ``m(x) = 2σ(linear(net(x)))`` is a small
    convolutional network's opinion of the record and ``g`` a global magnitude. With 12 leads φ has 52,258 numbers.

    Args:
        leads: number of leads.
        magnitude: initial g. At 1, d has an SD of 50 ms (``"monotone"``) or 5 samples (``"paper"``).
        fs: sampling rate in Hz of the records it learns on.
        variant: ``"monotone"`` never folds time (:func:`~ecgmeta.augment.functional.monotone_displacement`), and its network
            reads the record at 25 Hz. ``"paper"`` is the paper's displacement and network: at g = 4, where the paper starts,
            40 % of steps fold back and the derivative through it is dominated by chaos.
        smoothness: correlation time of d in s (``"monotone"``).
        mean, std: in mV; the network sees ``(x − mean)/std``.
        lead_names: names of its leads, in order; kept with it.
        input_fs: rate of the records it is given, where that is not ``fs``; see :meth:`at`.
        generator: default source of noise.

    Shapes: (batch, leads, samples) in, the same out; mV; any floating dtype and device. At least one second of record; 211
    samples at ``fs`` for ``"paper"``. Magnitudes and positions are computed in float32 or wider.
    """

    def __init__(
        self,
        leads: int = 12,
        magnitude: float = 1.0,
        fs: float = 100.0,
        generator: torch.Generator | None = None,
        *,
        variant: Literal["monotone", "paper"] = "monotone",
        smoothness: float = 0.25,
        mean: float = 0.0,
        std: float = 1.0,
        lead_names: Sequence[str] | None = None,
        input_fs: float | None = None,
    ) -> None:
        super().__init__(leads, fs, input_fs, lead_names, mean, std, generator)
        if variant not in ("monotone", "paper"):
            raise InputError("LearnedWarp", "variant", repr(variant), "'monotone' or 'paper'")
        if not 0 < smoothness < math.inf:
            raise InputError("LearnedWarp", "smoothness", smoothness, "a time in s")
        if not math.isfinite(magnitude):
            raise InputError("LearnedWarp", "magnitude", magnitude, "a finite number")
        self.variant, self.smoothness = variant, smoothness
        self.net = OpinionNetwork(leads, padded=variant == "monotone")
        self.magnitude_layer = nn.Linear(32, 1)
        self.global_magnitude = nn.Parameter(torch.tensor([float(magnitude)]))

    @classmethod
    def paper(cls, **settings: Any) -> LearnedWarp:
        """The paper's: folding, and an initial global magnitude of 4."""
        return cls(**{"magnitude": 4.0, "variant": "paper", **settings})

    def check(self, x: Tensor, *, finite: bool = True) -> None:
        super().check(x, finite=finite)
        shortest = self.input_fs
        if self.variant == "paper":
            shortest = SHORTEST * self.input_fs / self.fs
        if x.shape[-1] < shortest:
            raise InputError("LearnedWarp", "samples of x", x.shape[-1], f"at least {math.ceil(shortest)}")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The noise of one augmentation of ``x``: (batch, samples), standard normal."""
        shape = _noise_shape(x)
        return torch.randn(shape, generator=generator or self.generator, device=x.device, dtype=wide(x.dtype))

    def check_noise(self, x: Tensor, noise: Any) -> None:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        if found != _noise_shape(x):
            raise InputError("LearnedWarp", "shape of noise", found, _noise_shape(x))

    def magnitude(self, x: Tensor) -> Tensor:
        """``m(x)·g²`` for each record: (batch, 1)."""
        # In the parameters' precision, under autocast too: a magnitude in bfloat16 would jump in steps of half a per cent.
        with torch.autocast(x.device.type, enabled=False):
            seen = self.resample(
                x.to(self.global_magnitude.dtype), self.fs if self.variant == "paper" else NETWORK_HZ
            )
            check_finite(type(self).__name__, x, means=seen)
            opinion = 2 * torch.sigmoid(self.magnitude_layer(self.net(self.normalised(seen))))
            return opinion * self.global_magnitude.square()

    def displacement(self, x: Tensor, noise: Tensor) -> Tensor:
        """d for each record: (batch, samples), in samples of x."""
        magnitude = self.magnitude(x).to(noise.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self.variant == "monotone":
                return monotone_displacement(
                    UNIT_SECONDS * magnitude, noise, fs=self.input_fs, smoothness=self.smoothness
                )
            # The paper's constants count samples, so d is made at the rate it was learned at, and then stretched.
            n, ratio = x.shape[-1], self.input_fs / self.fs
            own = random_displacement(magnitude, noise[:, : round(n / ratio)])
            return own if ratio == 1 else ratio * F.interpolate(own.unsqueeze(1), n, mode="linear").squeeze(1)

    def augment(self, x: Tensor, noise: Tensor) -> Tensor:
        d = self.displacement(x, noise)
        return sample(x, d + torch.arange(x.shape[-1], dtype=d.dtype, device=d.device))

    @torch.no_grad()
    def describe(self, x: Tensor, *, generator: torch.Generator | None = None) -> dict[str, float]:
        """What it does now to the records ``x``: magnitudes, and displacement statistics in ms and shares.

        Uses the frozen statistics of the normalisation layers, and changes nothing.
        """
        with evaluated(self):
            magnitude = self.magnitude(x)
            displacement = self.displacement(x, self.draw(x, generator))
        return {
            "global_magnitude": self.global_magnitude.item(),
            "magnitude_mean": float(magnitude.mean()),
            "magnitude_sd": float(magnitude.std(correction=0)),
            **displacement_statistics(displacement, self.input_fs),
        }

    def trace(self) -> dict[str, float]:
        return {"global_magnitude": self.global_magnitude.item()}

    @torch.no_grad()
    def learned(self, x: Tensor) -> list[Learned]:
        with evaluated(self):
            magnitude = self.magnitude(x).flatten()
        found = [Learned("time warp", "global magnitude g", "1", self.global_magnitude.detach())]
        if self.variant == "monotone":
            return [*found, Learned("time warp", "displacement, SD", "ms", 1000 * UNIT_SECONDS * magnitude)]
        return [*found, Learned("time warp", "magnitude m(x)·g²", "1", magnitude)]

    def __repr__(self) -> str:
        return (
            f"LearnedWarp(leads={self.leads}, fs={self.fs}, variant={self.variant!r}, "
            f"global_magnitude={self.global_magnitude.item():.3g})"
        )


def _noise_shape(x: Tensor) -> tuple[int, int]:
    return x.shape[0], x.shape[-1]


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` is in eval mode; afterwards each of its parts is as it was."""
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was in training:
            part.training = was


def load_augmenter(source: str | Path, *, fs: float | None = None) -> Augmenter:
    """The augmenter saved in a folder (a run's ``augmenter/``) or under a hub id, whichever class it is, at ``fs`` Hz.

    Raises:
        InputError: there is none, or none that these classes know.
    """
    from ecgmeta.augment.policy import LearnedPolicy

    classes: dict[str, type[Augmenter]] = {cls.__name__: cls for cls in (LearnedWarp, LearnedPolicy)}
    config = read_config(source, "augmenter")
    name = config.get("class", "LearnedWarp")  # what earlier versions saved without a name
    if name not in classes:
        raise InputError(source, "class", repr(name), f"one of {sorted(classes)}")
    return classes[name].from_pretrained(source, fs=fs)
