"""The look-ahead against finite differences of the whole procedure, and against a hypergradient where it is one step long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from problems import Quadratic, relative_error
from torch import Tensor, nn

from ecgmeta.bilevel import SGD, Adam, Identity, ModuleProblem, Optimizer, Unroll, hypergradient, lookahead
from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves

STEPS = 7


class _Weighted(nn.Module):
    """Three regressions behind batch normalisation and dropout, each with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))
        self.head, self.weights = nn.Linear(5, 3), nn.ParameterDict({"z": nn.Parameter(torch.zeros(3))})

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        losses = (self.head(self.encoder(x)) - y).square().mean(0)
        return (self.weights["z"].exp() * losses).mean()


class _Probe(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(5, 1)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self.head(self.encoder(batch[0])).squeeze(1) - batch[1][:, 0]).square().mean()


def _problem() -> ModuleProblem:
    torch.manual_seed(3)
    pretrain = _Weighted()
    # Statistics of the batch in both losses: running ones do not move in a look-ahead.
    return ModuleProblem(
        pretrain.double(), _Probe(pretrain.encoder).double(), hyper=pretrain.weights, finetune_mode="train"
    )


def _batch(k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    return torch.randn(16, 4, generator=g, dtype=torch.float64), torch.randn(
        16, 3, generator=g, dtype=torch.float64
    )


FINETUNE, TRAIN, VALIDATION = Unroll(2, Adam(0.05)), [_batch(100), _batch(101)], _batch(102)


def _value(problem: ModuleProblem, optimizer: Optimizer, phis: Sequence[Tree]) -> float:
    """The validation loss after a step along each φ, written down once more."""
    theta = detach(problem.theta)
    state = optimizer.init(theta)
    for k, phi in enumerate(phis):
        problem.at_step(5 + k)
        nodes = leaves(theta)
        theta, state = optimizer.update(
            theta, gradient(problem.pretrain_loss(nodes, phi, _batch(k)), nodes), state
        )
        theta, state = detach(theta), {name: detach(tree) for name, tree in state.items()}
    return float(FINETUNE(problem, theta, problem.psi, TRAIN, VALIDATION).validation_loss)


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.5), Adam(1e-2)])
def test_it_is_the_derivative_of_the_procedure_whole_and_in_its_last_steps(optimizer: Optimizer) -> None:
    problem = _problem()
    phi = {"weights.z": torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)}
    found = lookahead(
        problem, problem.theta, phi, problem.psi, pretrain_batches=[_batch(k) for k in range(STEPS)],
        train_batches=TRAIN, val_batch=VALIDATION, finetune=FINETUNE, optimizer=optimizer, start=5, tails=(1, 3),
    )  # fmt: skip
    assert found.ok
    assert float(found.finetune.validation_loss) == pytest.approx(
        _value(problem, optimizer, [phi] * STEPS), rel=1e-12
    )
    for length, slope in {STEPS: found.phi, **found.tails}.items():
        for k in range(3):
            ends = []
            for sign in (1, -1):
                moved = {"weights.z": phi["weights.z"].clone()}
                moved["weights.z"][k] += sign * 1e-5
                ends.append(_value(problem, optimizer, [phi] * (STEPS - length) + [moved] * length))
            assert float(slope["weights.z"][k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_after_one_gradient_step_it_is_the_hypergradient_with_the_step_for_an_inverse() -> None:
    problem = Quadratic.random(0)
    theta, phi = {"w": torch.ones(6, dtype=torch.float64)}, {"p": torch.ones(4, dtype=torch.float64)}
    psi = {"h": torch.zeros(3, dtype=torch.float64)}
    end = {"w": theta["w"] - 0.05 * problem.A @ (theta["w"] - problem.B @ phi["p"])}
    found = lookahead(
        problem, theta, phi, psi, pretrain_batches=[None], train_batches=["train"], val_batch="validation",
        finetune=Unroll(1, SGD(0.3)), optimizer=SGD(0.05),
    )  # fmt: skip
    one_step = hypergradient(
        problem, end, phi, psi, pretrain_batch=None, train_batches=["train"], val_batch="validation",
        finetune=Unroll(1, SGD(0.3)), inverse=Identity(0.05),
    )  # fmt: skip
    assert torch.allclose(found.theta["w"], end["w"], rtol=1e-14)
    assert relative_error(found.phi["p"], one_step.phi["p"]) < 1e-12


def test_no_steps_and_tails_longer_than_the_steps_are_refused() -> None:
    problem = Quadratic.random(0)
    theta, phi = {"w": torch.ones(6, dtype=torch.float64)}, {"p": torch.ones(4, dtype=torch.float64)}
    for batches, tails in (([], ()), ([None], (2,)), ([None], (0,))):
        with pytest.raises(ValueError, match=r"lookahead|tails"):
            lookahead(
                problem, theta, phi, {"h": torch.zeros(3, dtype=torch.float64)}, pretrain_batches=batches,
                train_batches=[], val_batch="validation", finetune=Unroll(0, SGD(0.3)), optimizer=SGD(0.05), tails=tails,
            )  # fmt: skip
