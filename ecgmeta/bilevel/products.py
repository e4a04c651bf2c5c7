"""Products with the second derivatives of the pre-training loss: ``Hu`` and ``Mᵀu``.

``H = ∂²L_PT/∂θ²`` and ``M = ∂²L_PT/∂θ∂φ`` are never formed. One function a route; each returns a :class:`Linearization`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves

Loss = Callable[[Tree, Tree], Tensor]


@dataclass(frozen=True)
class Linearization:
    """The pre-training loss at one (θ, φ) and batch, ready for products.

    Attributes:
        loss: ``L_PT(θ, φ)``, detached.
        gradient: ``∂L_PT/∂θ``, detached: an ordinary pre-training step on this batch may use it.
        hvp: ``u ↦ H u``, a tree shaped like θ.
        mixed: ``u ↦ Mᵀ u = ∂⟨∂L_PT/∂θ, u⟩/∂φ``, a tree shaped like φ.
    """

    loss: Tensor
    gradient: Tree
    hvp: Callable[[Tree], Tree]
    mixed: Callable[[Tree], Tree]


def double_backward(loss: Loss, theta: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> Linearization:
    """Reverse over reverse: the gradient is built with its graph once, and each product is one pass back through it.

    Exact for every operation whose backward is differentiable. The graph lives as long as the returned object.
    """
    theta, phi = leaves(theta), leaves(phi)
    value = loss(theta, phi)
    grads = gradient(value, theta, create_graph=True)
    outputs = list(grads.values())

    def hvp(u: Tree) -> Tree:
        return detach(gradient(outputs, theta, grad_outputs=[u[name] for name in grads], retain_graph=True))

    def mixed(u: Tree) -> Tree:
        return detach(gradient(outputs, phi, grad_outputs=[u[name] for name in grads], retain_graph=True))

    return Linearization(value.detach(), detach(grads), hvp, mixed)
