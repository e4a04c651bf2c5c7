"""ECG, real recordings: LUDB and a hundred challenge records; LUDB's diagnoses, and where its P, QRS and T waves are.

A cell is one arm of one task and repetition. A repetition splits LUDB's 200 subjects anew: 140 to pre-train on (with the
challenge records) and to learn from, 60 to test on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgmeta.data import LUDB, WFDBFolder
from ecgmeta.data.splits import patient_split
from ecgmeta.experiment.model import FinetuneHead
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import derive
from examples.studies import study
from examples.studies.ecg_arms import (
    Encode,
    FrameHead,
    Meta,
    Pretrained,
    Records,
    Scoring,
    Training,
    drawn,
    encoded,
    encoded_frames,
    learned_numbers,
    pretrain,
    ramp,
    scaled,
    score,
    untrained,
    validated,
)
from examples.studies.ecg_report import section
from examples.studies.study import Result, Section, Task

LEADS = ("I", "II", "V1", "V5")
HZ, CROP = 100.0, 400  # samples of a pre-training view; labelled recordings are seen whole, 10 s
STRIDE = 16  # samples a frame of the encoder's maps
WAVES = ("P", "QRS", "T")
HEADS: Mapping[str, type[FinetuneHead]] = {"diagnoses": FinetuneHead, "delineation": FrameHead}


@dataclass
class Settings:
    """What every cell follows from.

    Attributes:
        tasks: of :data:`HEADS`.
        test: share of the LUDB subjects.
        min_positives: of a diagnosis, among the 200.
        start, factors, trials, spread: as in the study ``ecg_synthetic``.
        runs: of `meta`, each from an initialisation and with batches of its own, of which the criterion may choose one.
        meta_labels: task -> records whose labels a φ step draws.
    """

    tasks: list[str] = field(default_factory=lambda: list(HEADS))
    test: float = 0.3
    min_positives: int = 20
    start: dict[str, float] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    meta: Meta = field(default_factory=Meta)
    meta_labels: dict[str, int] = field(default_factory=lambda: {"diagnoses": 96, "delineation": 24})
    scoring: Scoring = field(default_factory=Scoring)
    factors: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0])
    trials: int = 3
    spread: float = 1.5
    runs: int = 3


@dataclass
class Plan(study.Plan):
    """The plan of this study; see ``ecg_synthetic``."""

    settings: Settings = field(default_factory=Settings)
    main: int = 140
    figure: str = "ecg_real"
    notes: str = ""


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    """Repetition by repetition; an arm that sees no labels pre-trains once for both tasks."""
    common = asdict(settings)
    for key in ("tasks", "factors", "trials", "spread", "meta_labels", "runs"):
        del common[key]
    for seed in seeds:
        arms: list[tuple[str, dict[str, Any]]] = [("no pre-training", {}), ("random encoder", {})]
        arms += [(f"static {factor:g}", {"factor": factor}) for factor in settings.factors]
        arms += [
            (f"search {t}", {"trial": t, "spread": settings.spread}) for t in range(1, settings.trials + 1)
        ]
        arms += [("ramp", {"ramp": [min(settings.factors), max(settings.factors)]})]
        for arm, own in arms:
            for name in settings.tasks:
                yield Task(arm, name, seed, common | own)
        for name in settings.tasks:
            inputs = common | {"meta": common["meta"] | {"labels": settings.meta_labels[name]}}
            for learn, arm in (
                ("ours", "meta"),
                ("retrained", "retrained"),
                ("paper", "meta (paper)"),
                ("random_walk", "walk"),
            ):
                yield Task(arm, name, seed, inputs | {"learn": learn})
            for run in range(2, settings.runs + 1):
                yield Task(f"meta {run}", name, seed, inputs | {"learn": "ours", "run": run})


def run(task: Task) -> Mapping[str, float]:
    """Test AUROC, macro over diagnoses of a recording, or over P, QRS and T of a frame."""
    inputs = task.inputs
    data = repetition(task.seed, inputs["test"], inputs["min_positives"])
    metaft, test = data.train[task.setting], data.test[task.setting]
    scoring = Scoring(**inputs["scoring"])
    fresh, found = task.arm == "no pre-training", None
    if fresh or task.arm == "random encoder":
        encoder = untrained(data.unlabelled, task.seed)
    else:
        found = _pretrained(task)
        encoder = found.encoder
    if task.setting == "delineation":  # examples are frames, and the encoder stays frozen
        scoring.tuned = []
        encode: Encode = encoded_frames
    else:
        encode = encoded
    if task.arm == "random encoder":
        scoring.tuned = []
    numbers = score(encoder, metaft, test, scoring, task.seed, probe=not fresh, encode=encode)
    numbers["validation"] = validated(encoder, metaft, inputs["meta"]["penalty"], encode)
    return (
        numbers if found is None else numbers | {"pretrain seconds": found.seconds} | learned_numbers(found)
    )


def _pretrained(task: Task) -> Pretrained:
    inputs = task.inputs
    # What sees no labels is the same for both tasks, whose cells follow each other.
    return _cached(json.dumps(dict(inputs)), task.seed, task.setting if "learn" in inputs else "diagnoses")


@lru_cache(maxsize=2)
def _cached(text: str, seed: int, name: str) -> Pretrained:
    inputs = json.loads(text)
    data = repetition(seed, inputs["test"], inputs["min_positives"])
    start, training, meta = inputs["start"], Training(**inputs["training"]), Meta(**inputs["meta"])
    learn, path = inputs.get("learn", ""), None
    if "factor" in inputs:
        start = scaled(start, inputs["factor"])
    if "trial" in inputs:
        start = drawn(start, inputs["spread"], seed, inputs["trial"])
    if "ramp" in inputs:
        low, high = inputs["ramp"]
        path = ramp(start, low, high, training.steps)
    if learn == "retrained":
        start = _cached(json.dumps({**inputs, "learn": "ours"}), seed, name).magnitudes
        seed, learn = derive(seed, "retrained"), ""
    if "run" in inputs:
        seed = derive(seed, "run", inputs["run"])
    return pretrain(
        data.unlabelled,
        data.train[name],
        start,
        seed,
        training,
        meta,
        learn=learn,
        head=HEADS[name],
        crop=CROP,
        path=path,
    )


@dataclass(frozen=True)
class Repetition:
    """One split of the subjects.

    Attributes:
        unlabelled: (records, leads, samples) in mV: of the challenge and of the LUDB subjects that are not tested.
        train, test: task -> LUDB records with its labels.
    """

    unlabelled: Tensor
    train: Mapping[str, Records]
    test: Mapping[str, Records]


@lru_cache(maxsize=1)
def repetition(seed: int, test: float, min_positives: int) -> Repetition:
    ludb, diagnoses, waves, challenge = recordings(min_positives)
    rows = patient_split(ludb.meta, [1 - test, test], derive(seed, "split") % 2**31, ludb.labels)
    x = ludb[np.arange(len(ludb))][0]
    parts = []
    for part in rows:
        shuffled = np.random.default_rng(derive(seed, "order")).permutation(part)
        parts.append(
            {
                "diagnoses": Records(x[shuffled], diagnoses[shuffled], ludb.label_names),
                "delineation": Records(x[shuffled], waves[shuffled], WAVES),
            }
        )
    train, held_out = parts
    return Repetition(torch.cat([challenge, train["diagnoses"].x]), train, held_out)


@lru_cache(maxsize=1)
def recordings(min_positives: int) -> tuple[LUDB, Tensor, Tensor, Tensor]:
    """LUDB, its diagnoses (records, labels), its waves (records, frames, 3), and the challenge's signals.

    Raises:
        InputError: there is no folder of real data.
    """
    root = Path(
        os.environ.get("ECGMETA_REAL_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")
    )
    if not root.is_dir():
        raise InputError(root, "real data", "no such folder", "ludb/ and cinc2021/ (set ECGMETA_REAL_DATA)")
    ludb = LUDB(root / "ludb", fs=HZ, min_positives=min_positives, leads=LEADS)
    challenge = WFDBFolder(
        root / "cinc2021", fs=HZ, labels="none", windows="all", on_error="skip", leads=LEADS
    )
    frames = -(-ludb.samples // STRIDE)
    waves = np.stack([frame_labels(ludb, record, frames) for record in ludb.meta["record"]])
    labels = torch.from_numpy(ludb.labels)
    return ludb, labels, torch.from_numpy(waves), challenge[np.arange(len(challenge))][0]


def frame_labels(ludb: LUDB, record: str, frames: int, lead: str = "II") -> NDArray[np.float32]:
    """(frames, 3): whether a frame holds a part of a P, QRS or T wave; NaN before the first mark and after the last one.

    Frame i is the stretch of 0.16 s around sample 16 i, where the encoder's padding puts it.
    """
    marked = ludb.waves(record, lead).dropna()
    found = np.full((frames, len(WAVES)), np.nan, dtype=np.float32)
    onset, offset = (marked[name].to_numpy() * HZ / STRIDE + 0.5 for name in ("onset", "offset"))
    first, last = int(np.ceil(onset.min())), int(offset.max())
    found[first:last] = 0
    for wave, begin, end in zip(marked["wave"], onset.astype(int), offset.astype(int) + 1, strict=True):
        found[max(first, begin) : min(last, end), WAVES.index(wave)] = 1
    return found


def report(plan: Plan, results: Sequence[Result]) -> Section:
    starts = dict.fromkeys(plan.settings.tasks, plan.settings.start)
    planned = list(tasks(plan.settings, plan.record))
    return section(plan, results, planned, starts, plan.settings.scoring.probe, plan.main)
