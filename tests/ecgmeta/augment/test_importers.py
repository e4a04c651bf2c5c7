"""The authors' checkpoints, built by hand in the layouts of their released code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.augment import LearnedPolicy, LearnedWarp, load_checkpoint
from ecgmeta.augment.functional import smoothing_kernel
from ecgmeta.augment.importers import TASKAUG, import_paper_warp, import_taskaug
from ecgmeta.runtime.errors import InputError


def _normal(*shape: int, seed: int = 0, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _teacher() -> dict[str, Tensor]:
    """``teacher_sd`` as RandWarpAugLearnExMag saves it: convolutions at 0, 3, 6, 9, norms after them, two sampling grids."""
    state = {"flow_mag": torch.tensor([2.5])}
    for place, channels in zip((0, 3, 6, 9), (12, 32, 32, 32), strict=True):
        state[f"net.{place}.weight"] = _normal(32, channels, 15, seed=place)
        state[f"net.{place}.bias"] = _normal(32, seed=place + 20)
        state[f"net.{place + 1}.weight"] = 1 + _normal(32, seed=place + 40)
        state[f"net.{place + 1}.bias"] = _normal(32, seed=place + 60)
        state[f"net.{place + 1}.running_mean"] = _normal(32, seed=place + 80)
        state[f"net.{place + 1}.running_var"] = 1 + _normal(32, seed=place + 100).abs()
        state[f"net.{place + 1}.num_batches_tracked"] = torch.tensor(7)
    state["flow_mag_layer.weight"], state["flow_mag_layer.bias"] = _normal(1, 32, seed=3), torch.tensor([0.2])
    state["integrate.transformer.grid"] = torch.arange(256.0).view(1, 1, -1)
    state["transformer.grid"] = torch.arange(1024.0).view(1, 1, -1)
    return state


def _teacher_of(leads: int) -> dict[str, Tensor]:
    return {**_teacher(), "net.0.weight": _normal(32, leads, 15)}


def _taskaug(learned: bool = True) -> dict[str, Tensor]:
    """``aug_sd`` as Policy saves it. The crop has no magnitude to learn, the no-op nothing at all."""
    state = {}
    for stage in range(2):
        prefix = f"sub_policies.0.stages.{stage}."
        state[prefix + "_weights"] = 1 + _normal(7, seed=stage)
        for number in (0, 1, 2, 4, 5):
            state[f"{prefix}operations.{number}.magnitude"] = _normal(2, seed=10 * stage + number, scale=1.0)
        for number in range(6) if learned else ():
            state[f"{prefix}operations.{number}.probability"] = _normal(2, seed=50 + number, scale=2.0)
        for name in ("0.warp_obj.transformer", "0.warp_obj.integrate.transformer", "4.warp_obj.transformer"):
            state[f"{prefix}operations.{name}.grid"] = torch.zeros(1, 1, 8)
    return state


def _opinion(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's network by torch's functions, in eval mode."""
    for place in (0, 3, 6, 9):
        x = F.conv1d(x, state[f"net.{place}.weight"], state[f"net.{place}.bias"], stride=2)
        mean, variance, weight, bias = (
            state[f"net.{place + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, variance, weight, bias).relu()
    return 2 * torch.sigmoid(
        F.linear(x.mean(-1), state["flow_mag_layer.weight"], state["flow_mag_layer.bias"])
    )


def test_the_papers_warp_keeps_every_number() -> None:
    state, x = _teacher(), _normal(4, 12, 1024, scale=1.0)
    warp = import_paper_warp(state)
    assert (warp.variant, warp.fs, warp.leads) == ("paper", 100.0, 12)
    assert warp.training
    torch.testing.assert_close(warp.magnitude(x), _opinion(state, x) * 2.5**2)
    noise = warp.draw(x, torch.Generator().manual_seed(1))
    out = warp(x, noise)
    assert torch.equal(out, warp(x, noise))  # the imported statistics stay as they are
    assert (out != x).any()


def _paper_flow(velocity: Tensor, steps: int, window: int) -> Tensor:
    """Down-sampling, scaling and squaring, up-sampling, smoothing, by ``grid_sample``."""
    flow = F.interpolate(velocity.unsqueeze(1), scale_factor=0.25, mode="linear") / 4 / 2**steps
    for _ in range(steps):
        flow = flow + _moved(flow, flow)
    flow = F.interpolate(4 * flow, scale_factor=4, mode="linear")
    return F.conv1d(flow, smoothing_kernel(window).to(flow), padding=window // 2)


def _moved(x: Tensor, flow: Tensor) -> Tensor:
    n = x.shape[-1]
    t = 2 * (torch.arange(n, dtype=x.dtype) + flow.squeeze(1)) / (n - 1) - 1
    grid = torch.stack([t, torch.zeros_like(t)], -1).unsqueeze(1)
    return F.grid_sample(x.unsqueeze(2), grid, align_corners=True).squeeze(2)


def test_taskaugs_policy_keeps_probabilities_and_magnitudes() -> None:
    state = _taskaug()
    policy = import_taskaug(state)
    assert policy.ops == TASKAUG
    assert policy.fs == 250.0
    for stage in range(2):
        prefix = f"sub_policies.0.stages.{stage}."
        assert torch.equal(policy.logits[stage], state[prefix + "_weights"])
        for number in range(6):
            assert torch.equal(
                policy.gate_logits[stage, number], state[f"{prefix}operations.{number}.probability"]
            )
    kinds = torch.tensor([0, 1])
    magnitude = policy.magnitude(torch.zeros(2, 12, 2496), kinds)[:, :, :, 0].movedim(0, -1)
    for stage in range(2):
        raw = {n: state[f"sub_policies.0.stages.{stage}.operations.{n}.magnitude"] for n in (0, 1, 2, 4, 5)}
        expected = {
            "paper_warp": raw[0].square(),
            "taskaug_wander": 0.25 * torch.sigmoid(raw[1]),
            "white_noise": 0.25 * torch.sigmoid(raw[2]),
            "taskaug_crop": torch.full((2,), 0.05),
            "time_shift": 100 * raw[4].square() / 250,  # samples at 250 Hz, in s
            "taskaug_scale": torch.sigmoid(raw[5]),
        }
        for number, name in enumerate(TASKAUG[:6]):
            torch.testing.assert_close(magnitude[stage, number], expected[name])


@pytest.mark.parametrize("number", range(7))
def test_each_of_taskaugs_operations_is_its_formula(number: int) -> None:
    policy = import_taskaug(_taskaug())
    with torch.no_grad():
        policy.logits.fill_(-1e4)
        policy.logits[0, number], policy.logits[1, 6] = 0.0, 0.0
        policy.gate_logits.fill_(40.0)
    x = _normal(5, 12, 2496, scale=0.5)
    labels = torch.tensor([0, 1, 1, 0, 1])
    draw = policy.draw(x, torch.Generator().manual_seed(4), labels=labels)
    out = policy(x, draw)
    if number == 6:
        assert torch.equal(out, x)
        return
    rows, z = draw.noise[0][number]
    assert z is not None
    state = _taskaug()
    raw = state.get(f"sub_policies.0.stages.0.operations.{number}.magnitude", torch.zeros(2))
    m = raw[labels][rows].view(-1, 1, 1)
    expected = x.clone()
    if number == 0:
        expected = _moved(x, _paper_flow(100 * m[:, 0].square() * z, 7, 51))
        # Many records are long where the warp is strong; where the two ways of reading agree is within rounding of positions.
        assert (out - expected).abs().mean() < 5e-3
        return
    if number == 1:
        t = torch.linspace(0, 1, 2496)
        frequency, phase = (z[:, 1:2] * 20 + 10) * 10 / 60, z[:, 2:3] * 2 * math.pi
        expected = x + 0.25 * torch.sigmoid(m) * z[:, :1] * torch.sin(t * frequency + phase)
    elif number == 2:
        expected = x + 0.25 * x.std(-1, keepdim=True) * torch.sigmoid(m) * z
    elif number == 3:
        for row, u in enumerate(z.flatten()):
            start = int(u * (2496 - 124))
            expected[row, :, start : start + 124] = 0
    elif number == 4:
        expected = _moved(x, (100 * m.square() * (2 * z - 1)).expand(-1, 1, 2496))
    else:
        expected = x * torch.sigmoid(m) * (1.25 - 0.5 * z)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-3)


def test_what_was_not_learned_has_the_released_values() -> None:
    policy = import_taskaug(_taskaug(learned=False))
    torch.testing.assert_close(torch.sigmoid(policy.gate_logits), torch.full((2, 7, 2), 0.9999999))
    start = LearnedPolicy.taskaug()
    assert start.settings == {"paper_warp": {"steps": 7, "window": 51}}
    found = start.magnitude(torch.zeros(1, 12, 2496), torch.tensor([0]))[0, 0, :, 0]
    torch.testing.assert_close(found[:6], torch.tensor([1.0, 0.125, 0.125, 0.05, 0.1, 0.5]))


def test_checkpoints_are_told_apart_by_their_keys_and_survive_saving(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "teacher_sd": _teacher()}, tmp_path / "warp.pt")
    torch.save({"epoch": 3, "aug_sd": _taskaug()}, tmp_path / "taskaug.pt")
    x = _normal(3, 12, 2496)
    for name, cls in (("warp", LearnedWarp), ("taskaug", LearnedPolicy)):
        augmenter = load_checkpoint(tmp_path / f"{name}.pt")
        assert isinstance(augmenter, cls)
        augmenter.save_pretrained(tmp_path / name)
        again = cls.from_pretrained(tmp_path / name)
        draw = augmenter.draw(x, torch.Generator().manual_seed(2))
        torch.testing.assert_close(again(x, draw), augmenter(x, draw))


class _Executes:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_a_file_that_is_no_checkpoint_is_refused_and_never_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({"aug_sd": _Executes()}, tmp_path / "object.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name in ("other.pt", "object.pt", "text.pt", "missing.pt"):
        with pytest.raises(InputError, match=f"{name}: checkpoint: found"):
            load_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (_without(_teacher(), "flow_mag"), "teacher_sd: global_magnitude: found shape nothing"),
        (_without(_teacher(), "net.0.weight"), "teacher_sd: net.0.weight"),
        ({**_teacher(), "net.3.weight": torch.zeros(32, 32, 9)}, "teacher_sd: net.3.weight"),
        ({**_teacher(), "extra": torch.zeros(1)}, "teacher_sd: extra"),
        (
            {**_teacher(), "flow_mag": torch.tensor([math.nan])},
            "teacher_sd: global_magnitude: found a number",
        ),
    ],
)
def test_another_warp_is_refused(state: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_paper_warp(state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sub_policies.0.stages.0._weights": torch.zeros(6)}, r"_weights: found shape \(6,\)"),
        (
            {"sub_policies.0.stages.1.operations.9.magnitude": torch.zeros(2)},
            "operations.9.magnitude: found an unknown",
        ),
        (
            {"sub_policies.0.stages.1.operations.1.size": torch.zeros(2)},
            "operations.1.size: found an unknown",
        ),
        ({"other": torch.zeros(2)}, "other: found an unknown"),
        ({"sub_policies.0.stages.1.operations.1.magnitude": torch.zeros(5)}, r"found shape \(5,\)"),
    ],
)
def test_another_policy_is_refused(change: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_taskaug({**_taskaug(), **change})


def test_no_policy_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"sub_policies.0.stages.0._weights: found nothing"):
        import_taskaug({})


def test_the_warp_keeps_what_it_was_learned_on(tmp_path: Path) -> None:
    state, x = _teacher_of(3), _normal(4, 3, 600, scale=1.0)
    torch.save({"teacher_sd": state}, tmp_path / "warp.pt")
    warp = load_checkpoint(tmp_path / "warp.pt", fs=250.0, leads=3, mean=0.1, std=0.25)
    assert isinstance(warp, LearnedWarp)
    assert (warp.fs, warp.input_fs, warp.leads, warp.mean, warp.std) == (250.0, 250.0, 3, 0.1, 0.25)
    torch.testing.assert_close(warp.magnitude(0.25 * x + 0.1), _opinion(state, x) * 2.5**2)
    warp.save_pretrained(tmp_path / "warp")
    again = LearnedWarp.from_pretrained(tmp_path / "warp", fs=100.0)
    assert (again.fs, again.input_fs, again.mean, again.std) == (250.0, 100.0, 0.1, 0.25)


def test_taskaugs_policy_keeps_what_it_was_learned_on(tmp_path: Path) -> None:
    torch.save({"aug_sd": _taskaug()}, tmp_path / "taskaug.pt")
    policy = load_checkpoint(tmp_path / "taskaug.pt", fs=500.0, leads=2, std=0.25)
    assert isinstance(policy, LearnedPolicy)
    assert (policy.fs, policy.leads, policy.std) == (500.0, 2, 0.25)
    plain, kinds = import_taskaug(_taskaug(), leads=2), torch.tensor([0, 1])
    own, other = (p.magnitude(torch.zeros(2, 2, 500), kinds) for p in (policy, plain))
    # A wander in mV; the other magnitudes are shares, counts of samples (at 250 Hz twice the time) and factors.
    expected = torch.tensor([1.0, 0.25, 1.0, 1.0, 0.5, 1.0, 1.0]).view(1, 1, 7, 1)
    torch.testing.assert_close(own, expected * other)
    # On records in mV it does what it did to (record)/std.
    x, normal = _normal(5, 2, 600, scale=0.5), import_taskaug(_taskaug(), leads=2, fs=500.0)
    draw = policy.draw(x, torch.Generator().manual_seed(4))
    torch.testing.assert_close(policy(x, draw), 0.25 * normal(4 * x, draw))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"leads": 3}, r"teacher_sd: net.0.weight: found shape \(32, 12, 15\), expected shape \(32, 3, 15\)"),
        ({"fs": 0.0}, "LearnedWarp: fs: found 0.0"),
        ({"mean": math.nan}, "LearnedWarp: mean: found nan"),
        ({"std": -1.0}, "LearnedWarp: std: found -1.0"),
    ],
)
def test_records_that_the_warp_was_not_learned_on_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_paper_warp(_teacher(), **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mean": 0.1}, "aug_sd: mean: found 0.1, expected 0"),
        ({"leads": 0}, "LearnedPolicy: leads: found 0"),
        ({"fs": math.inf}, "LearnedPolicy: fs: found inf"),
        ({"std": 0.0}, "LearnedPolicy: std: found 0.0"),
    ],
)
def test_records_that_taskaug_was_not_learned_on_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_taskaug(_taskaug(), **settings)
