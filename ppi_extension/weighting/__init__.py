"""Rules that weigh the pre-training tasks, to compare learned weights with: one protocol, one file a rule.

A rule takes one plain pre-training step at a time. The training loop is the caller's, or :func:`train`:

    rule = create("famo", tasks=5000, seed=0)
    problem = TaskProblem(encoder, pretrain_head, finetune_head, TaskWeights(5000), finetune_mode=rule.finetune_mode)
    optimizer = torch.optim.Adam(problem.theta.values(), lr=1e-4)          # of θ alone: a rule keeps what else it learns
    for step in range(steps):
        problem.at_step(step)                                              # the dropout noise of this step
        report = rule.step(problem, optimizer, batches.pretrain(step), batches.train(step, 0) if rule.reads_finetune else None)

``rule.state_dict()`` holds all that a resumed run needs beside θ, ψ and θ's optimiser; ψ is ``problem.psi``, live.
``rule.weights()`` are the weights in use, (T,) with 1 for "as in the mean", for logs and reports.

| name | the step |
|---|---|
| ``uniform`` | the mean of the tasks' losses (graph-supervised) |
| ``fixed`` | given weights: learned ones in a new training, or permuted |
| ``random`` | fixed weights, drawn uniformly from (0, 2), the range of the learned ones |
| ``uncertainty`` | learned log variances (Kendall et al., 2018) |
| ``famo`` | all losses fall at one pace (Liu et al., 2023) |
| ``cosine`` | weights follow the cosine of each task's gradient to the fine-tuning gradient (META-TARTAN, Dery et al., 2022) |
| ``cotrain`` | pre-training and fine-tuning loss together |
| ``cotrain_pcgrad`` | the same, conflicting parts of the two gradients projected away (Yu et al., 2020) |

Only ``cosine`` and the two ``cotrain`` read fine-tuning data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ecgmeta.runtime.errors import InputError
from ppi_extension.weighting.base import StepReport, Weighting, train
from ppi_extension.weighting.cosine import Cosine
from ppi_extension.weighting.cotrain import CoTrain
from ppi_extension.weighting.famo import Famo
from ppi_extension.weighting.fixed import Fixed
from ppi_extension.weighting.uncertainty import Uncertainty

__all__ = [
    "RULES",
    "CoTrain",
    "Cosine",
    "Famo",
    "Fixed",
    "StepReport",
    "Uncertainty",
    "Weighting",
    "create",
    "train",
]

RULES: dict[str, Callable[..., Weighting]] = {
    "uniform": Fixed.uniform,
    "fixed": Fixed,
    "random": Fixed.random,
    "uncertainty": Uncertainty,
    "famo": Famo,
    "cosine": Cosine,
    "cotrain": CoTrain,
    "cotrain_pcgrad": CoTrain.pcgrad,
}


def create(name: str, tasks: int, *, seed: int = 0, **settings: Any) -> Weighting:
    """A rule by its name.

    Args:
        name: one of :data:`RULES`.
        tasks: T.
        seed: of what a rule draws.
        settings: of the rule's class.

    Raises:
        InputError: an unknown name or setting, or one out of range.
    """
    if name not in RULES:
        raise InputError("weighting", "name", name, f"one of {', '.join(RULES)}")
    try:
        return RULES[name](tasks, seed=seed, **settings)
    except TypeError as error:
        raise InputError("weighting", name, error, "settings of this rule") from error
