"""Training that breaks in its numbers: each way is provoked, found, said, logged, and handled by the policy."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
from run_helpers import call, error_line, metrics, pretrain, watched
from torch import Tensor

from ecgmeta.augment import LearnedWarp
from ecgmeta.bilevel import MetaState, Report, Result
from ecgmeta.experiment.config import Meta
from ecgmeta.experiment.failures import LOGIT_LIMIT, AugmenterGuard
from ecgmeta.runtime.failures import MOST_SHRINKS, Failure, not_finite
from ecgmeta.runtime.files import load_checkpoint

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

THROUGH = "through=pretrain"
GROWING = ("meta.inverse=neumann", "meta.step_size=1e6", "meta.terms=2", THROUGH)
ESCAPING = ("meta.magnitude_lr=100", "meta.magnitude_limit=5", THROUGH)


def _state(**values: float) -> MetaState:
    phi: dict[str, Tensor] = {
        f"augmenter.{name}": torch.full((2,), value, requires_grad=True) for name, value in values.items()
    }
    theta = {"w": torch.zeros(1, requires_grad=True)}
    return MetaState(
        theta=theta,
        phi=phi,
        psi={},
        theta_optimizer=torch.optim.SGD(theta.values(), lr=0.1),
        phi_optimizer=torch.optim.Adam(phi.values(), lr=0.5),
    )


def _report(step: int = 9, result: Result = Result.DONE, skipped: str | None = None) -> Report:
    hyper = cast(Any, SimpleNamespace(inverse=SimpleNamespace(result=result)))
    return Report(step, 1.0, hyper=hyper, skipped=skipped)


def _move(state: MetaState, by: dict[str, list[float]]) -> None:
    with torch.no_grad():
        for name, change in by.items():
            state.phi[f"augmenter.{name}"].add_(torch.tensor(change))


def test_a_step_within_the_limits_is_left_alone() -> None:
    state = _state(g=1.0, other=1.0)
    guard = AugmenterGuard(Meta(), state)
    _move(state, {"g": [8.9, -10.9], "other": [1e6, 0.0]})  # only magnitudes and chances have limits
    assert guard(_report()) is None
    assert guard(Report(3, 1.0)) is None
    assert state.phi["augmenter.g"].tolist() == pytest.approx([9.9, -9.9])
    assert guard.summary() is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [("g", 10.0), ("global_magnitude", 10.0), ("logits", LOGIT_LIMIT), ("gate_logits", LOGIT_LIMIT)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_leaves_its_limit_stays_and_the_rest_of_phi_moves(name: str, limit: float, sign: int) -> None:
    state = _state(**{name: 1.0, "other": 1.0})
    guard = AugmenterGuard(Meta(), state)
    _move(state, {name: [sign * (limit + 2), 0.5], "other": [0.25, 0.25]})
    failure = guard(_report())
    assert failure is not None
    assert (failure.kind, failure.action) == ("runaway", "skip")
    assert name in failure.reason
    assert f"{limit:g}" in failure.reason
    assert state.phi[f"augmenter.{name}"].tolist() == [1.0, 1.5]
    assert state.phi["augmenter.other"].tolist() == [1.25, 1.25]
    assert guard.summary() == "φ steps that failed (meta.on_failure=skip): 1 × runaway"


def test_a_limit_of_zero_is_none() -> None:
    state = _state(g=1.0)
    guard = AugmenterGuard(Meta(magnitude_limit=0.0), state)
    _move(state, {"g": [1e6, 1e6]})
    assert guard(_report()) is None


def test_phi_that_is_not_finite_comes_back_whole_with_its_optimiser() -> None:
    state = _state(g=1.0, other=2.0)
    guard = AugmenterGuard(Meta(), state)
    for value in state.phi.values():
        value.grad = torch.full((2,), float("nan"))
    state.phi_optimizers[0].step()
    assert not_finite(state.phi) is not None
    failure = guard(_report())
    assert failure is not None
    assert failure.kind == "non-finite"
    assert [value.tolist() for value in state.phi.values()] == [[1.0, 1.0], [2.0, 2.0]]
    for value in state.phi.values():
        value.grad = torch.ones(2)
    state.phi_optimizers[0].step()  # with NaN in its moments it would be NaN again
    assert guard(_report()) is None
    assert state.phi["augmenter.g"].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("result", "kind", "step_size", "lr"),
    [
        (Result.DIVERGED, "series", 5e-4, 0.5),
        (Result.INDEFINITE, "series", 5e-4, 0.5),
        (Result.NON_FINITE, "non-finite", 5e-4, 0.25),
        (Result.DONE, "non-finite", 5e-4, 0.25),  # the solver was content; M⁠ᵀu was not finite
    ],
)
def test_shrinking_halves_what_is_to_blame(result: Result, kind: str, step_size: float, lr: float) -> None:
    state = _state(g=1.0)
    guard = AugmenterGuard(Meta(on_failure="shrink", step_size=1e-3), state)
    failure = guard(_report(result=result, skipped="why"))
    assert failure == Failure(kind, "why", "shrink")
    assert guard.step_size == step_size
    assert state.phi_optimizers[0].param_groups[0]["lr"] == lr


def test_the_solver_takes_the_smaller_step_size() -> None:
    guard = AugmenterGuard(Meta(on_failure="shrink", inverse="identity", step_size=1.0), _state(g=1.0))
    v = {"w": torch.tensor([4.0])}
    assert guard.solve(lambda u: u, v).value["w"].item() == 4.0
    guard(_report(result=Result.DIVERGED, skipped="why"))
    assert guard.solve(lambda u: u, v).value["w"].item() == 2.0
    series = AugmenterGuard(
        Meta(on_failure="shrink", inverse="neumann", terms=1, step_size=0.5), _state(g=1.0)
    )
    series(_report(result=Result.DIVERGED, skipped="why"))
    # α = 1/4, H = 2: α(1 + (1 − 2α)) v = 0.375 v
    assert series.solve(lambda u: {"w": 2 * u["w"]}, v).value["w"].item() == pytest.approx(1.5)


def test_a_rate_that_was_halved_too_often_stops() -> None:
    guard = AugmenterGuard(Meta(on_failure="shrink"), _state(g=1.0))
    actions = [guard(_report(result=Result.DIVERGED, skipped="why")) for _ in range(MOST_SHRINKS + 1)]
    assert [each.action for each in actions if each] == ["shrink"] * MOST_SHRINKS + ["stop"]


def test_a_flood_is_not_said_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    guard = AugmenterGuard(Meta(), _state(g=1.0))
    with mock.patch("ecgmeta.runtime.failures.say") as said:
        for step in range(100):
            guard(_report(step, Result.DIVERGED, "the series grew"))
    lines = [call.args[0] for call in said.call_args_list]
    assert len(lines) == 7  # 1, 2, 4, ..., 64
    assert lines[0] == "step 0: φ step not taken: the series grew (meta.step_size, meta.damping)"
    assert "64 times now" in lines[-1]


def _failures(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(folder) if "failure" in line]


def _moved(folder: Path) -> set[str]:
    """Parameters of the augmenter (not the running statistics) that are not what they were."""
    before, after = (LearnedWarp.from_pretrained(folder / name) for name in ("augmenter_before", "augmenter"))
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name for (name, old), new in pairs if not old.equal(new)}


@pytest.mark.slow
def test_a_growing_series_stops_the_run_or_is_skipped_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = (*GROWING, "pretrain.checkpoint_every=1")
    assert pretrain(folder, *options, "meta.on_failure=stop") == 1
    line = error_line(capsys.readouterr().err)
    # A series grows along any direction of large curvature; where that is negative, it says so.
    assert re.match("error: stopped: step 1: (the series grew|negative curvature was met)", line)
    assert "meta.step_size" in line
    assert line.endswith("The same command with meta.on_failure=skip goes on from it.")
    assert _failures(folder)[0]["failure"]["action"] == "stop"
    assert load_checkpoint(folder / "last.ckpt")["meta"]["step"] == 1  # the step that failed is not in it
    assert not (folder / "encoder").exists()
    assert pretrain(folder, *options, "meta.on_failure=skip") == 0
    said = capsys.readouterr().err
    assert re.search("step 1: φ step not taken: (the series grew|negative curvature was met)", said)
    assert "4 × series" in said
    assert [line["step"] for line in metrics(folder)] == list(range(8))
    assert [line["failure"]["action"] for line in _failures(folder)] == ["skip"] * 4
    assert _moved(folder) == set()


@pytest.mark.slow
def test_raise_is_the_old_name_of_stop(tmp_path: Path) -> None:
    assert pretrain(tmp_path / "run", *GROWING, "meta.on_failure=raise") == 1


@pytest.mark.slow
def test_a_shrunken_step_size_is_kept_by_a_resumed_run(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = (*GROWING, "meta.on_failure=shrink")

    def stop(done: int, total: int, text: str) -> None:
        if done == 5:
            signal.raise_signal(signal.SIGTERM)

    assert pretrain(whole, *options) == 0
    with watched(stop):
        assert pretrain(resumed, *options) == 0
    assert not (resumed / "encoder").exists()
    assert pretrain(resumed, *options) == 0
    assert [line["step_size"] for line in _failures(whole)] == [1e6 / 2**k for k in range(1, 5)]
    assert metrics(resumed) == metrics(whole)


def test_phi_that_runs_away_is_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert pretrain(folder, *ESCAPING) == 0
    assert "global_magnitude reached" in capsys.readouterr().err
    assert len(_failures(folder)) == 4
    assert "global_magnitude" not in _moved(folder)
    assert "magnitude_layer.weight" in _moved(folder)
    assert call("report", folder) == 0
    assert "φ was held back in 4 of 4 φ steps" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_phi_that_runs_away_is_slowed_until_it_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (*ESCAPING, "meta.on_failure=shrink", "pretrain.max_steps=20")
    assert pretrain(folder, *options) == 0
    found = _failures(folder)
    assert [line["failure"]["kind"] for line in found] == ["runaway"] * len(found)
    assert (
        3 <= len(found) < 10
    )  # from ±100 to within 5 takes at least 5 halvings, from 1; fewer once Adam slows down
    last = load_checkpoint(folder / "last.ckpt")
    assert last["guard"] == {"step_size": 0, "lr": len(found)}
    groups = last["meta"]["phi_optimizers"][0]["param_groups"]
    assert groups[1]["lr"] == 100 / 2 ** len(found)
    magnitudes = [line["global_magnitude"] for line in metrics(folder)]
    assert max(map(abs, magnitudes)) <= 5
    assert magnitudes[-1] != magnitudes[0]


def test_a_hypergradient_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("meta.inverse=neumann", "meta.step_size=1e32", THROUGH, "pretrain.max_steps=2")
    assert pretrain(folder, *options) == 0
    (found,) = _failures(folder)
    assert found["failure"]["kind"] == "non-finite"
    assert found["solver"] == "non_finite"
    assert _moved(folder) == set()


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert pretrain(folder, "pretrain.arm=simclr", "pretrain.lr=1e30", THROUGH) == 1
    line = error_line(capsys.readouterr().err)
    assert line.startswith("error: stopped: step 1: pre-training loss is nan")
    assert "pretrain.lr, meta.head_lr" in line
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1
    assert last["failure"]["kind"] == "loss"


def test_weights_that_are_not_finite_reach_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    step, steps = torch.optim.Adam.step, 0

    def poisoned(self: torch.optim.Adam, *arguments: Any) -> Any:
        nonlocal steps
        done = step(self, *arguments)
        steps += 1
        if steps == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0] = float("nan")
        return done

    options = ("pretrain.arm=simclr", THROUGH, "pretrain.checkpoint_every=2")
    with mock.patch.object(torch.optim.Adam, "step", poisoned):
        assert pretrain(folder, *options) == 1
    line = error_line(capsys.readouterr().err)
    assert line.startswith("error: stopped: step 5: ")
    assert "is not finite" in line
    last = load_checkpoint(folder / "last.ckpt")
    assert last["meta"]["step"] == 4
    assert not_finite(last["model"]) is None
    assert _failures(folder)[-1]["failure"]["kind"] == "weights"
    assert pretrain(folder, *options) == 0  # the accident over, it goes on from there
