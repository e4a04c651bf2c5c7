"""The configuration of an experiment. Every key, its default and its reason stand here; YAML files hold differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ecgmeta.runtime.config import check_values, load_config, need
from ecgmeta.runtime.logs import Log

ARMS = {
    "meta": "SimCLR with augmentations learned by hypergradient",
    "meta_best": "the best of several runs of meta, by the labels that guide them",
    "meta_weights": "SimCLR with a weight for each recording learned by hypergradient",
    "search": "random search over the augmenter's magnitudes and chances, at the compute of meta",
    "simclr": "SimCLR with static augmentations",
    "simclr_warp": "SimCLR with the augmenter as it starts, not learned",
}
LEARNING = ("meta", "meta_weights")  # arms that have a φ
CHOSEN = ("search", "meta_best")  # arms that keep the best of several runs of another
LEARNED = (*LEARNING, "meta_best")  # arms that end with a learned φ
GUIDED = (*LEARNING, *CHOSEN)  # arms that the MetaFT labels guide
AUGMENTED = ("meta", "simclr_warp", *CHOSEN)  # arms that have an augmenter
BASELINES = {
    "none": "no pre-training: trained from scratch on the labels",
    "random": "random encoder, linear head",
}
PROTOCOLS = ("full", "linear")
# As `ecgmeta.encoders.list_encoders`, which takes torch to ask. Beside these, your own: mypackage.module:Class.
ENCODERS = ("resnet18", "resnet34", "resnet50", "vit", "xresnet1d50", "xresnet1d101")
WARP_SAMPLES = 211  # what the four convolutions of the paper's warp need
AUGMENTERS = {
    "warp": "a time warp that never folds",
    "paper_warp": "the paper's warp",
    "policy": "stages of operations, each with its chance and magnitude",
}
HEADS = ("steps", "ridge")
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
    ``ptbxl``, ``ludb``, ``wfdb`` (any tree of WFDB records with challenge headers), ``code15``, ``mitbih`` (long records with
    ``.atr`` annotations; not twelve leads, so alone).
    """

    root: str = "."
    pretrain: list[str] = field(default_factory=lambda: ["synthetic"])
    finetune: str = "synthetic"
    labels: str = ""  # label set of `finetune`; empty: that source's own default
    label_policy: str = "benchmark"  # PTB-XL: "benchmark" drops records without a label, "paper" keeps them
    min_positives: int = 0  # keep labels with at least this many positive records
    fs: float = 100.0  # Hz
    duration: float = 10.0  # s
    highpass: float = 0.0  # Hz, zero-phase; 0: none
    lowpass: float = 0.0  # Hz, zero-phase; 0: none
    notch: float = 0.0  # mains, Hz: 50 or 60; 0: none
    windows: str = "first"  # of longer pre-training recordings: "first" or "all" windows of `duration`
    on_error: str = "raise"  # "skip" leaves bad records out and lists them in the run
    cache: str = ""  # folder for decoded recordings; empty: none
    train_folds: list[int] = field(default_factory=list)  # official folds; empty: split by patient
    test_folds: list[int] = field(default_factory=list)
    test_fraction: float = 0.3  # of patients, where no folds are named
    synthetic: Synthetic = field(default_factory=Synthetic)


@dataclass
class Encoder:
    name: str = "resnet18"  # or your own nn.Module as mypackage.module:Class
    width: int = 32
    norm: str = "batch"  # or "group"; nothing to `vit`, which has LayerNorm


@dataclass
class Policy:
    """`augment.augmenter=policy`; names and units of operations are those of `ecgmeta.augment.functional`."""

    ops: list[str] = field(
        default_factory=lambda: [
            *("time_warp", "baseline_wander", "muscle_noise", "white_noise"),
            *("gain", "time_mask", "lead_dropout", "identity"),
        ]
    )
    selector: str = "sampled"  # a stage draws one of them for each record; or "chain": a stage for each
    stages: int = 2  # of "sampled"
    gate: bool = True  # learn how often an operation is applied; else always
    magnitude: str = "global"  # "lead": each lead its own; "network": each record its own
    start: float = 0.5  # initial magnitudes, in units of the operations' typical ones
    probability: float = 0.5  # initial probability that a chosen operation is applied


@dataclass
class Augment:
    """Static pipeline (all arms) and where the learned augmenter starts."""

    crop: float = 0.5  # longest zero crop, fraction of the record
    noise: float = 0.1  # white noise, fraction of a lead's SD
    augmenter: str = "warp"  # what the meta arm learns: "warp", "paper_warp" or "policy"
    warp_magnitude: float = (
        1.0  # 1: SD 50 ms; the paper starts at 4, where 40 % of time steps of its own warp fold back
    )
    policy: Policy = field(default_factory=Policy)
    draw: int = (
        0  # start from the n-th random draw around these instead, as the trials of a search do; 0: from these
    )


@dataclass
class Pretrain:
    arm: str = "meta"
    epochs: float = 50.0
    max_steps: int = 0  # stop earlier; 0: no limit
    batch_size: int = 256  # of all processes together
    micro_batches: int = 1  # parts of a step's batch, to save memory; negatives then come from a part
    precision: str = "32"  # "bf16": plain steps under autocast; φ steps stay in float32
    lr: float = 1e-4
    temperature: float = 0.5
    projection: int = 128
    repeat: int = (
        0  # n: other initial weights, batches and noise, and the same patients and labels; runs of meta_best
    )
    log_every: int = 10
    checkpoint_every: int = 100


@dataclass
class Meta:
    """The φ step. Head and inverse are what ``examples/studies`` found best; `configs/ecg/ptbxl_meta.yaml` has the paper's."""

    labels: int = 500  # labelled records that pre-training may see (MetaFT), of which 20 % for validation
    label_names: list[str] = field(default_factory=list)  # labels that pre-training may see; empty: all
    period: int = 10  # P
    warmup_epochs: float = 1.0
    # "ridge": solved for on a batch of MetaFT labels, each left out once; "steps": K steps of the warm head (the paper)
    head: str = "ridge"
    unroll: int = 1  # K
    penalty: float = 1.0  # of the ridge head, relative to the size of the features
    batch_size: int = 128  # fine-tuning batch: labels that one φ step sees
    hyper_batch_size: int = 0  # pre-training batch of a φ step; 0: as `pretrain.batch_size`
    head_lr: float = 1e-4
    inverse: str = "identity"  # or "neumann"
    terms: int = 1
    step_size: float = (
        1.0  # α: with "identity" a scale that Adam takes out; "neumann" needs α below 2/λmax, about 1e-3
    )
    damping: float = 0.0
    products: str = "double_backward"  # "low_precision" (bfloat16), "forward_over_reverse", or "cheapest": measured in the run
    lr: float = 1e-4  # φ, Adam
    magnitude_lr: float = (
        0.03  # the warp's one global magnitude (1 in the paper); a policy's chances and magnitudes
    )
    eps: float = 1e-8  # Adam's; hypergradients can be smaller than it
    accumulate: int = 1  # draws of batches and views that one φ step averages over
    control: str = "none"  # "random_walk": steps as long as φ's own, in random directions; a gain over it is what learning gave
    clip: float = 0.0  # largest hypergradient norm; 0: none
    # A φ step whose inverse product diverged, whose hypergradient is not finite, or that takes φ beyond its limits: "stop";
    # "skip" it, which costs one step's learning; "shrink": skip it, and halve α or φ's learning rates for the rest of the run.
    on_failure: str = "skip"
    magnitude_limit: float = (
        10.0  # largest |g|; g² is in typical units, so 10 is a hundred times typical; 0: none
    )


@dataclass
class Search:
    """Arms that keep the run from whose features the MetaFT labels are predicted best: `search`, trials around the augmenter's
    start; `meta_best`, runs of meta that differ in their initial weights and batches. In the study ``ecg_remedies`` some runs
    of meta went astray, and the best of three gained what one did not; in ``ecg_again`` two runs and three drawn ones did so
    with less to lose where all hangs on one magnitude."""

    trials: int = 4
    spread: float = 1.0  # SD of the logarithms of magnitudes, and of logits
    compute: float = (
        1.3  # steps of all trials together, in plain pre-trainings: what a meta run costs at P = 10
    )
    runs: int = 3  # of meta, in meta_best
    drawn: int = 0  # whole runs under augmenters drawn as those of search, among which meta_best chooses, too
    penalty: float = (
        0.003  # of the ridge head that predicts each MetaFT label from the others, relative: lighter than φ's
    )


@dataclass
class Finetune:
    labels: list[int] = field(default_factory=lambda: [100])  # labelled records, 20 % of them for validation
    protocols: list[str] = field(default_factory=lambda: ["full", "linear"])
    seeds: int = 3
    epochs: int = 200
    lr: float = 1e-3
    lrs: list[float] = field(default_factory=list)  # validation chooses one; empty: `lr`
    batch_size: int = 64
    processes: int = 0  # cells at a time, one thread each, on the CPU; 0: as many as there are processors
    label_names: list[str] = field(default_factory=list)  # labels to learn and score; empty: all
    patience: int = 20  # epochs without a better validation AUROC; 0: none


@dataclass
class Evaluate:
    bootstrap: int = 1000  # resamples of patients
    reference: str = "simclr"  # the arm that others are compared with
    contaminated: str = (
        "refuse"  # test recordings that pre-training has seen; "report" goes on and says so everywhere
    )


@dataclass
class Experiment:
    """A whole experiment."""

    seed: int = 0
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    augment: Augment = field(default_factory=Augment)
    pretrain: Pretrain = field(default_factory=Pretrain)
    meta: Meta = field(default_factory=Meta)
    search: Search = field(default_factory=Search)
    finetune: Finetune = field(default_factory=Finetune)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)
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


_CHOICES: dict[str, tuple[str, ...]] = {
    "meta.head": HEADS,
    "meta.control": ("none", "random_walk"),
    "meta.products": ("double_backward", "forward_over_reverse", "low_precision", "cheapest"),
    "pretrain.arm": tuple(ARMS),
    "compare": tuple(ARMS),
    "baselines": tuple(BASELINES),
    "evaluate.reference": (*ARMS, *BASELINES),
    "pretrain.precision": ("32", "bf16"),
    "encoder.norm": ("batch", "group"),
    "finetune.protocols": PROTOCOLS,
    "through": STAGES,
    "evaluate.contaminated": ("refuse", "report"),
    "meta.inverse": ("neumann", "identity"),
    "meta.on_failure": ("stop", "skip", "shrink", "raise"),  # "raise" is "stop" in older runs
    "log.wandb_mode": ("offline", "online"),
    "data.label_policy": ("benchmark", "paper"),
    "data.windows": ("first", "all"),
    "data.on_error": ("raise", "skip"),
    "augment.augmenter": tuple(AUGMENTERS),
    "augment.policy.selector": ("sampled", "chain"),
    "augment.policy.magnitude": ("global", "lead", "network"),
    "accelerator": ("cpu", "cuda", "auto"),
}
_POSITIVE = (
    *("data.fs", "data.duration", "data.synthetic.n", "encoder.width"),
    *("pretrain.epochs", "pretrain.lr", "pretrain.temperature", "pretrain.projection"),
    *("pretrain.log_every", "pretrain.checkpoint_every", "pretrain.micro_batches"),
    *(
        "meta.labels",
        "meta.period",
        "meta.batch_size",
        "meta.step_size",
        "meta.head_lr",
        "meta.lr",
        "meta.eps",
        "meta.penalty",
    ),
    *("finetune.seeds", "finetune.epochs", "finetune.batch_size", "finetune.lr"),
    *("search.trials", "search.compute", "search.runs", "search.penalty"),
)
_NOT_NEGATIVE = (
    *("data.min_positives", "augment.noise", "pretrain.max_steps", "evaluate.bootstrap"),
    *("finetune.patience", "finetune.processes"),
    *("search.spread", "search.drawn", "augment.draw", "pretrain.repeat"),
    *("meta.warmup_epochs", "meta.unroll", "meta.terms", "meta.damping", "meta.magnitude_lr", "meta.clip"),
    "meta.magnitude_limit",
)


def check(config: Experiment) -> None:
    """Everything that can be known to be wrong before any data is read.

    Raises:
        InputError: naming the key.
    """
    own = ":" in config.encoder.name  # an encoder of one's own, as mypackage.module:Class
    check_values(config, _CHOICES if own else _CHOICES | {"encoder.name": ENCODERS}, _POSITIVE, _NOT_NEGATIVE)
    _check_data(config.data)
    _check_training(config)


def _check_data(data: Data) -> None:
    need(0 < data.test_fraction < 1, "data.test_fraction", data.test_fraction, "between 0 and 1")
    folds = (data.train_folds, data.test_folds)
    need(all(folds) or not any(folds), "data.train_folds, data.test_folds", folds, "both or neither")
    shared = sorted(set(data.train_folds) & set(data.test_folds))
    need(not shared, "data.test_folds", shared, "folds that are not in data.train_folds")


def _check_training(config: Experiment) -> None:
    batch, hyper = config.pretrain.batch_size, config.meta.hyper_batch_size
    need(batch > 1, "pretrain.batch_size", batch, "at least 2")
    need(hyper == 0 or hyper > 1, "meta.hyper_batch_size", hyper, "at least 2, or 0: as pretrain.batch_size")
    need(0 <= config.augment.crop <= 1, "augment.crop", config.augment.crop, "a fraction of the record")
    need(bool(config.finetune.labels), "finetune.labels", config.finetune.labels, "at least one size")
    for n in config.finetune.labels:
        need(n >= 5, "finetune.labels", n, "5 or more: 80 % train, 20 % validate")
    for rate in config.finetune.lrs:
        need(0 < rate < math.inf, "finetune.lrs", rate, "numbers above 0")
    width = config.encoder.width
    grouped = config.encoder.norm == "batch" or width in (1, 2, 4) or width % 8 == 0
    need(grouped, "encoder.width", width, "1, 2, 4 or a multiple of 8, where encoder.norm is group")
    if {config.pretrain.arm, *config.compare} & set(AUGMENTED):
        _check_augmenter(config)


def _check_augmenter(config: Experiment) -> None:
    samples = round(config.data.duration * config.data.fs)
    kind, policy = config.augment.augmenter, config.augment.policy
    shortest = {"paper_warp": WARP_SAMPLES, "warp": math.ceil(config.data.fs)}.get(kind, 2)
    need(samples >= shortest, "data.duration * data.fs", samples, f"{shortest} samples or more, for {kind}")
    for key, value, ok, expected in (
        ("stages", policy.stages, policy.stages > 0, "1 or more"),
        ("ops", policy.ops, bool(policy.ops), "at least one operation"),
        ("start", policy.start, 0 < policy.start < math.inf, "above 0: from 0 no gradient leads away"),
        ("probability", policy.probability, 0 < policy.probability < 1, "between 0 and 1"),
    ):
        need(ok, f"augment.policy.{key}", value, expected)
    if kind == "policy":
        from ecgmeta.augment.policy import IDENTITY, find_operation

        for name in policy.ops:
            if name != IDENTITY:
                find_operation(name, "configuration", "augment.policy.ops")
    start = math.sqrt(policy.start) if kind == "policy" else abs(config.augment.warp_magnitude)
    limit = config.meta.magnitude_limit
    need(
        limit == 0 or start < limit,
        "meta.magnitude_limit",
        limit,
        f"above {start:g}, |g| at the start; 0: none",
    )
