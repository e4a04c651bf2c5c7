"""From the scores of all runs to a table of arms: each at its best length, and paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_json, write_text
from ecgmeta.runtime.progress import say
from ppi_extension.data.store import EgoStore
from ppi_extension.experiment.cohort import divide, kinds_of, useful_tasks
from ppi_extension.experiment.config import RULES, VARIANTS, cotrains
from ppi_extension.experiment.finetune import score_settings
from ppi_extension.experiment.run import Run, Study
from ppi_extension.experiment.scores import mean_of_tasks, over_seeds, task_auroc
from ppi_extension.experiment.tables import to_csv, to_markdown

Floats = NDArray[np.float64]
BySeed = dict[int, Floats]  # seed -> (T,) AUROC of each task, NaN where it is not scored


def evaluate(study: Study, store: EgoStore) -> dict[str, Any]:
    """Score every arm under every protocol, and write ``results.json``, ``.csv`` and ``.md``.

    The length of pre-training is chosen once an arm, by the mean validation AUROC over its seeds; the test scores of other
    lengths are not read. It is the same share of training in every seed: where seeds have other training genes and a gene
    stands in several graphs, an epoch has not as many steps in each. Differences are paired within seeds.

    Returns:
        What stands in ``results.json``.

    Raises:
        InputError: nothing was fine-tuned with the present settings.
    """
    config = study.later
    cohorts = {seed: divide(store, config, seed) for seed in study.seeds()}
    settings = score_settings(config, next(iter(cohorts.values())))
    runs = list(study.runs())
    found = [score for run in runs for score in _numbered(run, settings)]
    if not found:
        raise InputError(study.folder, "scores", "none", "results of `ppi-extension finetune`")
    scored = {seed: cohort.scored for seed, cohort in cohorts.items()}
    rows = [row for protocol in config.finetune.protocols for row in _rows(found, protocol, scored, study)]
    one_class = _named([row.pop("one_class") for row in rows], len(cohorts))
    if one_class:
        say(f"not scored, for want of a class: {', '.join(one_class)}")
    results = {
        "settings": settings,
        "reference": config.evaluate.reference,
        "seeds": study.seeds(),
        "partial_access": config.meta.folds,
        "trained_along": [arm for arm in config.arms if cotrains(config, arm)],
        "rows": rows,
        "signals": {run.name: run.info["signal"] for run in runs if run.info["signal"]},
        "separation": _separation(store, runs),
        "one_class": one_class,
    }
    write_text(study.results.with_suffix(".csv"), to_csv(results))
    write_text(study.results.with_suffix(".md"), to_markdown(results))
    write_json(study.results, results)
    say(f"results: {study.results}, and the same as .csv and .md")
    return results


def _numbered(run: Run, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's scores, each with the number of its length, 0 for the shortest."""
    scores = run.scores(settings)
    lengths = sorted({*run.lengths(), *(score["steps"] for score in scores)})
    return [score | {"length": lengths.index(score["steps"])} for score in scores]


def _rows(
    found: Sequence[dict[str, Any]], protocol: str, scored: Mapping[int, Sequence[int]], study: Study
) -> list[dict[str, Any]]:
    tests: dict[str, BySeed] = {}
    rows: list[dict[str, Any]] = []
    terms = found[0]["settings"]["terms"]
    for arm in study.later.arms:
        own = [score for score in found if score["protocol"] == protocol and score["arm"] == arm]
        if not own:
            continue
        lengths = _lengths(own, scored)
        best = max(lengths, key=lambda number: lengths[number][1])
        chosen = [score for score in own if score["length"] == best]
        tests[arm] = _by_seed(chosen, "test", scored)
        of_length = {"steps": lengths[best][0], "lengths": dict(lengths.values())}
        lacking = _one_class(chosen, scored, terms)
        rows.append({"arm": arm, "protocol": protocol, **of_length, "one_class": lacking})
    for row in rows:
        row |= _scores(tests[row["arm"]], terms)
        reference = tests.get(study.later.evaluate.reference)
        if reference is not None and row["arm"] != study.later.evaluate.reference:
            row["difference"] = _difference(tests[row["arm"]], reference)
            row["task_differences"] = _task_differences(tests[row["arm"]], reference, terms)
        if "meta" in tests and row["arm"] != "meta":
            row["meta_minus"] = _difference(tests["meta"], tests[row["arm"]])
            row["task_meta_minus"] = _task_differences(tests["meta"], tests[row["arm"]], terms)
    return rows


def _lengths(
    own: Sequence[dict[str, Any]], scored: Mapping[int, Sequence[int]]
) -> dict[int, tuple[int, float]]:
    """Of each length that all seeds of an arm have: its number -> steps and validation AUROC, means over seeds."""
    seeds = {score["seed"] for score in own}
    means = {}
    for number in sorted({score["length"] for score in own}):
        chosen = [score for score in own if score["length"] == number]
        here = _by_seed(chosen, "validation", scored)
        if here.keys() == seeds:
            steps = round(np.mean([score["steps"] for score in chosen]))
            means[number] = steps, float(np.mean([mean_of_tasks(values) for values in here.values()]))
    if not means:  # fine-tuning was stopped, at another length in each
        name = f"{own[0]['arm']}, {own[0]['protocol']}"
        raise InputError(name, "lengths", "none that all seeds have", "finished runs of one configuration")
    return means


def _one_class(
    chosen: Sequence[dict[str, Any]], scored: Mapping[int, Sequence[int]], terms: Sequence[str]
) -> dict[str, int]:
    """Task -> the seeds that were to score it, and whose test genes have one class of it only."""
    out: dict[str, int] = {}
    for score in chosen:
        for task in scored.get(score["seed"], ()):
            if score["test"][task] is None or math.isnan(score["test"][task]):
                out[terms[task]] = out.get(terms[task], 0) + 1
    return out


def _by_seed(scores: Sequence[dict[str, Any]], part: str, scored: Mapping[int, Sequence[int]]) -> BySeed:
    out: BySeed = {}
    for score in scores:
        if score["seed"] in scored:
            values = np.array([math.nan if v is None else v for v in score[part]])
            kept = np.full(len(values), np.nan)
            at = list(scored[score["seed"]])
            kept[at] = values[at]
            out[score["seed"]] = kept
    return out


def _named(counts: Sequence[Mapping[str, int]], seeds: int) -> list[str]:
    """Tasks that lack a class, with the seeds in which they do where those are not all."""
    most = {task: max(each.get(task, 0) for each in counts) for each in counts for task in each}
    return [task if n == seeds else f"{task} (in {n} of {seeds} seeds)" for task, n in sorted(most.items())]


def _scores(test: BySeed, terms: Sequence[str]) -> dict[str, Any]:
    means = {seed: mean_of_tasks(values) for seed, values in sorted(test.items())}
    table = np.array(list(test.values()))
    tasks = {
        term: asdict(over_seeds(column[~np.isnan(column)]))
        for term, column in zip(terms, table.T, strict=True)
        if not np.isnan(column).all()
    }
    return {
        "auroc": asdict(over_seeds(list(means.values()))),
        "by_seed": means,
        "tasks": tasks,
    }


def _difference(one: BySeed, other: BySeed) -> dict[str, Any] | None:
    """Mean of ``one − other`` over the seeds that both have, paired; tasks that one side lacks are left out on both."""
    common = sorted(one.keys() & other.keys())
    if not common:
        return None
    return asdict(over_seeds([mean_of_tasks(one[seed] - other[seed]) for seed in common]))


def _task_differences(one: BySeed, other: BySeed, terms: Sequence[str]) -> dict[str, Any]:
    common = sorted(one.keys() & other.keys())
    if not common:
        return {}
    table = np.array([one[seed] - other[seed] for seed in common])
    return {
        term: asdict(over_seeds(column[~np.isnan(column)]))
        for term, column in zip(terms, table.T, strict=True)
        if not np.isnan(column).all()
    }


def _separation(store: EgoStore, runs: Sequence[Run]) -> dict[str, Any]:
    """Of a planted problem: AUROC with which the learned weights tell useful tasks from the others, by arm."""
    kinds = kinds_of(store)
    found: dict[str, list[float]] = {}
    for run in runs:
        if kinds and run.arm in (*VARIANTS, *RULES) and not run.arm.startswith("cotrain"):
            found.setdefault(run.arm, []).append(separation(run, useful_tasks(store)))
    return {arm: asdict(over_seeds(values)) for arm, values in found.items()}


def separation(run: Run, useful: Sequence[bool]) -> float:
    """AUROC of the final weights as a score for usefulness."""
    import torch

    with np.load(run.trajectory, allow_pickle=False) as kept:
        weights = torch.from_numpy(kept["weights"][-1])
    return float(task_auroc(weights[:, None], torch.tensor(useful)[:, None])[0])


def table(results: dict[str, Any]) -> list[list[str]]:
    """Rows of text for a terminal: arm, protocol, steps, seeds, AUROC, difference."""
    from ppi_extension.experiment.tables import interval, ordered

    return [
        [
            row["arm"],
            row["protocol"],
            f"{row['steps']:,}",
            str(row["auroc"]["n"]),
            interval(row["auroc"], digits=3),
            interval(row.get("difference"), "+", 3),
        ]
        for row in ordered(results)
    ]
