"""Is the hypergradient right here? The configured route against the whole procedure, differentiated two other ways.

The procedure is ``φ ↦ L_FT-val(FT(θ_N(φ)))``, where ``θ_N(φ)`` is N gradient steps on L_PT from the given θ. Its derivative is
taken by central differences in random directions, and by reverse mode through all N steps. Both are fair to the implicit route
only where θ is (nearly) stationary: the implicit function theorem describes a minimum, and away from one the route is the
derivative of nothing finite. There the unroll is itself a Neumann series of N terms, so how far it is from converged is known
too. The verdict names such faults of the references before it blames a solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.hypergradient import MixedProductProblem, hypergradient
from ecgmeta.bilevel.inverse import Solver
from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.precision import double_batch, double_tree, doubled
from ecgmeta.bilevel.problem import Problem
from ecgmeta.bilevel.products import DoubleBackward, Products
from ecgmeta.bilevel.trees import Tree, axpy, clone, detach, dot, gradient, leaves, norm, rounding, scale
from ecgmeta.bilevel.unroll import FinetuneFactor


@dataclass(frozen=True)
class Check:
    """What :func:`check_hypergradient` found; errors are relative to the reference.

    Attributes:
        cosine, unroll_error: of the route to the full unroll.
        difference_error: of the route's directional derivatives to central differences.
        reference_error: of the full unroll's to the same differences: the two references against each other.
        step_error: between central differences of step h and h/2; large where they have not converged.
        repeat_error: between two evaluations of the same loss; the larger of the two losses'.
        gradient_norm, end_gradient_norm: ``‖∇L_PT‖`` at the given θ and after the N inner steps.
        drift: ``‖θ_N − θ‖``, relative to the larger of the two norms.
        residual: ``‖v − Hu‖ / ‖v‖`` of the inverse product, by double backward and without damping.
        reference_residual: ``‖(I − ηH)ᴺv‖ / ‖v‖``, the same of the N-step unroll where θ is stationary.
        mixed_error, mixed_scale: of the route's ``Mᵀu`` to double backward's, and how many times that it is by least squares.
        ok, verdict: whether the route agrees within the tolerance, and a sentence that says what to try.
    """

    cosine: float
    unroll_error: float
    difference_error: float
    reference_error: float
    step_error: float
    repeat_error: float
    gradient_norm: float
    end_gradient_norm: float
    drift: float
    residual: float
    reference_residual: float
    mixed_error: float
    mixed_scale: float
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
    head_state: State | None = None,
    products: Products = DoubleBackward,
    inner_steps: int = 200,
    inner_lr: float = 0.1,
    directions: int = 3,
    step: float = 1e-4,
    tolerance: float = 1e-2,
    double: bool = True,
    seed: int = 0,
) -> Check:
    """Compare ``hypergradient(...)`` with finite differences and with the full unroll.

    The caller's tensors and modules are not changed.

    Args:
        head_state: state of the warm head optimiser, carried into an unroll.
        inner_steps, inner_lr: N and η, the step size of the reference's gradient descent on L_PT. Memory grows with N.
        directions: random unit directions of φ for the central differences.
        step: h of the central differences.
        tolerance: largest relative error that is ok.
        double: work on float64 copies of the trees, of the tensors in the batches, and of the problem where it is a
            :class:`~ecgmeta.bilevel.problem.ModuleProblem` or has a method ``double``. Another one that closes over float32
            tensors needs ``double=False``, and then a larger ``step``.
        seed: of the directions.

    Raises:
        ValueError: no inner steps or no directions.
    """
    if inner_steps < 1 or directions < 1:
        raise ValueError(
            f"a check needs inner_steps and directions of at least 1, got {inner_steps} and {directions}"
        )
    if double:
        problem = doubled(problem)
        pretrain_batch, val_batch = double_batch(pretrain_batch), double_batch(val_batch)
        train_batches = [double_batch(batch) for batch in train_batches]
    copy = double_tree if double else clone
    theta, phi, psi = copy(theta), copy(phi), copy(psi)
    head_state = None if head_state is None else {name: copy(tree) for name, tree in head_state.items()}

    def loss(t: Tree, p: Tree) -> Tensor:
        return problem.pretrain_loss(t, p, pretrain_batch)

    def inner(p: Tree, graph: bool) -> Tree:
        current = leaves(theta)
        for _ in range(inner_steps):
            slope = gradient(loss(current, p), current, create_graph=graph)
            current = axpy(-inner_lr, slope, current)
            if not graph:
                current = leaves(current)
        return current

    def tune(t: Tree) -> tuple[float, Tree]:
        tuned = finetune(problem, detach(t), psi, train_batches, val_batch, head_state)
        return float(tuned.validation_loss), tuned.v

    def value(p: Tree) -> float:
        return tune(inner(p, False))[0]

    found = hypergradient(
        problem, theta, phi, psi, pretrain_batch=pretrain_batch, train_batches=train_batches, val_batch=val_batch,
        finetune=finetune, inverse=inverse, head_state=head_state, products=products,
    )  # fmt: skip
    v, u = found.finetune.v, found.inverse.value
    exact = DoubleBackward(loss, theta, phi)
    mixed, exact_mixed = scale(-1.0, found.phi), exact.mixed(u)
    left = v
    for _ in range(inner_steps):
        left = axpy(-inner_lr, exact.hvp(left), left)

    nodes = leaves(phi)
    path = inner(nodes, True)
    last = tune(path)[1]
    unrolled = detach(gradient([path[n] for n in last], nodes, grad_outputs=list(last.values())))
    end = detach(path)

    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(directions):
        d = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for n, t in phi.items()}
        d = scale(1 / float(norm(d)), d)
        slopes = [(value(axpy(h, d, phi)) - value(axpy(-h, d, phi))) / (2 * h) for h in (step, step / 2)]
        rows.append([float(dot(found.phi, d)), float(dot(unrolled, d)), *slopes])
    route, full, coarse, fine = ({"d": column} for column in torch.tensor(rows, dtype=torch.float64).T)
    numbers = {
        "cosine": _share(float(dot(found.phi, unrolled)), float(norm(found.phi)) * float(norm(unrolled))),
        "unroll_error": _apart(found.phi, unrolled),
        "difference_error": _apart(route, fine),
        "reference_error": _apart(full, fine),
        "step_error": _apart(coarse, fine),
        "repeat_error": max(
            _share(abs(float(found.pretrain.loss - exact.loss)), abs(float(exact.loss))),
            _share(abs(float(found.finetune.validation_loss) - (again := tune(theta)[0])), abs(again)),
        ),
        "gradient_norm": float(norm(exact.gradient)),
        "end_gradient_norm": float(norm(DoubleBackward(loss, end, phi).gradient)),
        "drift": min(_apart(end, theta), _apart(theta, end)),
        "residual": _apart(exact.hvp(u), v),
        "reference_residual": _share(float(norm(left)), float(norm(v))),
        "mixed_error": _apart(mixed, exact_mixed),
        "mixed_scale": _share(float(dot(mixed, exact_mixed)), float(dot(exact_mixed, exact_mixed))),
    }
    supplied = isinstance(problem, MixedProductProblem)
    fault = "" if found.ok else found.message
    ok, verdict = _verdict(numbers, fault, supplied, rounding(theta), tolerance)
    return Check(**numbers, ok=ok, verdict=verdict)


def _verdict(
    n: Mapping[str, float], fault: str, supplied: bool, rounding: float, tolerance: float
) -> tuple[bool, str]:
    """The first cause that explains a disagreement: what is wrong in itself, then the references' faults, then the route's."""
    if fault:
        return False, f"not ok: {fault}"
    if not all(abs(value) < float("inf") for value in n.values()):
        return False, "not ok: the reference is not finite; try a smaller inner_lr"
    if n["repeat_error"] > rounding**0.5:
        return False, (
            "not ok: a loss is not the same function at every call; hold its noise (ModuleProblem's seed, or at_step)"
        )
    few = f"the reference's inner_steps are too few: its own residual is {n['reference_residual']:.1e}"
    if n["unroll_error"] <= tolerance and n["difference_error"] <= tolerance:
        both = (
            f"; but {few}, so both may be short of the limit" if n["reference_residual"] > tolerance else ""
        )
        return (
            True,
            f"ok: cosine {n['cosine']:.6f}, relative error {n['unroll_error']:.1e} to the full unroll{both}",
        )
    if n["mixed_error"] > tolerance:
        which = "the problem's mixed_product" if supplied else "the route's mixed product"
        hint = "check its sign and scale" if supplied else "try products=DoubleBackward"
        return False, (
            f"not ok: {which} is wrong: it differs by {n['mixed_error']:.1e} from double backward's, of which it is "
            f"{n['mixed_scale']:.3g} times; {hint}"
        )
    if n["reference_residual"] > 1:
        return False, (
            f"not ok: the reference's inner steps diverge (their residual is {n['reference_residual']:.1e}); try a smaller "
            "inner_lr, or θ is at no minimum"
        )
    if n["step_error"] > tolerance:
        return False, "not ok: the finite differences have not converged; try another step, or double=True"
    if n["reference_error"] > tolerance:
        return False, (
            "not ok: the two references disagree; does a loss or the fine-tuning detach what depends on θ or φ?"
        )
    if n["drift"] > tolerance:
        return False, (
            f"not ok: θ is not converged (‖∇L_PT‖ = {n['gradient_norm']:.1e}, and θ moves by {n['drift']:.1e} of its norm), so "
            "the implicit function theorem does not apply and the route is the gradient of nothing finite; pre-train further"
        )
    if n["residual"] > tolerance:
        return False, (
            f"not ok: the inverse product has a residual of {n['residual']:.1e}; try more terms or iterations, a step size "
            "nearer 1/λmax, less damping, or products=DoubleBackward"
        )
    if n["reference_residual"] > tolerance:
        return False, f"not ok: {few}; try more of them, or a larger inner_lr"
    return False, (
        "not ok: θ, the mixed product and both residuals are good, so flat directions of L_PT must magnify what is left of the "
        "residuals; try more inner_steps and more terms or iterations"
    )


def _share(part: float, whole: float) -> float:
    """``part / whole``, where 0/0 is 0. In Python's floats: a floor as small as this is 0 in float32."""
    return part / max(whole, 1e-100)


def _apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """``‖found − expected‖ / ‖expected‖``."""
    return _share(float(norm(axpy(-1.0, expected, found))), float(norm(expected)))
