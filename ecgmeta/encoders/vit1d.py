"""A small transformer on patches of all leads."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.encoders.base import Encoder


class Attention(nn.Module):
    """``softmax(QKᵀ/√d) V`` in heads (Vaswani et al., 2017), (batch, frames, dim) -> the same.

    Written out, because the fused kernels have no second derivative.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, frames, dim / heads)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each on normalised input and added to what came in (pre-norm)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT1d(Encoder):
    """A transformer on patches in time (after Dosovitskiy et al., 2021), of about the size of the paper's ResNet-18.

    A patch is a quarter of a second of all leads; what is missing of the last one is the mean of the training records.
    Positions are sinusoids, so that any length has them. Features are the mean over patches: there is no class token.
    LayerNorm normalises each patch by itself, so a record's output never depends on its batch. There is no dropout: a loss is
    to be the same function for the same batch.

    Args:
        leads, fs, lead_names, preprocess: see :class:`~ecgmeta.encoders.base.Encoder`.
        width: of a head; there are 8.
        depth: number of blocks.
        patch: seconds.

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features`` = 8·width). Any length.
    """

    heads = 8

    def __init__(
        self,
        leads: int = 12,
        width: int = 32,
        depth: int = 6,
        patch: float = 0.25,
        fs: float = 100.0,
        lead_names: tuple[str, ...] | None = None,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(leads, fs, lead_names, preprocess)
        self.num_features = self.heads * width
        self.patch = max(1, round(patch * fs))
        self.embed = nn.Linear(leads * self.patch, self.num_features)
        self.blocks = nn.Sequential(*(Block(self.num_features, self.heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(self.num_features)

    def initialise(self, generator: torch.Generator) -> Self:
        """Weights N(0, 1/fan in) from ``generator``, biases 0; returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
                nn.init.zeros_(module.bias)
        return self

    def maps(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % self.patch))
        patches = (
            x.unflatten(-1, (-1, self.patch)).transpose(1, 2).flatten(2)
        )  # (batch, frames, leads · patch)
        tokens = self.embed(patches)
        tokens = tokens + sinusoids(tokens.shape[1], self.num_features, tokens)
        return self.norm(self.blocks(tokens)).transpose(1, 2)


def sinusoids(frames: int, dim: int, like: Tensor) -> Tensor:
    """(frames, dim) sines and cosines of ``frame · 10000^(−2j/dim)`` (Vaswani et al., 2017); dtype and device of ``like``."""
    steps = torch.arange(frames, dtype=like.dtype, device=like.device)
    rates = torch.exp(torch.arange(0, dim, 2, dtype=like.dtype, device=like.device) * (-math.log(1e4) / dim))
    angles = steps[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
