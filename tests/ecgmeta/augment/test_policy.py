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
from torch import Tensor
from torch.func import functional_call

from ecgmeta.augment import LearnedPolicy, LearnedWarp, Random, load_augmenter, score_surrogate
from ecgmeta.augment.functional import OPERATIONS, Noise, Operation
from ecgmeta.augment.transforms import MIXING
from ecgmeta.bilevel import DoubleBackward, ForwardOverReverse
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import seeded

REAL = ("time_warp", "white_noise", "time_shift", "identity")
TOYS = ("toy_scale", "toy_add", "toy_square")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _x(batch: int = 6, leads: int = 3, samples: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, leads, samples, generator=_generator(5), dtype=dtype)


def _policy(**settings: Any) -> LearnedPolicy:
    with seeded(0, "policy"):
        return LearnedPolicy(**{"leads": 3, **settings})


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
    policy = _policy(stages=2, ops=REAL, probability=0.3)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, 0.0]]))
        policy.gate_logits[1] = 1.5
    n = 20_000
    draw = policy.draw(torch.zeros(n, 3, 10), _generator())
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
    policy = _policy(stages=2, ops=TOYS, probability=0.3)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(2, 3, generator=_generator(1)))
        policy.gate_logits.copy_(torch.randn(2, 3, 1, generator=_generator(2)))
    draw = policy.draw(_x(50), _generator())
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
    policy, x = _policy(stages=2, ops=(*TOYS, "identity"), gate=True), _x(64)
    draw = policy.draw(x, _generator())
    toys.clear()
    out = policy(x, draw)
    assert sum(toys) == int((draw.applied & (draw.choice != 3)).sum())
    untouched = ~(draw.applied & (draw.choice != 3)).any(1)
    assert 0 < untouched.sum() < 64
    assert torch.equal(out[untouched], x[untouched])
    assert (out[~untouched] != x[~untouched]).flatten(1).any(1).all()


def test_each_record_gets_its_own_operations_in_the_order_of_the_stages(toys: list[int]) -> None:
    policy, x = _policy(stages=2, ops=TOYS, gate=False, start=0.5), _x(32)
    draw = policy.draw(x, _generator())
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
    policy = _policy(stages=1, ops=TOYS, start=0.4, probability=0.6).double()
    phi = {
        "logits": torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64),
        "gate_logits": torch.tensor([[[0.4], [-0.3], [0.1]]], dtype=torch.float64),
        "g": torch.tensor([[[0.6], [0.7], [0.5]]], dtype=torch.float64),
    }
    phi = {name: value.requires_grad_() for name, value in phi.items()}
    policy.load_state_dict(phi)
    x = _x(1, 3, 5, torch.float64) * 0.4
    w = torch.randn(3, 5, generator=_generator(3), dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, 5, generator=_generator(4), dtype=torch.float64)

    def both(loss: Tensor) -> Tensor:
        first = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        (slope,) = torch.autograd.grad(loss, w, create_graph=True)
        mixed = torch.autograd.grad((slope * u).sum(), list(phi.values()))
        return torch.cat([value.detach().flatten() for value in (*first, *mixed)])

    exact = both(_expected(x, w, policy, phi))
    copies, repeats = 200, 150

    def estimate(seed: int) -> Tensor:
        many = x.expand(copies, -1, -1)
        draw = policy.draw(many, _generator(seed))
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
    losses = 100 + torch.randn(n, generator=_generator(), dtype=torch.float64)
    value = score_surrogate(losses, log_prob, log_prob.detach())
    assert value.item() == losses.mean().item()
    (weights,) = torch.autograd.grad(value, log_prob)
    torch.testing.assert_close(weights * n, (losses - losses.mean()) * n / (n - 1))


def test_the_surrogate_with_its_draw_held_is_a_function_of_phi_that_differences_agree_with(
    toys: list[int],
) -> None:
    policy, x = _policy(stages=2, ops=TOYS).double(), _x(dtype=torch.float64) * 0.1
    draw = policy.draw(x, _generator())
    w = torch.randn(3, 200, generator=_generator(3), dtype=torch.float64) * 0.1

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
    x = torch.nn.functional.avg_pool1d(_x(6, 3, 240, torch.float64), 9, 1, 4)
    policy = _policy(ops=("time_warp", "white_noise", "time_shift"), magnitude=magnitude, start=0.2).double()
    draw = policy.train().draw(x, _generator(1))
    phi = {name: value.detach() for name, value in policy.named_parameters()}
    theta = {"w": torch.randn(3, 3, 5, generator=_generator(2), dtype=torch.float64)}

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

    u = {"w": torch.randn(3, 3, 5, generator=_generator(3), dtype=torch.float64)}
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
    x = _x(4, 3, 256)
    draw = policy.draw(x, _generator(2))
    rows, noise = draw.noise[0][0]
    assert rows.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(policy(x, draw), warp(x, noise))


@pytest.mark.parametrize(
    ("magnitude", "shape"), [("global", (2, 4, 1)), ("lead", (2, 4, 3)), ("class", (2, 4, 2))]
)
def test_magnitudes_are_the_typical_ones_times_g_squared(magnitude: str, shape: tuple[int, ...]) -> None:
    policy = _policy(ops=REAL, magnitude=magnitude, start=2.0)
    assert policy.g.shape == shape
    with torch.no_grad():
        policy.g[1, 0, -1] = 3.0
    kind = torch.tensor([0, 1])
    found = policy.magnitude(_x(2), kind)
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
    policy = _policy(ops=("random_resized_crop",), start=1e-3)
    limit, typical = OPERATIONS["random_resized_crop"].limit, OPERATIONS["random_resized_crop"].typical
    small = policy.magnitude(_x(1), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(small, torch.full_like(small, 1e-3 * typical), rtol=1e-3, atol=0)
    with torch.no_grad():
        policy.g.fill_(100.0)
    large = policy.magnitude(_x(1), torch.zeros(1, dtype=torch.long))
    assert (large <= limit).all()
    assert policy(_x(), generator=_generator()).isfinite().all()


def test_labels_choose_the_class_and_are_not_needed() -> None:
    policy, x = _policy(magnitude="class"), _x(400)
    labels = torch.arange(400) % 2
    assert torch.equal(policy.draw(x, _generator(), labels=labels).kind, labels)
    assert 120 < int(policy.draw(x, _generator()).kind.sum()) < 280


def test_a_network_gives_each_record_its_own_magnitudes() -> None:
    policy, x = _policy(ops=REAL, magnitude="network", start=0.5), _x(5)
    found = policy.magnitude(x, torch.zeros(5, dtype=torch.long))
    assert found.shape == (5, 2, 4, 1)
    assert found[:, 0, 0, 0].unique().numel() == 5
    assert (
        (found[:, 0, 0] > 0) & (found[:, 0, 0] < OPERATIONS["time_warp"].typical)
    ).all()  # 0 < 2σ < 2, at 0.5


def test_equal_generators_give_equal_augmentations_and_evaluation_is_the_identity() -> None:
    policy, x = _policy(), _x()
    assert torch.equal(policy(x, generator=_generator(1)), policy(x, generator=_generator(1)))
    assert not torch.equal(policy(x, generator=_generator(1)), policy(x, generator=_generator(2)))
    assert policy.eval()(x) is x


def test_saving_and_loading_gives_the_same_policy_whoever_loads_it(tmp_path: Path) -> None:
    policy = _policy(magnitude="network", ops=REAL, settings={"time_warp": {"smoothness": 1.0}}, fs=250.0)
    policy(_x(), generator=_generator())  # its running statistics move
    policy.save_pretrained(tmp_path / "policy")
    x = _x()
    for loaded in (LearnedPolicy.from_pretrained(tmp_path / "policy"), load_augmenter(tmp_path / "policy")):
        assert isinstance(loaded, LearnedPolicy)
        assert (loaded.ops, loaded.fs, loaded.settings) == (REAL, 250.0, {"time_warp": {"smoothness": 1.0}})
        assert all(torch.equal(v, policy.state_dict()[k]) for k, v in loaded.state_dict().items())
        draw = loaded.draw(x, _generator(3))
        torch.testing.assert_close(
            loaded(x[:1], draw.take(torch.tensor([0])))[0], loaded(x, draw)[0], rtol=1e-4, atol=1e-4
        )


def test_a_part_of_a_draw_is_what_its_records_get() -> None:
    policy, x = _policy(magnitude="network", ops=REAL), _x(9)
    policy.frozen_statistics = True
    draw = policy.train().draw(x, _generator(3))
    records = torch.tensor([7, 2, 4])
    out = policy(x[records], draw.take(records))
    torch.testing.assert_close(out, policy(x, draw)[records], rtol=1e-4, atol=1e-5)
    assert torch.equal(policy.log_prob(draw)[records], policy.log_prob(draw.take(records)))


def test_times_stay_the_same_times_at_another_rate() -> None:
    """A shift and a warp learned at 100 Hz, of a smooth record at 100 and at 500 Hz: the same to interpolation."""
    t = torch.arange(4996, dtype=torch.float64) / 500
    fine = torch.stack([torch.sin(2 * math.pi * 0.7 * t + p) for p in (0.0, 1.0, 2.0)]).unsqueeze(0)
    coarse = fine[..., ::5]
    policy = _policy(ops=("time_shift", "time_warp"), selector="chain", gate=False, start=1.0).double()
    draw = policy.draw(coarse, _generator(1))
    at_500 = policy.at(500.0)
    assert (at_500.fs, at_500.input_fs) == (100.0, 500.0)
    other = at_500.draw(fine, _generator(1))
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


def test_what_counts_samples_refuses_another_rate_with_the_reason() -> None:
    with pytest.raises(
        InputError, match=r"paper_warp: rate: found 500 Hz, learned at 100 Hz.*counts samples"
    ):
        LearnedPolicy.paper(leads=3).at(500.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gain": {"foo": 1}}, "gain: setting foo: found no such one, expected none"),
        ({"powerline": {"fs": 50.0}}, "powerline: setting fs: found no such one, expected frequency"),
        ({"powerline": {"frequency": 60.0}}, "powerline: frequency: found 60 Hz, expected .* 50 Hz"),
        ({"powerline": {"frequency": "40"}}, "powerline: settings: found {'frequency': '40'}"),
        ({"band_stop": {"high": 51.0}}, "band_stop: low, high: found 0.5, 51, expected"),
        ({"paper_warp": {"steps": "many"}}, "paper_warp: steps: found many, expected a whole number"),
    ],
)
def test_settings_that_an_operation_cannot_take_are_refused_when_they_are_given(
    settings: dict[str, Any], said: str
) -> None:
    (name, own), fitting = *settings.items(), {"powerline": {"frequency": 40.0}}
    assert _policy(ops=(name,), settings={name: fitting.get(name, {})}).ops == (name,)
    with pytest.raises(InputError, match=f"^{said}"):
        _policy(ops=(name,), settings=settings)
    if "fs" not in own:
        with pytest.raises(InputError, match=f"^{said}"):
            Random(name, 0.1, fs=100.0, **own)


def test_a_setting_that_breaks_the_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def toy_over(x: Tensor, magnitude: Tensor, *, noise: Tensor, by: float = 1.0) -> Tensor:
        return x * (1 + magnitude / torch.tensor(by))

    spec = Operation("toy_over", toy_over, Noise("uniform", (1, 1)), "1", 1.0, math.inf, True, False, 0)
    monkeypatch.setitem(OPERATIONS, "toy_over", spec)
    assert _policy(ops=("toy_over",)).ops == ("toy_over",)
    with pytest.raises(InputError, match=r"toy_over: settings: found {'by': 0.0} \(its result is not finite"):
        _policy(ops=("toy_over",), settings={"toy_over": {"by": 0.0}})


@pytest.mark.parametrize("name", ["powerline", "band_stop"])
def test_a_rate_at_which_an_operation_has_no_meaning_is_refused_at_once(name: str) -> None:
    policy = _policy(ops=("gain", name), fs=250.0)
    assert policy.at(125.0).input_fs == 125.0
    with pytest.raises(InputError, match=f"^{name}: .* 30 Hz"):
        policy.at(60.0)
    with pytest.raises(InputError, match=f"^{name}: .* 30 Hz"):
        _policy(ops=("gain", name), fs=250.0, input_fs=60.0)


@pytest.mark.parametrize("fs", [50.1, 100.0, 257.0, 5000.0])
def test_every_operation_is_taken_with_its_own_settings_and_no_generator_moves(fs: float) -> None:
    names = [name for name, spec in OPERATIONS.items() if spec.noise and name not in MIXING]
    settings = {"powerline": {"frequency": 25.0}, "band_stop": {"high": 25.0}}
    with seeded(0, "policy"):
        expected = torch.rand(1)
    with seeded(0, "policy"):
        assert len(LearnedPolicy(fs=fs, ops=names, settings=settings).ops) > 15
        assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", MIXING)
def test_records_that_would_be_mixed_without_their_labels_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"LearnedPolicy: ops: found {name} .*labels.* on one record"):
        _policy(ops=("gain", name))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ops": ("time_wrap",)}, "ops: found time_wrap"),
        ({"ops": ()}, "ops, stages"),
        ({"stages": 0}, "ops, stages"),
        ({"selector": "best"}, "selector: found 'best'"),
        ({"magnitude": "huge"}, "magnitude: found 'huge'"),
        ({"start": 0.0}, "start: found 0.0"),
        ({"start": math.inf}, "start: found inf"),
        ({"selector": "chain", "ops": REAL, "stages": 3}, "stages: found 3, expected 4, one for each"),
        ({"probability": 1.0}, "probability: found 1.0"),
        ({"settings": {"powerline": {}}}, "settings: found powerline"),
        ({"fs": 0.0}, "fs: found 0.0"),
        ({"lead_names": ["I"]}, "lead_names"),
    ],
)
def test_arguments_that_make_no_policy_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"LearnedPolicy: {said}"):
        _policy(**settings)


def test_records_it_cannot_take_are_refused() -> None:
    policy = _policy()
    with pytest.raises(InputError, match="LearnedPolicy: shape of x"):
        policy(torch.zeros(2, 200, 3))
    with pytest.raises(InputError, match="LearnedPolicy: leads of x: found 4, expected 3"):
        policy(torch.zeros(2, 4, 200))
    x = _x()
    x[2, 0, 7] = math.nan
    with pytest.raises(
        InputError, match="LearnedPolicy: samples of x: found one that is not finite in record 2"
    ):
        policy(x)


@pytest.mark.parametrize("magnitude", ["class", "global"])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, 2, 0, 1, 0]), r"labels: found \[0, 1, 2\], expected 0 or 1"),
        (torch.tensor([0.0, 0.5, 1.0, 0.0, 0.0, 0.0]), "labels: found"),
        (torch.zeros(5), r"shape of labels: found \(5,\), expected \(6,\)"),
        (torch.zeros(6, 2), r"shape of labels: found \(6, 2\), expected \(6,\)"),
    ],
)
def test_labels_that_are_none_are_refused(magnitude: str, labels: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=f"LearnedPolicy: {said}"):
        _policy(magnitude=magnitude).draw(_x(), labels=labels)


def test_the_noise_of_something_else_is_refused() -> None:
    policy, x = _policy(ops=REAL), _x()
    with pytest.raises(InputError, match="LearnedPolicy: noise: found Tensor, expected what draw gives"):
        policy(x, torch.randn(6, 200))
    for other in (_x(5), _x(7)):
        with pytest.raises(InputError, match=r"LearnedPolicy: records, .* expected \(6, 2, 4\)"):
            policy(x, policy.draw(other))
    for settings in ({"stages": 3}, {"ops": REAL[:3]}):
        with pytest.raises(InputError, match=r"operations of noise: found .* expected \(6, 2, 4\)"):
            policy(x, _policy(**{"ops": REAL, **settings}).draw(x))
    longer = _policy(ops=("white_noise",), gate=False)
    with pytest.raises(InputError, match=r"white_noise: shape of noise: found \(6, 3, 100\), expected"):
        longer(x, longer.draw(_x(samples=100)))


def test_a_chain_that_an_earlier_version_saved_is_loaded(tmp_path: Path) -> None:
    """Their configuration says 2 stages, which did not count."""
    policy = _policy(ops=REAL, selector="chain")
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "stages": 2}))
    assert LearnedPolicy.from_pretrained(tmp_path).stages == policy.stages == 4


def test_what_it_learned_is_told_with_units_and_shares() -> None:
    policy = _policy(ops=REAL, magnitude="lead")
    found = policy.learned(_x())
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
    x = torch.randn(5, 12, 300, generator=_generator(2))
    draw = turned.draw(x, _generator(1))
    (told,) = (item.values for item in turned.learned(x) if item.unit == "degrees")
    ((_, noise),) = draw.noise[0]
    applied = OPERATIONS["electrode_rotation"].function(x, told.view(1, 1, 1), noise=noise)
    torch.testing.assert_close(turned(x, draw), applied)
    for magnitude, count in (("global", 1), ("class", 2), ("network", 4)):
        policy = _policy(ops=("toy_add",), stages=1, magnitude=magnitude)
        (told,) = (item.values for item in policy.learned(_x(4)) if item.unit != "share")
        assert told.shape == (count,)
