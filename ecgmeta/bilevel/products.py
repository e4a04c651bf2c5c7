"""Products with the second derivatives of the pre-training loss: ``Hu`` and ``Mᵀu``.

``H = ∂²L_PT/∂θ²`` and ``M = ∂²L_PT/∂θ∂φ`` are never formed. Both products are one directional derivative of a first-order
gradient, ``(Hu, Mᵀu) = d/dε ∇_{θ,φ} L_PT(θ + εu, φ)``; a route is a way to take it. One function a route, one call shape,
``route(loss, theta, phi) -> Linearization``.

Reverse over forward (``grad`` of ``jvp``) is not offered: it is silently wrong through normalisation layers in train mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ecgmeta.bilevel.storage import CompactGraph
from ecgmeta.bilevel.trees import Tree, axpy, detach, dot, gradient, leaves, norm, scale

Loss = Callable[[Tree, Tree], Tensor]


class Linearization(Protocol):
    """The pre-training loss at one (θ, φ) and batch, ready for products.

    The work is done when it is first needed. ``loss`` and ``gradient`` come with the first product wherever a route
    computes them anyway, so an ordinary pre-training step on this batch may use them for nothing.
    """

    @property
    def loss(self) -> Tensor:
        """``L_PT(θ, φ)``, detached."""
        ...

    @property
    def gradient(self) -> Tree:
        """``∂L_PT/∂θ``, detached."""
        ...

    def hvp(self, u: Tree) -> Tree:
        """``H u``, a tree shaped like θ."""
        ...

    def mixed(self, u: Tree) -> Tree:
        """``Mᵀ u = ∂⟨∂L_PT/∂θ, u⟩/∂φ``, a tree shaped like φ."""
        ...


class Products(Protocol):
    """A route to the products. ``recording`` is entered around the one evaluation that may move running statistics."""

    def __call__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> Linearization: ...


class _Evaluated:
    """What the routes share: the point, and what its first evaluation left."""

    def __init__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> None:
        self._function, self._theta, self._phi = loss, detach(theta), detach(phi)
        self._recording: AbstractContextManager[None] | None = recording
        self._loss: Tensor | None = None
        self._gradient: Tree | None = None

    @property
    def loss(self) -> Tensor:
        return self._point()[0]

    @property
    def gradient(self) -> Tree:
        return self._point()[1]

    def _point(self) -> tuple[Tensor, Tree]:
        if self._loss is None or self._gradient is None:
            theta = leaves(self._theta)
            with self._first():
                value = self._function(theta, self._phi)
            self._loss, self._gradient = value.detach(), detach(gradient(value, theta))
        return self._loss, self._gradient

    def _first(self) -> AbstractContextManager[None]:
        recording, self._recording = self._recording, None
        return recording or nullcontext()


class Deferred(_Evaluated):
    """A route that is taken when a product is first asked for; without one, the loss is a plain evaluation, and the gradient
    one pass back through it where it is asked for too.

    For a problem that supplies its own ``Mᵀu``: what a solver without Hessian-vector products leaves to do is first order.
    """

    def __init__(
        self,
        products: Products,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> None:
        super().__init__(loss, theta, phi, recording)
        self._products = products
        self._route: Linearization | None = None
        self._nodes: Tree = {}
        self._value: Tensor | None = None  # with its graph, until the gradient has been taken

    @property
    def untouched(self) -> bool:
        """Whether nothing has been evaluated yet."""
        return self._route is None and self._value is None

    @property
    def loss(self) -> Tensor:
        return self._evaluated().detach() if self._route is None else self._route.loss

    @property
    def gradient(self) -> Tree:
        if self._route is not None:
            return self._route.gradient
        if self._gradient is None:
            value = self._evaluated()
            self._gradient, self._value = detach(gradient(value, self._nodes)), value.detach()
        return self._gradient

    def _evaluated(self) -> Tensor:
        if self._value is None:
            self._nodes = leaves(self._theta)
            with self._first():
                self._value = self._function(self._nodes, self._phi)
        return self._value

    def hvp(self, u: Tree) -> Tree:
        return self._taken().hvp(u)

    def mixed(self, u: Tree) -> Tree:
        return self._taken().mixed(u)

    def _taken(self) -> Linearization:
        if self._route is None:
            self._value = None
            recording, self._recording = self._recording, None
            self._route = self._products(self._function, self._theta, self._phi, recording)
        return self._route


class DoubleBackward(_Evaluated):
    """Reverse over reverse: the gradient is built with its graph once, and each product is one pass back through it.

    Exact for every operation whose backward is differentiable; missing for fused attention and under ``torch.compile``. The
    graph lives as long as the object.
    """

    def __init__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> None:
        super().__init__(loss, theta, phi, recording)
        self._leaves, self._phi_leaves = leaves(theta), leaves(phi)
        with self._saving_loss(), self._first():
            value = loss(self._leaves, self._phi_leaves)
        with self._saving_gradient():
            self._graph = gradient(value, self._leaves, create_graph=True)
        self._loss, self._gradient = value.detach(), detach(self._graph)

    def hvp(self, u: Tree) -> Tree:
        return self._product(self._leaves, u)

    def mixed(self, u: Tree) -> Tree:
        return self._product(self._phi_leaves, u)

    def _saving_loss(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _saving_gradient(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _product(self, inputs: Tree, u: Tree) -> Tree:
        outputs = list(self._graph.values())
        weights = [u[name] for name in self._graph]
        return detach(gradient(outputs, inputs, grad_outputs=weights, retain_graph=True))


@dataclass(frozen=True)
class LowPrecision:
    """Double backward with the arithmetic of the products, and of nothing else, in a lower precision.

    Loss and gradient are those of :class:`DoubleBackward` to the last bit, so an ordinary step may use them. The products run
    under ``torch.autocast`` on a graph that is kept in that precision, in about half the memory. Their relative error is about
    that of the precision (0.4 % for bfloat16), and they cost a fraction where the processor has instructions for it. Whether an
    operation heeds autocast in its backward pass is its own affair: take this where :func:`probe` has measured it.

    Args:
        dtype: of the products' arithmetic and of what their graph saves.
    """

    dtype: torch.dtype = torch.bfloat16

    def __call__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> Linearization:
        return _LowPrecision(loss, theta, phi, recording, self.dtype)


class _LowPrecision(DoubleBackward):
    def __init__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None,
        dtype: torch.dtype,
    ) -> None:
        self._dtype = dtype
        self._storage = CompactGraph(dtype, [*theta.values(), *phi.values()])
        super().__init__(loss, theta, phi, recording)

    def _saving_loss(self) -> AbstractContextManager[None]:
        return self._storage.loss()

    def _saving_gradient(self) -> AbstractContextManager[None]:
        return self._storage.gradient()

    def _product(self, inputs: Tree, u: Tree) -> Tree:
        with torch.autocast(next(iter(u.values())).device.type, self._dtype):
            return super()._product(inputs, u)


class ForwardOverReverse(_Evaluated):
    """A tangent carried through the forward pass and through its backward pass.

    Exact, and holds no graph between products. Each product evaluates the gradient anew, so the first one brings ``loss`` and
    ``gradient`` along. Missing where an operation has no forward derivative (GroupNorm, ``grid_sample``).
    """

    def hvp(self, u: Tree) -> Tree:
        return self._product(u, with_phi=False)

    def mixed(self, u: Tree) -> Tree:
        return self._product(u, with_phi=True)

    def _product(self, u: Tree, with_phi: bool) -> Tree:
        with forward_ad.dual_level():
            # A dual tensor made from a leaf that requires a gradient carries both derivatives.
            theta = {
                n: forward_ad.make_dual(v.requires_grad_(), u[n]) for n, v in detach(self._theta).items()
            }
            phi = leaves(self._phi) if with_phi else self._phi
            with self._first():
                value = self._function(theta, phi)
            grads = gradient(value, theta | phi if with_phi else theta)
            parts = {name: forward_ad.unpack_dual(grad) for name, grad in grads.items()}
            if self._gradient is None:
                self._loss = forward_ad.unpack_dual(value).primal.detach()
                self._gradient = {name: parts[name].primal.detach() for name in theta}
            return {
                name: torch.zeros_like(grads[name])
                if parts[name].tangent is None
                else parts[name].tangent.detach()
                for name in (phi if with_phi else theta)
            }


@dataclass(frozen=True)
class CentralDifference:
    """``(∇L(θ + εu) − ∇L(θ − εu)) / 2ε`` with ``ε = step · (1 + ‖θ‖) / ‖u‖``: two first-order gradients a product.

    Error ``O(step²)`` from the third derivative, plus rounding of about ``eps·‖∇L‖/ε``. In float32 it can be anything: take
    it only where :func:`probe` has measured it on the problem at hand.
    """

    step: float = 1e-3

    def __call__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None = None,
    ) -> Linearization:
        return _Difference(loss, theta, phi, recording, self.step)


class _Difference(_Evaluated):
    def __init__(
        self,
        loss: Loss,
        theta: Mapping[str, Tensor],
        phi: Mapping[str, Tensor],
        recording: AbstractContextManager[None] | None,
        step: float,
    ) -> None:
        super().__init__(loss, theta, phi, recording)
        self._step = step

    def hvp(self, u: Tree) -> Tree:
        return self._product(u, with_phi=False)

    def mixed(self, u: Tree) -> Tree:
        return self._product(u, with_phi=True)

    def _product(self, u: Tree, with_phi: bool) -> Tree:
        size = norm(u)
        if float(size) == 0:
            return {
                name: torch.zeros_like(value)
                for name, value in (self._phi if with_phi else self._theta).items()
            }
        epsilon = self._step * (1 + norm(self._theta)) / size
        ends = []
        for sign in (1.0, -1.0):
            theta, phi = leaves(axpy(sign * epsilon, u, self._theta)), leaves(self._phi)
            ends.append(detach(gradient(self._function(theta, phi), phi if with_phi else theta)))
        return scale(0.5 / epsilon, axpy(-1.0, ends[1], ends[0]))


def cosine(a: Tree, b: Tree) -> float:
    """Cosine of the angle between two trees; 0 where one of them is zero."""
    sizes = float(norm(a)) * float(norm(b))
    return float(dot(a, b)) / sizes if sizes else 0.0
