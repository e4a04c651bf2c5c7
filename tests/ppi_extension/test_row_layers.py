"""The network's linear layer and batch normalisation against torch's: values and first derivatives to the last bit, the
others in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call

from ppi_extension.layers import RowLinear, RowNorm, linear_way_back

ROWS, FEATURES = 7, 4
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "linear": (lambda: RowLinear(FEATURES, 5), lambda: nn.Linear(FEATURES, 5)),
    "norm": (lambda: RowNorm(FEATURES), lambda: nn.BatchNorm1d(FEATURES)),
}


def twins(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with one state."""
    torch.manual_seed(0)
    ours, theirs = (make().to(dtype) for make in LAYERS[kind])
    with torch.no_grad():
        for value in ours.parameters():
            value.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (2 + 3 * torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(layer: nn.Module, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a curved function of the layer's output with respect to its input and parameters, with its graph."""
    names = [name for name, _ in layer.named_parameters()]
    y = functional_call(layer, dict(zip(names, values[1:], strict=True)), (values[0],))
    return torch.autograd.grad((y.sin() + y).square().sum(), values, create_graph=True)


def like(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_values_first_derivatives_and_state_are_torchs(kind: str, train: bool, dtype: torch.dtype) -> None:
    found = []
    for layer in twins(kind, dtype):
        layer.train(train)
        x = rows(dtype).requires_grad_()
        for _ in range(3):
            y = layer(x)
        grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found.append([y, *grads, *layer.buffers()])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", LAYERS)
def test_second_and_forward_derivatives_are_torchs(kind: str) -> None:
    found = []
    for layer in twins(kind):
        values = (rows().requires_grad_(), *layer.parameters())
        u = like(values)
        reverse = torch.autograd.grad(gradient(layer, values), values, u)
        with forward_ad.dual_level():
            pairs = zip(values, u, strict=True)
            duals = tuple(forward_ad.make_dual(v.detach().requires_grad_(), d) for v, d in pairs)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradient(layer, duals)]
        for a, b in zip(reverse, tangents, strict=True):
            assert a is not None
            assert b is not None
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        found.append(reverse)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
def test_autograd_checks_every_derivative(kind: str) -> None:
    layer = twins(kind)[0]
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Any:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    values = (rows().requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, values, check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_way_back_is_linear_in_the_cotangent_and_keeps_nothing_of_it(kind: str) -> None:
    """Its derivative along u is the layer's own Jacobian-vector product, and none with respect to anything else is left."""
    layer = twins(kind)[0]
    values = (rows().requires_grad_(), *layer.parameters())
    u = like(values)
    names = [name for name, _ in layer.named_parameters()]
    with linear_way_back():
        y = functional_call(layer, dict(zip(names, values[1:], strict=True)), (values[0],))
    cotangent = torch.randn_like(y).requires_grad_()
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        back = torch.autograd.grad(y, values, cotangent, create_graph=True)
    assert not any(t.data_ptr() == cotangent.data_ptr() for t in kept)
    slopes, *others = torch.autograd.grad(back, (cotangent, *values), u, allow_unused=True)
    assert others == [None] * len(values)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v.detach(), d) for v, d in zip(values, u, strict=True)]
        moved = functional_call(layer, dict(zip(names, duals[1:], strict=True)), (duals[0],))
        torch.testing.assert_close(slopes, forward_ad.unpack_dual(moved).tangent, rtol=1e-12, atol=1e-12)


def test_a_single_row_has_no_batch_statistics() -> None:
    for layer in twins("norm"):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(rows()[:1])
