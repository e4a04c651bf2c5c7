"""The networks of an arm, and the problem they pose to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ecgmeta.runtime.seeds import seeded, torch_generator
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import Cohort, useful_tasks
from ppi_extension.experiment.config import FROM_META, RULES, VARIANTS, Experiment, Meta, cotrains
from ppi_extension.experiment.similarity import similarity
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import TaskProblem
from ppi_extension.task_weights import TaskWeights
from ppi_extension.weighting import Weighting, create


@dataclass(frozen=True)
class Model:
    """The networks of one arm and its problem; all live, so that training the problem trains them.

    Attributes:
        rule: what weighs the tasks where it is not ``task_weights``.
    """

    encoder: EgoGNN
    task_weights: TaskWeights
    problem: TaskProblem
    rule: Weighting | None

    def weights(self) -> Tensor:
        """(T,) the weights in use, detached."""
        return (self.task_weights() if self.rule is None else self.rule.weights()).detach()


def build(config: Experiment, cohort: Cohort, arm: str, seed: int, learned: TaskWeights | None) -> Model:
    """The networks of ``arm``. Equal seeds give every arm the same initial weights, but for those that take the weights that
    meta has ``learned``: they start anew.
    """
    again = "again" if arm in FROM_META else "first"
    store = cohort.store
    terms = store.finetune_terms if arm == "ceiling" else store.pretrain_terms
    encoder = build_encoder(config, store, seed, again)
    along = len(cohort.seen) if cotrains(config, arm) else 0
    with seeded(seed, "pre-training head", again):
        head = TaskHead(encoder.num_features, len(terms) + along)
    with seeded(seed, "fine-tuning head", again):
        finetune_head = TaskHead(encoder.num_features, len(cohort.seen))
    weights = TaskWeights(len(terms), cast(Any, config.meta.transform), terms)
    start = _start(arm, cohort, config, seed, learned)
    if start is not None:
        with torch.no_grad():
            weights.z.copy_(start)
    rule = _rule(arm, len(terms), seed, config.meta) if arm in RULES else None
    mode = "eval" if rule is None else rule.finetune_mode
    problem = TaskProblem(
        encoder,
        head,
        finetune_head,
        weights,
        along=along,
        along_weight=config.pretrain.cotrain,
        finetune_mode=mode,
        seed=seed,
    )
    return Model(encoder, weights, problem, rule)


def _rule(arm: str, tasks: int, seed: int, meta: Meta) -> Weighting:
    """Another rule, with the settings of the φ step where it has the like."""
    settings: dict[str, Any] = {}
    if arm in ("cosine", "cotrain", "cotrain_pcgrad"):
        settings["head_lr"] = meta.head_lr
    if arm == "cosine":
        settings |= {"period": meta.period, "lr": meta.lr}
    return create(arm, tasks, seed=seed, **settings)


def build_encoder(config: Experiment, store: EgoStore, seed: int, name: str = "first") -> EgoGNN:
    """A fresh encoder for the graphs of a store."""
    channels = store[0].edge_attr.shape[1]
    how = config.encoder
    with seeded(seed, "encoder", name):
        return EgoGNN(channels, how.width, how.layers, how.dropout, norm=cast(Any, how.norm))


def _known(store: EgoStore, meta: Meta) -> Tensor:
    """z as far as it may go: up for useful tasks, down for the others."""
    return (2 * torch.tensor(useful_tasks(store)).float() - 1) * (meta.limit or 4.0)


def _start(
    arm: str, cohort: Cohort, config: Experiment, seed: int, learned: TaskWeights | None
) -> Tensor | None:
    """Where z starts; None: at 0, where all weights are 1."""
    if arm == "oracle":
        return _known(cohort.store, config.meta)
    if arm == "similarity" or (arm in VARIANTS and config.meta.start == "similarity"):
        return similarity(cohort)
    tasks = len(cohort.store.pretrain_terms)
    draw = [config.pretrain.draw] if config.pretrain.draw else []
    if arm == "random_weights":  # uniform between 0 and 2, whatever they are made from
        halves = torch.rand(tasks, generator=torch_generator(seed, "weights", arm, *draw)).clamp(0.01, 0.99)
        return halves.logit() if config.meta.transform == "sigmoid" else (2 * halves).log()
    if learned is None:
        return None
    generator = torch_generator(seed, "weights", arm)
    z = learned.z.detach()
    return z[torch.randperm(tasks, generator=generator)] if arm == "permuted" else z
