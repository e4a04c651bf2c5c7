"""The configuration of an experiment. Every key, its default and its reason stand here; YAML files hold differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecgmeta.runtime.config import load_config
from ecgmeta.runtime.errors import InputError

ARMS = {
    "meta": "SimCLR with augmentations learned by hypergradient",
    "simclr": "SimCLR with static augmentations",
    "simclr_warp": "SimCLR with the warp at its initial magnitude, not learned",
}
BASELINES = {
    "none": "no pre-training: trained from scratch on the labels",
    "random": "random encoder, linear head",
}
PROTOCOLS = ("full", "linear")
STAGES = ("pretrain", "finetune", "evaluate", "report")


@dataclass
class Synthetic:
    """The built-in cohort (``data.pretrain=[synthetic]``)."""

    n: int = 2000
    seed: int = 0


@dataclass
class Data:
    """Which recordings, in which form.

    ``pretrain`` and ``finetune`` name sources as ``kind`` or ``kind:folder``, the folder below ``root``. Kinds: ``synthetic``,
    ``ptbxl``, ``ludb``, ``wfdb`` (any tree of WFDB records with challenge headers).
    """

    root: str = "."
    pretrain: list[str] = field(default_factory=lambda: ["synthetic"])
    finetune: str = "synthetic"
    labels: str = ""  # label set of `finetune`; empty: that source's own default
    label_policy: str = "benchmark"  # PTB-XL: "benchmark" drops records without a label, "paper" keeps them
    min_positives: int = 0  # keep labels with at least this many positive records
    fs: float = 100.0  # Hz
    duration: float = 10.0  # s
    windows: str = "first"  # of longer pre-training recordings: "first" or "all" windows of `duration`
    on_error: str = "raise"  # "skip" leaves bad records out and lists them in the run
    cache: str = ""  # folder for decoded recordings; empty: none
    train_folds: list[int] = field(default_factory=list)  # official folds; empty: split by patient
    test_folds: list[int] = field(default_factory=list)
    test_fraction: float = 0.3  # of patients, where no folds are named
    synthetic: Synthetic = field(default_factory=Synthetic)


@dataclass
class Encoder:
    name: str = "resnet18"
    width: int = 32
    norm: str = "batch"


@dataclass
class Augment:
    """Static pipeline (all arms) and the learned warp's start."""

    crop: float = 0.5  # longest zero crop, fraction of the record
    noise: float = 0.1  # white noise, fraction of a lead's SD
    warp_magnitude: float = 1.0  # the paper starts at 4, where 40 % of time steps fold back


@dataclass
class Pretrain:
    arm: str = "meta"
    epochs: float = 50.0
    max_steps: int = 0  # stop earlier; 0: no limit
    batch_size: int = 256
    lr: float = 1e-4
    temperature: float = 0.5
    projection: int = 128
    log_every: int = 10
    checkpoint_every: int = 100


@dataclass
class Meta:
    """The φ step. Defaults are the paper's but where METHOD measured better: α is its own setting, φ starts gently."""

    labels: int = 500  # labelled records that pre-training may see (MetaFT), of which 20 % for validation
    period: int = 10  # P
    warmup_epochs: float = 1.0
    unroll: int = 1  # K
    batch_size: int = 64  # fine-tuning batch
    hyper_batch_size: int = 0  # pre-training batch of a φ step; 0: as `pretrain.batch_size`
    head_lr: float = 1e-4
    inverse: str = "neumann"  # or "identity"
    terms: int = 1
    step_size: float = 1e-3  # α
    damping: float = 0.0
    lr: float = 1e-4  # φ, Adam
    magnitude_lr: float = 0.03  # the warp's one global magnitude; 1 in the paper
    eps: float = 1e-8  # Adam's; hypergradients can be smaller than it
    clip: float = 0.0  # largest hypergradient norm; 0: none
    on_failure: str = "skip"


@dataclass
class Finetune:
    labels: list[int] = field(default_factory=lambda: [100])  # labelled records, 20 % of them for validation
    protocols: list[str] = field(default_factory=lambda: ["full", "linear"])
    seeds: int = 3
    epochs: int = 200
    lr: float = 1e-3
    batch_size: int = 64
    patience: int = 20  # epochs without a better validation AUROC; 0: none


@dataclass
class Evaluate:
    bootstrap: int = 1000  # resamples of patients
    reference: str = "simclr"  # the arm that others are compared with


@dataclass
class Experiment:
    """A whole experiment."""

    seed: int = 0
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    augment: Augment = field(default_factory=Augment)
    pretrain: Pretrain = field(default_factory=Pretrain)
    meta: Meta = field(default_factory=Meta)
    finetune: Finetune = field(default_factory=Finetune)
    evaluate: Evaluate = field(default_factory=Evaluate)
    compare: list[str] = field(default_factory=list)  # further arms, pre-trained beside the main one
    baselines: list[str] = field(default_factory=lambda: ["none", "random"])
    through: str = "report"  # the last stage that `ecgmeta pretrain` goes on to
    accelerator: str = "cpu"  # Lightning Fabric's: "cpu", "cuda", "auto"


def read(file: Path | None, overrides: list[str]) -> Experiment:
    """The checked configuration: defaults, ``file``, overrides; ``labels=100,250`` is short for ``finetune.labels``.

    Raises:
        InputError: naming the key, what was found and what is expected.
    """
    long = [_long_form(text) for text in overrides]
    config = load_config(Experiment, file, long)
    check(config)
    return config


def _long_form(text: str) -> str:
    key, equals, value = text.partition("=")
    return f"finetune.labels=[{value.strip('[]')}]" if key == "labels" and equals else text


def check(config: Experiment) -> None:
    """Everything that can be known to be wrong before any data is read."""

    def need(ok: bool, key: str, found: Any, expected: str) -> None:
        if not ok:
            raise InputError("configuration", key, repr(found), expected)

    def one_of(key: str, found: str, known: Any) -> None:
        need(found in known, key, found, f"one of {list(known)}")

    one_of("pretrain.arm", config.pretrain.arm, ARMS)
    for arm in config.compare:
        one_of("compare", arm, ARMS)
    for arm in config.baselines:
        one_of("baselines", arm, BASELINES)
    for protocol in config.finetune.protocols:
        one_of("finetune.protocols", protocol, PROTOCOLS)
    one_of("through", config.through, STAGES)
    one_of("meta.inverse", config.meta.inverse, ("neumann", "identity"))
    one_of("meta.on_failure", config.meta.on_failure, ("skip", "raise"))
    one_of("encoder.norm", config.encoder.norm, ("batch", "group"))
    one_of("data.label_policy", config.data.label_policy, ("benchmark", "paper"))
    one_of("data.windows", config.data.windows, ("first", "all"))
    one_of("data.on_error", config.data.on_error, ("raise", "skip"))
    one_of("accelerator", config.accelerator, ("cpu", "cuda", "auto"))
    positive = {
        "data.fs": config.data.fs,
        "data.duration": config.data.duration,
        "data.synthetic.n": config.data.synthetic.n,
        "encoder.width": config.encoder.width,
        "pretrain.epochs": config.pretrain.epochs,
        "pretrain.lr": config.pretrain.lr,
        "pretrain.temperature": config.pretrain.temperature,
        "pretrain.log_every": config.pretrain.log_every,
        "pretrain.checkpoint_every": config.pretrain.checkpoint_every,
        "meta.labels": config.meta.labels,
        "meta.period": config.meta.period,
        "meta.batch_size": config.meta.batch_size,
        "meta.step_size": config.meta.step_size,
        "finetune.seeds": config.finetune.seeds,
        "finetune.epochs": config.finetune.epochs,
        "finetune.batch_size": config.finetune.batch_size,
    }
    for key, value in positive.items():
        need(value > 0, key, value, "a number above 0")
    need(config.pretrain.batch_size > 1, "pretrain.batch_size", config.pretrain.batch_size, "at least 2")
    need(config.meta.unroll >= 0, "meta.unroll", config.meta.unroll, "0 or more")
    need(config.meta.terms >= 0, "meta.terms", config.meta.terms, "0 or more")
    need(
        0 < config.data.test_fraction < 1, "data.test_fraction", config.data.test_fraction, "between 0 and 1"
    )
    need(0 <= config.augment.crop <= 1, "augment.crop", config.augment.crop, "a fraction of the record")
    need(config.augment.noise >= 0, "augment.noise", config.augment.noise, "0 or more")
    need(bool(config.finetune.labels), "finetune.labels", config.finetune.labels, "at least one size")
    for n in config.finetune.labels:
        need(n >= 5, "finetune.labels", n, "5 or more: 80 % train, 20 % validate")
    need(
        bool(config.data.train_folds) == bool(config.data.test_folds),
        "data.train_folds, data.test_folds",
        (config.data.train_folds, config.data.test_folds),
        "both or neither",
    )
    shared = set(config.data.train_folds) & set(config.data.test_folds)
    need(not shared, "data.test_folds", sorted(shared), "folds that are not in data.train_folds")
