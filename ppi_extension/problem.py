"""Weighted multitask pre-training and fine-tuning in the engine's terms.

    L_PT(θ, φ) = 1/T Σₜ wₜ(φ) ℓₜ(θ),    ℓₜ the mean binary cross-entropy of task t over its labelled examples in the batch

and 0 where a batch has none. With every entry labelled and w = 1 this is Hu et al.'s loss, the mean over all entries (their 0
is "negative or no data", so theirs are). T is the number of tasks, whatever a batch labels, so that the weights enter linearly:

    Mᵀu = ∂⟨∂L_PT/∂θ, u⟩/∂φ = (∂w/∂φ)ᵀ s / T,    sₜ = ⟨∇ℓₜ, u⟩.

s is one Jacobian-vector product of the T losses. It is taken in forward mode: exact through every layer here, train-mode batch
statistics included; it keeps no graph, so its memory is that of an evaluation; and its arithmetic is that of a plain step (two
products beside each of the forward pass). Reverse mode twice would build the graph of a gradient and go back through it.

Where a step wants the gradient ``Σₜ cₜ ∇ℓₜ``, c = w/T, on the same batch, s is the derivative with respect to c of its product
with u. The gradient is linear in c, so what its backward pass reads beside c is constant, and what has to be noted of that pass
for going back through it is kept already. This leaves of forward mode's two products one, and no forward pass; but the
activations live longer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.bilevel.problem import FeatureModuleProblem
from ecgmeta.bilevel.trees import Tree, detach, gradient, leaves
from ecgmeta.runtime.errors import InputError
from ppi_extension.data.pyg import Data, first_graphs
from ppi_extension.layers import linear_way_back
from ppi_extension.task_weights import TaskWeights


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,): mean binary cross-entropy of each task over its labelled examples; 0 where it has none.

    Args:
        logits: (B, T).
        labels: (B, T) integers: 1 positive, 0 negative, below 0 unlabelled.

    Raises:
        InputError: the shapes differ.
    """
    _check_shapes(logits, labels)
    known = labels >= 0
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).to(logits.dtype), reduction="none"
    )
    return (losses * known).sum(0) / known.sum(0).clamp(min=1)


def finetune_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of :func:`task_losses` over the tasks that have a labelled example in the batch; 0 where none has."""
    return task_losses(logits, labels).sum() / (labels >= 0).any(0).sum().clamp(min=1)


class Pretraining(nn.Module):
    """Encoder, head and task weights on batches with ``pretrain_labels`` (B, T + F), the last F of them tasks that are trained
    along: the mean of theirs is added to the loss, ``along_weight`` times."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        task_weights: TaskWeights,
        along: int = 0,
        along_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.task_weights = encoder, head, task_weights
        self.along, self.along_weight = along, along_weight

    def task_losses(self, batch: Any) -> Tensor:
        """(T + F,) losses, unweighted."""
        return task_losses(self.head(self.encoder(batch)), batch.pretrain_labels)

    def weights(self) -> Tensor:
        """(T + F,): what the mean of the losses is weighted by."""
        weights = self.task_weights()
        if not self.along:
            return weights
        count = len(weights) + self.along  # which the mean divides by
        fixed = weights.new_full((self.along,), self.along_weight * count / self.along)
        return torch.cat([weights * (count / len(weights)), fixed])

    def forward(self, batch: Any) -> Tensor:
        """The weighted loss, a scalar."""
        return (self.weights() * self.task_losses(batch)).mean()


class Finetuning(nn.Module):
    """Encoder and head on batches with ``finetune_labels`` (B, T_FT)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, batch: Any) -> Tensor:
        """(B, features)."""
        return self.encoder(batch)

    def head_loss(self, features: Tensor, batch: Any) -> Tensor:
        """:func:`finetune_loss` of the head on features that are already there."""
        return finetune_loss(self.head(features), batch.finetune_labels)

    def forward(self, batch: Any) -> Tensor:
        return self.head_loss(self.features(batch), batch)


class TaskProblem(FeatureModuleProblem):
    """The two-stage problem of task weights; see the module's docstring.

    θ: encoder and pre-training head. φ: the task weights. ψ: the fine-tuning head. Batches are those of
    :meth:`~ppi_extension.data.store.EgoStore.collate`.

    Args:
        encoder: a batch to features (B, F); :class:`~ppi_extension.gnn.EgoGNN`.
        pretrain_head: (B, F) to (B, T), or to (B, T + along).
        finetune_head: (B, F) to (B, T_FT).
        task_weights: φ, T of them.
        along: A, tasks trained along, whose labels stand behind the others' and whose weight does not move: such as the
            fine-tuning tasks, which must be unlabelled where φ is validated. Losses, slopes and :meth:`weights` then have
            T + A entries; rules of :mod:`ppi_extension.weighting` take no such problem.
        along_weight: of the mean of their A losses, beside the weighted mean of the T others.
        seed, statistics, finetune_mode: as in :class:`~ecgmeta.bilevel.problem.ModuleProblem`.

    Nothing it builds is of size tasks × parameters.
    """

    pretrain: Pretraining

    def __init__(
        self,
        encoder: nn.Module,
        pretrain_head: nn.Module,
        finetune_head: nn.Module,
        task_weights: TaskWeights,
        *,
        along: int = 0,
        along_weight: float = 1.0,
        statistics: Literal["update", "batch", "frozen"] = "update",
        finetune_mode: Literal["eval", "train"] = "eval",
        seed: int | None = 0,
    ) -> None:
        super().__init__(
            Pretraining(encoder, pretrain_head, task_weights, along, along_weight),
            Finetuning(encoder, finetune_head),
            hyper=task_weights,
            statistics=statistics,
            finetune_mode=finetune_mode,
            seed=seed,
        )

    @property
    def shared(self) -> list[str]:
        """The names in θ of what fine-tuning reads as well: the encoder's parameters."""
        return list(self._shared.values())

    def task_losses(self, theta: Tree, batch: Any) -> Tensor:
        """(T,): the unweighted pre-training losses, on the same noise as :meth:`pretrain_loss`."""
        return self._call(self._pretrainer(), theta, "task_losses", batch)

    def weights(self, phi: Tree) -> Tensor:
        """(T,): w(φ); with tasks trained along (T + A,), so scaled that the mean over all is the loss."""
        return self._call(self.pretrain, phi, "weights")

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return (self.weights(phi) * self.task_losses(theta, batch)).mean()

    def task_slopes(self, theta: Tree, batch: Any, u: Tree) -> tuple[Tensor, Tensor]:
        """The (T,) losses ``ℓₜ`` and their slopes ``⟨∇ℓₜ, u⟩`` along ``u``, shaped like θ, detached."""
        with torch.no_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(value, u[name]) for name, value in detach(theta).items()}
            losses, slopes = forward_ad.unpack_dual(self.task_losses(duals, batch))
            return losses, torch.zeros_like(losses) if slopes is None else slopes

    def curvature_batch(self, batch: Any, share: float) -> Data:
        """The first graphs of a batch that was drawn at random: ``share`` of them, rounded down.

        BatchNorm's statistics are those of these graphs, and dropout draws other masks on them.

        Raises:
            InputError: a share that is not above 0 and below 1, or that comes to less than a graph.
        """
        if not 0 < share < 1:
            raise InputError("curvature", "share", share, "above 0 and below 1")
        graphs = len(batch.center_node_idx)
        count = int(share * graphs + 1e-9)  # 0.29 · 100 is a little less than 29
        if not count:
            raise InputError(
                "curvature",
                "batch",
                f"{graphs} graphs",
                f"at least {math.ceil(1 / share)}, to take a share of {share:g}",
            )
        return first_graphs(batch, count)

    def mixed_product(self, theta: Tree, phi: Tree, batch: Any, u: Tree) -> Tree:
        """``Mᵀu`` for a tree ``u`` shaped like θ; see :class:`~ecgmeta.bilevel.hypergradient.MixedProductProblem`."""
        _, slopes = self.task_slopes(theta, batch, u)
        nodes = leaves(phi)
        return gradient([self.weights(nodes)], nodes, grad_outputs=[slopes / len(slopes)])

    def mixed_product_and_gradient(
        self, theta: Tree, phi: Tree, batch: Any, u: Tree
    ) -> tuple[Tree, Tensor, Tree]:
        """``Mᵀu`` beside the loss and its gradient; see the module's docstring."""
        nodes, phi = leaves(theta), leaves(phi)
        with linear_way_back():
            losses = self.task_losses(nodes, batch)
        weights = self.weights(phi)
        cotangent = weights * (losses.new_ones(()) / len(losses))  # rounded as the mean's own derivative is
        along = gradient([losses], nodes, grad_outputs=[cotangent], create_graph=True)
        mixed = gradient(list(along.values()), phi, grad_outputs=[u[name] for name in along])
        return mixed, (weights * losses).mean().detach(), detach(along)

    def targets(self, batch: Any) -> Tensor:
        """(B, T_FT) of 0 and 1, for :class:`~ecgmeta.bilevel.implicit_head.ImplicitHead`.

        Raises:
            InputError: an entry is unlabelled: the closed form takes every example for every task.
        """
        labels: Tensor = batch.finetune_labels
        unlabelled = int((labels < 0).sum())
        if unlabelled:
            raise InputError(
                "batch", "finetune_labels", f"{unlabelled} unlabelled entries", "none with the implicit head"
            )
        return labels


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.shape != labels.shape:
        raise InputError("batch", "labels", tuple(labels.shape), f"{tuple(logits.shape)}, as the head gives")
