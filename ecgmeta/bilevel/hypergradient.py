"""The hypergradient of two-stage pre-training.

    dL_FT-val/dφ = −(∂²L_PT/∂φ∂θ)ᵀ · [∂²L_PT/∂θ²]⁻¹ · v,    v = dL_FT-val(FT(θ))/dθ

(Raghu et al., 2021, eq. 3-4: implicit function theorem through pre-training, backpropagation through fine-tuning).
One object a factor: :class:`~ecgmeta.bilevel.unroll.Unroll` or :class:`~ecgmeta.bilevel.implicit_head.ImplicitHead` gives
v, a solver of :mod:`ecgmeta.bilevel.inverse` gives ``u ≈ H⁻¹v``, a route of :mod:`ecgmeta.bilevel.products` ``Hu`` and ``Mᵀu``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ecgmeta.bilevel.distributed import Reduce, local, mean_of
from ecgmeta.bilevel.inverse import Result, Solution, Solver
from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.problem import Problem, check_scalar, curvature_part
from ecgmeta.bilevel.products import Deferred, DoubleBackward, Linearization, Products
from ecgmeta.bilevel.trees import Tree, is_finite, norm, scale
from ecgmeta.bilevel.unroll import FinetuneFactor, FinetuneGradient


@runtime_checkable
class MixedProductProblem(Protocol):
    """A problem that knows a cheaper ``Mᵀu`` than any route does, as weighted sums of task losses do.

    A route is then taken for Hessian-vector products alone, and not at all where the solver asks for none.
    """

    def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
        """``Mᵀu = ∂⟨∂L_PT/∂θ, u⟩/∂φ``, a tree shaped like φ."""
        ...


@runtime_checkable
class MixedGradientProblem(MixedProductProblem, Protocol):
    """One for which ``Mᵀu`` is cheaper still beside the gradient on the same batch, which a φ step wants as well."""

    def mixed_product_and_gradient(
        self, theta: Tree, phi: Tree, batch: Any, u: Tree
    ) -> tuple[Tree, Tensor, Tree]:
        """``Mᵀu``, ``L_PT(θ, φ)`` and ``∂L_PT/∂θ``, all detached."""
        ...


@dataclass(frozen=True)
class Evaluated:
    """A :class:`~ecgmeta.bilevel.products.Linearization` whose graph was let go: it takes no more products."""

    loss: Tensor
    gradient: Tree

    def hvp(self, u: Tree) -> Tree:
        raise RuntimeError("the graph of this point was let go: take products before without_graph()")

    mixed = hvp


@dataclass(frozen=True)
class Hypergradient:
    """``dL_FT-val/dφ`` with each factor's diagnostics.

    Attributes:
        phi: the hypergradient, a tree shaped like φ.
        finetune: v, the validation loss, and the losses along fine-tuning.
        inverse: u = H⁻¹v as the solver gave it, with iterations, residual and result.
        pretrain: the pre-training loss and its gradient on the batch the products were taken on.
    """

    phi: Tree
    finetune: FinetuneGradient
    inverse: Solution
    pretrain: Linearization

    @property
    def ok(self) -> bool:
        """Whether it may be used for a step: the solver finished and every entry is finite."""
        return self.inverse.ok and is_finite(self.phi)

    @property
    def message(self) -> str:
        """How it ended, in a sentence."""
        return self.inverse.result.value if is_finite(self.phi) else Result.NON_FINITE.value

    def without_graph(self, *, gradient: bool = True) -> Hypergradient:
        """The same numbers without what further products would need, which is most of the memory.

        Args:
            gradient: False leaves the pre-training gradient empty, where a route may not have needed it so far.
        """
        kept = self.pretrain.gradient if gradient else {}
        return replace(self, pretrain=Evaluated(self.pretrain.loss, kept))

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log: the losses, the norm of each factor, and what the solver knows of itself.

        ``norm`` is that of the hypergradient, ``v_norm`` of v, ``inverse_norm`` of H⁻¹v; ``inverse_iterations``, and where the
        solver knows them ``inverse_residual``, ``inverse_contraction`` and ``inverse_tail``. What only several φ steps tell
        (cosine, signal-to-noise) is :meth:`ecgmeta.bilevel.signal.Signal.diagnostics`.
        """
        values = {
            "validation_loss": float(self.finetune.validation_loss),
            "norm": float(norm(self.phi)),
            "v_norm": float(norm(self.finetune.v)),
            "inverse_norm": float(norm(self.inverse.value)),
            "inverse_iterations": float(self.inverse.iterations),
        }
        optional = {
            "inverse_residual": self.inverse.residual,
            "inverse_contraction": self.inverse.contraction,
            "inverse_tail": self.inverse.tail,
        }
        return values | {name: value for name, value in optional.items() if value is not None}


def hypergradient(
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
    reduce: Reduce = local,
    recording: AbstractContextManager[None] | None = None,
    curvature: float = 1.0,
) -> Hypergradient:
    """``dL_FT-val/dφ`` at (θ, φ, ψ).

    Args:
        theta, phi, psi: trees of pre-trained parameters, pre-training hyperparameters and fine-tuning head. Not changed.
        pretrain_batch: the batch on which H and M are taken.
        train_batches: the fine-tuning training batches that ``finetune`` takes.
        val_batch: the fine-tuning validation batch.
        finetune: the factor v: K unrolled steps, or the implicit head.
        inverse: the solver for ``H⁻¹v``.
        head_state: state of the warm head optimiser, carried into an unroll.
        products: the route for ``Hu`` and ``Mᵀu``.
        reduce: mean over data-parallel ranks, such as :func:`~ecgmeta.bilevel.distributed.mean_over_ranks`.
        recording: entered around the one evaluation of the pre-training loss that may move running statistics, which is that of
            the pre-training step whose gradient this is to bring; None where no step takes the gradient.
        curvature: the share of ``pretrain_batch`` on which ``Hu`` is taken; loss, gradient and ``Mᵀu`` are always of all of
            it. Below 1 for a :class:`~ecgmeta.bilevel.problem.CurvatureProblem` only. The solver's diagnostics are those of
            the part's Hessian, whose largest eigenvalue is the larger on average, the smaller the part.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: ``curvature`` is out of range, or the problem does not divide its batches.
    """
    part = curvature_part(problem, pretrain_batch, curvature)
    first = finetune(problem, theta, psi, train_batches, val_batch, head_state, reduce)
    check_scalar(mean_of(first.validation_loss, reduce), "fine-tuning validation loss")
    v = reduce(first.v)

    def loss(t: Tree, p: Tree, batch: Any = pretrain_batch) -> Tensor:
        return problem.pretrain_loss(t, p, batch)

    # Where Mᵀu is supplied, or Hu is taken elsewhere, the graph of second derivatives waits for its first product.
    deferred = isinstance(problem, MixedProductProblem) or part is not pretrain_batch
    pretrain: Linearization = (
        Deferred(products, loss, theta, phi, recording) if deferred else products(loss, theta, phi, recording)
    )
    if part is pretrain_batch:
        solution = _solve(inverse, pretrain, v, reduce)
    else:  # nothing holds the part's graph once it is solved
        solution = _solve(inverse, Deferred(products, partial(loss, batch=part), theta, phi), v, reduce)
    point = dict(theta), dict(phi), pretrain_batch, solution.value
    untouched = isinstance(pretrain, Deferred) and pretrain.untouched
    if recording is not None and untouched and isinstance(problem, MixedGradientProblem):
        with recording:
            mixed, value, gradient = problem.mixed_product_and_gradient(*point)
        pretrain = Evaluated(value, gradient)
    elif isinstance(problem, MixedProductProblem):
        mixed = problem.mixed_product(*point)
    else:
        mixed = pretrain.mixed(solution.value)
    check_scalar(mean_of(pretrain.loss, reduce), "pre-training loss")
    return Hypergradient(scale(-1.0, reduce(mixed)), first, solution, pretrain)


def _solve(inverse: Solver, curved: Linearization, v: Tree, reduce: Reduce) -> Solution:
    return inverse(lambda u: reduce(curved.hvp(u)), v)
