"""The engine alone: which training examples to trust (hyper-cleaning). Seconds on a laptop.

A linear encoder is pre-trained on regression targets of which a third are wrong; φ is one log-weight an example, learned
from what a head fine-tuned on a few clean targets needs. Wrong examples end with smaller weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel import SGD, MetaState, Neumann, Schedule, Unroll, meta_train
from ecgmeta.bilevel.trees import Tree


class TrustedExamples:
    """``L_PT = mean σ(φᵢ)(xᵢᵀW − yᵢ)² + ½·10⁻²‖W‖²``; fine-tuning fits a scale and an offset to clean targets."""

    def __init__(self, generator: torch.Generator) -> None:
        truth = torch.randn(8, generator=generator)
        self.x = torch.randn(120, 8, generator=generator)
        self.y = self.x @ truth
        self.wrong = torch.arange(120) % 3 == 0
        self.y[self.wrong] += 4 * torch.randn(int(self.wrong.sum()), generator=generator)
        self.clean = {name: torch.randn(40, 8, generator=generator) for name in ("train", "validation")}
        self.targets = {name: x @ truth for name, x in self.clean.items()}

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        errors = (self.x @ theta["w"] - self.y).square()
        return (phi["logit"].sigmoid() * errors).mean() + 0.005 * theta["w"].square().sum()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        prediction = psi["scale"] * (self.clean[batch] @ theta["w"]) + psi["offset"]
        return (prediction - self.targets[batch]).square().mean()


class Batches:
    """Everything at every step."""

    def pretrain(self, step: int) -> None:
        return None

    def hyper(self, step: int, k: int) -> None:
        return None

    def train(self, step: int, k: int) -> str:
        return "train"

    def validation(self, step: int, k: int) -> str:
        return "validation"


def main() -> None:
    problem = TrustedExamples(torch.Generator().manual_seed(0))
    theta = {"w": torch.zeros(8, requires_grad=True)}
    phi = {"logit": torch.zeros(120, requires_grad=True)}
    psi = {"scale": torch.ones(()), "offset": torch.zeros(())}
    state = MetaState(
        theta, phi, psi, torch.optim.SGD(theta.values(), lr=0.2), torch.optim.Adam(phi.values(), lr=0.05)
    )
    loop = meta_train(
        problem,
        state,
        Batches(),
        schedule=Schedule(steps=1500, period=5, warmup=50),
        finetune=Unroll(1, SGD(0.01)),
        head_optimizer=SGD(0.01),
        inverse=Neumann(terms=20, step_size=0.3),
    )
    for report in loop:
        if report.hyper is not None and (report.step + 1) % 300 == 0:
            print(f"step {report.step + 1}: validation loss {report.diagnostics['validation_loss']:.4f}")
    weight = phi["logit"].detach().sigmoid()
    lowest = weight.argsort()[: int(problem.wrong.sum())]
    print(
        f"of the {len(lowest)} lowest weights, {int(problem.wrong[lowest].sum())} are wrong examples (by chance: 13)"
    )
    print(
        f"mean weight of right examples {weight[~problem.wrong].mean():.2f}, of wrong ones {weight[problem.wrong].mean():.2f}"
    )


if __name__ == "__main__":
    main()
