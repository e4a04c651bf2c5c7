"""What learning φ costs, beside the same pre-training without it; and what a random search would need for the same.

A cell is one way to learn on one network: it alternates with plain pre-training in one process, whose CPU time is counted, so
that a busy machine does not matter; each then runs alone in a fresh process, whose peak memory is read.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ecgmeta.encoders import Encoder, create_encoder
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.charts import Estimate
from ecgmeta.runtime.seeds import seeded, torch_generator
from examples.studies import study
from examples.studies.ecg_arms import Meta, Records, Training, pretrain
from examples.studies.ecg_report import values, whole
from examples.studies.report import forest, table
from examples.studies.statistics import by_seed, mean
from examples.studies.study import Outcome, Result, Section, Task, load, read_results, results_file

ARMS: Mapping[str, tuple[str, dict[str, int]]] = {  # arm -> how it learns, and its settings
    "ours, P = 1": ("ours", {"period": 1}),
    "ours, P = 2": ("ours", {"period": 2}),
    "ours, P = 10": ("ours", {"period": 10}),
    "paper's settings": ("paper", {}),
}
OPERATIONS = (
    "baseline_wander",
    "muscle_noise",
    "gain",
    "time_warp",
    "random_resized_crop",
    "time_mask",
    "lead_dropout",
)


@dataclass
class Network:
    """What is pre-trained.

    Attributes:
        encoder: see :func:`ecgmeta.encoders.create_encoder`; ``""`` is the small one of the ECG studies.
        width: of the encoder, where it has one.
        leads, samples, batch_size: of a step's records.
        rounds, steps: see :class:`Settings`; 0 takes those.
    """

    encoder: str = ""
    width: int = 8
    leads: int = 4
    samples: int = 400
    batch_size: int = 64
    rounds: int = 0
    steps: int = 0


@dataclass
class Settings:
    """What every cell follows from.

    Attributes:
        networks: by name.
        rounds, steps: turns of each side, and steps a turn.
        labels: records whose labels a φ step draws.
    """

    networks: dict[str, Network] = field(default_factory=dict)
    rounds: int = 5
    steps: int = 20
    labels: int = 96


@dataclass
class Plan(study.Plan):
    """The plan of this study; ``notes`` stand below its tables."""

    settings: Settings = field(default_factory=Settings)
    notes: str = ""


def tasks(settings: Settings, seeds: Sequence[int]) -> Iterator[Task]:
    for seed in seeds:
        for name, network in settings.networks.items():
            rounds, steps = network.rounds or settings.rounds, network.steps or settings.steps
            inputs = asdict(network) | {"rounds": rounds, "steps": steps, "labels": settings.labels}
            for arm in ARMS:
                yield Task(arm, name, seed, inputs)


def run(task: Task) -> Mapping[str, float]:
    """CPU seconds a step of both sides, medians over rounds, and what each adds to resident memory at its peak, in MB."""
    learn, own = ARMS[task.arm]
    inputs = dict(task.inputs)
    plain, learning = (partial(steps, inputs, way, own, task.seed) for way in ("", learn))
    plain()
    learning()  # what is compiled or cached once is there before the clock starts
    times = [(plain(), learning()) for _ in range(inputs["rounds"])]
    context = multiprocessing.get_context("spawn")
    peaks = []
    for way in ("", learn):
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            peaks.append(fresh.submit(peak, inputs, way, own, task.seed).result())
    without, with_it = peaks
    return {
        "plain, s a step": median(a for a, _ in times),
        "learning, s a step": median(b for _, b in times),
        "ratio": median(b / a for a, b in times),
        "plain, MB": without,
        "learning, MB": with_it,
        "memory ratio": with_it / without,
    }


def steps(inputs: Mapping[str, Any], learn: str, own: Mapping[str, int], seed: int) -> float:
    """CPU seconds a step of one short run."""
    generator = torch_generator(seed, "cost")
    shape = (inputs["leads"], inputs["samples"])
    x = torch.randn(4 * inputs["batch_size"], *shape, generator=generator)
    labelled = Records(
        torch.randn(inputs["labels"] * 5 // 4, *shape, generator=generator),
        (torch.rand(inputs["labels"] * 5 // 4, 5, generator=generator) < 0.5).float(),
    )
    training = Training(steps=inputs["steps"], batch_size=inputs["batch_size"])
    meta = Meta(warmup=0, labels=inputs["labels"], **own)
    with seeded(seed, "network"):
        made: Encoder | None = None
        if inputs["encoder"]:
            made = create_encoder(inputs["encoder"], leads=inputs["leads"], width=inputs["width"])
    began = time.process_time()
    pretrain(x, labelled, dict.fromkeys(OPERATIONS, 0.3), seed, training, meta, learn=learn, encoder=made)
    return (time.process_time() - began) / inputs["steps"]


def peak(inputs: Mapping[str, Any], learn: str, own: Mapping[str, int], seed: int) -> float:
    """How far one short run raises the resident memory of this process, in MB, once everything is imported.

    Raises:
        InputError: no Linux, whose kernel keeps the peak and can forget it.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        raise InputError("cost", "memory", sys.platform, "Linux, for /proc/self")
    torch.set_num_threads(1)
    small = {"encoder": "", "batch_size": 2, "samples": 64, "labels": 4, "steps": 1}
    steps({**inputs, **small}, learn, {}, seed)
    forget.write_text("5")
    before = _kilobytes(status.read_text(), "VmRSS")
    steps(inputs, learn, own, seed)
    return (_kilobytes(status.read_text(), "VmHWM") - before) / 1024


def _kilobytes(status: str, name: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def report(plan: Plan, results: Sequence[Result]) -> Section:
    networks = list(plan.settings.networks)
    rows, ratios, memory = [], {}, []
    pictured: dict[str, dict[str, Estimate]] = {}
    for network in networks:
        for arm in ARMS:
            found = {
                n: by_seed(results, n, arm, network)
                for n in ("plain, s a step", "ratio", "plain, MB", "memory ratio")
            }
            if not found["ratio"]:
                continue
            ratio, more = mean(found["ratio"]), mean(found["memory ratio"])
            ratios[arm, network] = ratio.value
            memory.append(more.value)
            for what, estimate in (("whole run", ratio), ("peak of memory", more)):
                pictured.setdefault(f"{what}, {network}", {})[arm] = Estimate(estimate.value)
            plain, size = (median(found[n].values()) for n in ("plain, s a step", "plain, MB"))
            rows.append(
                (network, arm, f"{plain:.3f}", f"{ratio.value:.2f}", f"{size:.0f}", f"{more.value:.2f}")
            )
    head = (
        "network",
        "φ learned",
        "plain step, CPU s",
        "whole run ÷ plain",
        "plain peak beyond imports, MB",
        "peak ÷ plain",
    )
    needed, text = search_needs()
    own = [ratios[key] for key in ratios if key[0] == "ours, P = 2"]
    theirs = [ratios[key] for key in ratios if key[0] == "paper's settings"]
    known = {
        "time": Outcome(
            f"ours {_list(own)}, the paper's {_list(theirs)}",
            all(1.5 <= r <= 2.5 for r in own) and all(1.3 <= r <= 2 for r in theirs)
            if own and theirs
            else None,
        ),
        "memory": Outcome(
            f"at most {max(memory):.2f} times" if memory else "no cell yet",
            max(memory) <= 2 if memory else None,
        ),
        "search": text,
    }
    body = "\n\n".join([table(head, rows), needed, plan.notes.strip()])
    page = forest(pictured, "times that of plain pre-training (dashed: as much)", 1.0)
    body += "\n\n![Time and memory beside plain pre-training](figures/cost.svg)"
    return Section({name: known[name] for name in plan.expected}, body, {"cost": page})


def _list(ratios: Sequence[float]) -> str:
    return " and ".join(f"{r:.2f}" for r in ratios) or "no cell yet"


def search_needs() -> tuple[str, Outcome]:
    """From the cells of ``ecg_synthetic``: how many trials of its search, and static arms, reach meta's validation R²."""
    other = load("ecg_synthetic")
    cells = other.tasks()
    results = whole(read_results(results_file("ecg_synthetic"), cells), cells)
    rows: list[list[object]] = []
    shares: list[bool] = []
    for setting in other.plan.settings.situations:
        target = values(results, "validation", "meta", setting)
        row: list[object] = [setting, len(target)]
        for kind in ("search ", "static "):
            arms = sorted(
                {task.arm for task in cells if task.setting == setting and task.arm.startswith(kind)}
            )
            reached = [
                value >= target[seed]
                for arm in arms
                for seed, value in by_seed(results, "validation", arm, setting).items()
                if seed in target
            ]
            row.append(f"{sum(reached)} of {len(reached)}")
            if kind == "search ":
                row.append(_runs(sum(reached), len(reached)))
                shares += reached
        rows.append(row)
    head = (
        "situation",
        "seeds",
        "trials that reach meta's R²",
        "runs a search needs, on average",
        "static arms that reach it",
    )
    text = "Which runs without learning reach the validation R² of `meta` in the same seed (study `ecg_synthetic`):"
    if not shares:
        return "", Outcome("no cell yet")
    text_of_all = (
        f"{sum(shares)} of {len(shares)} trials reach it: {_runs(sum(shares), len(shares))} runs on average"
    )
    outcome = Outcome(text_of_all, sum(shares) / len(shares) < 0.5)
    return f"{text}\n\n{table(head, rows)}", outcome


def _runs(reached: int, of: int) -> str:
    """How many trials one waits for on average: 1/p, and with nobody there the 95 % bound of "3 in n"."""
    if not of:
        return "–"
    return f"{of / reached:.1f}" if reached else f"more than {of / 3:.0f}"
