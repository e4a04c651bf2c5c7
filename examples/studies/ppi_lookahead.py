"""Task weights judged by what they do many steps on: the problem, its fine-tuning head, and rounds that learn them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgmeta.bilevel import SGD, Adam, Lookahead, Unroll, lookahead
from ecgmeta.bilevel.trees import Tree, detach, flatten, unflatten
from ecgmeta.bilevel.unroll import walk
from ecgmeta.runtime.seeds import derive
from ppi_extension.experiment.batches import EgoBatches
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import Experiment
from ppi_extension.experiment.model import build
from ppi_extension.experiment.similarity import correlations

if TYPE_CHECKING:
    from examples.studies.ppi_horizon import Learn

NEWTON = 30  # most steps
AT_OPTIMUM = Unroll(0, SGD(1.0))  # the fine-tuning loss is that of a head at its optimum: it takes no steps


class Head:
    """A logistic head at its optimum on all labelled examples, which it also is scored on.

    ``L(F) = min over W of 1/T Σₜ (CEₜ + ½λ‖Wₜ‖²) / Hₜ`` on standardised features, Hₜ being the entropy of task t's labels, so
    that rare tasks count as much as frequent ones; unlabelled entries have no part. At the optimum W moves L in second order
    only, so L is differentiated with W held fixed.

    Args:
        labels: (n, T) of 1, 0, and below 0 where unlabelled.
        penalty: λ.
    """

    def __init__(self, labels: Tensor, penalty: float) -> None:
        self.positive, self.known = labels == 1, labels >= 0
        self.penalty = penalty

    def __call__(self, features: Tensor) -> Tensor:
        centred = features - features.mean(0)
        x = F.pad(centred / (centred.square().mean(0).sqrt() + 1e-6), (0, 1), value=1.0)
        y, known = self.positive.to(x), self.known.to(x)
        share = known / known.sum(0)  # of each example in its task
        rates = (share * y).sum(0)
        scale = torch.full((x.shape[1],), self.penalty).to(x)
        scale[-1] = 1e-8  # the intercept
        w = self._optimum(x.detach(), y, share, rates, scale)
        losses = (F.binary_cross_entropy_with_logits(x @ w.T, y, reduction="none") * share).sum(0)
        entropy = F.binary_cross_entropy(rates, rates, reduction="none")
        return ((losses + 0.5 * (scale * w * w).sum(1)) / entropy).mean()

    def _optimum(self, x: Tensor, y: Tensor, share: Tensor, rates: Tensor, scale: Tensor) -> Tensor:
        """(T, features + 1) by Newton's method on all tasks at once, a step being at most 2 in any entry."""
        w = torch.zeros(y.shape[1], x.shape[1]).to(x)
        w[:, -1] = rates.logit()
        for _ in range(NEWTON):
            p = (x @ w.T).sigmoid()
            slope = (share * (p - y)).T @ x + scale * w
            weights = (share * p * (1 - p)).T  # (T, n)
            hessian = (weights[:, :, None] * x).transpose(1, 2) @ x + scale.diag()
            step = torch.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
            w = w - step * (2 / step.abs().amax(1, keepdim=True).clamp(min=2))
            if float(step.abs().max()) < 1e-6:
                break
        return w


class Ahead:
    """The two-stage problem of softmax task weights, all 1 at z = 0, with θ as one vector (which is the faster to step).

    Batch normalisation takes the statistics of the batch in both losses, so that running ones have no part in a derivative.
    """

    def __init__(self, cohort: Cohort, config: Experiment, seed: int, penalty: float) -> None:
        self._cohort, self._config, self._seed = cohort, config, seed
        self.problem = build(config, cohort, "supervised", seed, None).problem
        self.problem.finetune_mode = "train"
        self._like = detach(self.problem.theta)
        self._labelled = cohort.store.collate(cohort.train, labels=("finetune",))
        self._head = Head(self._labelled.finetune_labels[:, list(cohort.seen)], penalty)

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return phi["z"].softmax(0) @ self.problem.task_losses(unflatten(theta["all"], self._like), batch)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        """Of the head at its optimum; ``psi`` and ``batch`` have no part in it."""
        return self._head(self.problem.features(unflatten(theta["all"], self._like), self._labelled))

    def loss_at(self, theta: Tree) -> float:
        """The fine-tuning loss at θ by name, as the networks have it."""
        with torch.no_grad():
            return float(self.finetune_loss({"all": flatten(detach(theta))}, {}, None))

    def likeness(self) -> Tensor:
        """(T, T): K, correlations of the pre-training tasks' labels over the genes that both know, each row with norm 1, so
        that a task of a large family counts no more than others. It reads no fine-tuning label."""
        labels = torch.from_numpy(self._cohort.store.labels("pretrain", self._cohort.pretrain))
        found = correlations(labels, labels)
        return (found / found.norm(dim=1, keepdim=True)).float()

    def look(
        self, z: Tensor, draw: int, warm: int, steps: int, rate: float, tails: Sequence[int] = ()
    ) -> Lookahead:
        """From an initialisation of its own ``warm`` plain steps, then so many that are differentiated; each draw has another
        order of batches, too."""
        seed = derive(self._seed, "draw", draw) % 2**31
        model = build(self._config, self._cohort, "supervised", seed, None)
        theta = {"all": flatten(detach(model.problem.theta))}
        source = EgoBatches(self._cohort, self._config, self._config.meta, seed)
        batches = [source.pretrain(step) for step in range(warm + steps)]
        losses = [partial(self._loss, batch) for batch in batches[:warm]]
        adam = Adam(rate)
        begun = walk(losses, adam, {"z": z}, theta, adam.init(theta))
        return lookahead(
            self, begun.params, {"z": z}, {}, pretrain_batches=batches[warm:], train_batches=[], val_batch=None,
            finetune=AT_OPTIMUM, optimizer=adam, state=begun.state, start=warm, tails=tails,
        )  # fmt: skip

    def _loss(self, batch: Any, phi: Tree, theta: Tree) -> Tensor:
        return self.pretrain_loss(theta, phi, batch)


def learn(ahead: Ahead, tasks: int, how: Learn, rate: float) -> Iterator[Tensor]:
    """(tasks,): z after each round, which takes a step of SD ``how.lr`` / round against the look-aheads' mean gradient.

    With ``how.tied`` the parameters are β, with z = Kβ and K of :meth:`Ahead.likeness`: the gradient of β is Kᵀg, and its
    step moves z along KKᵀg.
    """
    z = torch.zeros(tasks)
    tie = ahead.likeness() if how.tied else None
    for number in range(how.rounds):
        slope = torch.zeros(tasks)
        for draw in range(number * how.draws, (number + 1) * how.draws):
            one = ahead.look(z, draw, how.warm, how.ahead, rate).phi["z"]
            if not bool(one.isfinite().all()):
                raise FloatingPointError(f"the look-ahead of draw {draw} is not finite")
            slope += one / one.norm()  # a few draws are larger than the others by orders of magnitude
        if tie is not None:
            slope = tie @ (tie.T @ slope)
        z = (z - how.lr / (number + 1) * slope / slope.std()).clamp(-how.limit, how.limit)
        yield z
