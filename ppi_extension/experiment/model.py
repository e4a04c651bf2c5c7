"""The networks of an arm, and the problem they pose to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ecgmeta.runtime.seeds import seeded, torch_generator
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import Cohort
from ppi_extension.experiment.config import FROM_META, Experiment
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import TaskProblem
from ppi_extension.task_weights import TaskWeights


@dataclass(frozen=True)
class Model:
    """The networks of one arm and its problem; all live, so that training the problem trains them."""

    encoder: EgoGNN
    weights: TaskWeights
    problem: TaskProblem


def build(config: Experiment, cohort: Cohort, arm: str, seed: int, learned: TaskWeights | None) -> Model:
    """The networks of ``arm``. Equal seeds give every arm the same initial weights, but for those that take the weights that
    meta has ``learned``: they start anew.
    """
    again = "again" if arm in FROM_META else "first"
    store = cohort.store
    terms = store.finetune_terms if arm == "ceiling" else store.pretrain_terms
    encoder = build_encoder(config, store, seed, again)
    with seeded(seed, "pre-training head", again):
        head = TaskHead(encoder.num_features, len(terms))
    with seeded(seed, "fine-tuning head", again):
        finetune_head = TaskHead(encoder.num_features, len(cohort.seen))
    weights = TaskWeights(len(terms), cast(Any, config.meta.transform), terms)
    if (start := _start(arm, len(terms), seed, learned)) is not None:
        with torch.no_grad():
            weights.z.copy_(start)
    return Model(encoder, weights, TaskProblem(encoder, head, finetune_head, weights, seed=seed))


def build_encoder(config: Experiment, store: EgoStore, seed: int, name: str = "first") -> EgoGNN:
    """A fresh encoder for the graphs of a store."""
    channels = store[0].edge_attr.shape[1]
    how = config.encoder
    with seeded(seed, "encoder", name):
        return EgoGNN(channels, how.width, how.layers, how.dropout, norm=cast(Any, how.norm))


def _start(arm: str, tasks: int, seed: int, learned: TaskWeights | None) -> Tensor | None:
    """Where z starts; None: at 0, where all weights are 1."""
    generator = torch_generator(seed, "weights", arm)
    if arm == "random_weights":  # uniform between 0 and 2, where they are 2·sigmoid(z)
        return torch.rand(tasks, generator=generator).clamp(0.01, 0.99).logit()
    if learned is None:
        return None
    z = learned.z.detach()
    return z[torch.randperm(tasks, generator=generator)] if arm == "permuted" else z
