"""The fine-tuning factor without steps: the linear head at its optimum on frozen features, differentiated there.

Beyond the paper. A K-step head depends on where it starts, on K and on the batches drawn; the optimum depends on the data
alone, so v is exact for it and far less noisy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.bilevel.distributed import Reduce, local
from ecgmeta.bilevel.features import Encoded
from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.problem import FeatureProblem, Problem
from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves
from ecgmeta.bilevel.unroll import FinetuneGradient


@runtime_checkable
class TargetProblem(FeatureProblem, Protocol):
    """A :class:`~ecgmeta.bilevel.problem.FeatureProblem` that says what its head should predict."""

    def targets(self, batch: Any) -> Tensor:
        """(examples, outputs), numbers for ``"ridge"`` and 0 or 1 for ``"logistic"``."""
        ...


@runtime_checkable
class GroupedProblem(TargetProblem, Protocol):
    """A :class:`TargetProblem` some of whose examples belong together, such as recordings of one patient."""

    def groups(self, batch: Any) -> Tensor | None:
        """(examples,), a number for each group, whose examples ``"ridge"`` leaves out together; None: each stands alone."""
        ...


@dataclass(frozen=True)
class ImplicitHead:
    """A linear head with intercept, solved to its optimum on the features of the fine-tuning batch.

    ``"ridge"``: ``W = argmin ‖F̃W − Ỹ‖²/n + λs‖W‖²`` on centred features and standardised targets, so that a rare label counts
    as much as a frequent one, as it does in a macro average. The loss is the mean square of its *leave-one-out* errors
    ``(y − ŷ)ᵢ / (1 − hᵢᵢ)`` on the validation batch, which should hold all MetaFT data: no split is needed. Examples that a
    :class:`GroupedProblem` says belong together are left out together, so that none is predicted from its siblings.
    ``"logistic"``: the penalised logistic head fitted on the train batch by Newton's method; the loss is the validation
    cross-entropy, differentiated by the implicit function theorem.

    The optimum on all labels is no mean of the ranks' optima: give every data-parallel rank the same, whole batches.

    Args:
        kind: which of the two.
        penalty: λ, relative to ``s``, the mean squared norm of a centred feature vector, so that it means the same for features
            of any size and any number n of labels. A large one makes v less noisy and more biased.
        newton_steps: most Newton steps of the logistic head.
    """

    kind: Literal["ridge", "logistic"] = "ridge"
    penalty: float = 1.0
    newton_steps: int = 25

    def __post_init__(self) -> None:
        if self.kind not in ("ridge", "logistic") or self.penalty <= 0:
            raise ValueError(f"ImplicitHead needs kind 'ridge' or 'logistic' and penalty > 0, got {self}")

    @property
    def train_batches(self) -> int:
        return 0 if self.kind == "ridge" else 1

    def __call__(
        self,
        problem: Problem,
        theta: Mapping[str, Tensor],
        psi: Mapping[str, Tensor],
        train_batches: Sequence[Any],
        val_batch: Any,
        head_state: State | None = None,
        reduce: Reduce = local,
    ) -> FinetuneGradient:
        if not isinstance(problem, TargetProblem):
            raise TypeError("ImplicitHead needs a problem with features(theta, batch) and targets(batch)")
        theta = detach(theta)
        batches = [*train_batches, val_batch]
        encoded = Encoded(problem, theta, batches)
        nodes = leaves(encoded.features)
        targets = [problem.targets(batch).to(next(iter(nodes.values())).dtype) for batch in batches]
        if self.kind == "ridge":
            groups = problem.groups(val_batch) if isinstance(problem, GroupedProblem) else None
            loss = leave_one_out(nodes["0"], standardise(targets[0]), self.penalty, groups)
        else:
            loss = logistic(nodes["0"], targets[0], nodes["1"], targets[1], self.penalty, self.newton_steps)
        cotangents: Tree = gradient(loss, nodes)
        return FinetuneGradient(encoded.pull_back(cotangents), loss.detach(), ())


def standardise(targets: Tensor) -> Tensor:
    """Each output (examples, outputs) with mean 0 and SD 1; all 0 where it is a constant."""
    centred = targets - targets.mean(0)
    sd = centred.square().mean(0).sqrt()
    return torch.where(sd > 0, centred / sd, 0.0)


def leave_one_out(features: Tensor, targets: Tensor, penalty: float, groups: Tensor | None = None) -> Tensor:
    """Mean squared leave-one-out error of ridge regression with intercept, in closed form.

    Solved in the smaller of the two dimensions. The hat matrix of the centred problem plus 1/n for the intercept is that of
    the whole, so the shortcut ``(y − ŷ)/(1 − h)`` is exact; for a group g it is ``(I − H_gg)⁻¹ (y − ŷ)_g``. The
    penalty's scale s is held fixed in the derivative.

    Args:
        features: (examples, features).
        targets: (examples, outputs).
        penalty: λ, relative to the mean squared norm of a centred feature vector.
        groups: (examples,), those of the same number are left out together; None: each alone. Where all are one group, nothing
            is left to fit: NaN.
    """
    n = len(features)
    centred = features - features.mean(0)
    scale = penalty * centred.detach().square().sum()  # n·λs
    if n <= features.shape[1]:
        gram = centred @ centred.T
        hat = torch.linalg.solve(gram + scale * torch.eye(n, dtype=gram.dtype, device=gram.device), gram)
    else:
        cov = centred.T @ centred
        shifted = cov + scale * torch.eye(len(cov), dtype=cov.dtype, device=cov.device)
        hat = centred @ torch.linalg.solve(shifted, centred.T)
    hat = hat + 1.0 / n
    residuals = targets - hat @ targets
    if groups is None:
        errors = residuals / (1 - hat.diagonal()).unsqueeze(1)
    elif bool((groups == groups[0]).all()):
        errors = residuals * float("nan")
    else:  # the blocks H_gg alone, all in one matrix
        own = torch.where(groups.unsqueeze(1) == groups, hat, 0.0)
        errors = torch.linalg.solve(torch.eye(n, dtype=hat.dtype, device=hat.device) - own, residuals)
    return errors.square().mean()


def logistic(
    train: Tensor, train_targets: Tensor, val: Tensor, val_targets: Tensor, penalty: float, newton_steps: int
) -> Tensor:
    """Validation cross-entropy of a penalised logistic head at its training optimum, differentiable in both feature sets.

    ``W* = argmin Σ CE/n + ½λs‖W‖²`` (no penalty on the intercept) by Newton's method without a graph; one more Newton step
    with the Hessian held fixed is W* in value and ``−H⁻¹ ∂g/∂F`` in derivative, which is the implicit function theorem.
    """
    centre = train.mean(0).detach()
    scale = penalty * float((train.detach() - centre).square().sum(1).mean())

    def design(features: Tensor) -> Tensor:
        return F.pad(features - centre, (0, 1), value=1.0)

    ridge = torch.full((train.shape[1] + 1,), scale, dtype=train.dtype, device=train.device)
    ridge[-1] = 1e-8 * scale  # keeps a separable intercept from running away
    a = design(train)
    outputs = []
    for c in range(train_targets.shape[1]):
        y = train_targets[:, c]
        w = torch.zeros(a.shape[1], dtype=a.dtype, device=a.device)
        with torch.no_grad():
            for _ in range(newton_steps):
                step = torch.linalg.solve(_hessian(a, w, ridge), _slope(a, y, w, ridge))
                w = w - step
                if float(step.norm()) <= 1e-10 * (1 + float(w.norm())):
                    break
            hessian = _hessian(a, w, ridge)
        w = w - torch.linalg.solve(hessian, _slope(a, y, w, ridge))
        outputs.append(design(val) @ w)
    return F.binary_cross_entropy_with_logits(torch.stack(outputs, dim=1), val_targets)


def _slope(a: Tensor, y: Tensor, w: Tensor, ridge: Tensor) -> Tensor:
    return a.T @ ((a @ w).sigmoid() - y) / len(a) + ridge * w


def _hessian(a: Tensor, w: Tensor, ridge: Tensor) -> Tensor:
    p = (a @ w).sigmoid()
    return a.T @ (a * (p * (1 - p)).unsqueeze(1)) / len(a) + torch.diag(ridge)
