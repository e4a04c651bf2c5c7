"""The learned policy: what it draws, that only this is computed, and every derivative of φ against enumeration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import REAL, generator_of, policy_of, signals
from torch import Tensor
from torch.func import functional_call

from ecgmeta.augment import LearnedPolicy, LearnedWarp, load_augmenter, score_surrogate
from ecgmeta.augment.functional import OPERATIONS, Noise, Operation
from ecgmeta.bilevel import DoubleBackward, ForwardOverReverse
from ecgmeta.runtime.seeds import seeded

TOYS = ("toy_scale", "toy_add", "toy_square")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three operations without noise of their own, so that expectations are finite sums; the sizes they were called with."""
    sizes: list[int] = []

    def counted(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def operation(x: Tensor, magnitude: Tensor, *, noise: Tensor) -> Tensor:
            sizes.append(len(x))
            return function(x, magnitude)

        return operation

    for name, function in (
        ("toy_scale", lambda x, m: x * (1 + m)),
        ("toy_add", lambda x, m: x + m),
        ("toy_square", lambda x, m: x + m * x.square()),
    ):
        spec = Operation(
            name, counted(function), Noise("uniform", (1, 1)), "1", 1.0, math.inf, True, False, 0
        )
        monkeypatch.setitem(OPERATIONS, name, spec)
    return sizes


def test_choices_and_gates_have_the_law_that_phi_says() -> None:
    policy = policy_of(stages=2, ops=REAL, probability=0.3)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, 0.0]]))
        policy.gate_logits[1] = 1.5
    n = 20_000
    draw = policy.draw(torch.zeros(n, 3, 10), generator_of())
    for stage in range(2):
        expected = policy.logits[stage].softmax(0)
        found = torch.bincount(draw.choice[:, stage], minlength=4) / n
        # Four standard errors of a binomial share.
        assert ((found - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()
        gate = torch.sigmoid(torch.tensor((math.log(0.3 / 0.7), 1.5)[stage]))
        assert abs(draw.applied[:, stage].float().mean() - gate) < 4 * (gate * (1 - gate) / n).sqrt()
    # Neither the stages nor gate and choice know of each other.
    together = (draw.choice[:, 0] == 1) & (draw.choice[:, 1] == 0)
    expected = policy.logits[0].softmax(0)[1] * policy.logits[1].softmax(0)[0]
    assert abs(together.float().mean() - expected) < 0.015


def test_the_log_probability_is_that_of_the_draw(toys: list[int]) -> None:
    policy = policy_of(stages=2, ops=TOYS, probability=0.3)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(2, 3, generator=generator_of(1)))
        policy.gate_logits.copy_(torch.randn(2, 3, 1, generator=generator_of(2)))
    draw = policy.draw(signals(50), generator_of())
    for i in range(50):
        expected = 0.0
        for stage in range(2):
            o = int(draw.choice[i, stage])
            gate = float(torch.sigmoid(policy.gate_logits[stage, o, 0]))
            expected += math.log(float(policy.logits[stage].softmax(0)[o]))
            expected += math.log(gate if draw.applied[i, stage] else 1 - gate)
        assert draw.log_prob[i].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(policy.log_prob(draw), draw.log_prob)


def test_only_what_was_chosen_is_computed_and_the_rest_is_left_alone(toys: list[int]) -> None:
    policy, x = policy_of(stages=2, ops=(*TOYS, "identity"), gate=True), signals(64)
    draw = policy.draw(x, generator_of())
    toys.clear()
    out = policy(x, draw)
    assert sum(toys) == int((draw.applied & (draw.choice != 3)).sum())
    untouched = ~(draw.applied & (draw.choice != 3)).any(1)
    assert 0 < untouched.sum() < 64
    assert torch.equal(out[untouched], x[untouched])
    assert (out[~untouched] != x[~untouched]).flatten(1).any(1).all()


def test_each_record_gets_its_own_operations_in_the_order_of_the_stages(toys: list[int]) -> None:
    policy, x = policy_of(stages=2, ops=TOYS, gate=False, start=0.5), signals(32)
    draw = policy.draw(x, generator_of())
    out = policy(x, draw)
    plain = (lambda v: v * 1.5, lambda v: v + 0.5, lambda v: v + 0.5 * v.square())
    for i in range(32):
        first, second = (plain[int(o)] for o in draw.choice[i])
        torch.testing.assert_close(out[i], second(first(x[i])))


def _loss(x: Tensor, w: Tensor) -> Tensor:
    """One loss a record, neither linear nor even in it."""
    return (x * w).sum((1, 2)).tanh() + 0.1 * (x * w).square().sum((1, 2))


def _expected(x: Tensor, w: Tensor, policy: LearnedPolicy, phi: dict[str, Tensor]) -> Tensor:
    """The expected loss of one record under one stage of gated toys, by summing over all it can become."""
    chances, gates = phi["logits"][0].softmax(0), torch.sigmoid(phi["gate_logits"][0, :, 0])
    m = phi["g"][0, :, 0].square()
    outcomes = torch.stack([x * (1 + m[0]), x + m[1], x + m[2] * x.square()])
    changed, same = _loss(outcomes.flatten(0, 1), w), _loss(x, w)
    return (chances * (gates * changed + (1 - gates) * same)).sum()


def test_first_and_second_derivatives_are_those_of_the_expectation(toys: list[int]) -> None:
    """∂φ and ∂θ∂φ of the surrogate over many draws against the exact sum: within four standard errors, every coordinate."""
    policy = policy_of(stages=1, ops=TOYS, start=0.4, probability=0.6).double()
    phi = {
        "logits": torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64),
        "gate_logits": torch.tensor([[[0.4], [-0.3], [0.1]]], dtype=torch.float64),
        "g": torch.tensor([[[0.6], [0.7], [0.5]]], dtype=torch.float64),
    }
    phi = {name: value.requires_grad_() for name, value in phi.items()}
    policy.load_state_dict(phi)
    x = signals(1, 3, 5, torch.float64) * 0.4
    w = torch.randn(3, 5, generator=generator_of(3), dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, 5, generator=generator_of(4), dtype=torch.float64)

    def both(loss: Tensor) -> Tensor:
        first = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        (slope,) = torch.autograd.grad(loss, w, create_graph=True)
        mixed = torch.autograd.grad((slope * u).sum(), list(phi.values()))
        return torch.cat([value.detach().flatten() for value in (*first, *mixed)])

    exact = both(_expected(x, w, policy, phi))
    copies, repeats = 200, 150

    def estimate(seed: int) -> Tensor:
        many = x.expand(copies, -1, -1)
        draw = policy.draw(many, generator_of(seed))
        out = functional_call(policy, phi, (many, draw))
        return both(
            score_surrogate(
                _loss(out, w), functional_call(_LogProb(policy), _prefixed(phi), (draw,)), draw.log_prob
            )
        )

    found = torch.stack([estimate(seed) for seed in range(repeats)])
    error = found.std(0) / math.sqrt(repeats)
    assert (exact.abs() > 1e-3).sum() >= 17  # of 18: nothing is right because it is 0
    assert ((found.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.2 * exact.abs()).sum() > 10  # and most are known well


class _LogProb(torch.nn.Module):
    def __init__(self, policy: LearnedPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, draw: Any) -> Tensor:
        return self.policy.log_prob(draw)


def _prefixed(phi: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"policy.{name}": value for name, value in phi.items()}


def test_the_baseline_leaves_the_mean_and_takes_most_of_the_noise() -> None:
    """Losses of 100 ± 1: without the baseline the score's noise would be a hundred times what it is."""
    n = 4000
    log_prob = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    losses = 100 + torch.randn(n, generator=generator_of(), dtype=torch.float64)
    value = score_surrogate(losses, log_prob, log_prob.detach())
    assert value.item() == losses.mean().item()
    (weights,) = torch.autograd.grad(value, log_prob)
    torch.testing.assert_close(weights * n, (losses - losses.mean()) * n / (n - 1))


def test_the_surrogate_with_its_draw_held_is_a_function_of_phi_that_differences_agree_with(
    toys: list[int],
) -> None:
    policy, x = policy_of(stages=2, ops=TOYS).double(), signals(dtype=torch.float64) * 0.1
    draw = policy.draw(x, generator_of())
    w = torch.randn(3, 200, generator=generator_of(3), dtype=torch.float64) * 0.1

    def value() -> Tensor:
        return score_surrogate(_loss(policy(x, draw), w), policy.log_prob(draw), draw.log_prob)

    value().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        flat, step = parameter.detach().view(-1), 1e-6
        for index in range(len(flat)):
            with torch.no_grad():
                flat[index] += step
                above = value()
                flat[index] -= 2 * step
                below = value()
                flat[index] += step
            numeric = float(above - below) / (2 * step)
            assert parameter.grad.flatten()[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("magnitude", ["global", "lead", "class", "network"])
def test_every_route_to_the_second_derivatives_agrees_through_a_policy(magnitude: str) -> None:
    x = torch.nn.functional.avg_pool1d(signals(6, 3, 240, torch.float64), 9, 1, 4)
    policy = policy_of(
        ops=("time_warp", "white_noise", "time_shift"), magnitude=magnitude, start=0.2
    ).double()
    draw = policy.train().draw(x, generator_of(1))
    phi = {name: value.detach() for name, value in policy.named_parameters()}
    theta = {"w": torch.randn(3, 3, 5, generator=generator_of(2), dtype=torch.float64)}

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, w: Tensor) -> Tensor:
            out = torch.nn.functional.conv1d(self.policy(x, draw), w).tanh().square().mean((1, 2))
            return score_surrogate(out, self.policy.log_prob(draw), draw.log_prob)

    module = Loss()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor]) -> Tensor:
        return functional_call(module, _prefixed(phi), (theta["w"],))

    u = {"w": torch.randn(3, 3, 5, generator=generator_of(3), dtype=torch.float64)}
    exact, forward = DoubleBackward(loss, theta, phi).mixed(u), ForwardOverReverse(loss, theta, phi).mixed(u)
    for name, value in forward.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-8, atol=1e-13)
    for name in ("g", "logits", "gate_logits"):
        assert exact[name].abs().max() > 0, name


def test_a_policy_of_the_papers_warp_is_the_learned_warp() -> None:
    with seeded(0, "policy"):
        policy = LearnedPolicy.paper(leads=3)
    with seeded(1, "warp"):
        warp = LearnedWarp.paper(leads=3)
    assert sum(p.numel() for p in LearnedPolicy.paper().parameters()) == 52_258
    assert policy.g.item() == warp.global_magnitude.item() == 4
    # The policy's network reads the record at 25 Hz and pads; with the same opinion of a record they are the same.
    with torch.no_grad():
        for module in (policy, warp):
            module.magnitude_layer.weight.zero_()
            module.magnitude_layer.bias.fill_(-0.3)
    x = signals(4, 3, 256)
    draw = policy.draw(x, generator_of(2))
    rows, noise = draw.noise[0][0]
    assert rows.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(policy(x, draw), warp(x, noise))


@pytest.mark.parametrize(
    ("magnitude", "shape"), [("global", (2, 4, 1)), ("lead", (2, 4, 3)), ("class", (2, 4, 2))]
)
def test_magnitudes_are_the_typical_ones_times_g_squared(magnitude: str, shape: tuple[int, ...]) -> None:
    policy = policy_of(ops=REAL, magnitude=magnitude, start=2.0)
    assert policy.g.shape == shape
    with torch.no_grad():
        policy.g[1, 0, -1] = 3.0
    kind = torch.tensor([0, 1])
    found = policy.magnitude(signals(2), kind)
    assert found.shape == (2, 2, 4, shape[2] if magnitude == "lead" else 1)
    typical = OPERATIONS["time_warp"].typical
    if magnitude == "lead":
        torch.testing.assert_close(
            found[
                0,
                1,
                0,
                :,
            ],
            typical * torch.tensor([2.0, 2.0, 9.0]),
        )
    else:
        expected = torch.tensor([2.0, 9.0] if magnitude == "class" else [9.0, 9.0])
        torch.testing.assert_close(found[:, 1, 0, 0], typical * expected)


def test_a_limited_magnitude_stays_below_its_limit_and_starts_where_it_should() -> None:
    policy = policy_of(ops=("random_resized_crop",), start=1e-3)
    limit, typical = OPERATIONS["random_resized_crop"].limit, OPERATIONS["random_resized_crop"].typical
    small = policy.magnitude(signals(1), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(small, torch.full_like(small, 1e-3 * typical), rtol=1e-3, atol=0)
    with torch.no_grad():
        policy.g.fill_(100.0)
    large = policy.magnitude(signals(1), torch.zeros(1, dtype=torch.long))
    assert (large <= limit).all()
    assert policy(signals(), generator=generator_of()).isfinite().all()


def test_labels_choose_the_class_and_are_not_needed() -> None:
    policy, x = policy_of(magnitude="class"), signals(400)
    labels = torch.arange(400) % 2
    assert torch.equal(policy.draw(x, generator_of(), labels=labels).kind, labels)
    assert 120 < int(policy.draw(x, generator_of()).kind.sum()) < 280


def test_a_network_gives_each_record_its_own_magnitudes() -> None:
    policy, x = policy_of(ops=REAL, magnitude="network", start=0.5), signals(5)
    found = policy.magnitude(x, torch.zeros(5, dtype=torch.long))
    assert found.shape == (5, 2, 4, 1)
    assert found[:, 0, 0, 0].unique().numel() == 5
    assert (
        (found[:, 0, 0] > 0) & (found[:, 0, 0] < OPERATIONS["time_warp"].typical)
    ).all()  # 0 < 2σ < 2, at 0.5


def test_equal_generators_give_equal_augmentations_and_evaluation_is_the_identity() -> None:
    policy, x = policy_of(), signals()
    assert torch.equal(policy(x, generator=generator_of(1)), policy(x, generator=generator_of(1)))
    assert not torch.equal(policy(x, generator=generator_of(1)), policy(x, generator=generator_of(2)))
    assert policy.eval()(x) is x


def test_saving_and_loading_gives_the_same_policy_whoever_loads_it(tmp_path: Path) -> None:
    policy = policy_of(magnitude="network", ops=REAL, settings={"time_warp": {"smoothness": 1.0}}, fs=250.0)
    policy(signals(), generator=generator_of())  # its running statistics move
    policy.save_pretrained(tmp_path / "policy")
    x = signals()
    for loaded in (LearnedPolicy.from_pretrained(tmp_path / "policy"), load_augmenter(tmp_path / "policy")):
        assert isinstance(loaded, LearnedPolicy)
        assert (loaded.ops, loaded.fs, loaded.settings) == (REAL, 250.0, {"time_warp": {"smoothness": 1.0}})
        assert all(torch.equal(v, policy.state_dict()[k]) for k, v in loaded.state_dict().items())
        draw = loaded.draw(x, generator_of(3))
        torch.testing.assert_close(
            loaded(x[:1], draw.take(torch.tensor([0])))[0], loaded(x, draw)[0], rtol=1e-4, atol=1e-4
        )


def test_a_part_of_a_draw_is_what_its_records_get() -> None:
    policy, x = policy_of(magnitude="network", ops=REAL), signals(9)
    policy.frozen_statistics = True
    draw = policy.train().draw(x, generator_of(3))
    records = torch.tensor([7, 2, 4])
    out = policy(x[records], draw.take(records))
    torch.testing.assert_close(out, policy(x, draw)[records], rtol=1e-4, atol=1e-5)
    assert torch.equal(policy.log_prob(draw)[records], policy.log_prob(draw.take(records)))


def test_times_stay_the_same_times_at_another_rate() -> None:
    """A shift and a warp learned at 100 Hz, of a smooth record at 100 and at 500 Hz: the same to interpolation."""
    t = torch.arange(4996, dtype=torch.float64) / 500
    fine = torch.stack([torch.sin(2 * math.pi * 0.7 * t + p) for p in (0.0, 1.0, 2.0)]).unsqueeze(0)
    coarse = fine[..., ::5]
    policy = policy_of(ops=("time_shift", "time_warp"), selector="chain", gate=False, start=1.0).double()
    draw = policy.draw(coarse, generator_of(1))
    at_500 = policy.at(500.0)
    assert (at_500.fs, at_500.input_fs) == (100.0, 500.0)
    other = at_500.draw(fine, generator_of(1))
    # The same noise: the warp uses its first harmonics only.
    held = tuple(
        tuple((rows, z if z is None or z.shape[-1] == 1 else _padded(z, 4996)) for rows, z in stage)
        for stage in draw.noise
    )
    slow, fast = policy(coarse, draw), at_500(fine, replace(other, noise=held))
    inside = slice(100, 900)
    error = (slow[..., inside] - fast[..., ::5][..., inside]).abs().max()
    assert error < 2e-3
    assert (slow - coarse).abs().max() > 0.3


def _padded(z: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(z, (0, n - z.shape[-1]))


def test_a_chain_that_an_earlier_version_saved_is_loaded(tmp_path: Path) -> None:
    """Their configuration says 2 stages, which did not count."""
    policy = policy_of(ops=REAL, selector="chain")
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "stages": 2}))
    assert LearnedPolicy.from_pretrained(tmp_path).stages == policy.stages == 4


def test_what_it_learned_is_told_with_units_and_shares() -> None:
    policy = policy_of(ops=REAL, magnitude="lead")
    found = policy.learned(signals())
    chosen = [item for item in found if item.name.endswith("chosen") and item.group == "stage 1"]
    assert sum(item.values.item() for item in chosen) == pytest.approx(1)
    units = {item.name: item.unit for item in found if item.name.endswith("magnitude")}
    assert units == {"time_warp, magnitude": "s", "white_noise, magnitude": "1", "time_shift, magnitude": "s"}
    assert "LearnedPolicy(leads=3" in repr(policy)


def test_magnitudes_are_told_as_they_are_applied(toys: list[int]) -> None:
    """Each lead's own; one for all leads, their mean, of an operation that takes one; one a record from a network."""
    policy = LearnedPolicy(magnitude="lead", ops=("gain",), selector="chain", gate=False)
    with torch.no_grad():
        policy.g[0, 0, 0] = 2.0
    (told,) = (item.values for item in policy.learned(torch.zeros(3, 12, 300)) if item.unit != "share")
    torch.testing.assert_close(told, OPERATIONS["gain"].typical * torch.tensor([4.0] + 11 * [0.5]))
    turned = LearnedPolicy(magnitude="lead", ops=("electrode_rotation",), selector="chain", gate=False)
    with torch.no_grad():
        turned.g[0, 0, 0] = 3.0
    x = torch.randn(5, 12, 300, generator=generator_of(2))
    draw = turned.draw(x, generator_of(1))
    (told,) = (item.values for item in turned.learned(x) if item.unit == "degrees")
    ((_, noise),) = draw.noise[0]
    applied = OPERATIONS["electrode_rotation"].function(x, told.view(1, 1, 1), noise=noise)
    torch.testing.assert_close(turned(x, draw), applied)
    for magnitude, count in (("global", 1), ("class", 2), ("network", 4)):
        policy = policy_of(ops=("toy_add",), stages=1, magnitude=magnitude)
        (told,) = (item.values for item in policy.learned(signals(4)) if item.unit != "share")
        assert told.shape == (count,)
