"""The networks of an arm, and the two-stage problem they pose to the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.augment import Augmenter, LearnedPolicy, LearnedWarp
from ecgmeta.bilevel import FeatureModuleProblem
from ecgmeta.encoders import Encoder, create_encoder
from ecgmeta.experiment.batches import Labelled
from ecgmeta.experiment.cohort import Cohort, preprocess
from ecgmeta.experiment.config import AUGMENTED, Experiment
from ecgmeta.experiment.failures import LOGITS, MAGNITUDES
from ecgmeta.runtime.seeds import derive, seeded, torch_generator
from ecgmeta.simclr import ExampleWeights, SimCLR


class FinetuneHead(nn.Module):
    """Fine-tuning as the engine sees it: the encoder, a linear head, and the multilabel cross-entropy."""

    def __init__(self, encoder: Encoder, num_labels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.num_features, num_labels)

    def features(self, batch: Labelled) -> Tensor:
        return self.encoder(batch.x)

    def head_loss(self, features: Tensor, batch: Labelled) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.head(features), batch.y)

    def targets(self, batch: Labelled) -> Tensor:
        """What a head that is solved for should predict."""
        return batch.y

    def groups(self, batch: Labelled) -> Tensor | None:
        """Whose recordings belong together."""
        return batch.patients

    def forward(self, batch: Labelled) -> Tensor:
        return self.head_loss(self.features(batch), batch)


@dataclass(frozen=True)
class Model:
    """The networks of one arm and its problem; all live, so that training the problem trains them."""

    encoder: Encoder
    simclr: SimCLR
    augmenter: Augmenter | None
    weights: ExampleWeights | None
    problem: FeatureModuleProblem


def build_encoder(config: Experiment, cohort: Cohort, seed: int) -> Encoder:
    """A fresh encoder, normalising by the global mean and SD of the pre-training recordings (as the paper)."""
    with seeded(seed, "encoder"):
        encoder = create_encoder(
            config.encoder.name,
            leads=len(cohort.pretrain.leads),
            width=config.encoder.width,
            norm=config.encoder.norm,
            fs=config.data.fs,
            lead_names=cohort.pretrain.leads,
            preprocess=replace(preprocess(config.data), leads=cohort.pretrain.leads).to_dict(),
        )
    encoder.normalize.set(*global_moments(cohort))
    return encoder


def global_moments(cohort: Cohort) -> tuple[float, float]:
    """Mean and SD in mV over all samples of the pre-training recordings, in chunks that fit any memory."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(cohort.pretrain), 1024):
        x = cohort.pretrain[slice(start, start + 1024)][0].double()
        total, squares, count = total + float(x.sum()), squares + float(x.square().sum()), count + x.numel()
    mean = total / count
    return mean, (squares / count - mean**2) ** 0.5


def build_augmenter(config: Experiment, encoder: Encoder) -> Augmenter:
    """A fresh augmenter, for the encoder's leads and rate, whose network sees what the encoder sees."""
    augmenter = _augmenter_as_configured(config, encoder)
    if config.augment.draw:
        generator = torch_generator(config.seed, "search", config.augment.draw)
        _move(augmenter, config.search.spread, generator)
    return augmenter


@torch.no_grad()
def _move(augmenter: Augmenter, spread: float, generator: torch.Generator) -> None:
    """Magnitudes (the squares of these parameters) times ``exp(spread·z)``, logits plus ``spread·z``, z ~ N(0, 1)."""
    for name, value in augmenter.named_parameters():
        z = torch.randn(value.shape, generator=generator)
        if name in MAGNITUDES:
            value.mul_(torch.exp(spread * z / 2))
        elif name in LOGITS:
            value.add_(spread * z)


def _augmenter_as_configured(config: Experiment, encoder: Encoder) -> Augmenter:
    augment, normalize = config.augment, encoder.normalize  # one mean and SD for all leads, see build_encoder
    shared: dict[str, Any] = {
        "leads": encoder.leads,
        "fs": config.data.fs,
        "lead_names": encoder.lead_names,
        "mean": float(normalize.mean.mean()),
        "std": float(normalize.sd.mean()),
    }
    if augment.augmenter == "policy":
        return LearnedPolicy(
            ops=tuple(augment.policy.ops),
            selector=cast(Any, augment.policy.selector),
            stages=augment.policy.stages if augment.policy.selector == "sampled" else None,
            gate=augment.policy.gate,
            magnitude=cast(Any, augment.policy.magnitude),
            start=augment.policy.start,
            probability=augment.policy.probability,
            **shared,
        )
    variant = "paper" if augment.augmenter == "paper_warp" else "monotone"
    return LearnedWarp(magnitude=augment.warp_magnitude, variant=cast(Any, variant), **shared)


def run_seed(config: Experiment) -> int:
    """Of initial weights, batches and noise. What divides the data is ``config.seed``."""
    repeat = config.pretrain.repeat
    return derive(config.seed, "repeat", repeat) if repeat else config.seed


def build(config: Experiment, cohort: Cohort, arm: str) -> Model:
    """The networks of ``arm``. Equal seeds give every arm the same initial encoder."""
    seed = run_seed(config)
    encoder = build_encoder(config, cohort, seed)
    augmenter = None
    weights = ExampleWeights(len(cohort.pretrain)) if arm == "meta_weights" else None
    if arm in AUGMENTED:
        with seeded(seed, "augmenter"):
            augmenter = build_augmenter(config, encoder)
    with seeded(seed, "projection head"):
        simclr = SimCLR(
            encoder,
            augmenter,
            weights,
            temperature=config.pretrain.temperature,
            projection=config.pretrain.projection,
        )
    with seeded(seed, "fine-tuning head"):
        finetune = FinetuneHead(encoder, max(1, len(config.meta.label_names or cohort.train.label_names)))
    problem = FeatureModuleProblem(simclr, finetune, hyper=augmenter or weights)
    return Model(encoder, simclr, augmenter, weights, problem)
