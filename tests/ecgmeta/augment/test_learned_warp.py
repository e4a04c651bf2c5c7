"""The paper's learned warp: size, determinism, derivatives, and its life on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgmeta.augment import LearnedPolicy, LearnedWarp, Random, WhiteNoise, functional, load_augmenter
from ecgmeta.bilevel import CentralDifference, DoubleBackward, ForwardOverReverse
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import seeded


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _warp(
    leads: int = 3, magnitude: float = 1.0, fs: float = 100.0, variant: Literal["monotone", "paper"] = "paper"
) -> LearnedWarp:
    with seeded(0, "warp"):
        return LearnedWarp(leads, magnitude, fs, variant=variant)


def _x(batch: int = 4, leads: int = 3, samples: int = 256, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, leads, samples, generator=_generator(5), dtype=dtype)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A trained-looking warp of three leads: its running statistics have moved."""
    warp = _warp(magnitude=1.5, fs=250.0)
    warp(3 * _x() + 1, generator=_generator())
    warp.save_pretrained(tmp_path / "augmenter")
    return tmp_path / "augmenter"


def test_twelve_leads_have_the_papers_number_of_parameters() -> None:
    assert sum(p.numel() for p in LearnedWarp().parameters()) == 52_258
    assert LearnedWarp.paper().global_magnitude.item() == 4
    assert LearnedWarp.paper(leads=2, magnitude=3.0).global_magnitude.item() == 3


def test_evaluation_is_the_identity() -> None:
    x = _x()
    assert _warp().eval()(x) is x


def test_the_magnitude_is_the_networks_opinion_times_the_square_of_the_global_one() -> None:
    warp, x = _warp(magnitude=3.0), _x()
    opinion = 2 * torch.sigmoid(warp.magnitude_layer(warp.net(x)))
    torch.testing.assert_close(warp.magnitude(x), 9 * opinion)
    assert warp.magnitude(x).shape == (4, 1)
    noise = warp.draw(x, _generator())
    expected = functional.paper_warp(x, warp.magnitude(x)[:, 0], noise=noise)
    torch.testing.assert_close(warp(x, noise), expected)


def test_equal_noise_gives_equal_views() -> None:
    warp, x = _warp(), _x()
    noise = warp.draw(x, _generator(1))
    assert noise.shape == (4, 256)
    first = warp(x, noise)
    assert torch.equal(first, warp(x, noise))
    assert torch.equal(first, warp(x, generator=_generator(1)))
    assert not torch.equal(first, warp(x, generator=_generator(2)))
    own = _warp()
    own.generator = _generator(1)
    assert torch.equal(first, own(x))


def test_a_gradient_reaches_every_parameter_and_the_signal() -> None:
    warp, x = _warp(), _x().requires_grad_()
    warp(x, generator=_generator()).pow(3).sum().backward()
    assert x.grad is not None
    for name, parameter in warp.named_parameters():
        # A bias before BatchNorm in training shifts nothing: its gradient is there, and rounding.
        assert parameter.grad is not None, name
        if name not in {f"net.{i}.bias" for i in (0, 3, 6, 9)}:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("name", "index"), [("global_magnitude", 0), ("magnitude_layer.weight", 3), ("net.0.weight", 7)]
)
def test_the_second_derivative_through_the_warp_is_that_of_finite_differences(name: str, index: int) -> None:
    """Of a gentle warp in float64, where it is smooth between kinks; the step is far below their spacing."""
    warp, x = _warp(magnitude=0.6).double(), _x(dtype=torch.float64)
    noise, weight = warp.draw(x, _generator(3)), _x(dtype=torch.float64).flip(0)
    parameters = dict(warp.named_parameters())
    wanted = [parameters[key] for key in ("global_magnitude", "magnitude_layer.weight", "net.0.weight")]
    flat = parameters[name].detach().view(-1)

    def gradient(create_graph: bool = False) -> Tensor:
        loss = (weight * warp(x, noise)).sum() + warp(x, noise).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted, create_graph=create_graph)])

    first = gradient(create_graph=True)
    direction = torch.randn(first.shape, generator=_generator(4), dtype=torch.float64)
    (row,) = torch.autograd.grad(first @ direction, parameters[name])
    step = 1e-6
    with torch.no_grad():
        flat[index] += step
    above = gradient()
    with torch.no_grad():
        flat[index] -= 2 * step
    numeric = (above - gradient()) @ direction / (2 * step)
    assert abs(numeric) > 1e-3
    torch.testing.assert_close(row.flatten()[index], numeric, rtol=1e-5, atol=1e-7)


def test_describe_says_what_it_does_and_changes_nothing() -> None:
    warp = _warp(magnitude=2.0)
    warp.net[4].eval()  # somebody froze one layer by hand
    state = {name: value.clone() for name, value in warp.state_dict().items()}
    flags = [module.training for module in warp.modules()]
    found = warp.describe(_x(), generator=_generator())
    assert found == warp.describe(_x(), generator=_generator())
    assert [module.training for module in warp.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in warp.state_dict().items())
    assert found["global_magnitude"] == 2
    # 0 < 2σ < 2, times 2².
    assert 0 < found["magnitude_mean"] < 8
    assert found["sd_ms"] > 0
    assert 0 <= found["folded"] <= 1
    assert set(found) == {"global_magnitude", "magnitude_mean", "magnitude_sd", "sd_ms", "folded", "outside"}


def test_milliseconds_follow_the_sampling_rate() -> None:
    slow, fast = (_warp(fs=fs).describe(_x(), generator=_generator()) for fs in (100.0, 500.0))
    assert slow["sd_ms"] == pytest.approx(5 * fast["sd_ms"])


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ((4, 256, 3), "shape of x"),
        ((3, 256), "shape of x"),
        ((4, 2, 256), "leads of x"),
        ((4, 3, 210), "samples of x"),
    ],
)
def test_records_it_cannot_take_are_refused(shape: tuple[int, ...], field: str) -> None:
    with pytest.raises(InputError, match=f"LearnedWarp: {field}: found"):
        _warp()(torch.zeros(shape))


def test_the_shortest_record_and_other_lengths_pass() -> None:
    for samples in (211, 300, 1001):
        assert _warp()(_x(samples=samples), generator=_generator()).shape == (4, 3, samples)


def test_saving_and_loading_gives_the_same_bits_ready_to_augment(saved: Path) -> None:
    original, loaded = _warp(magnitude=1.5, fs=250.0), LearnedWarp.from_pretrained(saved)
    original(3 * _x() + 1, generator=_generator())
    assert (loaded.leads, loaded.fs) == (3, 250.0)
    before = original.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert loaded.state_dict().keys() == before.keys()
    assert loaded.training
    x = _x()
    noise = loaded.draw(x, _generator(8))
    out = loaded(x, noise)
    assert not torch.equal(out, x)
    # Its statistics are frozen: neither moved by what it sees, nor by the company a record is in.
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(loaded(x[:1], noise[:1])[0], out[0], rtol=1e-4, atol=1e-4)
    original.train()
    assert not torch.allclose(original(x[:2], noise[:2])[0], original(x, noise)[0], atol=1e-3)
    assert loaded.eval()(x) is x
    assert not loaded.train().net[1].training


def test_saving_twice_replaces_and_leaves_nothing_beside(saved: Path) -> None:
    _warp(magnitude=2.5).save_pretrained(saved)
    assert LearnedWarp.from_pretrained(saved).global_magnitude.item() == 2.5
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["augmenter"]


def _refused(folder: str | Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        LearnedWarp.from_pretrained(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "found" in message
    assert "expected" in message
    return message


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in _refused(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    # Two parts could be a hub id: without a network it is still one line.
    assert "runs/augmenter: folder: found no such folder" in _refused("runs/augmenter", local_files_only=True)
    assert "no such folder" in _refused("augmenter")
    assert "no such folder" in _refused("a/b c", local_files_only=True)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name}: found no such file" in _refused(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_weights_are_refused(saved: Path, keep: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "saved model" in _refused(saved)


def test_weights_of_another_architecture_name_the_first_tensor_that_does_not_fit(saved: Path) -> None:
    other = saved.parent / "other"
    LearnedWarp(leads=5).save_pretrained(other)
    (other / "model.safetensors").replace(saved / "model.safetensors")
    assert "net.0.weight: found shape (32, 5, 15), expected shape (32, 3, 15)" in _refused(saved)


def test_missing_and_further_tensors_are_refused(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(2)}, saved / "model.safetensors")
    assert "extra: found shape (2,), expected shape nothing" in _refused(saved)
    save_file({k: v for k, v in weights.items() if k != "global_magnitude"}, saved / "model.safetensors")
    assert "global_magnitude: found shape nothing" in _refused(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"magnitud": 1.0}, "magnitud: found an unknown argument"),
        ({"leads": "twelve"}, "saved model"),
        ({"leads": -1}, "leads: found -1"),
    ],
)
def test_a_configuration_with_wrong_arguments_is_refused(
    saved: Path, change: dict[str, object], said: str
) -> None:
    config = saved / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    assert said in _refused(saved)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_configuration_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    assert "config.json: content" in _refused(saved)


def test_an_unknown_argument_of_the_caller_is_refused(saved: Path) -> None:
    assert "saved model" in _refused(saved, magnitud=1.0)


def test_its_text_names_what_matters() -> None:
    assert (
        repr(_warp(magnitude=1.5)) == "LearnedWarp(leads=3, fs=100.0, variant='paper', global_magnitude=1.5)"
    )


def test_every_route_to_the_second_derivatives_agrees_through_the_warp() -> None:
    """Double backward, forward over reverse, and central differences with the order that they promise."""
    x = torch.randn(4, 2, 240, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.nn.functional.avg_pool1d(x, 9, 1, 4)
    warp = LearnedWarp(2, magnitude=0.4).double().train()
    noise = warp.draw(x, torch.Generator().manual_seed(1))
    phi = {name: value.detach() for name, value in warp.named_parameters()}
    theta = {"w": torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)}

    def loss(theta: dict[str, torch.Tensor], phi: dict[str, torch.Tensor]) -> torch.Tensor:
        views = torch.func.functional_call(warp, phi, (x, noise))
        return torch.nn.functional.conv1d(views, theta["w"]).tanh().square().mean()

    u = {"w": torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)}
    exact = DoubleBackward(loss, theta, phi)
    forward = ForwardOverReverse(loss, theta, phi)
    errors = []
    for product in ("hvp", "mixed"):
        expected = getattr(exact, product)(u)
        for name, value in getattr(forward, product)(u).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-14)
        for step in (2e-3, 1e-3):
            found = getattr(CentralDifference(step)(loss, theta, phi), product)(u)
            errors.append(max(float((found[n] - expected[n]).abs().max()) for n in found))
    for coarse, fine in (errors[:2], errors[2:]):
        assert 3.5 < coarse / fine < 4.5  # second order


@pytest.mark.parametrize("magnitude", [0.1, 1.0, 4.0, 100.0])
def test_the_default_never_folds_however_strong_it_gets(magnitude: float) -> None:
    found = _warp(magnitude=magnitude, variant="monotone").describe(_x(16), generator=_generator())
    assert found["folded"] == 0
    assert found["outside"] < 1e-3  # the ends are fixed, to rounding
    if magnitude <= 1:
        # 50 ms at m(x)·g² = 1, to first order; sixteen records of 2.5 s tell an SD to about a tenth.
        assert found["sd_ms"] == pytest.approx(50 * found["magnitude_mean"], rel=0.3)
    assert _warp(magnitude=magnitude, variant="monotone")(_x(), generator=_generator()).isfinite().all()


def _smooth(n: int, fs: float) -> Tensor:
    t = torch.arange(n, dtype=torch.float64) / fs
    return torch.stack([torch.sin(2 * math.pi * 0.8 * t + phase) for phase in (0.0, 1.0, 2.0)]).unsqueeze(0)


@pytest.mark.parametrize("variant", ["monotone", "paper"])
def test_a_warp_at_another_rate_moves_a_record_by_the_same_time(
    variant: Literal["monotone", "paper"],
) -> None:
    """At 400 Hz, the same record in four times as many samples: the same magnitudes and the same displacement in s."""
    warp = _warp(variant=variant).double()
    warp.magnitude_layer.weight.data.mul_(20)  # an opinion that depends on the record
    warp.frozen_statistics = True
    warp.train()
    # The default fixes the first and last sample in time, the paper's counts samples.
    n = 3997 if variant == "monotone" else 4000
    x, fine = _smooth(1000, 100.0), _smooth(n, 400.0)
    other = warp.at(400.0)
    assert (other.fs, other.input_fs, warp.input_fs) == (100.0, 400.0, 100.0)
    noise = warp.draw(x, _generator(1))
    torch.testing.assert_close(other.magnitude(fine), warp.magnitude(x), rtol=0.02, atol=0)
    d = warp.displacement(x, noise)
    e = other.displacement(fine, torch.nn.functional.pad(noise, (0, n - 1000)))
    inside = slice(50, 950)
    # The magnitudes agree to 2 %, and the paper's stretched samples lie up to half a sample beside the others.
    assert float((e[0, ::4] / 4 - d[0])[inside].abs().mean()) < 0.05 * float(d.std())
    assert other(fine, torch.nn.functional.pad(noise, (0, n - 1000))).shape == fine.shape


def test_loading_for_another_rate_converts_and_saving_keeps_it(tmp_path: Path, saved: Path) -> None:
    warp = LearnedWarp.from_pretrained(saved, fs=500.0)
    assert (warp.fs, warp.input_fs) == (250.0, 500.0)
    warp.save_pretrained(tmp_path / "again")
    again = LearnedWarp.from_pretrained(tmp_path / "again")
    assert (again.fs, again.input_fs, again.variant) == (250.0, 500.0, "paper")
    assert LearnedWarp.from_pretrained(tmp_path / "again", fs=250.0).input_fs == 250.0
    for fs in (0.0, math.nan, -1.0):
        with pytest.raises(InputError, match="fs: found"):
            warp.at(fs)


def test_leads_are_matched_by_name_and_order() -> None:
    warp = LearnedWarp(3, lead_names=["I", "II", "aVR"])
    assert warp.at(100.0, ["i", "ii", "AVR"]).lead_names == ("I", "II", "aVR")
    with pytest.raises(InputError, match=r"LearnedWarp: leads: found \['II', 'I', 'aVR'\]"):
        warp.at(100.0, ["II", "I", "aVR"])
    assert _warp().at(100.0, ["II", "I", "V9"]).leads == 3  # it does not know its own


@pytest.mark.parametrize("variant", ["monotone", "paper"])
def test_its_network_sees_normalised_records(variant: Literal["monotone", "paper"]) -> None:
    plain, x = _warp(variant=variant).eval(), _x()
    with seeded(0, "warp"):
        warp = LearnedWarp(3, variant=variant, mean=0.3, std=2.0).eval()
    torch.testing.assert_close(warp.magnitude(2 * x + 0.3), plain.magnitude(x))
    assert not torch.allclose(warp.magnitude(x), plain.magnitude(x))


def test_resampling_averages_or_draws_lines() -> None:
    x = torch.arange(24.0).view(1, 1, 24)
    warp = LearnedWarp(1, fs=100.0)
    assert torch.equal(warp.resample(x, 100.0), x)
    assert torch.equal(warp.resample(x, 25.0), torch.arange(1.5, 24, 4).view(1, 1, 6))
    assert warp.resample(x, 40.0).shape[-1] == 10
    torch.testing.assert_close(warp.resample(x, 200.0)[0, 0, 1:-1].diff(), torch.full((45,), 0.5))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"variant": "folding"}, "variant"),
        ({"smoothness": 0.0}, "smoothness"),
        ({"smoothness": math.inf}, "smoothness"),
        ({"magnitude": math.nan}, "magnitude"),
        ({"magnitude": math.inf}, "magnitude"),
        ({"mean": math.inf}, "mean"),
        ({"leads": 0}, "leads"),
        ({"std": 0.0}, "std"),
        ({"fs": -1.0}, "fs"),
        ({"input_fs": 0.0}, "input_fs"),
        ({"lead_names": ["I"]}, "lead_names"),
    ],
)
def test_arguments_that_make_no_warp_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"LearnedWarp: {field}: found"):
        LearnedWarp(**{"leads": 3, **settings})


@pytest.mark.parametrize("shape", [(3, 256), (4, 255), (4, 1, 256), (256,)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    variants: tuple[Literal["paper", "monotone"], ...] = ("paper", "monotone")
    for variant in variants:
        with pytest.raises(InputError, match=r"LearnedWarp: shape of noise: found .* expected \(4, 256\)"):
            _warp(variant=variant)(_x(), torch.zeros(shape))


def test_records_that_are_no_tensor_are_refused() -> None:
    x: Any = np.zeros((4, 3, 256), dtype=np.float32)
    for module in (_warp(), WhiteNoise(), Random("gain", 0.1)):
        with pytest.raises(InputError, match="x: found ndarray, expected a torch tensor"):
            module(x)


def test_a_hub_id_gives_the_augmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _warp(fs=250.0, magnitude=1.5).save_pretrained(tmp_path / "warp")
    LearnedPolicy(3, ops=("gain", "time_warp")).save_pretrained(tmp_path / "policy")
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **rest: object) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / repo_id.split("/")[1] / filename)

    for module in ("ecgmeta.runtime.pretrained", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    warp = load_augmenter("some-lab/warp", fs=500.0)
    assert isinstance(warp, LearnedWarp)
    assert (warp.fs, warp.input_fs, warp.global_magnitude.item(), warp.training) == (250.0, 500.0, 1.5, True)
    assert set(asked) == {("some-lab/warp", name) for name in ("config.json", "model.safetensors")}
    policy = load_augmenter("some-lab/policy")
    assert isinstance(policy, LearnedPolicy)
    assert policy.ops == ("gain", "time_warp")


def test_a_record_of_less_than_a_second_is_refused_by_the_default() -> None:
    with pytest.raises(InputError, match="LearnedWarp: samples of x: found 99, expected at least 100"):
        _warp(variant="monotone")(_x(samples=99))
    assert _warp(variant="monotone")(_x(samples=100), generator=_generator()).shape == (4, 3, 100)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("variant", ["monotone", "paper"])
@pytest.mark.parametrize("training", [True, False])
def test_a_sample_that_is_not_finite_is_found(
    variant: Literal["monotone", "paper"], value: float, training: bool
) -> None:
    warp, x = _warp(variant=variant).train(training), _x()
    x[1, 2, -1] = value
    with pytest.raises(
        InputError, match="LearnedWarp: samples of x: found one that is not finite in record 1"
    ):
        warp(x)
