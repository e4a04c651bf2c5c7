"""The layers with fast second derivatives against torch's own, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from ecgmeta.bilevel import DoubleBackward, ForwardOverReverse
from ecgmeta.bilevel.products import Products
from ecgmeta.encoders import Encoder, create_encoder
from ecgmeta.encoders.layers import Rectifier, TimeBatchNorm, TimeConv


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _norm(channels: int = 3, momentum: float | None = 0.3) -> TimeBatchNorm:
    layer = TimeBatchNorm(channels, eps=1e-2, momentum=momentum).double()
    with torch.no_grad():
        layer.weight.copy_(1 + 0.5 * _draw(channels, seed=1))
        layer.bias.copy_(_draw(channels, seed=2))
    return layer


@pytest.mark.parametrize(("kernel", "stride", "samples"), [(3, 1, 7), (5, 2, 9), (5, 2, 10), (1, 1, 4)])
def test_first_and_second_derivatives_of_the_convolution_are_right(
    kernel: int, stride: int, samples: int
) -> None:
    layer = TimeConv(2, 3, kernel, stride).double()

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight}, (x,))

    x, weight = _draw(2, 2, 1, samples).requires_grad_(), _draw(3, 2, 1, kernel, seed=1).requires_grad_()
    expected = F.conv2d(x, weight, stride=(1, stride), padding=(0, kernel // 2))
    torch.testing.assert_close(convolve(x, weight), expected)
    assert gradcheck(convolve, (x, weight))
    assert gradgradcheck(convolve, (x, weight))


def test_first_and_second_derivatives_of_batch_normalisation_are_right() -> None:
    layer = _norm()

    def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = tuple(v.detach().requires_grad_() for v in (_draw(4, 3, 1, 5), layer.weight, layer.bias))
    assert gradcheck(normalise, inputs)
    assert gradgradcheck(normalise, inputs)


@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=3) if any(w)])
def test_a_second_derivative_may_be_asked_for_any_part_alone(wanted: tuple[bool, ...]) -> None:
    """The layers skip what a pass does not need; asking for less must not change what is left."""
    block = nn.Sequential(TimeConv(2, 3, 3, 2), _norm()).double()
    plain = nn.Sequential(nn.Conv2d(2, 3, (1, 3), (1, 2), (0, 1), bias=False), nn.BatchNorm2d(3, eps=1e-2))
    plain.double().load_state_dict(block.state_dict())

    def second(module: nn.Module) -> tuple[Tensor, ...]:
        x = _draw(4, 2, 1, 9).requires_grad_()
        inputs = [x, *module.parameters()]
        out = module(x).pow(3).sum()
        first = torch.autograd.grad(out, inputs, create_graph=True)
        chosen = [v for v, w in zip([x, inputs[1], inputs[2]], wanted, strict=True) if w]
        weights = [_draw(*g.shape, seed=5 + k) for k, g in enumerate(first)]
        return torch.autograd.grad(first, chosen, grad_outputs=weights)

    for found, expected in zip(second(block), second(plain), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_as_torchs_do(momentum: float | None) -> None:
    ours, theirs = _norm(momentum=momentum), nn.BatchNorm2d(3, eps=1e-2, momentum=momentum).double()
    theirs.load_state_dict(ours.state_dict())
    for seed in range(3):
        x = 2 + 3 * _draw(4, 3, 1, 5, seed=seed)
        torch.testing.assert_close(ours(x), theirs(x))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_one_value_a_channel_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        _norm()(_draw(1, 3, 1, 1))


class _ByHand(nn.BatchNorm2d):
    """torch's layer has no third derivative."""

    def forward(self, input: Tensor) -> Tensor:
        centred = input - input.mean((0, 2, 3), keepdim=True)
        x = centred * (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).rsqrt()
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def test_third_derivatives_are_right() -> None:
    block = nn.Sequential(TimeConv(2, 3, 3, 2), _norm(), TimeConv(3, 2, 1)).double()
    plain = nn.Sequential(
        nn.Conv2d(2, 3, (1, 3), (1, 2), (0, 1), bias=False),
        _ByHand(3, eps=1e-2),
        nn.Conv2d(3, 2, 1, bias=False),
    )
    plain.double().load_state_dict(block.state_dict())
    found = []
    for module in (block, plain):
        x = _draw(4, 2, 1, 9).requires_grad_()
        inputs, value = [x, *module.parameters()], module(x).pow(3).sum()
        for _ in range(2):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, inputs, create_graph=True))
        found.append(torch.autograd.grad(value, inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def _native(encoder: Encoder) -> Encoder:
    """The same network with torch's layers."""
    for module in encoder.modules():
        if isinstance(module, TimeConv):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif isinstance(module, TimeBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return encoder


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_encoders_products_are_those_of_torchs_layers(norm: str) -> None:
    """Also under forward-mode differentiation, where torch's own layers run; GroupNorm has no forward derivative."""
    x, shift = _draw(6, 2, 60), {"shift": torch.zeros(2, 1, dtype=torch.float64)}
    points = []
    routes: list[Products] = [DoubleBackward, ForwardOverReverse]
    for native, route in itertools.product([False, True], routes):
        encoder = create_encoder(
            "resnet18", leads=2, width=4, norm=norm, generator=torch.Generator().manual_seed(0)
        )
        encoder = (_native(encoder) if native else encoder).double().train()
        theta = dict(encoder.named_parameters())

        def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], encoder: Encoder = encoder) -> Tensor:
            return functional_call(encoder, theta, (x + phi["shift"] * x.square(),)).pow(2).mean()

        if norm == "group" and route is ForwardOverReverse:
            continue
        u = {name: _draw(*value.shape, seed=k) for k, (name, value) in enumerate(theta.items())}
        point = route(loss, theta, shift)
        points.append({**point.hvp(u), **point.mixed(u), **{f"g {n}": g for n, g in point.gradient.items()}})
    for found in points[:-1]:
        torch.testing.assert_close(found, points[-1])


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training_under_autocast_is_as_precise_as_with_torchs_layers(norm: str) -> None:
    x = _draw(8, 2, 80).float()

    def slope(native: bool, low: bool) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        encoder = create_encoder("resnet18", leads=2, width=8, norm=norm, generator=generator)
        encoder = _native(encoder) if native else encoder
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            value = encoder(x).float().pow(2).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(encoder.parameters()))])

    exact = slope(native=True, low=False)
    ours, theirs = (float((slope(native, True) - exact).norm() / exact.norm()) for native in (False, True))
    assert 1e-3 < ours < 1.3 * theirs


def test_a_torch_that_keeps_its_engine_to_itself_gives_the_same_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the layers ask of torch beyond its public interface saves time and memory, and changes nothing else."""
    x = _draw(4, 2, 40)
    encoder = (
        create_encoder("resnet18", leads=2, width=4, generator=torch.Generator().manual_seed(0))
        .double()
        .train()
    )
    theta = dict(encoder.named_parameters())
    u = {name: _draw(*value.shape, seed=k) for k, (name, value) in enumerate(theta.items())}

    def product() -> dict[str, Tensor]:
        def loss(theta: dict[str, Tensor], phi: dict[str, Tensor]) -> Tensor:
            return functional_call(encoder, theta, (x * phi["gain"],)).pow(2).mean()

        point = DoubleBackward(loss, theta, {"gain": torch.ones(2, 1, dtype=torch.float64)})
        return {**point.hvp(u), **point.mixed(u)}

    expected = product()
    monkeypatch.delattr(torch._C, "_will_engine_execute_node")
    monkeypatch.delattr(torch._C._autograd, "_make_saved_tensor", raising=False)
    for name, value in product().items():
        torch.testing.assert_close(value, expected[name])


def test_a_pass_that_was_broken_off_leaves_no_debt_behind() -> None:
    block = nn.Sequential(TimeConv(2, 3, 3), _norm(), Rectifier(), TimeConv(3, 2, 3)).double()
    x = _draw(4, 2, 1, 9).requires_grad_()
    out = block(x)
    first = torch.autograd.grad(out.pow(3).sum(), [x, *block.parameters()], create_graph=True)
    weights = [_draw(*g.shape, seed=k) for k, g in enumerate(first)]

    def second() -> Tensor:
        return torch.autograd.grad(first, x, grad_outputs=weights, retain_graph=True)[0]

    expected = second()

    def fail(grad: Tensor) -> Tensor:
        raise KeyboardInterrupt

    handle = out.register_hook(fail)  # between the second derivatives and the layers' own backward
    with pytest.raises(KeyboardInterrupt):
        second()
    handle.remove()
    torch.testing.assert_close(second(), expected, rtol=0, atol=0)
