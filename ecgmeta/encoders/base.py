"""What all encoders share: the leads and rate they are made for, how recordings were prepared, and their life on disk."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained


class Normalize(nn.Module):
    """``(x − mean) / sd`` with one mean and SD for all leads, or one a lead: constants of the training records.

    They are buffers of the encoder, so they are saved with it and can never be fitted again on test data.

    Shapes: (batch, leads, samples) in mV -> the same, without unit.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, leads: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(leads, 1))
        self.register_buffer("sd", torch.ones(leads, 1))

    def set(self, mean: Tensor | float, sd: Tensor | float) -> None:
        """Fix the constants: scalars, or (leads,) tensors; ``sd`` must be positive and finite."""
        mean, sd = torch.as_tensor(mean).reshape(-1, 1), torch.as_tensor(sd).reshape(-1, 1)
        if not bool(torch.isfinite(mean).all() & torch.isfinite(sd).all() & (sd > 0).all()):
            raise InputError(
                "normalisation", "mean, sd", (mean.flatten().tolist(), sd.flatten().tolist()), "sd > 0"
            )
        self.mean.copy_(mean.expand_as(self.mean))
        self.sd.copy_(sd.expand_as(self.sd))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sd


class Encoder(nn.Module, Pretrained):
    """Records to features. An architecture gives ``num_features``, :meth:`maps` and its constructor.

    Args:
        leads: number of input leads.
        fs: sampling rate in Hz of the records it is trained on; kept with it.
        lead_names: names of its leads, in order; kept with it.
        preprocess: how the recordings it is trained on were made (:class:`ecgmeta.data.preprocess.Preprocess`, as a
            dictionary); kept with it, for whoever reads others.

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features``). Any length.
    """

    num_features: int

    def __init__(
        self,
        leads: int = 12,
        fs: float = 100.0,
        lead_names: tuple[str, ...] | None = None,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.leads, self.fs, self.preprocess = leads, fs, dict(preprocess or {})
        # A saved configuration is JSON, which gives a tuple back as a list.
        self.lead_names = None if lead_names is None else tuple(lead_names)
        self.normalize = Normalize(leads)

    def initialise(self, generator: torch.Generator) -> Self:
        """He initialisation (fan out) of every convolution from ``generator``; returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
        return self

    def maps(self, x: Tensor) -> Tensor:
        """Feature maps (batch, num_features, frames) of normalised records (batch, leads, samples)."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (batch, num_features, frames) of records in mV, before pooling.

        Raises:
            InputError: another layout or number of leads, or no samples.
        """
        if x.ndim != 3 or x.shape[1] != self.leads or x.shape[2] < 1:
            raise InputError("encoder", "shape of x", tuple(x.shape), f"(batch, {self.leads}, samples)")
        return self.maps(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean(-1)


def as_image(x: Tensor) -> Tensor:
    """(batch, leads, samples) -> (batch, leads, 1, samples), channels last.

    Time is the second of two spatial axes, because two-dimensional convolutions have a channels-last layout, in which a
    training step takes about two thirds of its time with one-dimensional ones (measured on a CPU).
    """
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
