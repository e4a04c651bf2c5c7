"""What a φ step averages over, how it is scaled, who takes it, and the control without a direction."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from problems import Quadratic
from torch import Tensor, nn

from ecgmeta.bilevel import (
    SGD,
    Adam,
    DoubleBackward,
    FeatureModuleProblem,
    Identity,
    MetaState,
    Neumann,
    Report,
    Schedule,
    Unroll,
    hypergradient,
    meta_train,
    paper,
)
from ecgmeta.bilevel.trees import Tree, gradient, leaves


@dataclass
class Split(Quadratic):
    """The quadratic problem with φ in two tensors, every loss weighted by its batch: ``(purpose, weight)``."""

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        joined = {"p": torch.cat([phi["a"], phi["b"].reshape(-1)])}
        return batch[1] * super().pretrain_loss(theta, joined, None)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return batch[1] * super().finetune_loss(theta, psi, batch[0])


@dataclass
class Blind(Split):
    """It does not see every entry of φ."""

    seen: Tensor = field(default_factory=lambda: torch.ones(3, dtype=torch.float64))

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return super().pretrain_loss(theta, {**phi, "a": self.seen * phi["a"]}, batch)


class Numbered:
    """Every batch another, and known by its number."""

    def pretrain(self, step: int) -> Any:
        return "pretrain", 1 + 0.1 * (step % 3)

    def hyper(self, step: int, k: int) -> Any:
        return "hyper", 0.5 + 0.1 * (step % 5) + 0.2 * k

    def train(self, step: int, k: int) -> Any:
        return "train", 0.6 + 0.05 * (step % 4) + 0.1 * k

    def validation(self, step: int, k: int) -> Any:
        return "validation", 1.5 + 0.1 * (step % 3) + 0.5 * k


def make(seed: int = 0) -> Split:
    # φ has four coordinates: three in one tensor, one in a scalar.
    return Split.random(seed, low=1.0, high=5.0)


def start(problem: Split, optimizer: Any = None) -> MetaState:
    theta = {"w": torch.full((problem.B.shape[0],), 0.3, dtype=torch.float64, requires_grad=True)}
    phi = {
        "a": torch.zeros(3, dtype=torch.float64, requires_grad=True),
        "b": torch.zeros((), dtype=torch.float64, requires_grad=True),
    }
    psi = {"h": torch.zeros(len(problem.t), dtype=torch.float64)}
    by_phi = torch.optim.SGD(phi.values(), lr=0.1) if optimizer is None else optimizer(phi)
    return MetaState(theta, phi, psi, torch.optim.SGD(theta.values(), lr=0.1), by_phi)


def two(phi: Tree) -> Any:
    return [torch.optim.SGD([phi["a"]], lr=0.01), torch.optim.Adam([phi["b"]], lr=0.03)]


SETTINGS: dict[str, Any] = {
    "finetune": Unroll(2, SGD(0.3)),
    "inverse": Neumann(3, 0.1),
    "head_optimizer": SGD(0.3),
    "products": DoubleBackward,
    "schedule": Schedule(steps=1, period=1),
}


def run(problem: Any, state: MetaState, batches: Any = None, **settings: Any) -> list[Report]:
    return list(meta_train(problem, state, batches or Numbered(), **{**SETTINGS, **settings}))


def flat(tree: Tree) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in tree.values()])


@pytest.mark.parametrize("share", [True, False])
def test_an_accumulated_hypergradient_is_the_mean_over_its_draws(share: bool) -> None:
    problem, batches = make(), Numbered()
    state, plain = start(problem), start(problem)
    run(problem, plain, schedule=Schedule(1, 0))
    report = run(problem, state, share=share, accumulate=3)[0]
    # Shared products are taken before θ moves, others after it; θ moves once, by its own batch, either way.
    torch.testing.assert_close(state.theta["w"], plain.theta["w"], rtol=1e-14, atol=0)
    at = start(problem) if share else plain
    draws = [
        hypergradient(
            problem,
            at.theta,
            at.phi,
            at.psi,
            pretrain_batch=batches.pretrain(0) if share and k == 0 else batches.hyper(0, k),
            train_batches=[batches.train(0, 2 * k), batches.train(0, 2 * k + 1)],
            val_batch=batches.validation(0, k),
            finetune=SETTINGS["finetune"],
            inverse=SETTINGS["inverse"],
        )
        for k in range(3)
    ]
    expected = torch.stack([flat(d.phi) for d in draws]).mean(0)
    assert report.hyper is not None
    torch.testing.assert_close(flat(report.hyper.phi), expected)
    torch.testing.assert_close(flat(state.phi), -0.1 * expected)
    assert report.diagnostics["norm"] == pytest.approx(float(expected.norm()))
    losses = [float(d.finetune.validation_loss) for d in draws]
    assert report.diagnostics["validation_loss"] == pytest.approx(sum(losses) / 3)
    with pytest.raises(RuntimeError, match="let go"):
        report.hyper.pretrain.mixed({})


def test_each_step_and_draw_is_announced_before_its_losses() -> None:
    told: list[tuple[int, int] | str] = []

    class Told(Split):
        def at_step(self, step: int, draw: int = 0) -> None:
            told.append((step, draw))

        def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
            told.append(batch[0])
            return super().pretrain_loss(theta, phi, batch)

        def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
            told.append(batch[0])
            return super().finetune_loss(theta, psi, batch)

    problem = Told.random(0, low=1.0, high=5.0)
    settings: dict[str, Any] = {
        "schedule": Schedule(2, 2),
        "finetune": Unroll(0, SGD(1.0)),
        "inverse": Identity(1.0),
    }
    for share in (True, False):
        told.clear()
        run(problem, start(problem), share=share, accumulate=2, **settings)
        step = (
            [(1, 0), (1, 0), "validation", "pretrain"]
            if share
            else [(1, 0), "pretrain", (1, 0), "validation", "hyper"]
        )
        assert told == [(0, 0), "pretrain", "train", *step, (1, 1), "validation", "hyper"]


def test_one_bad_draw_skips_the_step_and_says_which() -> None:
    class Bad(Numbered):
        def hyper(self, step: int, k: int) -> Any:
            return "hyper", 20.0 if k == 2 else 1.0

    state = start(make())
    report = run(make(), state, Bad(), accumulate=4, inverse=Neumann(30, 0.1))[0]
    assert report.skipped is not None
    assert report.skipped.startswith("draw 3 of 4: the series grew")
    assert not flat(state.phi).any()
    assert state.signal.count == 0
    assert "displacement" not in report.diagnostics
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        run(make(), start(make()), accumulate=0)


def test_scaling_then_clipping_decides_what_the_optimizer_is_given() -> None:
    raw = run(make(), start(make()))[0].diagnostics
    size = raw["norm"]
    assert raw["scaled_norm"] == size
    assert raw["displacement"] == pytest.approx(0.1 * size)
    for settings, given in (
        ({"scaling": 7.0}, 7 * size),
        ({"scaling": "normalise"}, 1.0),
        ({"scaling": "normalise", "eps": 3 * size}, 0.25),
        ({"clip": 0.5 * size}, 0.5 * size),
        ({"scaling": 7.0, "clip": 2 * size}, 2 * size),
        ({"scaling": "normalise", "clip": 0.2}, 0.2),
    ):
        state = start(make())
        found = run(make(), state, **settings)[0].diagnostics
        assert found["norm"] == size
        assert found["scaled_norm"] == pytest.approx(given)
        assert found["displacement"] == pytest.approx(0.1 * given)
        assert float(flat(state.phi).norm()) == pytest.approx(0.1 * given)
    for wrong in ({"scaling": 0.0}, {"scaling": "unit"}, {"eps": -1.0}, {"clip": 0.0}, {"control": "walk"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be|{next(iter(wrong))} above"):
            run(make(), start(make()), **wrong)


def test_a_tiny_hypergradient_is_decided_by_adams_eps_unless_it_is_normalised() -> None:
    def adam(phi: Tree) -> torch.optim.Optimizer:
        return torch.optim.Adam(phi.values(), lr=0.01)

    moved = {}
    for name, settings in (("raw", {}), ("normalised", {"scaling": "normalise", "eps": 1e-14})):
        state = start(make(), adam)
        found = run(make(), state, inverse=Identity(1e-11), **settings)[0].diagnostics
        assert found["norm"] < 1e-9
        moved[name] = flat(state.phi)
    # Adam's first step is lr · sign(g), where eps lets it be.
    torch.testing.assert_close(
        moved["normalised"].abs(), torch.full((4,), 0.01, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert float(moved["raw"].abs().max()) < 1e-3


def test_the_random_walk_moves_each_tensor_as_far_in_another_direction() -> None:
    real, walk, again, other = (start(make(), two) for _ in range(4))
    run(make(), real)
    report = run(make(), walk, control="random_walk")[0]
    run(make(), again, control="random_walk")
    run(make(), other, control="random_walk", seed=1)
    for name in ("a", "b"):
        size = real.phi[name].norm()
        assert size > 0
        torch.testing.assert_close(walk.phi[name].norm(), size)
        torch.testing.assert_close(other.phi[name].norm(), size)
    assert report.diagnostics["displacement"] == pytest.approx(float(flat(real.phi).norm()))
    assert torch.equal(walk.phi["a"], again.phi["a"])
    for unlike in (real, other):
        assert abs(torch.cosine_similarity(walk.phi["a"], unlike.phi["a"], 0).item()) < 0.99


def test_the_random_walk_leaves_alone_what_learning_leaves_alone() -> None:
    """An entry whose hypergradient is 0 stays; the others take the whole step; where all are 0, none is taken."""
    for seen in ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        problem = Blind.random(0, low=1.0, high=5.0)
        problem.seen = torch.tensor(seen, dtype=torch.float64)
        real, walk = start(problem), start(problem)
        run(problem, real)
        run(problem, walk, control="random_walk")
        assert torch.equal(walk.phi["a"] != 0, problem.seen != 0)
        assert walk.phi["b"] != 0
        torch.testing.assert_close(walk.phi["a"].norm(), real.phi["a"].norm())


@pytest.mark.slow
def test_the_random_walk_has_no_direction() -> None:
    steps = []
    state = start(make())
    before = flat(state.phi)
    for report in meta_train(
        make(),
        state,
        Numbered(),
        **{**SETTINGS, "schedule": Schedule(600, 1), "scaling": "normalise", "control": "random_walk"},
    ):
        after = flat(state.phi)
        steps.append((after - before) / report.diagnostics["displacement"])
        before = after
    unit = torch.stack([s[:3] / s[:3].norm() for s in steps])
    # Uniform on the sphere: mean 0 and covariance 1/3, each within four standard errors.
    assert float(unit.mean(0).abs().max()) < 4 * (1 / 3 / 600) ** 0.5
    assert float((unit.T @ unit / 600 - torch.eye(3) / 3).abs().max()) < 4 * 0.3 / 600**0.5
    signs = torch.stack(steps)[:, 3].sign().mean()
    assert abs(float(signs)) < 4 / 600**0.5
    assert state.signal.count == 600  # of the hypergradients themselves


def test_several_optimizers_and_groups_each_move_their_own() -> None:
    problem, raw = make(), start(make())
    g = run(problem, raw)[0].hyper
    assert g is not None
    several = start(problem, two)
    run(problem, several)
    torch.testing.assert_close(several.phi["a"].detach(), -0.01 * g.phi["a"])
    torch.testing.assert_close(several.phi["b"].detach(), -0.03 * g.phi["b"].sign(), rtol=1e-6, atol=0)
    groups = start(
        problem,
        lambda phi: torch.optim.SGD(
            [{"params": [phi["a"]], "lr": 0.2}, {"params": [phi["b"]], "lr": 0.5}], lr=1.0
        ),
    )
    run(problem, groups)
    torch.testing.assert_close(groups.phi["a"].detach(), -0.2 * g.phi["a"])
    torch.testing.assert_close(groups.phi["b"].detach(), -0.5 * g.phi["b"])


def test_a_tensor_that_no_optimizer_or_two_would_move_is_an_error() -> None:
    problem = make()
    for optimizer, times in (
        (lambda phi: torch.optim.SGD([phi["a"]], lr=1), 0),
        (lambda phi: [], 0),
        (lambda phi: [torch.optim.SGD(phi.values(), lr=1), torch.optim.SGD([phi["b"]], lr=1)], 2),
    ):
        with pytest.raises(ValueError, match=rf"hold each tensor of φ once: '[ab]' is there {times} times"):
            run(problem, start(problem, optimizer))
    run(problem, start(problem, lambda phi: []), schedule=Schedule(2, 0))  # φ is not to move
    with pytest.raises(ValueError, match="phi_optimizer: the checkpoint has 1 optimisers, this state has 2"):
        start(problem, two).load_state_dict(start(problem).state_dict())


def test_phi_and_head_are_frozen_after_a_step() -> None:
    state = start(make())
    reports = run(make(), state, schedule=Schedule(12, period=2, warmup=1, freeze_after=7))
    assert [r.step for r in reports if r.hyper is not None] == [1, 3, 5]
    assert [r.step for r in reports if r.head_loss is not None] == [0, 2, 4, 6]
    short = start(make())
    run(make(), short, schedule=Schedule(7, period=2, warmup=1))
    assert torch.equal(flat(short.phi), flat(state.phi))
    assert not torch.equal(short.theta["w"], state.theta["w"])


class Module(nn.Module):
    """Encoder with dropout and BatchNorm, a head, and in pre-training one log-weight an output."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, outputs)).double()
        self.weights = nn.Linear(outputs, 1, bias=False).double()

    def features(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.encoder(batch[0])

    def head_loss(self, features: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        errors = (self.head(features) - batch[1]).square()
        return (errors * self.weights.weight.exp()).mean()

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.head_loss(self.features(batch), batch)


class Drawn:
    def _draw(self, *numbers: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(sum(n * 1000**i for i, n in enumerate(numbers)))
        x = torch.randn(8, 5, generator=g, dtype=torch.float64)
        return x, x[:, :2].tanh()

    def pretrain(self, step: int) -> Any:
        return self._draw(0, step)

    def hyper(self, step: int, k: int) -> Any:
        return self._draw(1, step, k)

    def train(self, step: int, k: int) -> Any:
        return self._draw(2, step, k)

    def validation(self, step: int, k: int) -> Any:
        return self._draw(3, step, k)


def network(phi_lr: float = 0.05) -> tuple[FeatureModuleProblem, MetaState]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)).double()
    pretrain, finetune = Module(encoder, 2), Module(encoder, 2)
    problem = FeatureModuleProblem(pretrain, finetune, hyper=pretrain.weights, finetune_mode="train", seed=3)
    state = MetaState(
        problem.theta,
        problem.phi,
        {name: value.detach().clone() for name, value in problem.psi.items()},
        torch.optim.Adam(problem.theta.values(), lr=0.01),
        [torch.optim.Adam(problem.phi.values(), lr=phi_lr)],
    )
    return problem, state


@pytest.mark.parametrize("share", [True, False])
def test_a_phi_step_leaves_buffers_and_noise_of_the_pretraining_step_alone(share: bool) -> None:
    # With φ's learning rate at 0, a run with φ steps (three draws each) is the run without, to the last bits of rounding.
    (plain, plain_state), (problem, state) = network(), network(phi_lr=0.0)
    settings = {"finetune": Unroll(2, Adam(0.05)), "head_optimizer": Adam(0.05), "inverse": Neumann(1, 0.1)}
    losses = [r.pretrain_loss for r in run(plain, plain_state, Drawn(), schedule=Schedule(6, 0), **settings)]
    outside = torch.random.get_rng_state()
    reports = run(problem, state, Drawn(), schedule=Schedule(6, 2), share=share, accumulate=3, **settings)
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert [r.pretrain_loss for r in reports] == pytest.approx(losses, rel=1e-12)
    found, expected = dict(problem.pretrain.named_buffers()), dict(plain.pretrain.named_buffers())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert int(found["encoder.1.num_batches_tracked"]) == 6


@pytest.mark.parametrize("control", ["none", "random_walk"])
def test_a_run_with_everything_on_resumes_to_the_same_numbers(control: str) -> None:
    settings: dict[str, Any] = {
        "schedule": Schedule(26, period=2, warmup=3, freeze_after=23),
        "finetune": Unroll(2, Adam(0.05), encoder=True),
        "head_optimizer": Adam(0.05),
        "inverse": Neumann(1, 0.05),
        "accumulate": 2,
        "scaling": "normalise",
        "eps": 1e-10,
        "clip": 0.9,
        "control": control,
        "seed": 4,
    }
    problem, whole = network()
    reports = run(problem, whole, Drawn(), **settings)

    problem, first = network()
    part = []
    for report in meta_train(problem, first, Drawn(), **{**SETTINGS, **settings}):
        part.append(report)
        if report.step == 12:
            break
    buffer = io.BytesIO()
    torch.save((first.state_dict(), problem.pretrain.state_dict()), buffer)
    buffer.seek(0)
    saved, buffers = torch.load(buffer, weights_only=True)
    torch.manual_seed(99)  # what the caller's generator does is of no matter
    problem, second = network()
    problem.pretrain.load_state_dict(buffers)
    second.load_state_dict(saved)
    part += run(problem, second, Drawn(), **settings)

    assert [r.pretrain_loss for r in part] == [r.pretrain_loss for r in reports]
    assert [r.diagnostics for r in part] == [r.diagnostics for r in reports]
    assert torch.equal(flat(second.phi), flat(whole.phi))
    assert second.signal.verdict() == whole.signal.verdict()
    last = [r for r in reports if r.hyper is not None][-1]
    assert last.step == 21
    assert {"cosine_previous", "snr", "z_max", "displacement", "scaled_norm"} <= last.diagnostics.keys()


@pytest.mark.slow
def test_a_phi_that_learns_is_said_to_drift() -> None:
    # A slow φ on a noisy problem: the hypergradient keeps its sign under its noise.
    class Loud(Numbered):
        def validation(self, step: int, k: int) -> Any:
            g = torch.Generator().manual_seed(step)
            return "validation", 1 + 3 * torch.randn((), generator=g, dtype=torch.float64)

    state = start(make(), lambda phi: torch.optim.SGD(phi.values(), lr=1e-6))
    run(make(), state, Loud(), schedule=Schedule(300, 1))
    assert state.signal.drifts, state.signal.verdict()

    class Void(Numbered):
        def validation(self, step: int, k: int) -> Any:
            g = torch.Generator().manual_seed(step)
            return "validation", 3 * torch.randn((), generator=g, dtype=torch.float64)

    state = start(make(), lambda phi: torch.optim.SGD(phi.values(), lr=1e-6))
    run(make(), state, Void(), schedule=Schedule(300, 1))
    assert not state.signal.drifts, state.signal.verdict()


def test_the_paper_preset_is_the_papers_loop() -> None:
    """Against the algorithm written out with plain autograd and ``torch.optim``."""
    lr, head_lr, batches, problem = 2e-2, 3e-2, Numbered(), make(5)
    state = start(problem, lambda phi: torch.optim.Adam(phi.values(), lr=0.1))
    state.theta_optimizer = torch.optim.Adam(state.theta.values(), lr=lr)
    settings = paper(45, 20, lr=lr, head_lr=head_lr)
    reports = list(meta_train(problem, state, batches, **settings))
    assert [r.step for r in reports if r.hyper is not None] == [29, 39]

    ours = start(problem)
    theta, phi, psi = ours.theta, ours.phi, leaves(ours.psi)
    by_theta = torch.optim.Adam(theta.values(), lr=lr)
    by_phi = torch.optim.Adam(phi.values(), lr=0.1)
    head = torch.optim.Adam(psi.values(), lr=head_lr)
    for step in range(45):
        by_theta.zero_grad()
        problem.pretrain_loss(theta, phi, batches.pretrain(step)).backward()
        by_theta.step()
        if step not in (29, 39):
            head.zero_grad()
            problem.finetune_loss(theta, psi, batches.train(step, 0)).backward()
            head.step()
            continue
        warm = head.state[psi["h"]]
        moments = {"mean": {"h": warm["exp_avg"]}, "square": {"h": warm["exp_avg_sq"]}}
        count = {"h": warm["step"].double()}
        slope = gradient(problem.finetune_loss(theta, psi, batches.train(step, 0)), psi, create_graph=True)
        after, _ = Adam(head_lr).update(psi, slope, {**moments, "count": count})
        value = problem.finetune_loss(theta, after, batches.validation(step, 0))
        v = gradient(value, theta)
        g = gradient(problem.pretrain_loss(theta, phi, batches.hyper(step, 0)), theta, create_graph=True)
        hv = gradient([g["w"]], theta, grad_outputs=[v["w"]], retain_graph=True)["w"]
        u = lr * (v["w"] + (v["w"] - lr * hv))
        mixed = gradient([g["w"]], phi, grad_outputs=[u])
        for name, tensor in phi.items():
            tensor.grad = -mixed[name]
        by_phi.step()
    torch.testing.assert_close(flat(state.phi), flat(phi), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state.theta["w"], theta["w"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state.psi["h"], psi["h"].detach(), rtol=1e-9, atol=1e-12)
    assert float(flat(phi).norm()) > 0.1
    other = paper(5, 1, period=4, terms=2)
    assert (other["schedule"], other["inverse"]) == (Schedule(5, 4, 1), Neumann(2, 1e-4))
