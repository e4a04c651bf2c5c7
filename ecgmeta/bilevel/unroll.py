"""The fine-tuning factor of the hypergradient: ``v = dL_FT-val/dθ`` through K optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ecgmeta.bilevel.distributed import Reduce, local
from ecgmeta.bilevel.features import Encoded
from ecgmeta.bilevel.optimizers import Optimizer, State
from ecgmeta.bilevel.problem import FeatureProblem, Problem
from ecgmeta.bilevel.trees import Tree, axpy, clone, detach, gradient, leaves, zeros_like


@dataclass(frozen=True)
class FinetuneGradient:
    """``v`` and what fine-tuning looked like.

    Attributes:
        v: ``dL_FT-val(FT(θ))/dθ``, a tree shaped like θ; zeros where fine-tuning does not use a parameter.
        validation_loss: ``L_FT-val`` after fine-tuning.
        train_losses: ``L_FT`` before each of the K steps.
    """

    v: Tree
    validation_loss: Tensor
    train_losses: tuple[Tensor, ...]


class FinetuneFactor(Protocol):
    """A way to fine-tune that can be differentiated: :class:`Unroll`, :class:`~ecgmeta.bilevel.implicit_head.ImplicitHead`."""

    @property
    def train_batches(self) -> int:
        """How many fine-tuning training batches it takes."""
        ...

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
        """With ``reduce`` a mean over ranks that hold equal parts of each batch, ``reduce(result.v)`` is v of the whole."""
        ...


@dataclass(frozen=True)
class Unroll:
    """K differentiable optimiser steps, started from the warm head (paper, Algorithm 1, line 5).

    ``w_{k+1} = opt(w_k, ∂L_FT(w_k; train batch k)/∂w)`` on ``w = ψ``, or on ``w = (θ, ψ)`` with ``encoder=True``; then
    ``v = dL_FT-val(w_K)/dθ``. The steps are differentiated backwards one at a time, each rebuilt when its turn comes, so the
    memory of activations does not grow with K; the trajectory of w (and of the optimiser's state) is kept.

    Args:
        steps: K.
        optimizer: :class:`~ecgmeta.bilevel.optimizers.SGD` or :class:`~ecgmeta.bilevel.optimizers.Adam`.
        encoder: whether θ is fine-tuned as well (the paper's definition; its released code trains the head alone).
    """

    steps: int
    optimizer: Optimizer
    encoder: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"Unroll needs steps >= 0, got {self.steps}")

    @property
    def train_batches(self) -> int:
        return self.steps

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
        """``head_state`` is the warm head optimiser's state; a fresh one where None."""
        if len(train_batches) != self.steps:
            raise ValueError(
                f"Unroll of {self.steps} steps needs as many train batches, got {len(train_batches)}"
            )
        batches = [*train_batches, val_batch]
        theta, psi = detach(theta), detach(psi)
        state = (
            self.optimizer.init(psi) if head_state is None else {n: detach(t) for n, t in head_state.items()}
        )
        if self.encoder:
            return self._everything(problem, theta, psi, batches, state, reduce)
        if isinstance(problem, FeatureProblem):
            return self._through_features(problem, theta, psi, batches, state, reduce)
        losses = [lambda t, p, b=b: problem.finetune_loss(t, p, b) for b in batches]
        passed = _differentiate(losses, self.optimizer, theta, psi, state, reduce)
        return FinetuneGradient(passed.shared, passed.loss, passed.train_losses)

    def _everything(
        self, problem: Problem, theta: Tree, psi: Tree, batches: Sequence[Any], state: State, reduce: Reduce
    ) -> FinetuneGradient:
        # A new optimiser for θ beside the warm one for ψ, as fine-tuning would start.
        fresh = self.optimizer.init(theta)
        joint = {n: _prefix("theta", fresh[n]) | _prefix("psi", tree) for n, tree in state.items()}
        params = _prefix("theta", theta) | _prefix("psi", psi)
        losses = [
            lambda _, p, b=b: problem.finetune_loss(_strip("theta", p), _strip("psi", p), b) for b in batches
        ]
        passed = _differentiate(losses, self.optimizer, {}, params, joint, reduce)
        return FinetuneGradient(_strip("theta", passed.params), passed.loss, passed.train_losses)

    def _through_features(
        self,
        problem: FeatureProblem,
        theta: Tree,
        psi: Tree,
        batches: Sequence[Any],
        state: State,
        reduce: Reduce,
    ) -> FinetuneGradient:
        """The head's steps touch θ only through the features: differentiate at those, then once through the encoder."""
        # Two batches fit where a pre-training step does (two views a record), and keeping their graph saves a forward pass.
        encoded = Encoded(problem, theta, batches, recompute=len(batches) > 2)
        losses = [lambda f, p, k=k, b=b: problem.head_loss(f[str(k)], p, b) for k, b in enumerate(batches)]
        passed = _differentiate(losses, self.optimizer, encoded.features, psi, state, reduce)
        return FinetuneGradient(encoded.pull_back(passed.shared), passed.loss, passed.train_losses)


@dataclass(frozen=True)
class _Passed:
    loss: Tensor
    train_losses: tuple[Tensor, ...]
    shared: Tree  # derivative with respect to what the losses share
    params: Tree  # and with respect to where the steps started


def _differentiate(
    losses: Sequence[Callable[[Tree, Tree], Tensor]],
    optimizer: Optimizer,
    shared: Tree,
    params: Tree,
    state: State,
    reduce: Reduce,
) -> _Passed:
    """Steps along ``losses[:-1]``, then ``losses[-1]``, and its derivative by reverse accumulation over the steps.

    The trajectory is the same on every rank; derivatives with respect to what is shared are left for the caller to reduce.
    """
    path = walk(losses[:-1], optimizer, shared, params, state, reduce)
    shared_nodes, nodes = leaves(shared), leaves(path.params)
    value = losses[-1](shared_nodes, nodes)
    both = gradient(value, _prefix("s", shared_nodes) | _prefix("p", nodes))
    total, end = _strip("s", both), reduce(_strip("p", both))
    through, start = zeros_like(total), end
    for found in walk_back(losses[:-1], optimizer, shared, path, end, reduce):
        through, start = found
    return _Passed(value.detach(), path.losses, axpy(1.0, through, total), start)


@dataclass(frozen=True)
class Walk:
    """Optimiser steps that were taken.

    Attributes:
        points: parameters and optimiser's state before each.
        losses: before each.
        params, state: after the last.
    """

    points: list[tuple[Tree, State]]
    losses: tuple[Tensor, ...]
    params: Tree
    state: State


def walk(
    losses: Sequence[Callable[[Tree, Tree], Tensor]],
    optimizer: Optimizer,
    shared: Tree,
    params: Tree,
    state: State,
    reduce: Reduce = local,
) -> Walk:
    """A step along each of ``losses``, functions of what they share and of the parameters; no graph is kept."""
    points: list[tuple[Tree, State]] = []
    values = []
    for loss in losses:
        points.append((params, state))
        nodes = leaves(params)
        value = loss(shared, nodes)
        values.append(value.detach())
        new, new_state = optimizer.update(params, reduce(gradient(value, nodes)), state)
        params, state = detach(new), {name: detach(tree) for name, tree in new_state.items()}
    return Walk(points, tuple(values), params, state)


def walk_back(
    losses: Sequence[Callable[[Tree, Tree], Tensor]],
    optimizer: Optimizer,
    shared: Tree,
    path: Walk,
    bar: Tree,
    reduce: Reduce = local,
) -> Iterator[tuple[Tree, Tree]]:
    """Reverse accumulation over a walk, from the derivative ``bar`` with respect to where it ended.

    Each step is rebuilt when its turn comes, so the memory of activations does not grow with their number.

    Yields:
        After each step back: the derivative with respect to what is shared, by way of the steps since, and that with respect
        to the parameters where they began.
    """
    total = zeros_like(shared)
    state_bar = {name: zeros_like(tree) for name, tree in path.state.items()}
    for loss, (before, state_before) in zip(reversed(losses), reversed(path.points), strict=True):
        shared_nodes, nodes = leaves(shared), leaves(before)
        slope = gradient(loss(shared_nodes, nodes), nodes, create_graph=True)
        direct, slope_bar, state_bar = _through_update(
            optimizer, before, reduce(detach(slope)), state_before, bar, state_bar
        )
        back = gradient(
            list(slope.values()),
            _prefix("s", shared_nodes) | _prefix("p", nodes),
            grad_outputs=list(slope_bar.values()),
        )
        total = axpy(1.0, _strip("s", back), total)
        bar = axpy(1.0, reduce(_strip("p", back)), direct)
        yield total, bar


def _through_update(
    optimizer: Optimizer, params: Tree, slope: Tree, state: State, bar: Tree, state_bar: State
) -> tuple[Tree, Tree, State]:
    """From derivatives with respect to an update's results to those with respect to its params, gradient and state."""
    nodes, slope_nodes = leaves(params), leaves(slope)
    # Cloned as well as cut: several state trees may share one tensor, and each needs its own derivative.
    state_nodes = {name: leaves(clone(tree)) for name, tree in state.items()}
    after, state_after = optimizer.update(nodes, slope_nodes, state_nodes)
    outputs = [*after.values(), *(t for tree in state_after.values() for t in tree.values())]
    weights = [*(bar[n] for n in after), *(t for n in state_after for t in state_bar[n].values())]
    inputs = _prefix("p", nodes) | _prefix("g", slope_nodes)
    for name, tree in state_nodes.items():
        inputs |= _prefix(f"state.{name}", tree)
    back = gradient(outputs, inputs, grad_outputs=weights)
    return _strip("p", back), _strip("g", back), {n: _strip(f"state.{n}", back) for n in state_nodes}


def _prefix(prefix: str, tree: Mapping[str, Tensor]) -> Tree:
    return {f"{prefix}/{name}": value for name, value in tree.items()}


def _strip(prefix: str, tree: Mapping[str, Tensor]) -> Tree:
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tree.items() if name.startswith(start)}
