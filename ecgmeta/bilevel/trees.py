"""Arithmetic on named tensors.

θ, φ and ψ are trees: plain dictionaries from names to tensors. Everything the engine does to parameters is written with the
few functions below, so that no solver ever sees a module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tree = dict[str, Tensor]


def detach(tree: Mapping[str, Tensor]) -> Tree:
    """The same values, cut from their graph (no copy)."""
    return {name: value.detach() for name, value in tree.items()}


def leaves(tree: Mapping[str, Tensor]) -> Tree:
    """The same values as fresh leaves of a new graph (no copy)."""
    return {name: value.detach().requires_grad_() for name, value in tree.items()}


def clone(tree: Mapping[str, Tensor]) -> Tree:
    """A detached copy."""
    return {name: value.detach().clone() for name, value in tree.items()}


def zeros_like(tree: Mapping[str, Tensor]) -> Tree:
    return {name: torch.zeros_like(value) for name, value in tree.items()}


def scale(a: float | Tensor, x: Mapping[str, Tensor]) -> Tree:
    """``a·x``."""
    return {name: a * value for name, value in x.items()}


def multiply(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tree:
    """``x ⊙ y``, entry by entry, over the names of ``y`` (which are those of ``x``)."""
    return {name: x[name] * value for name, value in y.items()}


def axpy(a: float | Tensor, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tree:
    """``a·x + y``, over the names of ``y`` (which are those of ``x``)."""
    if isinstance(a, Tensor):
        return {name: a * x[name] + value for name, value in y.items()}
    return {name: torch.add(value, x[name], alpha=a) for name, value in y.items()}  # no product in between


def dot(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tensor:
    """``⟨x, y⟩`` over all entries of all tensors: a scalar."""
    products = [torch.sum(value * y[name]) for name, value in x.items()]
    return torch.stack(products).sum() if products else torch.zeros(())


def norm(x: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm over all entries of all tensors: a scalar."""
    return dot(x, x).sqrt()


def flatten(tree: Mapping[str, Tensor]) -> Tensor:
    """All entries as one vector."""
    return torch.cat([value.reshape(-1) for value in tree.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Tree:
    """The inverse of :func:`flatten`, with the names and shapes of ``like``."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def rounding(tree: Mapping[str, Tensor]) -> float:
    """The relative rounding of the coarsest floating type in it."""
    return max(torch.finfo(value.dtype).eps for value in tree.values())


def is_finite(tree: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tree.values())


def gradient(
    output: Tensor | list[Tensor],
    inputs: Mapping[str, Tensor],
    *,
    grad_outputs: list[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tree:
    """``∂output/∂inputs`` as a tree, or ``(∂output/∂inputs)ᵀ grad_outputs`` for several outputs.

    An input that the output does not touch gets zeros, never a missing entry: a projection head has no part in
    the fine-tuning loss, and that is a fact about the derivative, not an error.
    """
    if not inputs:
        return {}
    outputs = [output] if isinstance(output, Tensor) else output
    kept = [i for i, value in enumerate(outputs) if value.requires_grad]
    if not kept:
        return zeros_like(inputs)
    grads = torch.autograd.grad(
        [outputs[i] for i in kept],
        list(inputs.values()),
        grad_outputs=None if grad_outputs is None else [grad_outputs[i] for i in kept],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(inputs, grads, strict=True))
