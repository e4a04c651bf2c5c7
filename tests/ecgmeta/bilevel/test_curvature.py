"""Hessian-vector products on a part of the pre-training batch, against rows written down by hand."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from ecgmeta.bilevel import (
    SGD,
    ConjugateGradient,
    DoubleBackward,
    ForwardOverReverse,
    Hypergradient,
    Identity,
    MetaState,
    MicroBatches,
    Neumann,
    Nystrom,
    Schedule,
    Solver,
    Unroll,
    hypergradient,
    meta_train,
)
from ecgmeta.bilevel.trees import Tree, axpy, flatten

ROWS, WIDTH, ALPHA = 12, 4, 0.3


@dataclass
class Rows:
    """``L_PT = mean over rows of ½e^{φ_row}(xθ − y)²``, ``L_FT = mean over rows of ½(xθ − y)²``; a batch is row numbers."""

    X: Tensor
    y: Tensor
    evaluated: list[int] = field(default_factory=list)  # rows of every pre-training loss
    recorded: list[int] = field(default_factory=list)  # of those that were evaluated while recording
    open: bool = False

    @classmethod
    def random(cls, seed: int = 0) -> Self:
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(3 * ROWS, WIDTH, generator=generator, dtype=torch.float64)
        return cls(X, torch.randn(3 * ROWS, generator=generator, dtype=torch.float64))

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Tensor) -> Tensor:
        self.evaluated.append(len(batch))
        if self.open:
            self.recorded.append(len(batch))
        error = self.X[batch] @ theta["w"] - self.y[batch]
        return 0.5 * (phi["z"][batch].exp() * error.square()).mean()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Tensor) -> Tensor:
        return 0.5 * (self.X[batch] @ theta["w"] * psi["h"] - self.y[batch]).square().mean()

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.open = True
        yield
        self.open = False

    def hessian(self, phi: Tensor, batch: Tensor) -> Tensor:
        return (self.X[batch].T * phi[batch].exp()) @ self.X[batch] / len(batch)

    def mixed(self, w: Tensor, phi: Tensor, batch: Tensor, u: Tensor) -> Tensor:
        """``Mᵀu``: entry r is ``e^{φ_r} (x_rθ − y_r) x_r u / rows``."""
        found = torch.zeros_like(phi)
        x = self.X[batch]
        found[batch] = phi[batch].exp() * (x @ w - self.y[batch]) * (x @ u) / len(batch)
        return found


class Divided(Rows):
    def curvature_batch(self, batch: Tensor, share: float) -> Tensor:
        return batch[: int(share * len(batch))]


class Supplied(Divided):
    def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
        return {"z": self.mixed(theta["w"], phi["z"], batch, u["w"])}


W = torch.tensor([0.5, -1.0, 0.3, 0.8], dtype=torch.float64)
Z = torch.linspace(-0.5, 0.5, 3 * ROWS, dtype=torch.float64)
WHOLE, TRAIN, VALIDATION = (torch.arange(k * ROWS, (k + 1) * ROWS) for k in range(3))


def found(problem: Rows, inverse: Solver, **settings: Any) -> Hypergradient:
    psi = {"h": torch.tensor(0.7, dtype=torch.float64)}
    return hypergradient(
        problem, {"w": W}, {"z": Z}, psi, pretrain_batch=WHOLE, train_batches=[TRAIN], val_batch=VALIDATION,
        finetune=Unroll(1, SGD(0.1)), inverse=inverse, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [Divided, Supplied])
@pytest.mark.parametrize(
    "inverse", [Identity(0.3), Neumann(3, 0.3), ConjugateGradient(3), Nystrom(2, 2, 0.1)]
)
def test_a_share_of_one_changes_no_bit(kind: type[Divided], inverse: Solver) -> None:
    plain, problem = found(kind.random(), inverse), kind.random()
    whole = found(problem, inverse, curvature=1.0)
    assert whole.phi["z"].equal(plain.phi["z"])
    assert set(problem.evaluated) == {ROWS}


@pytest.mark.parametrize("route", [DoubleBackward, ForwardOverReverse])
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_products_on_all_parts_average_to_the_product_on_the_batch(route: Any, parts: int) -> None:
    problem, u = Divided.random(), {"w": torch.arange(1.0, 5.0, dtype=torch.float64)}

    def product(batch: Tensor) -> Tree:
        return route(lambda t, p: problem.pretrain_loss(t, p, batch), {"w": W}, {"z": Z}).hvp(u)

    total = {"w": torch.zeros_like(W)}
    for k in range(parts):
        part = problem.curvature_batch(WHOLE.roll(-k * ROWS // parts), 1 / parts)
        total = axpy(1 / parts, product(part), total)
    torch.testing.assert_close(total["w"], product(WHOLE)["w"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(total["w"], problem.hessian(Z, WHOLE) @ u["w"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("route", [DoubleBackward, ForwardOverReverse])
@pytest.mark.parametrize("kind", [Divided, Supplied])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_one_neumann_term_on_a_part_is_the_closed_expression(
    kind: type[Divided], route: Any, share: float
) -> None:
    problem = kind.random()
    hyper = found(problem, Neumann(1, ALPHA), products=route, curvature=share)
    v, part = hyper.finetune.v["w"], WHOLE[: int(share * ROWS)]
    u = ALPHA * (2 * v - ALPHA * problem.hessian(Z, part) @ v)
    expected = -problem.mixed(W, Z, WHOLE, u)
    torch.testing.assert_close(hyper.phi["z"], expected, rtol=1e-12, atol=1e-15)
    # Loss and gradient are those of the whole batch.
    x, error = problem.X[WHOLE], problem.X[WHOLE] @ W - problem.y[WHOLE]
    torch.testing.assert_close(hyper.pretrain.loss, 0.5 * (Z[WHOLE].exp() * error.square()).mean())
    torch.testing.assert_close(hyper.pretrain.gradient["w"], x.T @ (Z[WHOLE].exp() * error) / ROWS)


@pytest.mark.parametrize(
    ("inverse", "damping"), [(ConjugateGradient(WIDTH, 0.2), 0.2), (Nystrom(2, WIDTH, 0.2), 0.2)]
)
def test_a_solver_solves_with_the_hessian_of_the_part(inverse: Solver, damping: float) -> None:
    hyper = found(Divided.random(), inverse, curvature=0.5)
    matrix = Divided.random().hessian(Z, WHOLE[:6]) + damping * torch.eye(WIDTH, dtype=torch.float64)
    torch.testing.assert_close(
        hyper.inverse.value["w"], torch.linalg.solve(matrix, hyper.finetune.v["w"]), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("kind", [Divided, Supplied])
def test_without_products_the_part_is_never_evaluated_and_only_the_batch_is_recorded(
    kind: type[Divided],
) -> None:
    problem = kind.random()
    found(problem, Identity(0.3), curvature=0.5, recording=problem.recording())
    assert problem.evaluated == problem.recorded == [ROWS]
    problem = kind.random()
    found(problem, Neumann(1, 0.3), curvature=0.5, recording=problem.recording())
    assert sorted(problem.evaluated) == [ROWS // 2, ROWS]
    assert problem.recorded == [ROWS]


class Batches:
    """The same rows at every step, in ``parts``."""

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts

    def pretrain(self, step: int) -> Any:
        return WHOLE if self.parts == 1 else MicroBatches(WHOLE.chunk(self.parts))

    def hyper(self, step: int, k: int) -> Tensor:
        return WHOLE.roll(k)

    def train(self, step: int, k: int) -> Tensor:
        return TRAIN

    def validation(self, step: int, k: int) -> Tensor:
        return VALIDATION


def trained(
    problem: Rows, curvature: float, parts: int = 1, phi_lr: float = 0.5, **settings: Any
) -> MetaState:
    theta, phi = {"w": W.clone().requires_grad_()}, {"z": Z.clone().requires_grad_()}
    state = MetaState(
        theta, phi, {"h": torch.tensor(0.7, dtype=torch.float64)}, torch.optim.SGD(theta.values(), lr=0.1),
        torch.optim.SGD(phi.values(), lr=phi_lr),
    )  # fmt: skip
    for report in meta_train(
        problem, state, Batches(parts), schedule=Schedule(4, period=2), finetune=Unroll(1, SGD(0.1)),
        inverse=Neumann(1, ALPHA), head_optimizer=SGD(0.1), on_failure="raise", curvature=curvature,
        **{"products": DoubleBackward} | settings,
    ):  # fmt: skip
        assert report.skipped is None
    return state


@pytest.mark.parametrize("settings", [{}, {"share": False}, {"accumulate": 2}, {"parts": 2}])
def test_pretraining_steps_are_those_of_the_whole_batch(settings: dict[str, Any]) -> None:
    problem = Divided.random()
    state = trained(problem, 0.25, phi_lr=0.0, **settings)
    whole = trained(Divided.random(), 1.0, phi_lr=0.0, **settings)
    torch.testing.assert_close(state.theta["w"], whole.theta["w"], rtol=1e-12, atol=0)
    assert problem.evaluated.count(3) == 2 * settings.get("accumulate", 1)


def test_a_route_is_chosen_as_for_the_whole_batch() -> None:
    assert trained(Supplied.random(), 0.5, products=None).route is not None


def test_phi_follows_the_part() -> None:
    states = [trained(Divided.random(), share) for share in (1.0, 0.5)]
    apart = (
        flatten(axpy(-1.0, states[0].phi, states[1].phi)).norm()
        / flatten(axpy(-1.0, {"z": Z}, states[0].phi)).norm()
    )
    assert 1e-3 < float(apart) < 0.5
    assert states[0].phi["z"].equal(trained(Rows.random(), 1.0).phi["z"])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused_before_anything_is_done(share: float) -> None:
    problem = Divided.random()
    for start in (lambda: found(problem, Identity(), curvature=share), lambda: trained(problem, share)):
        with pytest.raises(ValueError, match=r"share above 0 and at most 1, got") as caught:
            start()
        assert "\n" not in str(caught.value)
    assert not problem.evaluated


def test_a_problem_that_does_not_divide_its_batches_says_so() -> None:
    for start in (
        lambda: found(Rows.random(), Identity(), curvature=0.5),
        lambda: trained(Rows.random(), 0.5),
    ):
        with pytest.raises(ValueError, match="Rows has no curvature_batch"):
            start()


class Saved:
    """A tensor that a graph keeps; gone when the graph is."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_the_graph_of_the_part_is_let_go_before_the_mixed_product() -> None:
    """Else the two peaks of memory would stand on each other."""
    saved: list[weakref.ref[Saved]] = []

    def pack(value: Tensor) -> Saved:
        kept = Saved(value.detach())  # one that held its own graph would never go
        saved.append(weakref.ref(kept))
        return kept

    class Watched(Divided):
        def pretrain_loss(self, theta: Tree, phi: Tree, batch: Tensor) -> Tensor:
            if len(batch) == ROWS:
                return super().pretrain_loss(theta, phi, batch)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
                return super().pretrain_loss(theta, phi, batch)

        def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
            assert saved
            assert all(kept() is None for kept in saved)
            return {"z": self.mixed(theta["w"], phi["z"], batch, u["w"])}

    assert found(Watched.random(), Neumann(1, ALPHA), curvature=0.5).ok


class Beside(Supplied):
    """It takes the gradient along with ``Mᵀu``."""

    def mixed_product_and_gradient(
        self, theta: Tree, phi: Tree, batch: Any, u: Tree
    ) -> tuple[Tree, Tensor, Tree]:
        loss = self.pretrain_loss(theta, phi, batch)
        error = self.X[batch] @ theta["w"] - self.y[batch]
        slope = (phi["z"][batch].exp() * error) @ self.X[batch] / len(batch)
        return self.mixed_product(theta, phi, batch, u), loss, {"w": slope}


@pytest.mark.parametrize(
    ("inverse", "curvature", "beside"),
    [
        (Identity(0.3), 1.0, True),
        (Neumann(1, ALPHA), 0.5, True),
        (Neumann(1, ALPHA), 1.0, False),  # the graph of second derivatives brings the gradient
    ],
)
def test_the_gradient_of_a_step_comes_with_the_mixed_product(
    inverse: Solver, curvature: float, beside: bool
) -> None:
    """Evaluated once and recorded where a step takes it; without a step nothing is recorded, and no gradient is taken."""
    problem, alone = Beside.random(), Beside.random()
    expected = found(Supplied.random(), inverse, curvature=curvature, recording=None)
    one = found(problem, inverse, curvature=curvature, recording=problem.recording())
    other = found(alone, inverse, curvature=curvature)
    for result in (one, other):
        torch.testing.assert_close(result.phi["z"], expected.phi["z"], rtol=1e-12, atol=0)
        torch.testing.assert_close(
            result.pretrain.gradient["w"], expected.pretrain.gradient["w"], rtol=1e-12, atol=0
        )
        assert float(result.pretrain.loss) == pytest.approx(float(expected.pretrain.loss), rel=1e-14)
    assert problem.recorded == [ROWS]
    assert not alone.recorded
    assert problem.evaluated.count(ROWS) == 1
    if beside:
        with pytest.raises(RuntimeError, match="the graph of this point was let go"):
            one.pretrain.hvp({"w": W})
