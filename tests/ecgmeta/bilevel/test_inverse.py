"""The conformance suite of the inverse-Hessian-vector products."""

from __future__ import annotations

import pytest
import torch
from problems import spd
from torch import Tensor

from ecgmeta.bilevel import ConjugateGradient, Identity, Neumann, Nystrom, Result, Solver
from ecgmeta.bilevel.inverse import Dense, Matvec

G = torch.Generator().manual_seed(0)
OPERATORS: dict[str, Tensor] = {
    "I": torch.eye(4, dtype=torch.float64),
    "3I": 3 * torch.eye(4, dtype=torch.float64),
    "diagonal": torch.diag(torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)),
    "spd": spd(7, G, low=0.5, high=4.0),
    "size 1": torch.tensor([[1.7]], dtype=torch.float64),
}
SOLVERS: dict[str, Solver] = {
    "identity": Identity(0.3),
    "neumann": Neumann(5, 0.25),
    "damped": Neumann(5, 0.2, damping=0.1),
    "cg": ConjugateGradient(3),
    "nystrom": Nystrom(rank=2, iterations=3, damping=0.05),
    "dense": Dense(),
}


def matvec_of(matrix: Tensor) -> Matvec:
    return lambda tree: {"x": matrix @ tree["x"]}


def rhs(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_on_every_operator(solver: str, operator: str) -> None:
    matrix = OPERATORS[operator]
    v = rhs(len(matrix))
    kept = v.clone()
    solution = SOLVERS[solver](matvec_of(matrix), {"x": v})
    assert solution.ok
    assert solution.value["x"].shape == v.shape
    assert solution.value["x"].dtype == torch.float64
    torch.testing.assert_close(v, kept, rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_right_hand_side_gives_zero(solver: str) -> None:
    solution = SOLVERS[solver](matvec_of(OPERATORS["spd"]), {"x": torch.zeros(7, dtype=torch.float64)})
    assert float(solution.value["x"].abs().max()) == 0
    assert solution.ok


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_neumann_equals_its_formula_and_contracts_as_promised(operator: str, damping: float) -> None:
    matrix = OPERATORS[operator]
    n, v, alpha = len(matrix), rhs(len(matrix)), 0.22
    shifted = matrix + damping * torch.eye(n, dtype=torch.float64)
    step = torch.eye(n, dtype=torch.float64) - alpha * shifted
    for terms in (0, 1, 4):
        solution = Neumann(terms, alpha, damping=damping, exact_residual=True)(matvec_of(matrix), {"x": v})
        expected = alpha * sum(torch.linalg.matrix_power(step, j) @ v for j in range(terms + 1))
        torch.testing.assert_close(solution.value["x"], expected)
        assert solution.iterations == terms + 1
        residual = (v - shifted @ solution.value["x"]).norm() / v.norm()
        assert solution.residual == pytest.approx(float(residual), rel=1e-9)
        assert solution.contraction is not None
        assert solution.contraction <= float(torch.linalg.matrix_norm(step, 2)) + 1e-12


def test_neumann_residual_without_the_extra_product_is_the_shorter_sums() -> None:
    v = rhs(7)
    shorter = Neumann(3, 0.2, exact_residual=True)(matvec_of(OPERATORS["spd"]), {"x": v})
    longer = Neumann(4, 0.2)(matvec_of(OPERATORS["spd"]), {"x": v})
    assert longer.iterations == shorter.iterations == 4
    assert longer.residual == pytest.approx(shorter.residual, rel=1e-12)
    assert Neumann(0, 0.2)(matvec_of(OPERATORS["spd"]), {"x": v}).residual is None


def test_a_step_size_above_two_over_lambda_max_is_noticed_and_the_series_stopped() -> None:
    v = rhs(4)
    solution = Neumann(50, 0.9)(matvec_of(OPERATORS["3I"]), {"x": v})
    assert solution.result is Result.DIVERGED
    assert not solution.ok
    assert solution.iterations == 1
    assert "smaller step_size" in solution.result.value
    torch.testing.assert_close(solution.value["x"], 0.9 * v)


def test_negative_curvature_is_noticed_and_damping_cures_it() -> None:
    matrix = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64))
    v = torch.tensor([1.0, 0.1, 0.1], dtype=torch.float64)
    solution = Neumann(20, 0.4)(matvec_of(matrix), {"x": v})
    assert solution.result is Result.INDEFINITE
    assert "damping" in solution.result.value
    assert Neumann(20, 0.4, damping=0.6)(matvec_of(matrix), {"x": v}).ok
    # One small term does not diverge: it may be used, and still says what it met.
    short = Neumann(1, 0.01)(matvec_of(matrix), {"x": v})
    assert short.ok
    assert short.result is Result.NEGATIVE_CURVATURE
    torch.testing.assert_close(short.value["x"], 0.01 * (2 * v - 0.01 * matrix @ v))


def test_a_product_that_is_not_finite_is_noticed() -> None:
    solution = Neumann(3, 0.1)(lambda tree: {"x": tree["x"] * float("nan")}, {"x": rhs(3)})
    assert solution.result is Result.NON_FINITE
    assert bool(torch.isfinite(solution.value["x"]).all())


@pytest.mark.parametrize(("terms", "step_size", "damping"), [(-1, 0.1, 0.0), (1, 0.0, 0.0), (1, 0.1, -1.0)])
def test_settings_out_of_range_are_refused(terms: int, step_size: float, damping: float) -> None:
    with pytest.raises(ValueError, match="Neumann needs"):
        Neumann(terms, step_size, damping)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_conjugate_gradients_are_exact_in_n_steps(operator: str, damping: float) -> None:
    matrix, v = OPERATORS[operator], rhs(len(OPERATORS[operator]))
    n = len(matrix)
    solution = ConjugateGradient(n, damping=damping)(matvec_of(matrix), {"x": v})
    shifted = matrix + damping * torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(solution.value["x"], torch.linalg.solve(shifted, v), rtol=1e-8, atol=1e-10)
    assert solution.residual is not None
    assert solution.residual < 1e-9
    distinct = len(torch.unique((torch.linalg.eigvalsh(shifted) * 1e6).round()))
    assert solution.iterations <= distinct
    torch.testing.assert_close(
        Dense(damping)(matvec_of(matrix), {"x": v}).value["x"], torch.linalg.solve(shifted, v)
    )


def test_conjugate_gradients_converge_within_their_bound() -> None:
    matrix = spd(60, torch.Generator().manual_seed(3), low=1.0, high=10.0)
    v = rhs(60)
    exact = torch.linalg.solve(matrix, v)

    def error(k: int) -> float:
        e = ConjugateGradient(k)(matvec_of(matrix), {"x": v}).value["x"] - exact
        return float((e @ matrix @ e).sqrt())

    rate = (10**0.5 - 1) / (10**0.5 + 1)
    start = float((exact @ matrix @ exact).sqrt())
    for k in (2, 5, 10):
        assert error(k) <= 2 * rate**k * start


def test_a_nystrom_sketch_removes_the_large_eigenvalues() -> None:
    g = torch.Generator().manual_seed(4)
    q, _ = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))
    values = torch.cat(
        [
            torch.tensor([1e4, 3e3, 1e3, 5e2], dtype=torch.float64),
            torch.linspace(0.5, 1, 36, dtype=torch.float64),
        ]
    )
    matrix, v = (q * values) @ q.T, rhs(40)
    shifted = matrix + 0.1 * torch.eye(40, dtype=torch.float64)
    plain = ConjugateGradient(6, damping=0.1)(matvec_of(matrix), {"x": v})
    helped = Nystrom(rank=8, iterations=6, damping=0.1)(matvec_of(matrix), {"x": v})
    assert helped.iterations == 14
    assert plain.residual is not None
    assert helped.residual is not None
    assert helped.residual < 1e-2 * plain.residual
    assert helped.residual == pytest.approx(
        float((v - shifted @ helped.value["x"]).norm() / v.norm()), rel=1e-4
    )


@pytest.mark.parametrize("solver", [ConjugateGradient(20), Nystrom(2, 20, 0.01), Dense()])
def test_indefinite_operators_are_noticed(solver: Solver) -> None:
    matrix = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64))
    solution = solver(matvec_of(matrix), {"x": torch.tensor([1.0, 0.1, 0.1], dtype=torch.float64)})
    assert solution.result is Result.INDEFINITE
