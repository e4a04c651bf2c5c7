"""Pre-training and fine-tuning tasks trained together, their two gradients added or first made to agree.

PCGrad: Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020. As in Raghu et al. (2021) it acts on two gradients,
that of the pre-training loss and that of the fine-tuning loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.problem import check_scalar
from ecgmeta.bilevel.trees import Tree, axpy, dot, flatten, gradient, unflatten
from ecgmeta.runtime.errors import InputError
from ppi_extension.problem import TaskProblem
from ppi_extension.weighting.base import (
    StepReport,
    WarmHead,
    Weighting,
    apply,
    finetune_gradients,
    recorded_losses,
)

Combine = Callable[[Tree, Tree], Tree]


class CoTrain(Weighting):
    """``1/T Σ ℓₜ + weight · L_FT`` over θ and the fine-tuning head.

    Args:
        tasks: T.
        weight: of the fine-tuning loss.
        combine: what is done with the two gradients of the parameters that both losses share. ``"sum"`` adds them, ``"pcgrad"``
            adds them without the parts that point against each other, and any other name is an aggregator of ``torchjd``
            (``"MGDA"``, ``"CAGrad"``, ``"UPGrad"`` ...; extra ``baselines``). Each head takes its own loss's gradient.
        settings: of the aggregator of ``torchjd``.
        head_lr: of Adam on the fine-tuning head.

    Raises:
        InputError: an unknown aggregator, or ``torchjd`` is not installed.
    """

    reads_finetune = True
    finetune_mode = "train"

    def __init__(
        self,
        tasks: int,
        seed: int = 0,
        weight: float = 1.0,
        combine: str = "sum",
        head_lr: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(tasks)
        if not weight > 0:
            raise InputError("weighting", "weight", weight, "a number above 0")
        self.weight = weight
        self._combine: Combine = {"sum": add, "pcgrad": project}.get(combine) or aggregator(combine, settings)
        self._head = WarmHead(head_lr)

    @classmethod
    def pcgrad(cls, tasks: int, seed: int = 0, **settings: Any) -> CoTrain:
        """With ``combine="pcgrad"``."""
        return cls(tasks, seed, combine="pcgrad", **settings)

    def step(
        self, problem: TaskProblem, optimizer: torch.optim.Optimizer, batch: Any, finetune_batch: Any = None
    ) -> StepReport:
        with problem.recording():  # its statistics serve both tasks
            finetune_loss, shared, head = finetune_gradients(problem, finetune_batch, "cotrain")
        losses = recorded_losses(problem, batch)
        loss = losses.mean()
        check_scalar(loss, "pre-training loss")
        mean = float(loss.detach())
        slopes = gradient(loss, problem.theta)
        own = {name: slopes[name] for name in shared}
        combined = self._combine(own, {name: self.weight * value for name, value in shared.items()})
        apply(optimizer, problem.theta, slopes | combined)
        self._head.step(problem, {name: self.weight * value for name, value in head.items()})
        return StepReport(mean + self.weight * finetune_loss, mean, finetune_loss)

    def _state(self) -> dict[str, Any]:
        return {"head": self._head.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        self._head.load_state_dict(state["head"])


def add(a: Tree, b: Tree) -> Tree:
    """``a + b``."""
    return axpy(1.0, a, b)


def project(a: Tree, b: Tree) -> Tree:
    """PCGrad of two gradients: where ``⟨a, b⟩ < 0``, each loses its part along the other; then their sum."""
    product = float(dot(a, b))
    if product >= 0:
        return add(a, b)
    return {
        name: (1 - product / float(dot(a, a))) * value + (1 - product / float(dot(b, b))) * b[name]
        for name, value in a.items()
    }


def aggregator(name: str, settings: dict[str, Any]) -> Combine:
    """One of ``torchjd``'s aggregators, on a Jacobian of two rows."""
    try:
        import torchjd.aggregation as known
    except ImportError as error:
        raise InputError(
            "weighting",
            "combine",
            f"{name}, and torchjd is not installed",
            "pip install 'ecgmeta[baselines]'",
        ) from error
    kind = getattr(known, name, None)
    if not (isinstance(kind, type) and issubclass(kind, known.Aggregator)):
        raise InputError("weighting", "combine", name, "'sum', 'pcgrad' or an aggregator of torchjd")
    aggregate = kind(**settings)

    def combine(a: Tree, b: Tree) -> Tree:
        rows: Tensor = torch.stack([flatten(a), flatten({key: b[key] for key in a})])
        return unflatten(aggregate(rows), a)

    return combine
