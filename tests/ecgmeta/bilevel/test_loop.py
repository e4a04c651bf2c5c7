"""Algorithm 1: it finds the best φ of a problem that has one, on schedule, and stops and resumes exactly."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from problems import Quadratic
from torch import Tensor

from ecgmeta.bilevel import (
    SGD,
    Adam,
    DoubleBackward,
    ForwardOverReverse,
    Identity,
    LoaderBatches,
    MetaState,
    Neumann,
    Report,
    Schedule,
    Unroll,
    meta_train,
)


class Constant:
    """The same batch at every step; records what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def pretrain(self, step: int) -> Any:
        self.asked.append(("pretrain", step))
        return None

    def hyper(self, step: int, k: int) -> Any:
        self.asked.append(("hyper", step))
        return None

    def train(self, step: int, k: int) -> Any:
        self.asked.append(("train", step))
        return "train"

    def validation(self, step: int, k: int) -> Any:
        self.asked.append(("validation", step))
        return "validation"


def start(problem: Quadratic, phi_lr: float = 0.02) -> MetaState:
    n, n_phi = problem.B.shape
    theta = {"w": torch.zeros(n, dtype=torch.float64, requires_grad=True)}
    phi = {"p": torch.zeros(n_phi, dtype=torch.float64, requires_grad=True)}
    psi = {"h": torch.zeros(len(problem.t), dtype=torch.float64)}
    return MetaState(
        theta, phi, psi, torch.optim.SGD(theta.values(), lr=0.15), torch.optim.Adam(phi.values(), lr=phi_lr)
    )


SETTINGS: dict[str, Any] = {
    "finetune": Unroll(2, SGD(0.3)),
    "inverse": Neumann(20, 0.15),
    "head_optimizer": SGD(0.3),
    "products": DoubleBackward,
    "share": False,
}


def run(problem: Quadratic, state: MetaState, batches: Any, **settings: Any) -> list[Report]:
    return list(meta_train(problem, state, batches, **{**SETTINGS, **settings}))


# With shared products θ answers a φ step one step later, so φ must be slower to settle.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("phi_lr", "settings"),
    [(0.05, {}), (0.01, {"share": True, "accumulate": 2, "scaling": 0.3, "clip": 1.0})],
)
def test_finds_the_optimal_phi_of_the_quadratic_two_stage_problem(
    phi_lr: float, settings: dict[str, Any]
) -> None:
    # As many φ as head outputs, and an unroll long enough to reach the head's optimum: validation loss 0, and only there.
    problem = Quadratic.random(0, n=6, n_phi=3, n_psi=3, low=2.0, high=8.0)
    state = start(problem, phi_lr)
    reports = run(
        problem,
        state,
        Constant(),
        schedule=Schedule(steps=1200, period=2, warmup=10),
        finetune=Unroll(12, SGD(0.6)),
        head_optimizer=SGD(0.6),
        inverse=Neumann(8, 0.15),
        **settings,
    )
    # The head converges to Cθ, so the reached φ solves (C+D)Bφ = t.
    expected = torch.linalg.solve((problem.C + problem.D) @ problem.B, problem.t)
    torch.testing.assert_close(state.phi["p"].detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.theta["w"].detach(), problem.B @ expected, rtol=1e-4, atol=1e-5)
    last = [r for r in reports if r.hyper is not None][-1]
    assert last.diagnostics["validation_loss"] < 1e-8


def test_schedule_decides_what_happens_when() -> None:
    problem, batches = Quadratic.random(1, low=1.0, high=5.0), Constant()
    reports = run(problem, start(problem), batches, schedule=Schedule(steps=10, period=3, warmup=4))
    assert [r.step for r in reports if r.hyper is not None] == [5, 8]
    assert [r.step for r in reports if r.head_loss is not None] == [0, 1, 2, 3, 4, 6, 7, 9]
    assert [s for name, s in batches.asked if name == "pretrain"] == list(range(10))
    assert [s for name, s in batches.asked if name == "hyper"] == [5, 8]


def test_without_a_period_it_is_plain_pretraining() -> None:
    problem, batches = Quadratic.random(1, low=1.0, high=5.0), Constant()
    state = start(problem)
    reports = run(problem, state, batches, schedule=Schedule(steps=5, period=0))
    assert {name for name, _ in batches.asked} == {"pretrain"}
    assert all(r.hyper is None and r.head_loss is None for r in reports)
    assert float(state.phi["p"].detach().abs().max()) == 0


def test_a_saved_state_resumes_to_the_same_numbers() -> None:
    problem = Quadratic.random(2, low=1.0, high=5.0)
    settings = {
        "schedule": Schedule(steps=40, period=4, warmup=3),
        "finetune": Unroll(2, Adam(0.05)),
        "head_optimizer": Adam(0.05),
    }
    whole = start(problem)
    losses = [r.pretrain_loss for r in run(problem, whole, Constant(), **settings)]

    first = start(problem)
    part = []
    for report in meta_train(problem, first, Constant(), **{**SETTINGS, **settings}):
        part.append(report.pretrain_loss)
        if report.step == 16:
            break
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = start(problem)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    part += [r.pretrain_loss for r in run(problem, second, Constant(), **settings)]
    assert part == losses
    assert torch.equal(second.phi["p"], whole.phi["p"])
    assert torch.equal(second.psi["h"], whole.psi["h"])


def test_a_saved_state_is_a_copy() -> None:
    problem = Quadratic.random(2, low=1.0, high=5.0)
    state = start(problem)
    saved = state.state_dict()
    kept = copy.deepcopy(saved["theta"])
    run(problem, state, Constant(), schedule=Schedule(steps=3, period=2))
    torch.testing.assert_close(saved["theta"], kept, rtol=0, atol=0)


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    small, large = start(Quadratic.random(0, n=4)), start(Quadratic.random(0, n=6))
    with pytest.raises(ValueError, match=r"theta\.w: the checkpoint has \(4,\), the model has \(6,\)"):
        large.load_state_dict(small.state_dict())


def test_a_diverging_series_skips_the_phi_step_and_says_so() -> None:
    problem = Quadratic.random(3, low=1.0, high=5.0)
    settings: dict[str, Any] = {"schedule": Schedule(steps=4, period=2), "inverse": Neumann(30, 2.0)}
    state = start(problem)
    reports = run(problem, state, Constant(), **settings)
    assert [r.skipped is not None for r in reports] == [False, True, False, True]
    assert "smaller step_size" in (reports[1].skipped or "")
    assert float(state.phi["p"].detach().abs().max()) == 0
    with pytest.raises(FloatingPointError, match="step 1: the series grew"):
        run(problem, start(problem), Constant(), **settings, on_failure="raise")


def test_clipping_bounds_the_step() -> None:
    problem = Quadratic.random(4, low=1.0, high=5.0)
    moved = []
    for clip in (None, 1e-3):
        state = start(problem)
        state.phi_optimizer = torch.optim.SGD(state.phi.values(), lr=1.0)
        run(problem, state, Constant(), schedule=Schedule(steps=1, period=1), clip=clip)
        moved.append(float(state.phi["p"].detach().norm()))
    assert moved[0] > 1e-2
    assert moved[1] == pytest.approx(1e-3)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    problem = Quadratic.random(5)
    problem.A = problem.A * float("inf")
    with pytest.raises(FloatingPointError, match="pre-training loss is nan"):
        run(problem, start(problem), Constant(), schedule=Schedule(steps=1))


def test_batches_from_loaders_begin_again() -> None:
    batches = LoaderBatches([1, 2, 3], ["a"], [None])
    assert [batches.pretrain(0), batches.hyper(0, 0), batches.pretrain(1), batches.pretrain(2)] == [
        1,
        2,
        3,
        1,
    ]
    assert [batches.train(0, k) for k in range(3)] == ["a", "a", "a"]
    assert batches.validation(0, 0) is None
    with pytest.raises(ValueError, match="empty"):
        LoaderBatches([], [1], [1]).pretrain(0)


def test_phi_step_reads_the_current_head_state() -> None:
    # With Adam, a warm state changes ψ_K and so v: the unroll must start from it.
    problem = Quadratic.random(6, low=1.0, high=5.0)
    norms = []
    for forget in (False, True):
        state = start(problem)
        for report in meta_train(
            problem,
            state,
            Constant(),
            schedule=Schedule(steps=6, period=6),
            finetune=Unroll(2, Adam(0.1)),
            head_optimizer=Adam(0.1),
            share=False,
            inverse=Identity(),
        ):
            if forget:
                state.head_state = None
            if report.hyper is not None:
                norms.append(report.diagnostics["norm"])
    assert norms[0] != pytest.approx(norms[1], rel=1e-6)


def test_theta_is_trained_by_its_own_optimizer() -> None:
    problem = Quadratic.random(7, low=1.0, high=5.0)
    state = start(problem)
    with torch.no_grad():
        state.phi["p"].fill_(1.0)
    run(problem, state, Constant(), schedule=Schedule(steps=200, period=0))
    expected: Tensor = problem.B @ torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(state.theta["w"].detach(), expected)


def test_the_default_route_is_chosen_once_and_travels_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from ecgmeta.bilevel import loop, probe

    chosen: list[str] = []

    def choose(*arguments: Any, **settings: Any) -> Any:
        found = probe.choose_products(*arguments, candidates=[ForwardOverReverse], **settings)
        chosen.append(probe.route_name(found[0]))
        return found

    monkeypatch.setattr(loop, "choose_products", choose)
    problem = Quadratic.random(0)
    first = start(problem)
    run(problem, first, Constant(), schedule=Schedule(6, 2), products=None)
    assert chosen == ["forward_over_reverse"]
    assert first.route == "forward_over_reverse"
    second = start(problem)
    second.load_state_dict(first.state_dict())
    run(problem, second, Constant(), schedule=Schedule(12, 2), products=None)
    assert len(chosen) == 1
    named = start(problem)
    run(problem, named, Constant(), schedule=Schedule(6, 2), products=DoubleBackward)
    assert named.route is None
    torch.testing.assert_close(named.phi, first.phi)
