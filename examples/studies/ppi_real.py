"""PPI, real: do learned task weights help on OhmNet's human tissues? Every cell is a run of `ppi_extension`.

The graphs are built once, from the file that ``ECGMETA_REAL_DATA`` leads to (``../shared/data`` beside the checkout, where it
is not set), as ``configs/ppi/ohmnet_meta.yaml`` says, but for :data:`AS_RUN`. Runs and store lie in ``runs/ppi_real`` (or where
``ECGMETA_STUDY_RUNS`` says), and a run that has ended there is not repeated.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgmeta.runtime.signals import StopRequest
from examples.studies import study
from examples.studies.study import HERE, Task

if TYPE_CHECKING:
    from ppi_extension.experiment.config import Experiment
    from ppi_extension.experiment.run import Study

ROOT = HERE.parent.parent
CONFIG = ROOT / "configs" / "ppi" / "ohmnet_meta.yaml"
FULL, HELD_OUT = "full access", "held-out tasks"


@dataclass
class Build:
    """How the store is built; see `ppi-extension data build`."""

    channels: list[str] = field(default_factory=list)
    descent: float = 0.9
    min_positives: int = 20
    depth: int = 1
    fanout: int = 64


@dataclass
class Variant:
    """An arm under other settings.

    Attributes:
        arm: which.
        overrides: keys that differ from the study's.
        ensemble: of so many runs of `meta`, from other initialisations and orders of batches, the mean z is what an arm that
            takes learned weights is given.
    """

    arm: str = "meta"
    overrides: list[str] = field(default_factory=list)
    ensemble: int = 0


@dataclass
class Settings:
    """Attributes:
    arms, then: full access; those of ``then`` when all seeds of the others are done.
    variants: full access, after these; by the name that the arm has in the tables.
    held_out: arms and variants that are scored on fine-tuning tasks which pre-training did not see, another fold of them for
        each seed.
    folds: how many.
    overrides: keys that differ from the config.
    build: the graphs.
    """

    arms: list[str] = field(default_factory=list)
    then: list[str] = field(default_factory=list)
    variants: dict[str, Variant] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    folds: int = 10
    overrides: list[str] = field(default_factory=list)
    build: Build = field(default_factory=Build)


@dataclass
class Plan(study.Plan):
    """Attributes:
    figure: its name.
    """

    settings: Settings = field(default_factory=Settings)
    figure: str = "ppi_real"


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Seed by seed, so that a study cut short has whole comparisons; first the arms that matter most."""
    inputs = {"build": asdict(settings.build), "config": inputs_of_config(), "overrides": settings.overrides}
    folds = [f"meta.folds={settings.folds}"]
    for arms, setting in (
        (settings.arms, FULL),
        (settings.then, FULL),
        (settings.held_out, HELD_OUT),
        (list(settings.variants), FULL),
    ):
        for seed in seeds:
            for arm in arms:
                own = _of_variant(settings.variants.get(arm))
                keys = settings.overrides + (folds if setting == HELD_OUT else []) + own.pop("overrides", [])
                yield Task(arm, setting, seed, inputs | {"overrides": keys} | own)


def _of_variant(variant: Variant | None) -> dict[str, Any]:
    """What the inputs of an arm's cells say of its being a variant."""
    if variant is None:
        return {}
    how = {"ensemble": variant.ensemble} if variant.ensemble else {}
    return {"overrides": variant.overrides, "runs": variant.arm} | how


YOUNGER: Mapping[str, Mapping[str, Any]] = {
    "meta": {"resplit": False, "curvature": 1.0, "start": "uniform", "anchor": 0.0},
    "data": {"test_graphs_seen": 0.0},
    "pretrain": {"draw": 0, "cotrain": 0.0},
}
"""Keys that came after the first cells, and the values these were run with, which are no part of their inputs."""
AS_RUN = ["pretrain.plain_factor=1.0", "pretrain.lengths=[0.5,1.0]"]
"""What the cells were run with, where the config has since given arms without φ steps more steps and more lengths."""


def inputs_of_config() -> dict[str, Any]:
    """What the config says, but for what does not change the numbers of a cell."""
    from ppi_extension.experiment.config import read

    said = asdict(read(CONFIG, AS_RUN))
    for part, keys in YOUNGER.items():
        for key, value in keys.items():
            if said[part][key] == value:
                del said[part][key]
    return {key: said[key] for key in ("data", "encoder", "pretrain", "meta", "finetune")}


def run(task: Task) -> Mapping[str, float]:
    """Test AUROC, in per cent, at the length that is best on this seed's validation genes; and at each length. With distractors
    also the AUROC with which the final weights tell functions from them."""
    import numpy as np

    from ppi_extension.experiment.cohort import divide, kinds_of, useful_tasks
    from ppi_extension.experiment.config import FROM_META
    from ppi_extension.experiment.evaluate import separation
    from ppi_extension.experiment.scores import mean_of_tasks
    from ppi_extension.experiment.stages import open_store, train_one

    experiment, runs = _experiment(task), task.inputs.get("runs", task.arm)
    store = open_store(experiment.store)
    if ensemble := task.inputs.get("ensemble"):
        _pretrain_from_many(experiment, runs, task.seed, ensemble)
    for arm in ("meta", runs) if runs in FROM_META else (runs,):
        train_one(experiment, (arm, task.seed), ("pretrain", "finetune"), _silent, StopRequest())
    done = experiment.run(runs, task.seed)
    scored = list(divide(store, experiment.later, task.seed).scored)
    found: dict[str, float] = {}
    best = -np.inf
    for score in map(_read, sorted((done.folder / "finetune").glob("linear-*.json"))):
        validation, test = (
            100 * mean_of_tasks(_array(score[part])[scored]) for part in ("validation", "test")
        )
        found |= {f"validation_{score['steps']}": validation, f"test_{score['steps']}": test}
        if validation > best:
            best = validation
            found |= {"auroc": test, "validation": validation, "length": float(score["steps"])}
    if done.trajectory.is_file():
        with np.load(done.trajectory, allow_pickle=False) as kept:
            found["weights_sd"] = float(kept["weights"][-1].std())
        if kinds_of(store) and runs != "ceiling":  # whose weights are of the fine-tuning tasks
            found["separation"] = separation(done, useful_tasks(store))
    return found


def _pretrain_from_many(experiment: Study, arm: str, seed: int, count: int) -> None:
    """Pre-train an arm that takes learned weights, under the mean z of several runs of `meta` on the same genes."""
    import torch

    from ecgmeta.runtime.config import need
    from ecgmeta.runtime.seeds import derive
    from ppi_extension.experiment.cohort import divide
    from ppi_extension.experiment.config import FROM_META
    from ppi_extension.experiment.pretrain import pretrain
    from ppi_extension.experiment.stages import open_store
    from ppi_extension.task_weights import TaskWeights

    need(arm in FROM_META, "variants", arm, f"one of {FROM_META} for an ensemble")
    cohort, learned = divide(open_store(experiment.store), experiment.later, seed), []
    for number in range(count):
        own = derive(seed, "ensemble", number) % 2**31 if number else seed
        run = experiment.run("meta", own, create=True)
        pretrain(run, cohort, None, _silent, StopRequest())
        learned.append(TaskWeights.from_pretrained(run.weights))
    with torch.no_grad():
        learned[0].z.copy_(torch.stack([weights.z for weights in learned]).mean(0))
    pretrain(experiment.run(arm, seed, create=True), cohort, learned[0], _silent, StopRequest())


def _experiment(task: Task) -> Study:
    """The folder of all runs."""
    from ppi_extension.experiment.run import Study

    store = built_store(task)
    where = store.parent / _digest(task)
    if (where / "run.json").is_file():
        return Study.open(where)
    return Study.create(where, configured(task, store))


def built_store(task: Task) -> Path:
    """The graphs of a task, built where there are none."""
    folder = Path(os.environ.get("ECGMETA_STUDY_RUNS", ROOT / "runs")) / "ppi_real"
    store = folder / f"store-{Task('', '', 0, task.inputs['build']).key}"
    folder.mkdir(parents=True, exist_ok=True)
    with store.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes while another process builds it waits for it
        if not store.is_dir():
            _build(store, task.inputs["build"])
    return store


def _digest(task: Task) -> str:
    """The same for all arms and seeds of one configuration."""
    return Task("", task.setting, 0, task.inputs).key


def configured(task: Task, store: Path) -> Experiment:
    from ppi_extension.experiment.config import read

    return read(CONFIG, [f"data.store={store}", *AS_RUN, *task.inputs["overrides"]])


def _build(store: Path, how: Mapping[str, Any]) -> None:
    from ppi_extension.data.stores import build_store

    data = Path(os.environ.get("ECGMETA_REAL_DATA", ROOT.parent / "shared" / "data"))
    keys = [f"{key}={value}" for key, value in how.items() if key != "channels"]
    keys += ["graphs=union", f"channels=[{','.join(how['channels'])}]"]
    terms = CONFIG.with_name("ohmnet_finetune.txt")
    build_store("ohmnet", data / "ppi" / "ppi_ohmnet24.npz", store, keys, None, terms)


def _read(file: Path) -> dict[str, Any]:
    from ecgmeta.runtime.files import read_json

    found: dict[str, Any] = read_json(file)
    return found


def _array(values: Sequence[float | None]) -> Any:
    import numpy as np

    return np.array([np.nan if value is None else value for value in values])


def _silent(done: int, total: int, text: str, left: float | None = None) -> None:
    pass


def report(plan: Plan, results: Sequence[study.Result]) -> study.Section:
    from examples.studies.ppi_real_report import section

    return section(plan, results)
