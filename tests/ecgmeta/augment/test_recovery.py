"""A nuisance that separates the fine-tuning data from the pre-training data, found by its hypergradient from both sides.

The fine-tuning recordings come from an amplifier of three times the gain, give or take a quarter. Pre-training classifies
clean recordings scaled by ``m·(1.25 − u/2)`` on fixed features that saturate, so that the weights it learns fit one amplitude;
the head of fine-tuning, which sees the outcome only, cannot put it right. At m = 3 both see the same law: the known optimum.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ecgmeta.augment import LearnedPolicy
from ecgmeta.augment.policy import Draw
from ecgmeta.augment.taskaug import TASKAUG_OPERATIONS
from ecgmeta.bilevel import SGD, ConjugateGradient, ImplicitHead, MetaState, Schedule, meta_train
from ecgmeta.bilevel.trees import Tree
from ecgmeta.data import SyntheticCohort
from ecgmeta.data.nuisances import Nuisances

GAIN, FEATURES, CLASSES = 3.0, 64, 5
Batch = tuple[Tensor, Draw]


class OtherAmplifier:
    """``L_PT``: a logistic layer on saturating features of scaled clean recordings; ``L_FT``: a linear head on its outputs."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        clean, other = (
            SyntheticCohort(1000, duration=2, seed=seed + part, nuisances=Nuisances.none())
            for part in (0, 1000)
        )
        self.x, self.y = torch.from_numpy(clean.signals), torch.from_numpy(clean.labels).float()
        self.policy = LearnedPolicy(ops=("taskaug_scale",), selector="chain", gate=False)
        self.filters = torch.randn(FEATURES, 12, 15, generator=generator) / 13
        self.mean, self.sd = torch.tensor(0.0), torch.tensor(1.0)
        plain = self.features_of(self.x)[:, :-1]
        self.mean, self.sd = plain.mean(0), plain.std(0)
        scale = TASKAUG_OPERATIONS["taskaug_scale"]
        x = torch.from_numpy(other.signals)
        amplified = scale.apply(x, torch.full((1, 1, 1), GAIN), scale.draw(x, generator), 100.0)
        self.z, self.labels = self.features_of(amplified), torch.from_numpy(other.labels).float()

    def features_of(self, x: Tensor) -> Tensor:
        saturated = torch.tanh(3 * F.conv1d(x, self.filters, stride=2))
        found = torch.cat([saturated.mean(-1), saturated.square().mean(-1)], 1)
        return F.pad((found - self.mean) / self.sd, (0, 1), value=1.0)

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Batch) -> Tensor:
        rows, draw = batch
        z = self.features_of(functional_call(self.policy, dict(phi), (self.x[rows], draw)))
        loss = F.binary_cross_entropy_with_logits(z @ theta["w"], self.y[rows])
        return loss + 3e-3 * theta["w"].square().sum()

    def features(self, theta: Tree, batch: None) -> Tensor:
        return self.z @ theta["w"]

    def targets(self, batch: None) -> Tensor:
        return self.labels

    def head_loss(self, features: Tensor, psi: Tree, batch: None) -> Tensor:
        return (features @ psi["w"] - self.labels).square().mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: None) -> Tensor:
        return self.head_loss(self.features(theta, batch), psi, batch)


class Batches:
    def __init__(self, problem: OtherAmplifier, seed: int) -> None:
        self.problem, self.seed = problem, seed

    def pretrain(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(10**6 * self.seed + step)
        rows = torch.randint(0, len(self.problem.x), (300,), generator=generator)
        return rows, self.problem.policy.draw(self.problem.x[rows], generator)

    def hyper(self, step: int, k: int = 0) -> Batch:
        return self.pretrain(step + 500_000)

    def train(self, step: int, k: int) -> None:
        return None

    def validation(self, step: int, k: int = 0) -> None:
        return None


def learned_gain(problem: OtherAmplifier, seed: int, start: float) -> float:
    """The magnitude after 400 pre-training steps, the geometric mean over the last 25 φ steps."""
    theta = {"w": torch.zeros(2 * FEATURES + 1, CLASSES, requires_grad=True)}
    phi = {"g": torch.full((1, 1, 1), math.sqrt(start), requires_grad=True)}
    state = MetaState(
        theta,
        phi,
        {"w": torch.zeros(CLASSES, CLASSES)},
        torch.optim.Adam(theta.values(), lr=3e-2),
        torch.optim.Adam(phi.values(), lr=0.1),
    )
    path = [
        2 * math.log(abs(float(phi["g"].detach())))
        for _ in meta_train(
            problem,
            state,
            Batches(problem, seed),
            schedule=Schedule(400, period=2, warmup=150),
            finetune=ImplicitHead("ridge", penalty=0.1),
            head_optimizer=SGD(1e-4),
            inverse=ConjugateGradient(30, damping=3e-3),
        )
    ]
    return math.exp(sum(path[-50:]) / 50)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.6, 12.0])
def test_the_learned_magnitude_moves_to_the_known_optimum_from_both_sides(start: float) -> None:
    # Seeds 0 to 5 gave 2.4 to 3.1. Ten iterations of conjugate gradients are too few: one of twelve runs then stays at 0.6.
    assert GAIN / 1.4 < learned_gain(OtherAmplifier(0), 0, start) < GAIN * 1.4
