"""The configuration of an experiment. Every key, its default and its reason stand here; YAML files hold differences."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ecgmeta.runtime.config import check_values, load_config, need
from ecgmeta.runtime.logs import Log

ARMS = {
    "none": "no pre-training: an encoder as it is initialised",
    "supervised": "every task weighs the same (graph-supervised)",
    "random_weights": "weights drawn once, at random",
    "random_search": "the best of several runs with drawn weights, by a linear head scored on validation genes",
    "similarity": "fixed weights by how much a task's labels go with the fine-tuning labels",
    "cotrain": "pre-training tasks and fine-tuning tasks trained together",
    "cotrain_pcgrad": "trained together, each of the two gradients without what opposes the other",
    "uncertainty": "uncertainty weighting (Kendall et al., 2018)",
    "famo": "FAMO (Liu et al., 2023)",
    "cosine": "weights follow the cosine of each task's gradient to the fine-tuning gradient (META-TARTAN)",
    "meta": "weights learned by hypergradient, as `meta` says",
    "meta_neumann1": "as meta, with 1 Neumann term",
    "meta_neumann5": "as meta, with 5 Neumann terms",
    "meta_full_unroll": "as meta, with the encoder unrolled as well as the head",
    "random_walk": "control: steps of φ as long as meta's, in random directions",
    "permuted": "control: meta's learned weights, dealt out to the tasks at random, another initialisation",
    "retrained": "control: meta's learned weights, fixed from the start, another initialisation",
    "ceiling": "control: pre-training on the fine-tuning tasks themselves",
    "oracle": "control: all weight on the tasks that are known to be useful (planted problems and distractors)",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "meta": {},
    "meta_neumann1": {"inverse": "neumann", "terms": 1},
    "meta_neumann5": {"inverse": "neumann", "terms": 5},
    "meta_full_unroll": {"encoder": True},
    "random_walk": {},
}
"""Arms that take φ steps, and in what they differ from `meta`."""
RULES = ("cotrain", "cotrain_pcgrad", "uncertainty", "famo", "cosine")  # arms that another rule weighs
SEARCH = "random_search"
FROM_META = ("permuted", "retrained")  # arms that need what the arm meta of the same seed has learned
PROTOCOLS = ("linear", "full")
STAGES = ("pretrain", "finetune", "evaluate", "report")


@dataclass
class Planted:
    """The synthetic problem, built where `data.store` is empty; see `ppi_extension.data.synthetic`."""

    seed: int = 0
    genes: int = 600  # a species
    species: int = 3


@dataclass
class Data:
    store: str = ""  # folder made by `ppi-extension data build`; empty: the planted problem
    seed: int = 0  # of the split by gene
    resplit: bool = (
        True  # each seed of the experiment has its own test genes, so that intervals cover their draw, too
    )
    test_fraction: float = 0.2  # of the genes
    validation_fraction: float = 0.2  # of the genes: to stop early, and to choose the length of pre-training
    test_graphs: list[str] = field(default_factory=list)  # species or tissues that only test; empty: all do
    test_graphs_seen: float = (
        0.0  # share of their genes that pre-training sees instead, with its own labels alone
    )
    finetune_share: float = 1.0  # of the training genes: those whose fine-tuning labels are known
    planted: Planted = field(default_factory=Planted)


@dataclass
class Encoder:
    """Hu et al.'s network; the defaults are theirs."""

    width: int = 300
    layers: int = 5
    dropout: float = 0.2
    norm: str = "batch"  # or "none"


@dataclass
class Pretrain:
    epochs: float = 100.0
    max_steps: int = 0  # stop earlier; 0: no limit
    plain_factor: float = (
        1.0  # steps of arms without φ steps, in those of arms with: so that both cost the same
    )
    lengths: list[float] = field(
        default_factory=lambda: [1.0]
    )  # shares of the steps; validation chooses one an arm
    batch_size: int = 32
    lr: float = 1e-3  # 1e-4 in the paper, which trains a hundred times longer than most can
    draw: int = 0  # of `random_weights`: another draw
    # Weight of the fine-tuning tasks, trained along on the graphs of a pre-training batch whose labels pre-training may see; in
    # arms that learn weights, those that φ is not validated on. The other rules, `none` and `ceiling` leave it unread. 0: none.
    cotrain: float = 0.0
    legacy_center_index: bool = (
        False  # the paper's code reads the wrong centre node of all graphs but the first
    )
    log_every: int = 50
    checkpoint_every: int = 500


@dataclass
class Meta:
    """The φ step. Defaults are the paper's but where METHOD measured better."""

    share: float = 1.0  # partial access: of the genes with fine-tuning labels, those that φ may see
    folds: int = (
        0  # partial access: seed s holds out the tasks of fold s mod folds, and is scored on them; 0: none
    )
    held_out: int = 0  # tasks a fold; 0: folds side by side
    transform: str = "sigmoid"  # weights 2·sigmoid(z); or "softmax", "exp"
    start: str = "uniform"  # where learned weights start: all 1, or "similarity", those of the static rule
    anchor: float = 0.0  # share of the way back to their start, in z, that they go after each φ step
    period: int = 10  # P
    warmup_epochs: float = 1.0
    until: float = (
        1.0  # share of the steps after which φ stands still: late, what is learned already looks useless
    )
    head: str = (
        "unroll"  # v through K steps of the head; "ridge": through its closed form, which is less noisy
    )
    unroll: int = 1  # K
    encoder: bool = False  # unroll the encoder, too (the paper's definition; its code does not)
    penalty: float = 0.3  # of the ridge head
    batch_size: int = 32  # fine-tuning training batch
    validation_size: int = 128  # fine-tuning validation batch: the more, the less noise in v
    resplit: bool = False  # unrolled head: another split of the examples at each φ step, so that v follows no fixed few of them
    hyper_batch_size: int = 0  # pre-training batch of a φ step; 0: as `pretrain.batch_size`
    head_lr: float = 1e-3
    inverse: str = (
        "identity"  # or "neumann": METHOD found no gain from a better inverse away from the optimum
    )
    terms: int = 1
    step_size: float = 1.0  # α; with "identity" only φ's own optimiser sees it
    damping: float = 0.0
    curvature: float = (
        1.0  # share of the graphs that Hu is taken on; below 1 it costs less, but see `CurvatureProblem`
    )
    optimizer: str = "adam"  # or "sgd"
    lr: float = 0.1  # of z. The paper takes 1 with an eps that is larger than the gradients
    eps: float = 1e-8  # Adam's, against gradients of norm 1 (see scaling)
    beta2: float = 0.999  # Adam's
    scaling: str = (
        "normalise"  # hypergradients are 1e-7 to 1e-9 an entry, below Adam's eps; or "none": as they are
    )
    clip: float = 0.0  # largest norm after scaling; 0: none
    limit: float = 4.0  # largest |z|: a weight of 0.04, from which it can still come back; 0: none
    accumulate: int = 1  # draws that one φ step averages over
    on_failure: str = (
        "skip"  # a φ step that fails: "stop", "skip", or "shrink" the rates for the rest of the run
    )


@dataclass
class Search:
    """The arm `random_search`. It reads the fine-tuning labels that pre-training may see, and those of validation genes."""

    trials: int = 3  # weights drawn, each for a run of its own
    compute: float = 1.0  # pre-training steps of all trials together, in those of another arm without φ steps


@dataclass
class Finetune:
    protocols: list[str] = field(
        default_factory=lambda: ["linear"]
    )  # a head on frozen features; "full": all weights
    epochs: int = 100
    lr: float = 1e-2  # of the linear head
    full_lr: float = 1e-3
    batch_size: int = 256  # of the linear head
    full_batch_size: int = 32
    dropout: float = 0.0  # before the head, 0.5 in the paper
    weight_decay: float = 0.0
    standardise: bool = (
        True  # features to mean 0 and SD 1 over the training examples, so that one rate suits all arms
    )
    statistics: str = "frozen"  # of BatchNorm in full fine-tuning; "batch": they go on moving
    patience: int = 15  # epochs without a better validation AUROC; 0: none


@dataclass
class Evaluate:
    reference: str = "supervised"  # the arm that others are compared with


@dataclass
class Experiment:
    """A whole experiment."""

    arms: list[str] = field(default_factory=lambda: ["none", "supervised", "random_weights", "meta"])
    seeds: int = 3
    first_seed: int = 0  # pilots, which choose settings, take others than those reported
    processes: int = 1  # runs at a time, one thread each
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    pretrain: Pretrain = field(default_factory=Pretrain)
    meta: Meta = field(default_factory=Meta)
    search: Search = field(default_factory=Search)
    finetune: Finetune = field(default_factory=Finetune)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)
    through: str = "report"  # the last stage that `ppi-extension pretrain` goes on to
    accelerator: str = "cpu"  # or "cuda"


def read(file: Path | None, overrides: list[str]) -> Experiment:
    """The checked configuration of an experiment: defaults, ``file``, overrides.

    Raises:
        InputError: naming the key, what was found and what is expected.
    """
    config = read_run(file, overrides)
    for arm in FROM_META:
        need(arm not in config.arms or "meta" in config.arms, "arms", arm, "meta, whose weights it takes")
    return config


def read_run(file: Path | None, overrides: list[str]) -> Experiment:
    """The same of one run of it, whose one arm may be one that takes the weights of another run.

    Raises:
        InputError: as `read`.
    """
    config = load_config(Experiment, file, overrides)
    if config.data.store:  # a later command finds it from any working directory
        config.data.store = str(Path(config.data.store).resolve())
    check(config)
    return config


_CHOICES: dict[str, tuple[str, ...]] = {
    "arms": tuple(ARMS),
    "evaluate.reference": tuple(ARMS),
    "encoder.norm": ("batch", "none"),
    "meta.transform": ("sigmoid", "softmax", "exp"),
    "meta.start": ("uniform", "similarity"),
    "meta.head": ("unroll", "ridge"),
    "meta.inverse": ("neumann", "identity"),
    "meta.optimizer": ("adam", "sgd"),
    "meta.scaling": ("normalise", "none"),
    "meta.on_failure": ("stop", "skip", "shrink"),
    "finetune.protocols": PROTOCOLS,
    "finetune.statistics": ("frozen", "batch"),
    "log.wandb_mode": ("offline", "online"),
    "through": STAGES,
    "accelerator": ("cpu", "cuda"),
}
_POSITIVE = (
    *("seeds", "processes", "encoder.width", "encoder.layers", "data.planted.genes", "data.planted.species"),
    *(
        "pretrain.epochs",
        "pretrain.lr",
        "pretrain.batch_size",
        "pretrain.log_every",
        "pretrain.checkpoint_every",
    ),
    *(
        "meta.share",
        "meta.until",
        "meta.curvature",
        "pretrain.plain_factor",
        "meta.period",
        "meta.penalty",
        "meta.batch_size",
        "meta.validation_size",
        "meta.head_lr",
    ),
    *("meta.step_size", "meta.lr", "meta.eps", "meta.beta2", "meta.accumulate"),
    *("search.trials", "search.compute"),
    *(
        "finetune.epochs",
        "finetune.lr",
        "finetune.full_lr",
        "finetune.batch_size",
        "finetune.full_batch_size",
    ),
    *("data.finetune_share", "data.test_fraction", "data.validation_fraction"),
)
_NOT_NEGATIVE = (
    *("first_seed", "pretrain.max_steps", "encoder.dropout", "finetune.dropout", "finetune.weight_decay"),
    *("finetune.patience", "meta.folds", "meta.held_out", "meta.warmup_epochs", "meta.unroll", "meta.terms"),
    *("meta.hyper_batch_size", "meta.damping", "meta.clip", "meta.limit", "data.test_graphs_seen"),
    *("pretrain.draw", "pretrain.cotrain", "meta.anchor"),
)
_BELOW_ONE = ("encoder.dropout", "finetune.dropout", "meta.anchor", "meta.beta2", "data.test_graphs_seen")


def check(config: Experiment) -> None:
    """Everything that can be known to be wrong before any data is read.

    Raises:
        InputError: naming the key.
    """
    check_values(config, _CHOICES, _POSITIVE, _NOT_NEGATIVE, _BELOW_ONE)
    need(bool(config.arms), "arms", config.arms, f"one or more of {list(ARMS)}")
    need(bool(config.finetune.protocols), "finetune.protocols", [], f"one or more of {list(PROTOCOLS)}")
    _all_different("arms", config.arms)
    data, lengths = config.data, config.pretrain.lengths
    held = data.test_fraction + data.validation_fraction
    need(held < 1, "data.test_fraction + data.validation_fraction", held, "below 1: genes to train on")
    named = bool(data.test_graphs) or not data.test_graphs_seen
    need(named, "data.test_graphs", data.test_graphs, "those of which data.test_graphs_seen is a share")
    meta = config.meta
    for key, value in (
        ("data.finetune_share", data.finetune_share),
        ("meta.share", meta.share),
        ("meta.until", meta.until),
        ("meta.curvature", meta.curvature),
    ):
        need(value <= 1, key, value, "at most 1")
    smallest = min(config.pretrain.batch_size, meta.hyper_batch_size or config.pretrain.batch_size)
    least = f"at least 1/{smallest}: a share of the smallest batch that is a graph"
    need(meta.curvature * smallest >= 1, "meta.curvature", meta.curvature, least)
    ascending = sorted(set(lengths)) == lengths and lengths[-1:] == [1.0] and lengths[0] > 0
    need(ascending, "pretrain.lengths", lengths, "ascending shares above 0, the last one 1.0")
    need(config.pretrain.batch_size > 1, "pretrain.batch_size", config.pretrain.batch_size, "at least 2")
    for arm in config.arms:
        how = of_arm(meta, arm)
        unrolled = arm not in VARIANTS or how.head == "unroll" or not how.encoder
        need(unrolled, "meta.head", how.head, f"unroll for {arm}, whose encoder is unrolled with the head")
        if arm in VARIANTS and cotrains(config, arm):
            # What θ is trained on must not be what φ is validated on.
            need(how.head == "unroll", "meta.head", how.head, "unroll where pretrain.cotrain is above 0")
            need(not how.resplit, "meta.resplit", how.resplit, "false where pretrain.cotrain is above 0")
    need(not meta.resplit or meta.unroll > 0, "meta.unroll", meta.unroll, "at least 1 with meta.resplit")
    need(config.meta.folds != 1, "meta.folds", 1, "2 or more, or 0: no task is held out")


def _all_different(key: str, names: list[str]) -> None:
    for name in names:
        need(names.count(name) == 1, key, f"{name} twice", "each once")


def cotrains(config: Experiment, arm: str) -> bool:
    """Whether an arm trains the fine-tuning tasks along; rules that weigh tasks have a way of their own, or none."""
    return config.pretrain.cotrain > 0 and arm not in (*RULES, "none", "ceiling")


def of_arm(meta: Meta, arm: str) -> Meta:
    """The settings of the φ step in an arm."""
    return replace(meta, **VARIANTS.get(arm, {}))
