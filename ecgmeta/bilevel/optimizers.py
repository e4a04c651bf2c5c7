"""Optimiser steps as pure functions, so that fine-tuning can be differentiated through them.

Each has one call shape: ``init(params) -> state`` and ``update(params, grads, state) -> (params, state)``. Values equal
``torch.optim``'s for the same settings; nothing is updated in place, so gradients flow through every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ecgmeta.bilevel.trees import Tree, axpy, zeros_like

State = dict[str, Tree]


class Optimizer(Protocol):
    """A differentiable optimiser: pure functions over trees."""

    def init(self, params: Mapping[str, Tensor]) -> State: ...

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[Tree, State]: ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent, ``b ← μb + g``, ``w ← w − lr·b``.

    Args:
        lr: step size.
        momentum: μ; 0 keeps no state.
        weight_decay: λ; ``g ← g + λw`` before the step.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, params: Mapping[str, Tensor]) -> State:
        return {"momentum": zeros_like(params)} if self.momentum else {}

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[Tree, State]:
        grads = axpy(self.weight_decay, params, grads) if self.weight_decay else grads
        if not self.momentum:
            return axpy(-self.lr, grads, params), state
        buffer = axpy(self.momentum, state["momentum"], grads)
        return axpy(-self.lr, buffer, params), {"momentum": buffer}


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, 2015), with the bias corrections of its Algorithm 1.

    Args:
        lr: step size.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment. Where gradients are smaller than ``eps`` it decides the step.
        weight_decay: λ; ``g ← g + λw`` (the L2 form, as ``torch.optim.Adam``).
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, params: Mapping[str, Tensor]) -> State:
        count = {
            name: torch.zeros((), dtype=value.dtype, device=value.device) for name, value in params.items()
        }
        return {"mean": zeros_like(params), "square": zeros_like(params), "count": count}

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[Tree, State]:
        grads = axpy(self.weight_decay, params, grads) if self.weight_decay else grads
        b1, b2 = self.betas
        new: Tree = {}
        mean: Tree = {}
        square: Tree = {}
        count: Tree = {}
        for name, value in params.items():
            g = grads[name]
            count[name] = state["count"][name] + 1
            mean[name] = b1 * state["mean"][name] + (1 - b1) * g
            square[name] = b2 * state["square"][name] + (1 - b2) * g * g
            m = mean[name] / (1 - b1 ** count[name])
            s = square[name] / (1 - b2 ** count[name])
            # √ has an infinite slope at 0 and 0·∞ is NaN: a coordinate that never had a gradient takes the
            # constant branch, whose derivative is the right one, lr·(1−β₁)/eps and nothing from the root.
            seen = s > 0
            root = torch.where(seen, torch.where(seen, s, torch.ones_like(s)).sqrt(), torch.zeros_like(s))
            new[name] = value - self.lr * m / (root + self.eps)
        return new, {"mean": mean, "square": square, "count": count}
