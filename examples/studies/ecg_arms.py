"""What the ECG studies share: a small encoder, SimCLR under a few magnitudes, and the ways to set these magnitudes.

φ is one magnitude an operation, all operations one after another, none of them drawn at random: few, well-conditioned
coordinates whose gradients pass through the records.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgmeta.augment import LearnedPolicy
from ecgmeta.bilevel import (
    Adam,
    FeatureModuleProblem,
    FinetuneFactor,
    Identity,
    ImplicitHead,
    MetaState,
    Report,
    Schedule,
    meta_train,
    paper,
)
from ecgmeta.bilevel.implicit_head import leave_one_out, standardise
from ecgmeta.bilevel.products import DoubleBackward
from ecgmeta.encoders import Encoder, create_encoder
from ecgmeta.evaluation import finetune, linear_probe
from ecgmeta.evaluation.bootstrap import label_auroc, macro
from ecgmeta.evaluation.predictor import device_of
from ecgmeta.experiment.batches import Labelled
from ecgmeta.experiment.model import FinetuneHead
from ecgmeta.runtime.seeds import derive, numpy_generator, seeded, torch_generator
from ecgmeta.simclr import SimCLR, Views, draw_views


class SmallNet(nn.Module):
    """Four convolutions, each with batch normalisation: 45,000 parameters, 64 features a frame of 0.16 s at 100 Hz."""

    def __init__(self, leads: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = leads
        for out, kernel, stride in ((16, 15, 4), (32, 7, 2), (32, 7, 2), (64, 5, 1)):
            convolution = nn.Conv1d(channels, out, kernel, stride, kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm1d(out), nn.ReLU()]
            channels = out
        self.layers, self.num_features = nn.Sequential(*layers), channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, leads, samples) -> (batch, 64, frames)."""
        return self.layers(x)


@dataclass
class Training:
    """Settings of pre-training, the same for every arm.

    Attributes:
        steps, batch_size, lr, temperature: of SimCLR; the learning rate is Adam's.
    """

    steps: int = 200
    batch_size: int = 64
    lr: float = 3e-3
    temperature: float = 0.5


@dataclass
class Meta:
    """Settings of φ's steps.

    Attributes:
        period, warmup: a φ step every so many steps, after so many.
        lr: of φ's Adam, whose parameters are the square roots of the magnitudes.
        labels: MetaFT labels that a φ step draws, all of which serve to train and, left out one by one, to validate.
        penalty: of the ridge head, relative.
        lowest, highest: bounds of every magnitude, in typical ones (not with the paper's settings).
        paper_lr, paper_head_lr: of the arm with the paper's settings.
    """

    period: int = 2
    warmup: int = 20
    lr: float = 0.05
    labels: int = 96
    penalty: float = 0.3
    lowest: float = 0.01
    highest: float = 16.0
    paper_lr: float = 0.15
    paper_head_lr: float = 1e-4


@dataclass
class Scoring:
    """Settings of the probe and of fine-tuning.

    Attributes:
        probe, tuned: label sizes of the linear probe, and of fine-tuning everything.
        l2: penalties of the probe; its validation part chooses.
        epochs, lr: of fine-tuning; its validation part chooses the epoch. Batch normalisation trains on, in every arm, so
            that an encoder that was pre-trained has no disadvantage over one that was not, nor an advantage.
    """

    probe: list[int] = field(default_factory=lambda: [50, 100, 250, 500])
    tuned: list[int] = field(default_factory=lambda: [100, 250])
    l2: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.01])
    epochs: int = 40
    lr: float = 3e-3


@dataclass(frozen=True)
class Records:
    """Recordings in memory with labels: x (n, leads, samples) in mV, y (n, labels) of 0 and 1."""

    x: Tensor
    y: Tensor
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        return self.x[rows], self.y[rows]

    def take(self, rows: slice) -> Records:
        return Records(self.x[rows], self.y[rows], self.label_names)

    def to(self, device: torch.device) -> Records:
        return Records(self.x.to(device), self.y.to(device), self.label_names)


Encode = Callable[[Encoder, Records], Records]


class FrameHead(FinetuneHead):
    """A label a frame: y (batch, frames, labels), NaN in frames that nobody has labelled."""

    def features(self, batch: Labelled) -> Tensor:
        maps = self.encoder.forward_features(batch.x).transpose(1, 2)
        return maps[labelled(batch.y)]

    def targets(self, batch: Labelled) -> Tensor:
        return batch.y[labelled(batch.y)]

    def head_loss(self, features: Tensor, batch: Labelled) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.head(features), self.targets(batch))


def labelled(y: Tensor) -> Tensor:
    """(batch, frames): where y (batch, frames, labels) has labels."""
    return ~torch.isnan(y[..., 0])


@dataclass(frozen=True)
class Batches:
    """Each batch a function of (seed, purpose, step, draw), and so the same for every arm of a seed.

    Attributes:
        labels: MetaFT records a batch.
        warm: whether a head is kept warm; the ridge head needs none, and then its batches are as small as can be.
        crop: samples of the stretch of each record that a pre-training step sees; None: all of it.
    """

    unlabelled: Tensor
    metaft: Records
    policy: LearnedPolicy
    seed: int
    batch_size: int
    labels: int
    warm: bool
    crop: int | None = None

    def pretrain(self, step: int) -> Views:
        return self._views("pretrain", step, 0)

    def hyper(self, step: int, k: int) -> Views:
        return self._views("hyper", step, k)

    def train(self, step: int, k: int) -> Labelled:
        """A head that takes steps has four fifths of the MetaFT records to train on, and the rest to validate on."""
        return self._labelled(
            "train", step, k, slice(len(self.metaft) * 4 // 5), self.labels if self.warm else 2
        )

    def validation(self, step: int, k: int) -> Labelled:
        part = slice(len(self.metaft) * 4 // 5, None) if self.warm else slice(None)
        return self._labelled("validation", step, k, part, self.labels)

    def _views(self, *key: str | int) -> Views:
        rng = numpy_generator(self.seed, *key)
        x = self.unlabelled[rng.choice(len(self.unlabelled), self.batch_size, replace=False)]
        if self.crop is not None:
            starts = rng.integers(x.shape[-1] - self.crop + 1, size=len(x))
            x = torch.stack([record[:, at : at + self.crop] for record, at in zip(x, starts, strict=True)])
        generator = torch_generator(self.seed, "noise", *key, device=x.device)
        return draw_views(x, None, self.policy, generator=generator)

    def _labelled(self, purpose: str, step: int, k: int, part: slice, count: int) -> Labelled:
        pool = np.arange(len(self.metaft))[part]
        rows = numpy_generator(self.seed, purpose, step, k).permutation(pool)[:count]
        return Labelled(*self.metaft[rows])


@dataclass(frozen=True)
class Pretrained:
    """An encoder, the magnitudes under which it ended, and how it went.

    Attributes:
        z: of each magnitude, the sum of its hypergradients in SDs of noise; 0 where it was not learned.
        path: (steps, operations), the magnitudes of each step.
    """

    encoder: Encoder
    magnitudes: dict[str, float]
    z: dict[str, float]
    seconds: float
    path: Tensor


class Variation:
    """What a study changes in the loop: nothing. Its subclasses change one thing each."""

    def engine(self, state: MetaState) -> dict[str, Any]:
        """Settings of ``meta_train`` over the usual ones; φ's optimiser may be replaced in ``state``."""
        return {}

    def stepped(self, state: MetaState, roots: Tensor, before: Tensor) -> None:
        """After each φ step, which moved the square roots of the magnitudes, here a view of φ, from ``before``."""

    def after(self, step: int) -> None:
        """After each pre-training step."""


def untrained(records: Tensor, seed: int, name: str = "examples.studies.ecg_arms:SmallNet") -> Encoder:
    """The encoder that every arm of a seed starts from, where ``records`` lie, normalising by their mean and SD."""
    with seeded(seed, "encoder"):
        encoder = create_encoder(name, leads=records.shape[1])
    encoder.normalize.set(float(records.mean()), float(records.std()))
    return encoder.to(records.device)


def policy_of(magnitudes: Mapping[str, float], leads: int) -> LearnedPolicy:
    """All its operations in a row, at ``magnitudes`` in units of their typical ones."""
    policy = LearnedPolicy(leads=leads, ops=tuple(magnitudes), selector="chain", gate=False)
    with torch.no_grad():
        for place, value in enumerate(magnitudes.values()):
            policy.g[place, place] = math.sqrt(value)
    return policy


def pretrain(
    unlabelled: Tensor,
    metaft: Records,
    start: Mapping[str, float],
    seed: int,
    training: Training,
    meta: Meta,
    *,
    learn: str = "",
    head: type[FinetuneHead] = FinetuneHead,
    crop: int | None = None,
    encoder: Encoder | None = None,
    path: Tensor | None = None,
    variation: Variation | None = None,
) -> Pretrained:
    """SimCLR under the magnitudes ``start``, on the device of ``unlabelled``.

    Args:
        learn: ``"ours"``, ``"paper"`` or ``"random_walk"`` moves the magnitudes; ``""`` does not.
        seed: of the initial weights and the batches.
        head: what fine-tuning predicts.
        crop: see :class:`Batches`.
        encoder: None: :func:`untrained`.
        path: (steps, operations), magnitudes to be under at each step instead of learning any.
        variation: what is otherwise in the loop.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    encoder = encoder or untrained(unlabelled, seed)
    device = unlabelled.device
    metaft = metaft.to(device)
    policy = policy_of(start, unlabelled.shape[1]).to(device)
    with seeded(seed, "projection head"):
        simclr = SimCLR(encoder, policy, temperature=training.temperature).to(device)
    with seeded(seed, "fine-tuning head"):
        finetuned = head(encoder, metaft.y.shape[-1]).to(device)
    problem = FeatureModuleProblem(simclr, finetuned, hyper=policy)
    batches = Batches(
        unlabelled, metaft, policy, seed, training.batch_size, meta.labels, learn == "paper", crop
    )
    phi_lr = meta.paper_lr if learn == "paper" else meta.lr
    betas = (0.9, 0.999) if learn == "paper" else (0.9, 0.99)
    state = MetaState(
        theta=problem.theta,
        phi=problem.phi,
        psi={name: value.detach() for name, value in problem.psi.items()},
        theta_optimizer=torch.optim.Adam(problem.theta.values(), lr=training.lr),
        phi_optimizer=torch.optim.Adam(problem.phi.values(), lr=phi_lr, betas=betas),
    )
    began = time.perf_counter()
    variation = variation or Variation()
    settings = _settings(learn, training, meta) | variation.engine(state)
    reports = meta_train(problem, state, batches, seed=seed, **settings)
    taken = _drive(reports, state, policy, learn, meta, path, variation)
    seconds = time.perf_counter() - began
    z = state.signal.z().view(policy.g.shape) if state.signal.count else torch.zeros_like(policy.g)
    return Pretrained(
        encoder.eval(),
        dict(zip(start, taken[-1].tolist(), strict=True)),
        dict(zip(start, z[..., 0].diagonal().tolist(), strict=True)),
        seconds,
        taken[:-1],
    )


def _drive(
    reports: Iterable[Report],
    state: MetaState,
    policy: LearnedPolicy,
    learn: str,
    meta: Meta,
    path: Tensor | None,
    variation: Variation,
) -> Tensor:
    """Take every step, and hold or lead the magnitudes: (steps + 1, operations), those before each step and at the end."""
    live = policy.g.detach()[..., 0].diagonal()  # of a chain, stage s uses operation s
    if path is not None:
        live.copy_(path[0].sqrt())
    taken = [live.square()]
    for report in reports:
        if report.hyper is not None:
            variation.stepped(state, live, taken[-1].sqrt())
        if learn != "paper":
            policy.g.data.clamp_(meta.lowest**0.5, meta.highest**0.5)
        if path is not None and report.step + 1 < len(path):
            live.copy_(path[report.step + 1].sqrt())
        variation.after(report.step)
        taken.append(live.square())
    return torch.stack(taken).cpu()


def _settings(learn: str, training: Training, meta: Meta) -> dict[str, Any]:
    """Of the engine's loop."""
    if learn == "paper":
        return paper(training.steps, meta.warmup, lr=training.lr, head_lr=meta.paper_head_lr)
    head: FinetuneFactor = ImplicitHead(penalty=meta.penalty)
    return {
        "schedule": Schedule(training.steps, meta.period if learn else 0, meta.warmup),
        "finetune": head,
        "inverse": Identity(1.0),
        "head_optimizer": Adam(meta.paper_head_lr),
        "products": DoubleBackward,
        "scaling": "normalise",
        "control": "random_walk" if learn == "random_walk" else "none",
    }


def score(
    encoder: Encoder,
    pool: Records,
    test: Records,
    scoring: Scoring,
    seed: int,
    *,
    probe: bool = True,
    encode: Encode | None = None,
) -> dict[str, float]:
    """Macro AUROC on the test records in per cent, from the first n of the pool for each size n, a fifth of which validates.

    Keys are ``probe n`` and ``tuned n``. ``encode`` gives the examples of the probe, :func:`encoded` where it is None. A probe
    that has no example, or none but examples, of some label to train on has no number (NaN), in whichever arm.
    """
    encode = encode or encoded
    found: dict[str, float] = {}
    if probe:
        examples, identity = encode(encoder, test), _Features(encoder.num_features)
        for n in scoring.probe:
            parts = (pool.take(slice(n * 4 // 5)), pool.take(slice(n * 4 // 5, n)))
            train, validation = (encode(encoder, part) for part in parts)
            if not _has_both(train.y):
                found[f"probe {n}"] = math.nan
                continue
            predictor = linear_probe(identity, train, validation, examples, l2_grid=scoring.l2)
            found[f"probe {n}"] = _auroc(predictor.test_logits, examples)
    for n in scoring.tuned:
        train, validation = pool.take(slice(n * 4 // 5)), pool.take(slice(n * 4 // 5, n))
        predictor = finetune(
            encoder, train, validation, test, seed=derive(seed, "fine-tuning") % 2**31, epochs=scoring.epochs,
            lr=scoring.lr, patience=None, train_norm=True, device=device_of(encoder),
        )  # fmt: skip
        found[f"tuned {n}"] = _auroc(predictor.test_logits, test)
    return found


def _has_both(y: Tensor) -> bool:
    """Of (n, labels): whether each label is present in some rows and absent in others."""
    return bool(((y > 0).any(0) & (y == 0).any(0)).all())


class _Features(nn.Module):
    """What a probe takes for an encoder where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def encoded(encoder: Encoder, records: Records) -> Records:
    """The same records with features for signals."""
    encoder.eval()
    device = device_of(encoder)
    features = torch.cat([encoder(part.to(device)).cpu() for part in records.x.split(250)])
    return Records(features, records.y, records.label_names)


@torch.no_grad()
def encoded_frames(encoder: Encoder, records: Records) -> Records:
    """The labelled frames of the records, one after another, with features for signals."""
    encoder.eval()
    features = torch.cat([encoder.forward_features(part) for part in records.x.split(50)]).transpose(1, 2)
    known = labelled(records.y)
    return Records(features[known], records.y[known], records.label_names)


def _auroc(logits: NDArray[np.float32] | None, test: Records) -> float:
    if logits is None:
        raise ValueError("the predictor was given test records")
    return 100 * float(macro(label_auroc(logits, test.y.numpy().astype(np.int64))))


def validated(encoder: Encoder, metaft: Records, penalty: float, encode: Encode | None = None) -> float:
    """R² in per cent of a ridge head's predictions for the MetaFT records, each left out of its own fit.

    What a static magnitude or a trial of the search is chosen by: the labels and the criterion that guide φ, on all of them at
    once. (Not an AUROC: left out one by one, a weak predictor's is far below 50 %.)
    """
    examples = (encode or encoded)(encoder, metaft)
    every = slice(None, None, 1 + len(examples) // 2000)  # the hat matrix has a row and a column an example
    x, y = examples.x[every].double(), examples.y[every].double()
    return 100 * (1 - float(leave_one_out(x, standardise(y), penalty)))


def drawn(start: Mapping[str, float], spread: float, seed: int, trial: int) -> dict[str, float]:
    """A trial of the random search: each magnitude times ``exp(spread·z)``, z ~ N(0, 1)."""
    z = numpy_generator(seed, "search", trial).standard_normal(len(start))
    return {
        name: value * math.exp(spread * float(d)) for (name, value), d in zip(start.items(), z, strict=True)
    }


def scaled(start: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in start.items()}


def ramp(start: Mapping[str, float], low: float, high: float, steps: int) -> Tensor:
    """(steps, operations): all magnitudes from ``low`` to ``high`` times the start, by equal factors."""
    factors = low * (high / low) ** torch.linspace(0, 1, steps)
    return factors.unsqueeze(1) * torch.tensor(list(start.values()))


def drawn_ramp(start: Mapping[str, float], highest: float, steps: int, seed: int, trial: int) -> Tensor:
    """(steps, operations): each magnitude from its start to an end of its own, log-uniform between it and ``highest``."""
    share = torch.rand(len(start), generator=torch.Generator().manual_seed(derive(seed, "ramp", trial)))
    first = torch.tensor(list(start.values()))
    whole = (highest / first) ** share
    return first * whole ** torch.linspace(0, 1, steps).unsqueeze(1)


def learned_numbers(found: Pretrained) -> dict[str, float]:
    """For a cell: the magnitudes it ended with, and their drift in SDs of noise."""
    return {f"φ {name}": value for name, value in found.magnitudes.items()} | {
        f"z {name}": value for name, value in found.z.items()
    }
