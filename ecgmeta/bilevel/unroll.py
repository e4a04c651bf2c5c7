"""The fine-tuning factor of the hypergradient: ``v = dL_FT-val/dθ`` through K optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.optimizers import Optimizer, State
from ecgmeta.bilevel.problem import FeatureProblem, Problem
from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves


@dataclass(frozen=True)
class Unroll:
    """K differentiable steps on the fine-tuning head ψ, started from its current value.

    Args:
        steps: K, ``FT(θ) = ψ_K`` with ``ψ_{k+1} = opt(ψ_k, ∂L_FT(θ, ψ_k; train batch k)/∂ψ)``.
        optimizer: :class:`~ecgmeta.bilevel.optimizers.SGD` or :class:`~ecgmeta.bilevel.optimizers.Adam`.
    """

    steps: int
    optimizer: Optimizer

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"Unroll needs steps >= 0, got {self.steps}")


@dataclass(frozen=True)
class FinetuneGradient:
    """``v`` and what the unrolled fine-tuning looked like.

    Attributes:
        v: ``dL_FT-val(θ, ψ_K(θ))/dθ``, a tree shaped like θ; zeros where fine-tuning does not use a parameter.
        validation_loss: ``L_FT-val`` after the K steps.
        train_losses: ``L_FT`` before each of the K steps.
        psi: ψ_K, detached.
    """

    v: Tree
    validation_loss: Tensor
    train_losses: tuple[Tensor, ...]
    psi: Tree


def finetune_gradient(
    problem: Problem,
    theta: Mapping[str, Tensor],
    psi: Mapping[str, Tensor],
    train_batches: Sequence[Any],
    val_batch: Any,
    unroll: Unroll,
    head_state: State | None = None,
) -> FinetuneGradient:
    """First factor: backpropagation through K unrolled head steps (paper, Algorithm 1, line 5).

    Args:
        train_batches: K fine-tuning training batches.
        head_state: the warm head optimiser's state; a fresh one where None.
    """
    if len(train_batches) != unroll.steps:
        raise ValueError(
            f"Unroll of {unroll.steps} steps needs as many train batches, got {len(train_batches)}"
        )
    batches = [*train_batches, val_batch]
    if isinstance(problem, FeatureProblem):
        return _through_features(problem, theta, psi, batches, unroll, head_state)
    theta = leaves(theta)
    losses = _Steps([lambda p, b=b: problem.finetune_loss(theta, p, b) for b in batches], unroll)
    val, trained, train_losses = losses.run(psi, head_state)
    return FinetuneGradient(detach(gradient(val, theta)), val.detach(), train_losses, trained)


def _through_features(
    problem: FeatureProblem,
    theta: Mapping[str, Tensor],
    psi: Mapping[str, Tensor],
    batches: Sequence[Any],
    unroll: Unroll,
    head_state: State | None,
) -> FinetuneGradient:
    """The same v by the chain rule at the features ``f_k = features(θ, batch_k)``.

    The head's steps touch θ only through the features, so ``v = Σ_k (∂f_k/∂θ)ᵀ ∂L/∂f_k``. Features are computed
    without a graph, the K steps are differentiated on them alone, and each batch's encoder graph is rebuilt when its
    turn comes: one encoder graph is alive at a time, so memory does not grow with K.
    """
    with torch.no_grad():
        cached = [problem.features(detach(theta), batch) for batch in batches]
    nodes = [value.detach().requires_grad_() for value in cached]
    steps = _Steps(
        [lambda p, f=f, b=b: problem.head_loss(f, p, b) for f, b in zip(nodes, batches, strict=True)], unroll
    )
    val, trained, train_losses = steps.run(psi, head_state)
    cotangents = gradient(val, {str(k): node for k, node in enumerate(nodes)})
    theta = leaves(theta)
    v = {name: torch.zeros_like(value) for name, value in theta.items()}
    for k, batch in enumerate(batches):
        cotangent = cotangents[str(k)]
        part = gradient([problem.features(theta, batch)], theta, grad_outputs=[cotangent])
        v = {name: value + part[name] for name, value in v.items()}
    return FinetuneGradient(v, val.detach(), train_losses, trained)


class _Steps:
    """K optimiser steps on ψ along the first K losses, then the last loss, in one graph."""

    def __init__(self, losses: Sequence[Any], unroll: Unroll) -> None:
        self.losses, self.optimizer = losses, unroll.optimizer

    def run(self, psi: Mapping[str, Tensor], state: State | None) -> tuple[Tensor, Tree, tuple[Tensor, ...]]:
        params: Tree = leaves(psi)
        state = self.optimizer.init(params) if state is None else state
        train_losses = []
        for loss in self.losses[:-1]:
            value = loss(params)
            params, state = self.optimizer.update(params, gradient(value, params, create_graph=True), state)
            train_losses.append(value.detach())
        return self.losses[-1](params), detach(params), tuple(train_losses)
