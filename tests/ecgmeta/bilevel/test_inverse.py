"""The conformance suite of the inverse-Hessian-vector products, and the rates they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import relative_error, spd
from torch import Tensor

from ecgmeta.bilevel import ConjugateGradient, Identity, Neumann, Nystrom, Result, Solution, Solver
from ecgmeta.bilevel.inverse import Dense, Diagonal, Matvec
from ecgmeta.bilevel.trees import Tree, flatten, unflatten

G = torch.Generator().manual_seed(0)
OPERATORS: dict[str, Tensor] = {
    "I": torch.eye(4, dtype=torch.float64),
    "3I": 3 * torch.eye(4, dtype=torch.float64),
    "diagonal": torch.diag(torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)),
    "spd": spd(7, G, low=0.5, high=4.0),
    "size 1": torch.tensor([[1.7]], dtype=torch.float64),
}
INDEFINITE = spd(7, G, low=-0.8, high=3.0)


def weights(n: int) -> Tensor:
    """A preconditioner's diagonal."""
    return torch.linspace(0.4, 1.2, n, dtype=torch.float64)


def series(matrix: Tensor, v: Tensor, terms: int, alpha: float, damping: float, p: Tensor) -> Tensor:
    """``αP^½ Σ (I − αP^½(H + μI)P^½)ʲ P^½ v``: the symmetric form, which the code does not use."""
    n = len(v)
    eye, root = torch.eye(n, dtype=v.dtype), torch.diag(p.sqrt())
    step = eye - alpha * root @ (matrix + damping * eye) @ root
    return alpha * root @ sum(torch.linalg.matrix_power(step, j) for j in range(terms + 1)) @ root @ v


def solved(damping: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda m, v: torch.linalg.solve(m + damping * torch.eye(len(v), dtype=v.dtype), v)


# A solver for a right-hand side of this shape, its damping, and what it should find.
Case = tuple[Callable[[Tree], Solver], float, Callable[[Tensor, Tensor], Tensor]]
SOLVERS: dict[str, Case] = {
    "identity": (lambda _: Identity(0.3), 0.0, lambda m, v: 0.3 * v),
    "neumann": (
        lambda _: Neumann(5, 0.22, exact_residual=True),
        0.0,
        lambda m, v: series(m, v, 5, 0.22, 0.0, torch.ones_like(v)),
    ),
    "neumann, damped": (
        lambda _: Neumann(4, 0.2, damping=0.3, exact_residual=True),
        0.3,
        lambda m, v: series(m, v, 4, 0.2, 0.3, torch.ones_like(v)),
    ),
    "neumann, preconditioned": (
        lambda like: Neumann(6, 0.25, 0.1, exact_residual=True, preconditioner=diagonal_of(like)),
        0.1,
        lambda m, v: series(m, v, 6, 0.25, 0.1, weights(len(v))),
    ),
    "cg": (lambda _: ConjugateGradient(9), 0.0, solved(0.0)),
    "cg, damped": (lambda _: ConjugateGradient(9, damping=0.7), 0.7, solved(0.7)),
    "nystrom": (lambda _: Nystrom(rank=2, iterations=9, damping=0.05, seed=3), 0.05, solved(0.05)),
    "nystrom, full rank": (lambda _: Nystrom(rank=20, iterations=9, damping=0.2), 0.2, solved(0.2)),
    "dense": (lambda _: Dense(), 0.0, solved(0.0)),
    "dense, damped": (lambda _: Dense(0.4), 0.4, solved(0.4)),
}


def tree_of(flat: Tensor) -> Tree:
    """A vector as several tensors: a scalar, a row vector, and what is left."""
    return {"a": flat[0], "b": flat[1:3].unsqueeze(0), "c": flat[3:].reshape(-1, 2 if len(flat) % 2 else 1)}


def diagonal_of(like: Tree) -> Diagonal:
    flat = flatten(like)
    return lambda: unflatten(weights(len(flat)).to(flat.dtype), like)


class Counted:
    """A matrix as an operator on trees that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.products = matrix, 0

    def __call__(self, tree: Tree) -> Tree:
        self.products += 1
        return unflatten(self.matrix @ flatten(tree), tree)


def matvec_of(matrix: Tensor) -> Matvec:
    return lambda tree: {"x": matrix @ tree["x"]}


def rhs(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def residual_of(matrix: Tensor, damping: float, solution: Solution, v: Tensor) -> float:
    value = flatten(solution.value)
    return float((v - matrix @ value - damping * value).norm() / v.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_on_every_operator(name: str, operator: str, dtype: torch.dtype) -> None:
    build, damping, expected = SOLVERS[name]
    matrix = OPERATORS[operator].to(dtype)
    flat = rhs(len(matrix)).to(dtype)
    v = tree_of(flat.clone())
    product = Counted(matrix)
    solution = build(v)(product, v)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert solution.ok, solution.result
    assert {n: (t.shape, t.dtype) for n, t in solution.value.items()} == {
        n: (t.shape, t.dtype) for n, t in v.items()
    }
    assert torch.equal(flatten(v), flat)
    truth = expected(OPERATORS[operator], rhs(len(matrix)))
    assert relative_error(flatten(solution.value).double(), truth) < tolerance
    assert solution.iterations == product.products
    if name == "identity":
        assert solution.residual is None
    else:
        assert solution.residual == pytest.approx(
            residual_of(matrix, damping, solution, flat), abs=10 * tolerance
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_right_hand_side_gives_zero(name: str) -> None:
    v = tree_of(torch.zeros(7, dtype=torch.float64))
    solution = SOLVERS[name][0](v)(Counted(OPERATORS["spd"]), v)
    assert float(flatten(solution.value).abs().max()) == 0
    assert solution.ok
    assert solution.residual in ((None,) if name == "identity" else (0.0,))


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "identity"])
def test_every_solver_that_takes_products_notices_an_indefinite_operator(name: str) -> None:
    # A series sees negative curvature once a term lies mostly along it; the others find it wherever v touches it.
    series = name.startswith("neumann")
    v = tree_of(rhs(7) + (30 * torch.linalg.eigh(INDEFINITE).eigenvectors[:, 0] if series else 0))
    solution = SOLVERS[name][0](v)(Counted(INDEFINITE), v)
    assert solution.result is Result.INDEFINITE
    assert not solution.ok
    assert "damping" in solution.result.value


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "identity"])
def test_a_product_that_is_not_finite_is_noticed(name: str) -> None:
    v = tree_of(rhs(7))
    solution = SOLVERS[name][0](v)(Counted(OPERATORS["spd"] * float("nan")), v)
    assert solution.result is Result.NON_FINITE
    assert not solution.ok
    assert bool(flatten(solution.value).isfinite().all())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Identity(0.0), "step_size > 0"),
        (lambda: Identity(float("nan")), "step_size > 0"),
        (lambda: Neumann(-1, 0.1), "terms >= 0"),
        (lambda: Neumann(1, 0.0), "step_size > 0"),
        (lambda: Neumann(1, 0.1, damping=-1.0), "damping >= 0"),
        (lambda: Neumann(1, 0.1, growth=1.0), "growth > 1"),
        (lambda: ConjugateGradient(0), "iterations >= 1"),
        (lambda: ConjugateGradient(1, damping=-0.1), "damping >= 0"),
        (lambda: ConjugateGradient(1, tolerance=-0.1), "tolerance >= 0"),
        (lambda: Nystrom(0, 1, 0.1), "rank >= 1"),
        (lambda: Nystrom(1, 0, 0.1), "iterations >= 1"),
        (lambda: Nystrom(1, 1, 0.0), "damping > 0"),
        (lambda: Nystrom(1, 1, 0.1, tolerance=-1.0), "tolerance >= 0"),
        (lambda: Dense(-0.1), "damping >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Neumann


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_neumann_contracts_no_slower_than_promised(operator: str, preconditioned: bool) -> None:
    matrix, alpha = OPERATORS[operator], 0.22
    n = len(matrix)
    p = weights(n) if preconditioned else torch.ones(n, dtype=torch.float64)
    root = torch.diag(p.sqrt())
    bound = torch.linalg.matrix_norm(
        torch.eye(n, dtype=torch.float64) - alpha * root @ matrix @ root, 2
    )  # max |1 − αλ|
    solution = Neumann(6, alpha, preconditioner=lambda: {"x": p})(matvec_of(matrix), {"x": rhs(n)})
    assert solution.contraction is not None
    assert 0 < solution.contraction <= float(bound) + 1e-12


@pytest.mark.parametrize("preconditioned", [False, True])
def test_neumanns_residual_contracts_by_one_minus_alpha_lambda_min(preconditioned: bool) -> None:
    """The slowest direction is what is left after many terms; with P it is that of ``P^½HP^½``, measured in ‖·‖_P."""
    n = 12
    matrix = spd(n, torch.Generator().manual_seed(5), low=1.0, high=8.0)
    p = torch.linspace(0.3, 2.0, n, dtype=torch.float64) if preconditioned else torch.ones(n).double()
    root = torch.diag(p.sqrt())
    eigenvalues = torch.linalg.eigvalsh(root @ matrix @ root)
    alpha = 1 / float(eigenvalues[-1])
    rate = 1 - alpha * float(eigenvalues[0])

    def size(terms: int) -> float:
        solver = Neumann(terms, alpha, preconditioner=lambda: {"x": p})
        r = rhs(n) - matrix @ solver(matvec_of(matrix), {"x": rhs(n)}).value["x"]
        return float((r * p * r).sum().sqrt())

    assert size(120) / size(119) == pytest.approx(rate, rel=1e-3)
    assert size(120) / size(100) == pytest.approx(rate**20, rel=2e-2)


def test_neumann_residual_without_the_extra_product_is_the_shorter_sums() -> None:
    v = rhs(7)
    shorter = Neumann(3, 0.2, exact_residual=True)(matvec_of(OPERATORS["spd"]), {"x": v})
    longer = Neumann(4, 0.2)(matvec_of(OPERATORS["spd"]), {"x": v})
    assert longer.iterations == shorter.iterations == 4
    assert longer.residual == pytest.approx(shorter.residual, rel=1e-12)
    assert Neumann(0, 0.2)(matvec_of(OPERATORS["spd"]), {"x": v}).residual is None


@pytest.mark.parametrize("exact_residual", [False, True])
def test_the_tail_is_the_last_term_that_is_in_the_sum(exact_residual: bool) -> None:
    v, matvec = {"x": rhs(7)}, matvec_of(OPERATORS["spd"])

    def found(terms: int) -> Solution:
        return Neumann(terms, 0.2, exact_residual=exact_residual, preconditioner=lambda: {"x": weights(7)})(
            matvec, v
        )

    three, four = found(3), found(4)
    last = four.value["x"] - three.value["x"]
    assert four.tail == pytest.approx(float(last.norm() / four.value["x"].norm()), rel=1e-10)
    assert found(0).tail is None


def test_a_step_size_above_two_over_lambda_max_is_noticed_and_the_series_stopped() -> None:
    v = rhs(4)
    solution = Neumann(50, 0.9)(matvec_of(OPERATORS["3I"]), {"x": v})
    assert solution.result is Result.DIVERGED
    assert not solution.ok
    assert solution.iterations == 1
    assert "smaller step_size" in solution.result.value
    torch.testing.assert_close(solution.value["x"], 0.9 * v)
    # The limit is that of P^½HP^½: this P brings the same step size below it.
    assert Neumann(50, 0.9, preconditioner=lambda: {"x": torch.full((4,), 0.5)})(
        matvec_of(OPERATORS["3I"]), {"x": v}
    ).ok


@pytest.mark.parametrize("preconditioned", [False, True])
def test_negative_curvature_is_noticed_and_damping_cures_it(preconditioned: bool) -> None:
    matrix = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64))
    v = torch.tensor([1.0, 0.1, 0.1], dtype=torch.float64)
    diagonal = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    precondition = (lambda: {"x": diagonal}) if preconditioned else None
    solution = Neumann(20, 0.4, preconditioner=precondition)(matvec_of(matrix), {"x": v})
    assert solution.result is Result.INDEFINITE
    assert Neumann(20, 0.4, damping=0.6, preconditioner=precondition)(matvec_of(matrix), {"x": v}).ok
    # However small the step size.
    tiny = Neumann(1, 1e-9, preconditioner=precondition)(matvec_of(matrix), {"x": v})
    assert tiny.ok
    assert tiny.result is Result.NEGATIVE_CURVATURE


@pytest.mark.parametrize("name", ["3I", "indefinite"])
def test_with_no_bound_on_growth_every_term_is_summed(name: str) -> None:
    matrix = (
        OPERATORS["3I"] if name == "3I" else torch.diag(torch.tensor([-2.0, 3.0] * 2, dtype=torch.float64))
    )
    v, alpha, terms = rhs(4), 0.9, 6
    solution = Neumann(terms, alpha, growth=math.inf)(matvec_of(matrix), {"x": v})
    step = torch.eye(4, dtype=v.dtype) - alpha * matrix
    expected = alpha * sum(torch.linalg.matrix_power(step, j) @ v for j in range(terms + 1))
    torch.testing.assert_close(solution.value["x"], expected)
    assert solution.ok
    assert solution.contraction is not None
    assert solution.contraction > 1.5


def test_growth_that_positive_and_negative_curvature_share_stops_the_series_and_names_both() -> None:
    """Here α < 2/λmax and ⟨v, Hv⟩ > 0, yet the residual grows: from one product the two causes cannot be told apart."""
    matrix = torch.diag(torch.tensor([-0.8, 3.0], dtype=torch.float64))
    solution = Neumann(5, 0.3)(matvec_of(matrix), {"x": torch.tensor([1.0, 0.55], dtype=torch.float64)})
    assert solution.result is Result.DIVERGED
    assert "step_size" in solution.result.value
    assert "damping" in solution.result.value


def test_a_converged_series_spends_no_more_products() -> None:
    solution = Neumann(500, 0.3)(matvec_of(OPERATORS["3I"]), {"x": rhs(4)})  # contracts by 0.1
    assert 15 <= solution.iterations <= 17
    torch.testing.assert_close(solution.value["x"], rhs(4) / 3, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": torch.tensor([1.0, 0.0, 1.0])}, "not positive"),
        ({"x": torch.tensor([1.0, float("inf"), 1.0])}, "not positive and finite"),
        ({"x": torch.ones(2)}, r"has \(2,\) for 'x', expected \(3,\)"),
        ({"y": torch.ones(3)}, "has nothing for 'x'"),
    ],
)
def test_a_preconditioner_that_does_not_fit_is_refused(tree: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neumann(1, 0.1, preconditioner=lambda: tree)(lambda t: t, {"x": torch.ones(3)})


# Conjugate gradients


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_conjugate_gradients_are_exact_in_as_many_steps_as_eigenvalues(operator: str, damping: float) -> None:
    matrix = OPERATORS[operator]
    distinct = len(torch.unique((torch.linalg.eigvalsh(matrix) * 1e6).round()))
    solution = ConjugateGradient(distinct, damping=damping)(matvec_of(matrix), {"x": rhs(len(matrix))})
    assert relative_error(solution.value["x"], solved(damping)(matrix, rhs(len(matrix)))) < 1e-10
    assert solution.result is Result.DONE
    assert solution.iterations == distinct


def test_conjugate_gradients_converge_within_their_bound() -> None:
    matrix = spd(60, torch.Generator().manual_seed(3), low=1.0, high=10.0)
    v = rhs(60)
    exact = torch.linalg.solve(matrix, v)

    def error(k: int) -> float:
        e = ConjugateGradient(k)(matvec_of(matrix), {"x": v}).value["x"] - exact
        return float((e @ matrix @ e).sqrt())

    rate = (10**0.5 - 1) / (10**0.5 + 1)
    start = float((exact @ matrix @ exact).sqrt())
    for k in (2, 5, 10, 20):
        assert error(k) <= 2 * rate**k * start


@pytest.mark.parametrize("solver", [ConjugateGradient(5), Nystrom(3, 5, damping=1e-6)])
def test_running_out_of_iterations_is_said_and_is_usable(solver: Solver) -> None:
    matrix = spd(60, torch.Generator().manual_seed(3), low=1.0, high=10.0)
    solution = solver(matvec_of(matrix), {"x": rhs(60)})
    assert solution.result is Result.TRUNCATED
    assert solution.ok
    assert "more iterations" in solution.result.value
    assert solution.residual is not None
    assert 1e-3 < solution.residual < 0.3
    loose = ConjugateGradient(50, tolerance=0.3)(matvec_of(matrix), {"x": rhs(60)})
    assert loose.result is Result.DONE
    assert loose.iterations < 5


def test_conjugate_gradients_stop_at_the_rounding_of_float32() -> None:
    """Going on would shrink the recursion's residual until ⟨p, Hp⟩ underflows, which is no negative curvature."""
    eigenvalues = 1e-3 * torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    v = rhs(5).float()
    solution = ConjugateGradient(100, tolerance=0.0)(lambda t: {"x": eigenvalues * t["x"]}, {"x": v})
    assert solution.result is Result.DONE
    assert solution.iterations < 10
    torch.testing.assert_close(solution.value["x"], v / eigenvalues, rtol=1e-5, atol=0)


# Nyström


def test_a_nystrom_sketch_removes_the_large_eigenvalues() -> None:
    g = torch.Generator().manual_seed(4)
    q, _ = torch.linalg.qr(torch.randn(80, 80, generator=g, dtype=torch.float64))
    values = 1e4 * 0.6 ** torch.arange(80, dtype=torch.float64)  # fast decay: 22 of them above the damping
    matrix, v = (q * values) @ q.T, rhs(80)
    plain = ConjugateGradient(400, damping=0.1, tolerance=1e-8)(matvec_of(matrix), {"x": v})
    helped = Nystrom(rank=30, iterations=400, damping=0.1, tolerance=1e-8)(matvec_of(matrix), {"x": v})
    assert plain.result is helped.result is Result.DONE
    assert helped.iterations - 30 <= 8  # κ is about 1 after the sketch
    assert plain.iterations > 5 * (helped.iterations - 30)
    assert plain.iterations > helped.iterations  # the sketch's own products included
    assert relative_error(helped.value["x"], solved(0.1)(matrix, v)) < 1e-6


def test_a_sketch_that_proves_the_operator_indefinite_ends_the_solve() -> None:
    v = {"x": rhs(7)}
    solution = Nystrom(rank=7, iterations=50, damping=0.3)(matvec_of(INDEFINITE), v)  # λmin = −0.8
    assert solution.result is Result.INDEFINITE
    assert solution.iterations == 7
    cured = Nystrom(rank=7, iterations=50, damping=0.9)(matvec_of(INDEFINITE), v)
    assert cured.result is Result.DONE
    assert relative_error(cured.value["x"], solved(0.9)(INDEFINITE, rhs(7))) < 1e-8


# METHOD's table


def test_the_errors_to_expect_on_a_ridge_of_condition_ten() -> None:
    """METHOD, last section, 13. Its data are not stated; ``XᵀX/n + μI`` with Gaussian X and κ = 10 reproduces it."""
    g = torch.Generator().manual_seed(1)
    X = torch.randn(800, 400, generator=g, dtype=torch.float64)
    gram = X.T @ X / 800
    ends = torch.linalg.eigvalsh(gram)[[0, -1]]
    ridge = float(ends[1] - 10 * ends[0]) / 9
    matrix = gram + ridge * torch.eye(400, dtype=torch.float64)
    eigenvalues, q = torch.linalg.eigh(matrix)
    top = float(eigenvalues[-1])
    v = torch.randn(400, generator=g, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, v)

    def error(solver: Solver) -> float:
        return relative_error(solver(matvec_of(matrix), {"x": v}).value["x"], exact)

    for terms, stated in {0: 0.81, 1: 0.68, 5: 0.38, 20: 0.053, 100: 5e-6}.items():
        found = error(Neumann(terms, 1 / top) if terms else Identity(1 / top))
        # What is missing of each eigendirection is (1 − λ/L)^(J+1) of it.
        missing = (1 - eigenvalues / top) ** (terms + 1) * (q.T @ exact)
        assert found == pytest.approx(float(missing.norm() / exact.norm()), rel=1e-6)
        assert stated / 1.5 < found < stated * 1.5
    for iterations, stated in {5: 0.041, 20: 2e-6}.items():
        assert stated / 1.5 < error(ConjugateGradient(iterations, tolerance=0.0)) < stated * 1.5
    assert error(ConjugateGradient(100, tolerance=0.0)) < 2e-14
    # So flat a spectrum leaves a sketch little to do: a quarter of the dimension buys a factor of five.
    sketched = Nystrom(100, 20, damping=ridge)(matvec_of(gram), {"x": v}).value["x"]
    assert 4e-7 / 1.5 < relative_error(sketched, exact) < 4e-7 * 1.5
