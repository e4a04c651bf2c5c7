"""Is the hypergradient right here? The configured route against the whole procedure, differentiated two other ways.

The procedure is ``φ ↦ L_FT-val(FT(θ_N(φ)))``, where ``θ_N(φ)`` is N gradient steps on L_PT from the given θ. Its derivative is
taken by central differences in random directions, and by reverse mode through all N steps. Both are fair to the implicit route
only where θ is (nearly) stationary: the implicit function theorem describes a minimum, and away from one the route is the
derivative of nothing finite. The verdict says so before it blames a solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.hypergradient import hypergradient
from ecgmeta.bilevel.inverse import Solver
from ecgmeta.bilevel.problem import Problem
from ecgmeta.bilevel.products import DoubleBackward, Products
from ecgmeta.bilevel.trees import Tree, axpy, dot, gradient, leaves, norm, scale
from ecgmeta.bilevel.unroll import FinetuneFactor


@dataclass(frozen=True)
class Check:
    """What :func:`check_hypergradient` found; errors are relative to the reference.

    Attributes:
        cosine, unroll_error: of the route to the full unroll.
        difference_error: of the route's directional derivatives to central differences.
        reference_error: of the full unroll's to the same differences: the two references against each other.
        step_error: between central differences of step h and h/2; large where they have not converged.
        gradient_norm, end_gradient_norm: ``‖∇L_PT‖`` at the given θ and after the N inner steps.
        drift: ``‖θ_N − θ‖ / ‖θ‖``.
        residual: ``‖v − Hu‖ / ‖v‖`` of the inverse product, measured without damping.
        ok, verdict: whether the route agrees within the tolerance, and a sentence that says what to try.
    """

    cosine: float
    unroll_error: float
    difference_error: float
    reference_error: float
    step_error: float
    gradient_norm: float
    end_gradient_norm: float
    drift: float
    residual: float
    ok: bool
    verdict: str


def check_hypergradient(
    problem: Problem,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    psi: Mapping[str, Tensor],
    *,
    pretrain_batch: Any,
    train_batches: Sequence[Any],
    val_batch: Any,
    finetune: FinetuneFactor,
    inverse: Solver,
    products: Products = DoubleBackward,
    inner_steps: int = 200,
    inner_lr: float = 0.1,
    directions: int = 3,
    step: float = 1e-4,
    tolerance: float = 1e-2,
    double: bool = True,
    seed: int = 0,
) -> Check:
    """Compare ``hypergradient(...)`` with finite differences and with the full unroll. The caller's tensors are not changed.

    Args:
        inner_steps, inner_lr: N and the step size of the reference's gradient descent on L_PT. Memory grows with N.
        directions: random unit directions of φ for the central differences.
        step: h of the central differences.
        tolerance: largest relative error that is ok.
        double: work on float64 copies of the trees and of the tensors in the batches. A loss that closes over float32
            tensors needs ``double=False``, and then a larger ``step``.
        seed: of the directions.
    """

    def copy(tree: Mapping[str, Tensor]) -> Tree:
        return {n: _cast(t.detach().clone(), double) for n, t in tree.items()}

    theta, phi, psi = copy(theta), copy(phi), copy(psi)
    pretrain_batch, val_batch = _cast(pretrain_batch, double), _cast(val_batch, double)
    train_batches = [_cast(batch, double) for batch in train_batches]

    def inner(p: Tree, graph: bool) -> Tree:
        current = leaves(theta)
        for _ in range(inner_steps):
            slope = gradient(problem.pretrain_loss(current, p, pretrain_batch), current, create_graph=graph)
            current = axpy(-inner_lr, slope, current)
            if not graph:
                current = leaves(current)
        return current

    def value(p: Tree) -> float:
        end = {n: t.detach() for n, t in inner(p, False).items()}
        return float(finetune(problem, end, psi, train_batches, val_batch).validation_loss)

    def slope_norm(at: Tree) -> float:
        nodes = leaves(at)
        return float(norm(gradient(problem.pretrain_loss(nodes, phi, pretrain_batch), nodes)))

    found = hypergradient(
        problem, theta, phi, psi, pretrain_batch=pretrain_batch, train_batches=train_batches,
        val_batch=val_batch, finetune=finetune, inverse=inverse, products=products,
    )  # fmt: skip
    v, u = found.finetune.v, found.inverse.value
    residual = float(norm(axpy(-1.0, found.pretrain.hvp(u), v)) / norm(v).clamp(min=1e-300))

    nodes = leaves(phi)
    path = inner(nodes, True)
    end = {n: t.detach() for n, t in path.items()}
    last = finetune(problem, end, psi, train_batches, val_batch).v
    unrolled = gradient([path[n] for n in last], nodes, grad_outputs=list(last.values()))

    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(directions):
        d = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for n, t in phi.items()}
        d = scale(1 / float(norm(d)), d)
        slopes = [(value(axpy(h, d, phi)) - value(axpy(-h, d, phi))) / (2 * h) for h in (step, step / 2)]
        rows.append([float(dot(found.phi, d)), float(dot(unrolled, d)), *slopes])
    route, full, coarse, fine = torch.tensor(rows, dtype=torch.float64).T
    size = float(norm(found.phi) * norm(unrolled))
    numbers = {
        "cosine": float(dot(found.phi, unrolled)) / size if size else 0.0,
        "unroll_error": float(norm(axpy(-1.0, unrolled, found.phi)) / norm(unrolled).clamp(min=1e-300)),
        "difference_error": _relative(route, fine),
        "reference_error": _relative(full, fine),
        "step_error": _relative(coarse, fine),
        "gradient_norm": slope_norm(theta),
        "end_gradient_norm": slope_norm(end),
        "drift": float(norm(axpy(-1.0, theta, end)) / norm(theta).clamp(min=1e-300)),
        "residual": residual,
    }
    ok, verdict = _verdict(numbers, found.message, found.ok, tolerance)
    return Check(**numbers, ok=ok, verdict=verdict)


def _verdict(n: Mapping[str, float], message: str, solved: bool, tolerance: float) -> tuple[bool, str]:
    """The first cause that explains a disagreement, the references' own faults before the route's."""
    if not solved:
        return False, f"not ok: {message}"
    if not all(value < float("inf") for value in n.values()):
        return False, "not ok: the reference is not finite; try a smaller inner_lr"
    if n["unroll_error"] <= tolerance and n["difference_error"] <= tolerance:
        return (
            True,
            f"ok: cosine {n['cosine']:.6f}, relative error {n['unroll_error']:.1e} to the full unroll",
        )
    if n["step_error"] > tolerance:
        return False, "not ok: the finite differences have not converged; try another step, or double=True"
    if n["reference_error"] > tolerance:
        return False, "not ok: the two references disagree; is the loss the same function at every call?"
    if n["drift"] > tolerance:
        return False, (
            f"not ok: θ is not converged (‖∇L_PT‖ = {n['gradient_norm']:.1e}, and θ moves by {n['drift']:.1e} of its norm), so "
            "the implicit function theorem does not apply and the route is the gradient of nothing finite; pre-train further"
        )
    if n["residual"] > tolerance:
        return False, (
            f"not ok: the inverse product has a residual of {n['residual']:.1e}; try more terms or iterations, a step size "
            "nearer 1/λmax, or less damping"
        )
    return False, (
        "not ok: θ and the inverse are good, so either the inner steps are too few to converge (try more inner_steps) or the "
        "mixed product is wrong (if the problem supplies mixed_product, check its sign and scale)"
    )


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def _cast(batch: Any, double: bool) -> Any:
    """The same nest of tuples, lists and dicts with its floating tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if double and batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _cast(item, double) for key, item in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_cast(item, double) for item in batch)
    return batch
