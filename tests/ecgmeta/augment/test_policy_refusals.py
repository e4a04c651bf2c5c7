"""What the learned policy refuses, and what it says then."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from policies import REAL, policy_of, signals
from torch import Tensor

from ecgmeta.augment import LearnedPolicy, Random
from ecgmeta.augment.functional import OPERATIONS, Noise, Operation
from ecgmeta.augment.transforms import MIXING
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import seeded


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
    assert policy_of(ops=(name,), settings={name: fitting.get(name, {})}).ops == (name,)
    with pytest.raises(InputError, match=f"^{said}"):
        policy_of(ops=(name,), settings=settings)
    if "fs" not in own:
        with pytest.raises(InputError, match=f"^{said}"):
            Random(name, 0.1, fs=100.0, **own)


def test_a_setting_that_breaks_the_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def toy_over(x: Tensor, magnitude: Tensor, *, noise: Tensor, by: float = 1.0) -> Tensor:
        return x * (1 + magnitude / torch.tensor(by))

    spec = Operation("toy_over", toy_over, Noise("uniform", (1, 1)), "1", 1.0, math.inf, True, False, 0)
    monkeypatch.setitem(OPERATIONS, "toy_over", spec)
    assert policy_of(ops=("toy_over",)).ops == ("toy_over",)
    with pytest.raises(InputError, match=r"toy_over: settings: found {'by': 0.0} \(its result is not finite"):
        policy_of(ops=("toy_over",), settings={"toy_over": {"by": 0.0}})


@pytest.mark.parametrize("name", ["powerline", "band_stop"])
def test_a_rate_at_which_an_operation_has_no_meaning_is_refused_at_once(name: str) -> None:
    policy = policy_of(ops=("gain", name), fs=250.0)
    assert policy.at(125.0).input_fs == 125.0
    with pytest.raises(InputError, match=f"^{name}: .* 30 Hz"):
        policy.at(60.0)
    with pytest.raises(InputError, match=f"^{name}: .* 30 Hz"):
        policy_of(ops=("gain", name), fs=250.0, input_fs=60.0)


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
        policy_of(ops=("gain", name))


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
        policy_of(**settings)


def test_records_it_cannot_take_are_refused() -> None:
    policy = policy_of()
    with pytest.raises(InputError, match="LearnedPolicy: shape of x"):
        policy(torch.zeros(2, 200, 3))
    with pytest.raises(InputError, match="LearnedPolicy: leads of x: found 4, expected 3"):
        policy(torch.zeros(2, 4, 200))
    x = signals()
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
        policy_of(magnitude=magnitude).draw(signals(), labels=labels)


def test_the_noise_of_something_else_is_refused() -> None:
    policy, x = policy_of(ops=REAL), signals()
    with pytest.raises(InputError, match="LearnedPolicy: noise: found Tensor, expected what draw gives"):
        policy(x, torch.randn(6, 200))
    for other in (signals(5), signals(7)):
        with pytest.raises(InputError, match=r"LearnedPolicy: records, .* expected \(6, 2, 4\)"):
            policy(x, policy.draw(other))
    for settings in ({"stages": 3}, {"ops": REAL[:3]}):
        with pytest.raises(InputError, match=r"operations of noise: found .* expected \(6, 2, 4\)"):
            policy(x, policy_of(**{"ops": REAL, **settings}).draw(x))
    longer = policy_of(ops=("white_noise",), gate=False)
    with pytest.raises(InputError, match=r"white_noise: shape of noise: found \(6, 3, 100\), expected"):
        longer(x, longer.draw(signals(samples=100)))
