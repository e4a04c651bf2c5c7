"""Lanczos: the ends of a spectrum, what a short run may claim, and proposals that the solvers can trust."""

from __future__ import annotations

import pytest
import torch
from problems import relative_error, spd
from torch import Tensor

from ecgmeta.bilevel import ConjugateGradient, Neumann, Result, Spectrum, lanczos
from ecgmeta.bilevel.inverse import Matvec


def matvec_of(matrix: Tensor) -> Matvec:
    return lambda tree: {"x": matrix @ tree["x"]}


def zeros(n: int) -> dict[str, Tensor]:
    return {"x": torch.zeros(n, dtype=torch.float64)}


def test_a_full_run_finds_the_ends_exactly_and_says_so() -> None:
    matrix = spd(30, torch.Generator().manual_seed(6), low=-2.0, high=9.0)
    found = lanczos(matvec_of(matrix), zeros(30), 30)
    assert found.largest == pytest.approx(9.0)
    assert found.smallest == pytest.approx(-2.0)
    assert max(found.largest_error, found.smallest_error) < 1e-6
    assert found.damping == pytest.approx(2.2)
    assert found.step_size == pytest.approx(1 / 11.2)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_multiple_of_the_identity_takes_one_product(factor: float) -> None:
    found = lanczos(lambda t: {"x": factor * t["x"]}, zeros(30), 12)
    assert found.iterations == 1
    assert found.largest == pytest.approx(factor)
    assert found.smallest == pytest.approx(factor)
    assert found.damping == 0


def test_size_one() -> None:
    found = lanczos(lambda t: {"x": -2 * t["x"]}, zeros(1), 12)
    assert found.largest == pytest.approx(-2)
    assert found.smallest == pytest.approx(-2)
    with pytest.raises(ValueError, match="no positive curvature"):
        _ = Spectrum(0.0, 0.0, 1).step_size


def test_a_residual_norm_is_that_of_its_ritz_pair() -> None:
    """The interval around each extreme Ritz value holds an eigenvalue; and it is no wider than ``‖Ay − θy‖``."""
    eigenvalues = torch.linspace(-3, 20, 200, dtype=torch.float64)
    for k in (2, 4, 8, 16):
        found = lanczos(lambda t: {"x": eigenvalues * t["x"]}, zeros(200), k)
        assert found.iterations == k
        ends = ((found.largest, found.largest_error), (found.smallest, found.smallest_error))
        for value, error in ends:
            assert float((eigenvalues - value).abs().min()) <= error
        # Chebyshev: the error of the values falls with k, and the norms with it.
        assert found.largest_error < 23 / k


def test_a_short_run_proposes_enough_damping_and_a_small_enough_step() -> None:
    """A spectrum like a network's, where the bare Ritz value is above λmin by more than a tenth."""
    g = torch.Generator().manual_seed(0)
    bulk = 0.3 * torch.randn(990, generator=g, dtype=torch.float64)
    eigenvalues = torch.cat([torch.linspace(-3, -0.5, 5), torch.tensor([5.0, 10, 20, 50, 107]), bulk])
    low, high = float(eigenvalues.min()), float(eigenvalues.max())
    too_small_without_the_error = 0
    for seed in range(20):
        found = lanczos(lambda t: {"x": eigenvalues * t["x"]}, zeros(1000), 10, seed=seed)
        assert low + found.damping > 0
        assert found.step_size * (high + found.damping) < 1 + 1e-9
        assert found.damping < 2.5 * abs(low)  # and not wildly more than enough
        too_small_without_the_error += low - 1.1 * found.smallest < 0
    assert too_small_without_the_error > 0  # or this test would not see it missing


@pytest.mark.parametrize("damped", [False, True])
def test_a_proposed_step_size_makes_the_preconditioned_series_converge(damped: bool) -> None:
    n = 40
    g = torch.Generator().manual_seed(2)
    # Badly scaled coordinates, whose scale the preconditioner knows.
    scales = torch.logspace(-2, 2, n, dtype=torch.float64)
    core = spd(n, g, low=-0.2 if damped else 1.0, high=3.0)
    matrix = scales.sqrt()[:, None] * core * scales.sqrt()
    root = (1 / scales).sqrt()
    precondition = lambda: {"x": 1 / scales}  # noqa: E731
    damping = lanczos(matvec_of(matrix), zeros(n), n).damping
    assert (damping > 0) is damped
    found = lanczos(matvec_of(matrix), zeros(n), n, preconditioner=precondition, damping=damping)
    shifted = matrix + damping * torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.eigvalsh(root[:, None] * shifted * root)
    assert found.largest == pytest.approx(float(expected[-1]), rel=1e-6)
    assert found.smallest == pytest.approx(float(expected[0]), rel=1e-3)
    v = torch.randn(n, generator=g, dtype=torch.float64)
    solution = Neumann(60, found.step_size, damping, preconditioner=precondition)(matvec_of(matrix), {"x": v})
    assert solution.result is Result.DONE
    assert solution.contraction is not None
    assert solution.contraction < 1
    if not damped:  # κ is 3 with P and 10⁴ without: the plain series is nowhere near after as many terms
        exact = ConjugateGradient(4 * n)(matvec_of(matrix), {"x": v}).value["x"]
        plain = Neumann(60, lanczos(matvec_of(matrix), zeros(n), n).step_size)(matvec_of(matrix), {"x": v})
        assert relative_error(solution.value["x"], exact) < 1e-6
        assert relative_error(plain.value["x"], exact) > 0.5
    with pytest.raises(ValueError, match="without a preconditioner"):
        _ = found.damping


def test_trees_of_several_tensors_in_float32() -> None:
    like = {"a": torch.zeros(()), "b": torch.zeros(2, 3)}
    found = lanczos(lambda t: {"a": 5 * t["a"], "b": -t["b"]}, like, 12)
    assert found.iterations == 2  # two distinct eigenvalues
    assert found.largest == pytest.approx(5, rel=1e-5)
    assert found.smallest == pytest.approx(-1, rel=1e-5)


def test_what_cannot_be_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations >= 1"):
        lanczos(lambda t: t, zeros(3), 0)
    with pytest.raises(ValueError, match="damping >= 0"):
        lanczos(lambda t: t, zeros(3), damping=-1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        lanczos(lambda t: {"x": t["x"] * float("nan")}, zeros(3))
