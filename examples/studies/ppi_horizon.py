"""PPI, planted distractors: why are task weights not learned there, and does a longer look-ahead learn them?

The store, seeds, encoder and scores of :mod:`examples.studies.ppi_distractors`. Here the fine-tuning loss after T pre-training
steps is differentiated through all of them (`ecgmeta.bilevel.lookahead`), with a head at its optimum on all labels that
pre-training may see: what is left to blame is T, and the noise of initialisations and batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from examples.studies import ppi_real, study
from examples.studies.ppi_distractors import Build
from examples.studies.study import Task

if TYPE_CHECKING:
    from torch import Tensor

    from examples.studies.ppi_lookahead import Ahead
    from ppi_extension.experiment.cohort import Cohort
    from ppi_extension.experiment.config import Experiment

LEARNED: dict[str, dict[str, bool]] = {
    "lookahead": {},
    "one_step": {"short": True},
    "tied": {"tied": True},
    "tied_one_step": {"short": True, "tied": True},
}
"""Arms that learn weights in rounds. Short: only the last step of a round is differentiated."""
WHOLE = "whole runs"


@dataclass
class Learn:
    """How weights are learned.

    Attributes:
        rounds: one φ step each.
        draws: look-aheads that a step averages over, each from an initialisation and an order of batches of its own.
        warm: steps before the look-ahead, with the weights as they stand.
        ahead: T, the steps that are differentiated.
        lr: SD over tasks of the first step of z; the n-th is 1/n of it, since ever more of its direction is noise.
        limit: largest |z|.
        tied: tasks share what they learn as far as their pre-training labels are alike.
    """

    rounds: int = 4
    draws: int = 8
    warm: int = 200
    ahead: int = 200
    lr: float = 1.5
    limit: float = 3.0
    tied: bool = False


@dataclass
class Settings:
    """Attributes:
    ends: lengths of pre-training, with uniform weights, after which the fine-tuning loss is differentiated.
    tails: with respect to the weights of how many last steps.
    draws: of initialisation and batches, for each end.
    arms, then: whole runs; those of ``then`` when everything else is done.
    learn: of the arms that do; see :data:`LEARNED`.
    runs: whole runs of an arm and seed, from other initialisations: their mean is steadier.
    penalty: of the head that look-aheads are judged by.
    overrides, build: as in ``ppi_distractors``.
    """

    ends: list[int] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)
    draws: int = 8
    arms: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)
    learn: Learn = field(default_factory=Learn)
    runs: int = 3
    penalty: float = 1e-3
    overrides: list[str] = field(default_factory=list)
    build: Build = field(default_factory=Build)


@dataclass
class Plan(study.Plan):
    settings: Settings = field(default_factory=Settings)


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seed by seed, so that a study cut short has whole comparisons; first what matters most, and of that the longest cells."""
    inputs: dict[str, Any] = {
        "build": asdict(settings.build), "config": ppi_real.inputs_of_config(), "overrides": settings.overrides,
        "penalty": settings.penalty,
    }  # fmt: skip
    for arms, ends in ((settings.arms, settings.ends), (settings.then, [])):
        for seed in seeds:
            for arm in sorted(arms, key=lambda arm: arm not in LEARNED):
                how = {"learn": asdict(_learn(settings.learn, **LEARNED[arm]))} if arm in LEARNED else {}
                yield Task(arm, WHOLE, seed, inputs | how | {"runs": settings.runs})
            for end in sorted(ends, reverse=True):
                tails = [tail for tail in settings.tails if tail <= end]
                own = {"end": end, "tails": tails, "draws": settings.draws}
                yield Task("gradient", f"end {end}", seed, inputs | own)


def _learn(how: Learn, short: bool = False, tied: bool = False) -> Learn:
    if short:
        how = replace(how, warm=how.warm + how.ahead - 1, ahead=1)
    return replace(how, tied=tied)


def run(task: Task) -> Mapping[str, float]:
    from examples.studies.ppi_lookahead import Ahead
    from ppi_extension.experiment.cohort import divide, useful_tasks
    from ppi_extension.experiment.stages import open_store

    where = ppi_real.built_store(task)
    store, config = open_store(where), ppi_real.configured(task, where)
    cohort, useful = divide(store, config, task.seed), useful_tasks(store)
    ahead = Ahead(cohort, config, task.seed, task.inputs["penalty"])
    if task.arm == "gradient":
        return _gradients(task, ahead, useful, config.pretrain.lr)
    return _whole(task, ahead, cohort, config, useful)


def _gradients(task: Task, ahead: Ahead, useful: Sequence[bool], rate: float) -> dict[str, float]:
    """At uniform weights, by tail: what one draw and the mean of all say of the tasks; see :func:`_quality`."""
    import torch

    how = task.inputs
    looks = [
        ahead.look(torch.zeros(len(useful)), draw, 0, how["end"], rate, how["tails"])
        for draw in range(how["draws"])
    ]
    tie = ahead.likeness().double()
    found = {"metaft": sum(float(look.finetune.validation_loss) for look in looks) / len(looks)}
    for tail in how["tails"]:
        gradients = torch.stack([look.tails[tail]["z"] for look in looks]).double()
        found |= {f"{name}|{tail}": value for name, value in _quality(gradients, tie, useful).items()}
    return found


def _quality(gradients: Tensor, tie: Tensor, useful: Sequence[bool]) -> dict[str, float]:
    """Of (draws, tasks) gradients g.

    ``draw`` and ``mean``: AUROC with which −g, of one draw and of the mean over draws of norm 1, tells functions from
    distractors (of norm 1, since a few draws are larger than the others by orders of magnitude). ``tied``: the same of the
    mean of KKᵀg, which is what tied tasks follow. ``cosine``: between two draws. ``snr``: the root mean square over tasks of
    m/s, freed of what noise adds. ``slope`` and ``slope_sd``: change of the loss along the unit vector from distractors to
    functions, mean and SD over draws; ``right`` the share of draws in which it falls. ``norm``: the median over draws.
    """
    import torch

    count = len(gradients)
    norms = gradients.norm(dim=1, keepdim=True)
    unit = gradients / norms
    towards = torch.tensor(useful).double()
    towards = (towards - towards.mean()) / (towards - towards.mean()).norm()
    slopes = gradients @ towards
    ratio = (unit.mean(0) / unit.std(0)).square().mean() - 1 / count
    return {
        "draw": sum(separation(-one, useful) for one in unit) / count,
        "mean": separation(-unit.mean(0), useful),
        "tied": separation(-tie @ (tie.T @ unit.mean(0)), useful),
        "cosine": float(((unit @ unit.T).sum() - count) / (count * (count - 1))),
        "snr": math.sqrt(max(0.0, float(ratio))),
        "slope": float(slopes.mean()),
        "slope_sd": float(slopes.std()),
        "right": float((slopes < 0).double().mean()),
        "norm": float(norms.median()),
    }


def separation(values: Tensor, useful: Sequence[bool]) -> float:
    """AUROC of values as a score for usefulness."""
    import torch

    from ppi_extension.experiment.scores import task_auroc

    return float(task_auroc(values[:, None], torch.tensor(useful)[:, None])[0])


def _whole(
    task: Task, ahead: Ahead, cohort: Cohort, config: Experiment, useful: Sequence[bool]
) -> dict[str, float]:
    """Pre-training with weights that stay, from the initialisation of ``ppi_distractors`` and from others, scored as there: the
    mean of each number over these runs, and ``first``, the first one's ``auroc``."""
    import torch

    from ecgmeta.runtime.seeds import derive, torch_generator

    z, found = _weights(task, ahead, cohort, config, useful)
    weights = len(z) * z.softmax(0)
    found |= {
        "separation": separation(weights, useful),
        "share": float(weights[torch.tensor(useful)].sum() / len(z)),
    }
    runs, dealt = [], []
    for number in range(task.inputs["runs"]):
        seed = derive(task.seed, "run", number) % 2**31 if number else task.seed
        runs.append(_scores(ahead, cohort, config, seed, weights))
        if task.arm in LEARNED:  # a control: the same weights on other tasks
            order = torch.randperm(len(z), generator=torch_generator(task.seed, "permuted", number))
            dealt.append(_scores(ahead, cohort, config, seed, weights[order]))
    found |= _means(runs) | {"first": runs[0]["auroc"]}
    return found | {f"permuted_{name}": value for name, value in _means(dealt).items()}


def _means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(run[name] for run in runs) / len(runs) for name in (runs[0] if runs else {})}


def _weights(
    task: Task, ahead: Ahead, cohort: Cohort, config: Experiment, useful: Sequence[bool]
) -> tuple[Tensor, dict[str, float]]:
    """z of an arm, and how it came to it."""
    import torch

    from examples.studies.ppi_lookahead import learn
    from ppi_extension.experiment.similarity import similarity

    count = len(useful)
    if task.arm == "uniform":
        return torch.zeros(count), {}
    if task.arm.startswith(
        "share_"
    ):  # of the weight, in per cent, that functions have; as much for each of them
        share = float(task.arm.removeprefix("share_")) / 100
        right = torch.tensor(useful)
        return torch.where(right, share / right.sum(), (1 - share) / (~right).sum()).log(), {}
    if task.arm == "oracle":
        return (2 * torch.tensor(useful).float() - 1) * config.meta.limit, {}
    if task.arm == "similarity":
        return similarity(cohort), {}
    how = Learn(**task.inputs["learn"])
    z, found = torch.zeros(count), {}
    for number, z in enumerate(learn(ahead, count, how, config.pretrain.lr), start=1):
        found[f"separation_{number}"] = separation(z, useful)
    return z, found


def _scores(ahead: Ahead, cohort: Cohort, config: Experiment, seed: int, weights: Tensor) -> dict[str, float]:
    """Test AUROC of one run, in per cent, at the length that is best on validation genes; and at each length, with the loss
    that look-aheads are judged by. ``seed`` is of the initialisation, the batches and the scoring head."""
    import torch

    from ppi_extension.experiment.batches import EgoBatches
    from ppi_extension.experiment.finetune import linear
    from ppi_extension.experiment.model import build
    from ppi_extension.experiment.scores import mean_of_tasks
    from ppi_extension.weighting import Fixed, train

    model = build(config, cohort, "supervised", seed, None)
    problem, steps = model.problem, config.pretrain.max_steps
    optimizer = torch.optim.Adam(problem.theta.values(), lr=config.pretrain.lr)
    batches = EgoBatches(cohort, config, config.meta, seed)
    lengths = {max(1, round(share * steps)) for share in config.pretrain.lengths}
    found: dict[str, float] = {"validation": -math.inf}
    rule = Fixed(len(weights), weights)
    for number, _ in enumerate(train(rule, problem, optimizer, batches, steps=steps), start=1):
        if number not in lengths:
            continue
        fit = linear(copy.deepcopy(model.encoder), cohort, config.finetune, seed)
        validation, test = (100 * mean_of_tasks(part) for part in (fit.validation, fit.test))
        found |= {f"validation_{number}": validation, f"test_{number}": test}
        found[f"metaft_{number}"] = ahead.loss_at(problem.theta)
        if validation > found["validation"]:
            found |= {"auroc": test, "validation": validation, "length": float(number)}
    return found


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.ppi_horizon_report import section

    return section(plan, results)
