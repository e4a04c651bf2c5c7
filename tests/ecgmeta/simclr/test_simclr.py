"""SimCLR: NT-Xent against its definition, and views that fix all randomness."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ecgmeta.augment import Augmenter, LearnedPolicy, LearnedWarp, paper_static, score_surrogate
from ecgmeta.encoders import create_encoder
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import seeded
from ecgmeta.simclr import ExampleWeights, SimCLR, Views, draw_views
from ecgmeta.simclr.nt_xent import record_losses


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _x(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 220, generator=_generator(7), dtype=dtype)


def _model(augmenter: Augmenter | None = None, temperature: float = 0.5) -> SimCLR:
    encoder = create_encoder("resnet18", leads=3, width=2, generator=_generator())
    with seeded(0, "projector"):
        return SimCLR(encoder, augmenter, temperature=temperature, projection=8)


def _warp() -> LearnedWarp:
    with seeded(0, "warp"):
        return LearnedWarp(3)


def _nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Chen et al., 2020, eq. 1, by its sums: mean over i of ``−log(exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ))``."""
    z = [[float(v) for v in row] for row in torch.cat([first, second])]
    n = len(first)

    def similarity(i: int, k: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[k], strict=True))
        return dot / math.sqrt(sum(a * a for a in z[i]) * sum(b * b for b in z[k]))

    total = 0.0
    for i in range(2 * n):
        others = [math.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i]
        total -= similarity(i, (i + n) % (2 * n)) / temperature - math.log(sum(others))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_nt_xent_by_its_definition(temperature: float) -> None:
    model = _model(temperature=temperature).double()
    views = draw_views(_x(torch.float64), paper_static(), generator=_generator())
    first, second = model.projector(model.encoder(views.x)).detach().chunk(2)
    assert model(views).item() == pytest.approx(_nt_xent(first, second, temperature), rel=1e-9)


def test_the_head_is_the_papers_and_completes_4_7_million_parameters() -> None:
    model = SimCLR(create_encoder("resnet18"))
    head = [
        (layer.in_features, layer.out_features)
        for layer in model.projector.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert head == [(256, 256), (256, 128)]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in model.projector.modules())
    assert sum(p.numel() for p in model.projector.parameters()) == 98_688
    assert sum(p.numel() for p in model.parameters()) == 4_630_848 + 98_688


def test_the_loss_is_a_function_of_its_views() -> None:
    warp = _warp()
    model = _model(warp)
    views = draw_views(_x(), paper_static(), warp, generator=_generator())
    first = model(views)
    torch.manual_seed(12345)
    assert torch.equal(first, model(views))
    other = draw_views(_x(), paper_static(), warp, generator=_generator(1))
    assert not torch.equal(first, model(other))
    assert not torch.equal(first, model(Views(views.x, other.noise)))  # the warp's own noise matters


def test_an_augmenter_without_its_noise_is_refused_because_the_loss_would_draw_some() -> None:
    model = _model(_warp())
    with pytest.raises(InputError, match="SimCLR: noise of views: found None"):
        model(Views(torch.cat([_x(), _x()])))
    assert model.eval()(Views(torch.cat([_x(), _x()]))).isfinite()  # in eval() it is the identity


def test_a_gradient_reaches_the_encoder_the_head_and_the_augmenter() -> None:
    warp = _warp()
    model = _model(warp)
    model(draw_views(_x(), paper_static(), warp, generator=_generator())).backward()
    for part in (model.encoder, model.projector, warp):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    for weight in (
        warp.global_magnitude,
        warp.magnitude_layer.weight,
        warp.net[0].weight,
        model.encoder.get_parameter("stem.0.weight"),
    ):
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_both_views_go_through_the_encoder_together() -> None:
    model, seen = _model(), []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    model(draw_views(_x(), paper_static(), generator=_generator()))
    assert seen == [(8, 3, 220)]


def test_views_repeat_with_their_generator_and_differ_from_each_other() -> None:
    warp, static = _warp(), paper_static()
    views, again, other = (draw_views(_x(), static, warp, generator=_generator(s)) for s in (0, 0, 1))
    assert views.noise is not None
    assert again.noise is not None
    assert other.noise is not None
    assert torch.equal(views.x, again.x)
    assert torch.equal(views.noise, again.noise)
    assert not torch.equal(views.x, other.x)
    assert not torch.equal(views.noise, other.noise)
    assert not torch.equal(views.x[:4], views.x[4:])
    assert not torch.equal(views.noise[:4], views.noise[4:])


def test_the_static_transform_comes_first_and_the_warp_inside_the_loss() -> None:
    warp, static, g = _warp(), paper_static(), _generator(3)
    views = draw_views(_x(), static, warp, generator=_generator(3))
    augmented = static(torch.cat([_x(), _x()]), generator=g)
    assert torch.equal(views.x, augmented)  # static only
    assert views.noise is not None
    assert torch.equal(views.noise, warp.draw(augmented, g))
    model, seen = _model(warp), []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(views)
    assert torch.equal(seen[0], warp(augmented, views.noise))


def test_without_transforms_the_views_are_the_records_twice() -> None:
    views = draw_views(_x(), None)
    assert torch.equal(views.x, torch.cat([_x(), _x()]))
    assert views.noise is None


def test_the_record_losses_are_nt_xents_and_their_effects_those_of_leaving_a_record_out() -> None:
    z = torch.randn(2, 6, 5, generator=_generator(), dtype=torch.float64)
    losses, effects = record_losses(z[0], z[1], 0.4)
    assert losses.mean().item() == pytest.approx(_nt_xent(z[0], z[1], 0.4), rel=1e-9)
    total = 6 * losses.mean()
    for r in range(6):
        others = [i for i in range(6) if i != r]
        without = 5 * _nt_xent(z[0][others], z[1][others], 0.4)
        assert effects[r].item() == pytest.approx(total.item() - without, rel=1e-9)


@pytest.mark.slow
def test_a_policys_choices_get_the_derivative_of_the_expected_loss() -> None:
    """One gate, four records of two views: the exact sum over its 2⁸ outcomes against the mean of many draws."""
    # Each view's projection untouched and augmented.
    z = torch.randn(2, 8, 4, generator=_generator(1), dtype=torch.float64)
    gate = torch.tensor(math.log(0.6 / 0.4), dtype=torch.float64, requires_grad=True)
    expected: Tensor = torch.zeros(())
    for outcome in range(2**8):
        bits = torch.tensor([outcome >> i & 1 for i in range(8)])
        views = z[bits, torch.arange(8)]
        chance = torch.where(bits == 1, torch.sigmoid(gate), torch.sigmoid(-gate)).prod()
        expected = expected + chance * record_losses(views[:4], views[4:], 0.5)[0].mean()
    (exact,) = torch.autograd.grad(expected, gate)
    found = []
    for seed in range(3000):
        bits = (torch.rand(8, generator=_generator(seed), dtype=torch.float64) < 0.6).long()
        views = z[bits, torch.arange(8)]
        losses, effects = record_losses(views[:4], views[4:], 0.5)
        log_prob = torch.where(
            bits == 1, torch.nn.functional.logsigmoid(gate), torch.nn.functional.logsigmoid(-gate)
        )
        surrogate = score_surrogate(
            losses, log_prob.view(2, 4).sum(0), log_prob.detach().view(2, 4).sum(0), effects
        )
        found.append(float(torch.autograd.grad(surrogate, gate)[0]))
    mean, error = float(torch.tensor(found).mean()), float(torch.tensor(found).std()) / math.sqrt(3000)
    assert error < 0.1 * abs(exact)
    assert abs(mean - exact) < 4 * error


def test_simclr_adds_the_score_and_keeps_the_value() -> None:
    with seeded(0, "policy"):
        policy = LearnedPolicy(3, ops=("time_warp", "white_noise"), stages=1)
    model = _model(policy)
    views = draw_views(_x(), paper_static(), policy, generator=_generator())
    loss = model(views)
    plain = _model()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("augmenter.")})
    torch.testing.assert_close(loss, plain(Views(policy(views.x, views.noise))))
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def _weighted(rows: Tensor | None) -> tuple[SimCLR, Views]:
    encoder = create_encoder("resnet18", leads=3, width=2, generator=_generator())
    with seeded(0, "projector"):
        model = SimCLR(encoder, weights=ExampleWeights(10), projection=8).double()
    return model, draw_views(_x(torch.float64), paper_static(), rows=rows, generator=_generator())


def test_each_recordings_loss_counts_with_its_weight() -> None:
    rows = torch.tensor([7, 2, 9, 4])
    model, views = _weighted(rows)
    plain = model(views)
    assert model.weights is not None
    torch.testing.assert_close(plain, model.loss(*model.projector(model.encoder(views.x)).chunk(2)))
    with torch.no_grad():
        model.weights.logits.copy_(torch.arange(10.0) - 5)
    first, second = model.projector(model.encoder(views.x)).chunk(2)
    losses, _ = record_losses(first, second, 0.5)
    expected = (2 * torch.sigmoid(rows.double() - 5) * losses).mean()
    loss = model(views)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    grad = model.weights.logits.grad
    assert grad is not None
    assert sorted(grad.nonzero().flatten().tolist()) == [2, 4, 7, 9]


def test_weights_need_the_numbers_of_the_recordings_and_no_policy() -> None:
    model, views = _weighted(None)
    with pytest.raises(InputError, match="SimCLR: rows of views"):
        model(views)
    with pytest.raises(InputError, match="SimCLR: weights"):
        SimCLR(model.encoder, LearnedPolicy(3, ops=("time_warp",)), ExampleWeights(3))


def test_a_part_of_the_views_keeps_its_recordings_numbers() -> None:
    _, views = _weighted(torch.tensor([7, 2, 9, 4]))
    second = views.part(1, 2)
    assert second.rows is not None
    assert second.rows.tolist() == [9, 4]
    assert torch.equal(second.x, views.x[[2, 3, 6, 7]])
