"""What the weights of an arm became: by task over seeds, and along pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.page.charts import Curve
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import kinds_of
from ppi_extension.experiment.run import Run

LEGEND = 32  # characters of a name that fit a legend
DRAWN = 3  # tasks raised, and lowered, whose weights are drawn along pre-training

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """A pre-training task and its final weight over seeds.

    Attributes:
        term, name: of the function; the name where it is known.
        kind: of a planted task.
        weight, sd: mean and SD over seeds.
        above: seeds in which it ended above 1.
        seeds: how many there are.
        positives: genes' graphs that have it.
    """

    term: str
    name: str
    kind: str
    weight: float
    sd: float
    above: int
    seeds: int
    positives: int

    @property
    def short(self) -> str:
        """Its name where that fits a legend, else its identifier."""
        return self.name if 0 < len(self.name) <= LEGEND else self.term


@dataclass(frozen=True)
class Learned:
    """An arm that takes φ steps."""

    arm: str
    tasks: list[Task]
    curve: Curve
    text: str
    verdicts: list[tuple[str, str]]
    signals: str
    kinds: list[str]


def gather(runs: Sequence[Run], store: EgoStore) -> list[Learned]:
    """Every arm that learned weights, as far as its seeds have ended."""
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        if run.info["signal"]:
            by_arm.setdefault(run.arm, []).append(run)
    kinds = kinds_of(store)
    return [_arm(arm, own, store, kinds) for arm, own in by_arm.items()]


def _arm(arm: str, runs: Sequence[Run], store: EgoStore, kinds: dict[str, str]) -> Learned:
    trajectories = [np.load(run.trajectory, allow_pickle=False) for run in runs]
    final = np.array([one["weights"][-1] for one in trajectories], dtype=np.float64)  # (seeds, T)
    mean, sd = final.mean(axis=0), final.std(axis=0)
    positives, _ = store.counts("pretrain")
    tasks = [
        Task(
            term,
            store.term_names.get(term, ""),
            kinds.get(term, ""),
            float(mean[t]),
            float(sd[t]),
            int((final[:, t] > 1).sum()),
            len(runs),
            int(positives[t]),
        )
        for t, term in enumerate(store.pretrain_terms)
    ]
    verdicts = [(f"seed {run.seed}", run.info["signal"]) for run in runs]
    drifting = sum(text.startswith("drifts") for _, text in verdicts)
    return Learned(
        arm,
        tasks,
        _trajectory(tasks, *_mean([(one["steps"], one["weights"]) for one in trajectories])),
        _text(final),
        verdicts,
        f"drifts in {drifting} of {len(runs)} seeds",
        list(dict.fromkeys(kinds[term] for term in store.pretrain_terms)) if kinds else [],
    )


def _mean(
    trajectories: Sequence[tuple[NDArray[np.int64], Floats]],
) -> tuple[NDArray[np.int64], Floats]:
    """Steps of the first trajectory, and the mean weights of all after the same share of training."""
    steps = trajectories[0][0]
    shares = steps / max(1, steps[-1])
    weights = []
    for own, values in trajectories:
        at = np.abs(own[:, None] / max(1, own[-1]) - shares).argmin(axis=0)
        weights.append(values[at])
    return steps, np.mean(weights, axis=0)


def _trajectory(tasks: Sequence[Task], steps: NDArray[np.int64], weights: Floats) -> Curve:
    """The tasks that moved most, and the middle of all, as means over seeds."""
    order = np.argsort([task.weight for task in tasks])
    n = min(DRAWN, len(order) // 2)
    x = steps.tolist()
    series: dict[str, tuple[list[float], list[float]]] = {}
    for t in [*order[::-1][:n], *order[:n]]:
        series[tasks[t].short] = (x, weights[:, t].tolist())
    series["median of all"] = (x, np.median(weights, axis=1).tolist())
    return Curve(
        "Weights along pre-training",
        "pre-training step",
        "weight, mean over seeds",
        series,
        caption="Those that moved most.",
    )


def _text(final: Floats) -> str:
    """How far seeds agree on the weights."""
    if len(final) < 2:
        return "One seed: whether another would raise the same tasks is not known."
    found = []
    for a in range(len(final)):
        for b in range(a):
            ranks = np.argsort(np.argsort(final[[a, b]], axis=1), axis=1)
            found.append(float(np.corrcoef(ranks).min()))
    return (
        f"Rank correlation of the weights between two seeds: {np.mean(found):.2f} on average "
        "(1 is full agreement, 0 is what chance gives)."
    )
