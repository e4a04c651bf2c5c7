"""A SimCLR small enough to be differentiated end to end: digits, a network of 6,700 weights, five augmentation magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.bilevel.trees import Tree
from ecgmeta.runtime.seeds import torch_generator
from ecgmeta.simclr.nt_xent import record_losses
from examples.studies.digits import CLASSES

WIDTHS = (64, 64, 32, 16)  # pixels, hidden, features, projection
MAGNITUDES = {"rotation": math.radians(15), "shift": 0.15, "scale": 0.15, "noise": 0.15, "gain": 0.3}
"""SD of each augmentation at φ = 0: radians, half widths of the image, log size, grey levels, log brightness."""
DECAY = 1e-3


@dataclass(frozen=True)
class Views:
    """Both views of some digits: ``rows`` (n,), and standard normal draws for the 2n of them."""

    rows: Tensor
    draws: Tensor  # (2n, 5): angle, two shifts, size, brightness
    noise: Tensor  # (2n, 8, 8)


class Contrast:
    """``L_PT``: NT-Xent of two views, each augmentation's SD being ``magnitude · e^φ``. ``L_FT``: a linear head, 10 classes.

    A fine-tuning batch is a tensor of rows. Everything is float64.
    """

    def __init__(self, seed: int, temperature: float = 0.5) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch_generator(seed, "digits"))
        self.x = (torch.tensor(data.images) / 16)[order]
        self.y = torch.tensor(data.target)[order]
        self.temperature = temperature

    def draw(self, seed: int, *names: str | int, rows: range, size: int) -> Views:
        """A batch of ``size`` of the digits in ``rows``, and the noise of its views."""
        generator = torch_generator(seed, *names)
        chosen = torch.randperm(len(rows), generator=generator)[:size] + rows.start
        draws = torch.randn(2 * size, 5, generator=generator, dtype=torch.float64)
        return Views(chosen, draws, torch.randn(2 * size, 8, 8, generator=generator, dtype=torch.float64))

    def augmented(self, phi: Tree, views: Views) -> Tensor:
        """(2n, 8, 8)."""
        sd = {name: MAGNITUDES[name] * phi["log"][k].exp() for k, name in enumerate(MAGNITUDES)}
        x = self.x[views.rows].repeat(2, 1, 1).unsqueeze(1)
        angle, size = sd["rotation"] * views.draws[:, 0], (sd["scale"] * views.draws[:, 3]).exp()
        shift = sd["shift"] * views.draws[:, 1:3]
        cos, sin = size * angle.cos(), size * angle.sin()
        maps = torch.stack(
            [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
        )
        turned = F.grid_sample(
            x, F.affine_grid(maps, list(x.shape), align_corners=False), align_corners=False
        )
        gain = (sd["gain"] * views.draws[:, 4]).exp().view(-1, 1, 1)
        return gain * turned.squeeze(1) + sd["noise"] * views.noise

    def encode(self, theta: Tree, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ theta["w1"] + theta["b1"])
        return torch.tanh(hidden @ theta["w2"] + theta["b2"])

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Views) -> Tensor:
        z = self.encode(theta, self.augmented(phi, batch)) @ theta["w3"] + theta["b3"]
        first, second = z.chunk(2)
        losses, _ = record_losses(first, second, self.temperature)
        return losses.mean() + DECAY * torch.stack([w.square().sum() for w in theta.values()]).sum()

    def features(self, theta: Tree, batch: Tensor) -> Tensor:
        return self.encode(theta, self.x[batch])

    def targets(self, batch: Tensor) -> Tensor:
        return F.one_hot(self.y[batch], CLASSES)

    def head_loss(self, features: Tensor, psi: Tree, batch: Tensor) -> Tensor:
        return F.cross_entropy(features @ psi["w"] + psi["b"], self.y[batch])

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Tensor) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def initial(self, seed: int, *names: str | int) -> tuple[Tree, Tree]:
        """θ and ψ."""
        generator = torch_generator(seed, "theta", *names)
        theta: Tree = {}
        for k, (rows, columns) in enumerate(pairwise(WIDTHS), 1):
            theta[f"w{k}"] = torch.randn(rows, columns, generator=generator, dtype=torch.float64) / rows**0.5
            theta[f"b{k}"] = torch.zeros(columns, dtype=torch.float64)
        head = torch.zeros(WIDTHS[2], CLASSES, dtype=torch.float64)
        return theta, {"w": head, "b": torch.zeros(CLASSES, dtype=torch.float64)}


def initial_phi() -> Tree:
    return {"log": torch.zeros(len(MAGNITUDES), dtype=torch.float64)}
