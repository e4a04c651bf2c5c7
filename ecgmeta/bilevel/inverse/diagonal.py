"""Diagonal preconditioners of the Neumann series."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ecgmeta.bilevel.trees import Tree

Diagonal = Callable[[], Tree]
"""The diagonal of P, read anew at each solve."""


def adam_preconditioner(optimizer: torch.optim.Optimizer, tree: Mapping[str, Tensor], *, eps: float) -> Tree:
    """``P = 1/(√v̂ + eps)``, what Adam multiplies its mean gradient with (Kingma & Ba, 2015).

    Pass it as a function, so that each solve sees the moments of its own step::

        Neumann(5, step_size, preconditioner=lambda: adam_preconditioner(optimizer, theta, eps=1e-3))

    Args:
        optimizer: ``torch.optim``'s Adam, AdamW or NAdam, that has stepped every tensor of ``tree``: in
            :func:`~ecgmeta.bilevel.loop.meta_train`, a warm-up of at least one step.
        tree: the live parameters θ.
        eps: in units of a gradient. It has no default, and is not the optimiser's, because it decides the direction: where
            √v̂ is below it P is a multiple of the identity, and at the usual 1e-8 the coordinates that hardly ever have a
            gradient outweigh all others (METHOD, last section, 12).

    Returns:
        A tree shaped like ``tree``, detached.

    Raises:
        ValueError: eps is not positive, or the optimiser holds no second moment of a tensor.
    """
    if not eps > 0:
        raise ValueError(f"adam_preconditioner needs eps > 0, got {eps}")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    diagonal: Tree = {}
    for name, value in tree.items():
        state = optimizer.state.get(value, {})
        if "exp_avg_sq" not in state:
            raise ValueError(
                f"the optimiser holds no second moment of {name!r}: is it Adam's, over these very tensors, and has it stepped?"
            )
        square = state.get("max_exp_avg_sq", state["exp_avg_sq"])  # the former under amsgrad
        bias = 1 - groups[id(value)]["betas"][1] ** float(state["step"])
        diagonal[name] = 1 / ((square.detach() / bias).sqrt() + eps)
    return diagonal


def read_diagonal(preconditioner: Diagonal, like: Mapping[str, Tensor]) -> Tree:
    """The preconditioner's tree, in the order of ``like``.

    Raises:
        ValueError: a name or shape differs from ``like``'s, or an entry is not positive and finite.
    """
    found = preconditioner()
    for name, value in like.items():
        if name not in found or found[name].shape != value.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ValueError(f"the preconditioner has {shape} for {name!r}, expected {tuple(value.shape)}")
        if not bool(((found[name] > 0) & found[name].isfinite()).all()):
            raise ValueError(f"the preconditioner of {name!r} has entries that are not positive and finite")
    return {name: found[name] for name in like}
