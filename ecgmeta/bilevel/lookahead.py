"""What φ does further on: the fine-tuning loss after many pre-training steps, differentiated through every one of them.

A hypergradient of two-stage pre-training sees what φ does in the next step. Where a task costs or saves room in an encoder
that hundreds of steps fill, that can be little, or the opposite of what it comes to (``examples/studies/ppi_horizon``). Here φ
is held over T steps

    θ_{k+1} = opt(θ_k, ∂L_PT(θ_k, φ; batch k)/∂θ),    dL_FT-val(FT(θ_T))/dφ    through all of them,

backwards one step at a time, each rebuilt when its turn comes: two to four times the time of the steps, and the memory of one
step's activations beside T copies of θ and of the optimiser's state. It says nothing where training is chaotic, as Adam's first
steps from initialisation are: there derivatives grow from step to step, and the mean over draws does not settle. So begin from
an encoder that has trained a little, and average over draws, each scaled to norm 1, as a few are far larger than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ecgmeta.bilevel.optimizers import Optimizer, State
from ecgmeta.bilevel.problem import NoisyProblem, Problem, check_scalar
from ecgmeta.bilevel.trees import Tree, detach, is_finite
from ecgmeta.bilevel.unroll import FinetuneFactor, FinetuneGradient, walk, walk_back


@dataclass(frozen=True)
class Lookahead:
    """Pre-training steps and what φ did in them.

    Attributes:
        phi: ``dL_FT-val/dφ``, φ being the same in all steps; a tree shaped like φ.
        tails: for each length that was asked for, the same for a φ that differs in the last so many steps only.
        theta, state: parameters and optimiser's state after the last step.
        finetune: v and the validation loss there.
        losses: the pre-training loss before each step.
    """

    phi: Tree
    theta: Tree
    state: State
    finetune: FinetuneGradient
    losses: tuple[Tensor, ...]
    tails: Mapping[int, Tree] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every entry is finite."""
        return is_finite(self.phi)


def lookahead(
    problem: Problem,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    psi: Mapping[str, Tensor],
    *,
    pretrain_batches: Sequence[Any],
    train_batches: Sequence[Any],
    val_batch: Any,
    finetune: FinetuneFactor,
    optimizer: Optimizer,
    state: State | None = None,
    head_state: State | None = None,
    start: int = 0,
    tails: Sequence[int] = (),
) -> Lookahead:
    """One pre-training step on each of ``pretrain_batches``, and the derivative of fine-tuning after them.

    The optimiser is a pure function, whose values are those of ``torch.optim``. Running statistics do not move: let a problem
    that has some take its fine-tuning loss in train mode, or their part in the derivative, and in θ_T itself, is missed.

    Args:
        theta, phi, psi: trees of pre-trained parameters, pre-training hyperparameters and fine-tuning head. Not changed.
        train_batches, val_batch, finetune, head_state: as :func:`~ecgmeta.bilevel.hypergradient.hypergradient` takes them.
        optimizer, state: of θ; a fresh state where None.
        start: number of the first step, for a problem that draws noise of its own.
        tails: lengths, at most the number of steps.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: there is no batch, or a tail is longer than the steps are many.
    """
    if not pretrain_batches:
        raise ValueError("lookahead needs at least one pre-training batch")
    if any(not 1 <= length <= len(pretrain_batches) for length in tails):
        raise ValueError(f"tails must be between 1 and {len(pretrain_batches)} steps, got {list(tails)}")
    theta, phi = detach(theta), detach(phi)
    state = optimizer.init(theta) if state is None else {name: detach(tree) for name, tree in state.items()}
    losses = [_loss(problem, batch, start + k) for k, batch in enumerate(pretrain_batches)]
    path = walk(losses, optimizer, phi, theta, state)
    check_scalar(path.losses[-1], "pre-training loss")
    tuned = finetune(problem, path.params, psi, train_batches, val_batch, head_state)
    check_scalar(tuned.validation_loss, "fine-tuning validation loss")
    wanted = {*tails, len(losses)}
    backwards = enumerate(walk_back(losses, optimizer, phi, path, tuned.v), start=1)
    found = {length: total for length, (total, _) in backwards if length in wanted}
    kept = {length: found[length] for length in tails}
    return Lookahead(found[len(losses)], path.params, path.state, tuned, path.losses, kept)


def _loss(problem: Problem, batch: Any, step: int) -> Callable[[Tree, Tree], Tensor]:
    """The pre-training loss of a step, as a function of φ and θ; the same noise each time."""

    def loss(phi: Tree, theta: Tree) -> Tensor:
        if isinstance(problem, NoisyProblem):
            problem.at_step(step)
        return problem.pretrain_loss(theta, phi, batch)

    return loss
