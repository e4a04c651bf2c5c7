"""Fine-tuning differentiated by a public library: K steps on head and encoder, and the gradient where the encoder started.

Another graph (TorchOpt keeps all K steps in one) and other optimisers than ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecgmeta.bilevel import SGD, Adam, ModuleProblem, Unroll

# Not a dependency of ours: it has wheels for some platforms only, and builds from source elsewhere.
torchopt = pytest.importorskip(
    "torchopt", reason="pip install torchopt, to compare with its unrolled gradients"
)

Batch = tuple[Tensor, Tensor]


class Pretrain(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch) -> Tensor:
        return self.encoder(batch[0]).square().mean()


class Finetune(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(3, 2)

    def forward(self, batch: Batch) -> Tensor:
        return (self.head(self.encoder(batch[0])) - batch[1]).square().mean()


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """TorchOpt takes Adam's bias corrections in the default type, whatever the parameters' is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


SGD_SETTINGS = {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02}
ADAM_SETTINGS = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.02}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(**SGD_SETTINGS), lambda net: torchopt.MetaSGD(net, **SGD_SETTINGS)),
        (Adam(**ADAM_SETTINGS), lambda net: torchopt.MetaAdam(net, **ADAM_SETTINGS)),  # type: ignore[arg-type]
    ],
)
def test_the_gradient_through_k_steps_is_torchopts(
    ours: Any, theirs: Callable[[nn.Module], Any], steps: int
) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
    net = Finetune(encoder)
    problem = ModuleProblem(Pretrain(encoder), net)
    draw = torch.Generator().manual_seed(1)
    batches: list[Batch] = [
        (
            torch.randn(6, 4, generator=draw),
            torch.randn(6, 2, generator=draw),
        )
        for _ in range(steps + 1)
    ]
    found = Unroll(steps, ours, encoder=True)(problem, problem.theta, problem.psi, batches[:-1], batches[-1])

    other = copy.deepcopy(net)
    start = dict(other.named_parameters())
    optimizer = theirs(other)
    for batch in batches[:-1]:
        optimizer.step(other(batch))
    loss = other(batches[-1])
    expected = dict(zip(start, torch.autograd.grad(loss, list(start.values())), strict=True))

    torch.testing.assert_close(found.validation_loss, loss.detach(), rtol=1e-12, atol=0)
    assert set(found.v) == {name for name in expected if name.startswith("encoder")}
    for name, value in found.v.items():
        assert float(value.norm()) > 1e-2
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
