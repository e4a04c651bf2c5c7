"""Two-stage problems on scikit-learn's 1,797 handwritten digits: 8 × 8 pixels, no download.

Pre-training classifies upright digits with a small network; fine-tuning fits a linear head on its features to few labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.bilevel.trees import Tree, detach
from ecgmeta.runtime.seeds import torch_generator

PRETRAIN, CLASSES = 500, 10
WIDTHS = (64, 64, 32)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Images (n, 8, 8) turned by angles (n,) in radians, with bilinear interpolation and black outside."""
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    across = (torch.arange(8, dtype=x.dtype) - 3.5) / 4  # pixel centres; the image spans −1 to 1
    u, v = across.view(1, 1, 8), across.view(1, 8, 1)
    grid = torch.stack([cos * u - sin * v, sin * u + cos * v], -1)
    return F.grid_sample(x.unsqueeze(1), grid, align_corners=False).squeeze(1)


@dataclass(frozen=True)
class Digits:
    """One draw of the data: disjoint upright digits for pre-training, labelled ones for fine-tuning, and the rest as test set.

    Attributes:
        x, y: of pre-training, (500, 8, 8) and (500,).
        tuning, tuning_y: the labelled digits of fine-tuning, all that φ may see.
        test, test_y: of the final score alone.
    """

    x: Tensor
    y: Tensor
    tuning: Tensor
    tuning_y: Tensor
    test: Tensor
    test_y: Tensor

    @classmethod
    def draw(cls, seed: int, labels: int, *, turn: float = 0.0, spread: float = 0.0) -> Digits:
        """Fine-tuning and test digits are turned by angles from N(turn, spread²), in degrees."""
        from sklearn.datasets import load_digits

        data = load_digits()
        x, y = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
        generator = torch_generator(seed, "digits")
        order = torch.randperm(len(y), generator=generator)
        x, y = x[order], y[order]
        angles = turn + spread * torch.randn(len(y) - PRETRAIN, generator=generator)
        turned = rotate(x[PRETRAIN:], angles * math.pi / 180)
        end = PRETRAIN + labels
        return cls(x[:PRETRAIN], y[:PRETRAIN], turned[:labels], y[PRETRAIN:end], turned[labels:], y[end:])


class DigitsProblem:
    """``L_FT``: cross-entropy of a linear head on the features; a fine-tuning batch is a tensor of rows of ``data.tuning``.

    ``L_PT`` has ``decay·‖θ‖²``, so that it has a minimum.
    """

    def __init__(self, data: Digits, decay: float) -> None:
        self.data, self.decay = data, decay

    def encode(self, theta: Tree, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ theta["w1"] + theta["b1"])
        return torch.tanh(hidden @ theta["w2"] + theta["b2"])

    def losses(self, theta: Tree, x: Tensor, y: Tensor) -> Tensor:
        """Of each digit, (n,): the network's own classifier."""
        return F.cross_entropy(self.encode(theta, x) @ theta["w3"] + theta["b3"], y, reduction="none")

    def penalty(self, theta: Tree) -> Tensor:
        return self.decay * torch.stack([value.square().sum() for value in theta.values()]).sum()

    def features(self, theta: Tree, batch: Tensor) -> Tensor:
        return self.encode(theta, self.data.tuning[batch])

    def targets(self, batch: Tensor) -> Tensor:
        return F.one_hot(self.data.tuning_y[batch], CLASSES)

    def head_loss(self, features: Tensor, psi: Tree, batch: Tensor) -> Tensor:
        return F.cross_entropy(features @ psi["w"] + psi["b"], self.data.tuning_y[batch])

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Tensor) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)

    def test_accuracy(self, theta: Tree) -> float:
        """In per cent, of a logistic head on frozen features, fitted on all labels and scored on the test digits."""
        theta = detach(theta)
        w = fit_head(self.encode(theta, self.data.tuning), self.data.tuning_y)
        scores = F.pad(self.encode(theta, self.data.test), (0, 1), value=1.0) @ w
        return 100 * float((scores.argmax(1) == self.data.test_y).float().mean())


class Rotation(DigitsProblem):
    """``L_PT``: upright digits rotated by ``mean + spread·ε``; φ is the mean (rad) and the log of the spread, a batch is ε."""

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Tensor) -> Tensor:
        turned = rotate(self.data.x, phi["mean"] + phi["log_spread"].exp() * batch)
        return self.losses(theta, turned, self.data.y).mean() + self.penalty(theta)


class ExampleWeights(DigitsProblem):
    """``L_PT``: upright digits, some with a wrong label, each with a weight ``2σ(z)``; φ is z, a batch selects rows."""

    def __init__(self, data: Digits, decay: float, labels: Tensor) -> None:
        super().__init__(data, decay)
        self.labels = labels

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Tensor) -> Tensor:
        losses = self.losses(theta, self.data.x[batch], self.labels[batch])
        return (2 * torch.sigmoid(phi["z"][batch]) * losses).mean() + self.penalty(theta)


def initial_theta(generator: torch.Generator) -> Tree:
    shapes = {f"w{k}": shape for k, shape in enumerate(zip(WIDTHS, (*WIDTHS[1:], CLASSES), strict=True), 1)}
    theta = {n: torch.randn(s, generator=generator) / s[0] ** 0.5 for n, s in shapes.items()}
    theta |= {f"b{n[1]}": torch.zeros(s[1]) for n, s in shapes.items()}
    return {name: value.requires_grad_() for name, value in theta.items()}


def initial_head() -> Tree:
    return {"w": torch.zeros(WIDTHS[-1], CLASSES), "b": torch.zeros(CLASSES)}


def fit_head(features: Tensor, y: Tensor, penalty: float = 1e-3) -> Tensor:
    """Weights (features + 1, classes) of logistic regression, the last row being the intercept."""
    z = F.pad(features, (0, 1), value=1.0)
    w = torch.zeros(z.shape[1], CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200)

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(z @ w, y) + penalty * w.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return w.detach()
