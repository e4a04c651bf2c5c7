"""The hypergradient of two-stage pre-training.

    dL_FT-val/dφ = −(∂²L_PT/∂φ∂θ)ᵀ · [∂²L_PT/∂θ²]⁻¹ · v,    v = dL_FT-val(FT(θ))/dθ

(Raghu et al., 2021, eq. 3-4: implicit function theorem through pre-training, backpropagation through fine-tuning). One
function a factor: :func:`~ecgmeta.bilevel.unroll.finetune_gradient` gives v, a solver of :mod:`ecgmeta.bilevel.inverse` gives
``u ≈ H⁻¹v``, and :class:`~ecgmeta.bilevel.products.Linearization` gives ``Hu`` and ``Mᵀu``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ecgmeta.bilevel.inverse import Result, Solution, Solver
from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.problem import Problem, check_scalar
from ecgmeta.bilevel.products import Linearization, Loss, double_backward
from ecgmeta.bilevel.trees import Tree, is_finite, norm, scale
from ecgmeta.bilevel.unroll import FinetuneGradient, Unroll, finetune_gradient

Products = Callable[[Loss, Mapping[str, Tensor], Mapping[str, Tensor]], Linearization]


@dataclass(frozen=True)
class Hypergradient:
    """``dL_FT-val/dφ`` with each factor's diagnostics.

    Attributes:
        phi: the hypergradient, a tree shaped like φ.
        finetune: v, the validation loss, and the losses along the unroll.
        inverse: u = H⁻¹v as the solver gave it, with iterations, residual and result.
        pretrain: loss and gradient of the pre-training batch the products were taken on.
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

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log: losses, the norm of each factor, and the solver's residual and contraction where known."""
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
    unroll: Unroll,
    inverse: Solver,
    head_state: State | None = None,
    products: Products = double_backward,
) -> Hypergradient:
    """``dL_FT-val/dφ`` at (θ, φ, ψ).

    Args:
        theta, phi, psi: trees of pre-trained parameters, pre-training hyperparameters and fine-tuning head. Not changed.
        pretrain_batch: the batch on which H and M are taken.
        train_batches: one fine-tuning training batch a step of the unroll.
        val_batch: the fine-tuning validation batch.
        unroll: the K head steps.
        inverse: the solver for ``H⁻¹v``.
        head_state: state of the warm head optimiser, carried into the unroll.
        products: the route for ``Hu`` and ``Mᵀu``.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    finetune = finetune_gradient(problem, theta, psi, train_batches, val_batch, unroll, head_state)
    check_scalar(finetune.validation_loss, "fine-tuning validation loss")
    pretrain = products(lambda t, p: problem.pretrain_loss(t, p, pretrain_batch), theta, phi)
    check_scalar(pretrain.loss, "pre-training loss")
    solution = inverse(pretrain.hvp, finetune.v)
    return Hypergradient(scale(-1.0, pretrain.mixed(solution.value)), finetune, solution, pretrain)
