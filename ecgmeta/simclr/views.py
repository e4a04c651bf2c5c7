"""The batch of a SimCLR step: everything random about two views is drawn here, before any loss is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgmeta.augment import Augmenter, Transform
from ecgmeta.augment.policy import Draw


@dataclass(frozen=True)
class Views:
    """Two views of each record, all randomness fixed.

    Attributes:
        x: (2·batch, leads, samples) in mV: the first views, then the second, after the static transform.
        noise: what the learned augmenter draws for ``x``, or None without one.
        rows: (batch,), the numbers of the recordings in the pre-training data, where their weights are learned.
    """

    x: Tensor
    noise: Any = None
    rows: Tensor | None = None

    def part(self, number: int, parts: int) -> Views:
        """One of equal parts of the batch, both views of each of its records: what one of ``parts`` ranks works on."""
        records = torch.arange(len(self.x), device=self.x.device).view(2, parts, -1)[:, number].flatten()
        noise = self.noise
        if noise is not None:
            noise = noise.take(records) if isinstance(noise, Draw) else noise[records]
        rows = None if self.rows is None else self.rows.chunk(parts)[number]
        return Views(self.x[records], noise, rows)


def draw_views(
    x: Tensor,
    static: Transform | None,
    augmenter: Augmenter | None = None,
    *,
    rows: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Views:
    """Draw both views of ``x`` (batch, leads, samples).

    Static transforms come first and the learned one is applied to their output inside the loss, where it can be differentiated.
    """
    doubled = torch.cat([x, x])
    views = doubled if static is None else static.train()(doubled, generator=generator)
    return Views(views, None if augmenter is None else augmenter.draw(views, generator), rows)
