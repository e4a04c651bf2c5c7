"""What the report page says about a run: numbers and pictures gathered from its folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgmeta.augment import LearnedWarp, load_augmenter
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import ARMS, LEARNED
from ecgmeta.experiment.run import Run
from ecgmeta.report.content import (
    AugmenterSummary,
    Curve,
    DatasetSummary,
    Estimate,
    Histogram,
    LabelScore,
    Parameter,
    ReportContent,
    ResultRow,
    ResultsTable,
    ViewPair,
)
from ecgmeta.report.page import write
from ecgmeta.runtime.files import read_json, read_log
from ecgmeta.runtime.seeds import torch_generator
from ecgmeta.simclr import ExampleWeights

NAN = float("nan")


def report(run: Run, cohort: Cohort) -> Path:
    """Write ``report.html`` of a run from whatever stages it has."""
    return write(content(run, cohort), run.report)


def content(run: Run, cohort: Cohort) -> ReportContent:
    """Everything the page shows."""
    info = run.info
    results = read_json(run.results) if run.results.is_file() else None
    logs = {arm: read_log(other.metrics) for arm, other in run.arms().items() if other.metrics.is_file()}
    return ReportContent(
        title=f"{run.folder.name}: {run.arm}, {ARMS[run.arm]}",
        summary=_summary(run, cohort, results),
        warnings=[*(results or {}).get("warnings", []), *_warnings(run, cohort, logs)],
        results=_results(run, cohort, results),
        curves=curves(logs),
        augmenter=_augmenter(run, cohort),
        examples=_examples(run, cohort),
        data=_data(run, cohort),
        cost=_cost(logs),
        command=info["command"],
        environment={key: str(info[key]) for key in ("ecgmeta", "python", "torch", "platform", "threads")}
        | {"seed": str(run.config.seed)},
        config_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
    )


def _summary(run: Run, cohort: Cohort, results: dict[str, Any] | None) -> list[str]:
    lines = [
        f"An encoder was pre-trained on {len(cohort.pretrain):,} unlabelled recordings "
        f"of {cohort.pretrain.meta['patient'].nunique():,} patients ({ARMS[run.arm]})."
    ]
    if results is None:
        return lines
    for labels in sorted({row["labels"] for row in results["rows"]}):
        rows = [row for row in results["rows"] if row["labels"] == labels]
        best = max(rows, key=lambda row: row["scores"]["macro_auroc"])
        lines.append(
            f"With {labels} labelled recordings the highest macro AUROC on {best['scores']['n_records']:,} test recordings "
            f"was {best['scores']['macro_auroc']:.3f} ({best['arm']}, {_PROTOCOL[best['protocol']]})."
        )
        lines += [
            _verdict(row, results["reference"])
            for row in rows
            if row["arm"] == "meta" and "difference" in row
        ]
    lines.append(
        "Intervals say how a number would move with other test patients, and those of differences also with other "
        "seeds of fine-tuning, where there are several. They do not cover another pre-training seed or another draw "
        "of the labelled subset: repeat the run with other seeds for that."
    )
    return lines


_PROTOCOL = {"full": "fine-tuned whole", "linear": "linear probe"}


def _verdict(row: dict[str, Any], reference: str) -> str:
    difference = row["difference"]
    low, high = (100 * (edge if edge is not None else NAN) for edge in difference["interval"])
    delta, low_text, high_text = (
        f"{v:+.1f}".replace("-", "−") for v in (100 * difference["delta"], low, high)
    )
    size = f"{delta} AUROC points against {reference} (95 % interval {low_text} to {high_text})"
    chance = f"the choice of {difference['resampled']}"
    if low > 0:
        meaning = f"a gain that {chance} does not explain"
    elif high < 0:
        meaning = f"a loss that {chance} does not explain"
    else:
        meaning = f"no difference beyond {chance}"
    return f"Learned augmentations, {_PROTOCOL[row['protocol']]}, {row['labels']} labels: {size}: {meaning}."


def _warnings(run: Run, cohort: Cohort, logs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [note for note in cohort.notes if note]
    learned = [arm for arm, other in run.arms().items() if arm in logs and _kept(other) in LEARNED]
    if not learned:
        return lines
    steps = [line for arm in learned for line in logs[arm] if "hyper" in line]
    skipped = [line["skipped"] for line in steps if line["skipped"]]
    if not steps:
        lines.append(
            "No φ step was taken: pre-training was shorter than its warm-up, so nothing was learned."
        )
    if skipped:
        lines.append(f"{len(skipped)} of {len(steps)} φ steps were skipped; the last reason: {skipped[-1]}.")
    held = [line["failure"]["reason"] for line in steps if "failure" in line and not line["skipped"]]
    if held:
        lines.append(f"φ was held back in {len(held)} of {len(steps)} φ steps; the last reason: {held[-1]}.")
    curved = sum(line.get("solver") == "negative_curvature" for line in steps)
    if curved:
        lines.append(
            f"{curved} of {len(steps)} φ steps met negative curvature of the pre-training loss: the inverse-Hessian product "
            "there is a short sum, not an inverse (meta.damping would make it one)."
        )
    if steps and not (signal := run.info.get("signal", "drifts")).startswith("drifts"):
        lines.append(f"The hypergradient {signal}.")
    if run.config.pretrain.max_steps:
        lines.append(f"Pre-training was cut at {run.config.pretrain.max_steps} steps (pretrain.max_steps).")
    return lines


def _results(run: Run, cohort: Cohort, results: dict[str, Any] | None) -> ResultsTable | None:
    if results is None:
        return None
    rows = [result_row(row) for row in results["rows"]]
    patients = cohort.test.meta["patient"].nunique()
    unseen = "" if results["warnings"] else " that no stage of training has seen"
    over = {row["difference"]["resampled"] for row in results["rows"] if "difference" in row} - {"patients"}
    return ResultsTable(
        rows,
        reference=results["reference"],
        tested_on=f"{len(cohort.test):,} recordings of {patients:,} patients{unseen}",
        interval=f"95 %, {run.later.evaluate.bootstrap:,} resamples of test patients; mean over fine-tuning seeds"
        + (
            "; those of differences also resample the seeds, of which two or three make them wide"
            if over
            else ""
        ),
        notes=list(dict.fromkeys(_notes(results["rows"]))),  # protocols share theirs
    )


def result_row(row: dict[str, Any]) -> ResultRow:
    """A row of ``results.json`` as the page shows it."""
    scores, difference = row["scores"], row.get("difference")
    return ResultRow(
        arm=row["arm"],
        protocol=row["protocol"],
        labels=row["labels"],
        seeds=len(scores["seeds"]),
        auroc=_estimate(scores["macro_auroc"], scores["macro_interval"]),
        per_label={
            s["name"]: LabelScore(_estimate(s["auroc"], s["interval"]), s["positives"])
            for s in scores["labels"]
            if s["auroc"] is not None
        },
        difference=_estimate(difference["delta"], difference["interval"]) if difference else None,
        absent=scores["absent"],
        average_precision=Estimate(scores["macro_ap"]),
    )


def _notes(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    for row in sorted(rows, key=lambda row: row["labels"]):
        if row["note"]:
            yield f"{row['arm']}, {row['labels']} labels: {row['note']}."


def _estimate(value: float | None, interval: Iterable[float | None]) -> Estimate:
    low, high = (NAN if edge is None else edge for edge in interval)
    return Estimate(NAN if value is None else value, low, high)


def curves(logs: dict[str, list[dict[str, Any]]]) -> list[Curve]:
    """The lines of metric logs over training, by arm (or run)."""

    def series(
        path: tuple[str, ...], arms: Iterable[str] = logs
    ) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        for arm in arms:
            points = [(line["step"] + 1, _at(line, path)) for line in logs[arm]]
            points = [(x, y) for x, y in points if y is not None]
            if points:
                found[arm] = ([p[0] for p in points], [p[1] for p in points])
        return found

    step = "pre-training step"
    found_curves = [
        Curve("Pre-training loss (NT-Xent)", step, "loss, nats", series(("pretrain_loss",))),
        Curve(
            "Fine-tuning validation loss seen by φ", step, "loss, nats", series(("hyper", "validation_loss"))
        ),
        Curve("Norm of the hypergradient", step, "norm", series(("hyper", "norm")), log_y=True),
        Curve("Global warp magnitude", step, "magnitude", series(("global_magnitude",))),
    ]
    # A policy's, arm by arm: its operations are the lines.
    for arm, lines in logs.items():
        for title, start, y in (
            ("Chance that an operation is applied", "chance of ", "share"),
            ("Magnitude, in units of the operation's typical one", "g² of ", "g²"),
        ):
            keys = [key for key in (lines[-1] if lines else {}) if key.startswith(start)]
            found = {key.removeprefix(start): series((key,), [arm])[arm] for key in keys}
            if any(
                set(values) != {1.0} for _, values in found.values()
            ):  # a chain without gates always applies
                found_curves.append(Curve(f"{title}: {arm}", step, y, found))
    return [curve for curve in found_curves if curve.series]


def _at(line: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _kept(run: Run) -> str:
    """The arm of the run that ``meta_best`` kept, which may be one that was drawn; of other arms their own."""
    kept: str = run.info.get("search", {}).get("arm", "meta") if run.arm == "meta_best" else run.arm
    return kept


def _weights(run: Run, cohort: Cohort) -> AugmenterSummary:
    found = ExampleWeights.from_pretrained(run.weights).all().numpy()
    rows = [Parameter("all recordings, mean (SD)", "", "1 (0)", f"{found.mean():.3f} ({found.std():.3f})")]
    for source, places in cohort.pretrain.meta.groupby("source").indices.items():
        own = found[places]
        rows.append(Parameter(f"{source}, mean (SD)", "", "1 (0)", f"{own.mean():.3f} ({own.std():.3f})"))
    edges = np.linspace(0, 2, 41)
    counts = {"after": np.histogram(found, edges)[0].tolist()}
    signal = f" The hypergradient {run.info['signal']}." if "signal" in run.info else ""
    return AugmenterSummary(
        "Learned weights of the pre-training recordings",
        rows,
        [Histogram("Weights", "weight", edges.tolist(), counts, "All start at 1.")],
        "Recordings with a small weight count little in the contrastive loss; the largest weight is 2."
        + signal,
    )


def _augmenter(run: Run, cohort: Cohort) -> AugmenterSummary | None:
    if run.weights.is_dir():
        return _weights(run, cohort)
    if not (run.augmenter.is_dir() and run.augmenter_before.is_dir()):
        return None
    x = cohort.pretrain[slice(0, 256)][0]
    before, after = (load_augmenter(folder) for folder in (run.augmenter_before, run.augmenter))
    how = "learned by hypergradient" if _kept(run) in LEARNED else "not learned in this arm"
    signal = f" The hypergradient {run.info['signal']}." if "signal" in run.info else ""
    if isinstance(before, LearnedWarp) and isinstance(after, LearnedWarp):
        return _warp(before, after, x, run.config.seed, how, signal)
    rows = []
    for then, now in zip(before.learned(x), after.learned(x), strict=True):
        means = (float(then.values.mean()), float(now.values.mean()))
        rows.append(Parameter(f"{now.group}: {now.name}", now.unit if now.unit != "1" else "", *means))
    policy = run.config.augment.policy
    order = "every operation in turn" if policy.selector == "chain" else "one operation a stage"
    order += ", each with its chance" if policy.gate else ""
    about = f"Each record gets {order}; magnitudes are means over the first 256 recordings."
    return AugmenterSummary(f"Learned policy ({how})", rows, [], about + signal)


def _warp(
    before: LearnedWarp, after: LearnedWarp, x: torch.Tensor, seed: int, how: str, signal: str
) -> AugmenterSummary:
    found = [_behaviour(warp, x, seed) for warp in (before, after)]
    units = {
        "sd_ms": ("SD of the time displacement", "ms"),
        "folded": ("steps where time runs backwards", "share"),
        "outside": ("positions outside the record", "share"),
        "magnitude_mean": ("magnitude m(x)·g², mean", ""),
        "magnitude_sd": ("magnitude m(x)·g², SD over records", ""),
        "global_magnitude": ("global magnitude g", ""),
    }
    parameters = [
        Parameter(name, unit, found[0][0][key], found[1][0][key]) for key, (name, unit) in units.items()
    ]
    displacements = {name: values for name, (_, values) in zip(("before", "after"), found, strict=True)}
    limit = float(np.quantile(np.abs(np.concatenate(list(displacements.values()))), 0.995)) or 1.0
    edges = np.linspace(-limit, limit, 61)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in displacements.items()}
    caption = "Over the first 256 pre-training recordings."
    about = (
        "A displacement shifts each instant of all leads alike: waves come earlier or later, longer or shorter, "
        "so heart rate and intervals change while amplitudes stay."
    )
    return AugmenterSummary(
        f"Learned time warp ({how})",
        parameters,
        [Histogram("Time displacement", "ms", edges.tolist(), counts, caption)],
        about + signal,
    )


def _behaviour(warp: LearnedWarp, x: torch.Tensor, seed: int) -> tuple[dict[str, float], np.ndarray]:
    generator = torch_generator(seed, "report")
    statistics = warp.describe(x, generator=generator)
    with torch.no_grad():
        noise = warp.draw(x, torch_generator(seed, "report"))
        displacement = warp.displacement(x, noise)
    return statistics, (displacement / warp.input_fs * 1000).flatten().numpy()


def _examples(run: Run, cohort: Cohort) -> list[ViewPair]:
    """Three test recordings and a learned view of each: one of each of the first labels where there are labels."""
    if not run.augmenter.is_dir():
        return []
    augmenter = load_augmenter(run.augmenter)
    test = cohort.test
    firsts = [
        int(np.argmax(test.labels[:, c])) for c in range(test.labels.shape[1]) if test.labels[:, c].any()
    ]
    rows = list(dict.fromkeys(itertools.chain(firsts, range(len(test)))))[:3]
    x, y = test[rows]
    with torch.no_grad():
        views = augmenter(x, generator=torch_generator(run.config.seed, "report examples"))
    pairs = []
    for place, row in enumerate(rows):
        names = [name for name, on in zip(test.label_names, y[place].tolist(), strict=True) if on]
        said = ", ".join(names) or "none of those used"
        caption = f"Labels: {said}. Augmented: one draw of the warp at the end of pre-training."
        record = str(test.meta["record"].iloc[row])
        pairs.append(ViewPair(record, caption, test.fs, test.leads, x[place].numpy(), views[place].numpy()))
    return pairs


def _data(run: Run, cohort: Cohort) -> list[DatasetSummary]:
    def summary(name: str, data: Any, notes: list[str]) -> DatasetSummary:
        counts = data.labels.sum(axis=0).astype(int).tolist() if len(data.label_names) else []
        labels = dict(zip(data.label_names, counts, strict=True))
        patients = data.meta["patient"].nunique()
        return DatasetSummary(name, len(data), patients, data.fs, data.samples / data.fs, labels, notes)

    sources = cohort.pretrain.meta["source"].value_counts()
    left_out = [f"left out: {line}" for line in cohort.skipped[:20]]
    rows = cohort.labelled(max(run.later.finetune.labels), run.config.seed)
    parts = [
        summary(
            "Pre-training", cohort.pretrain, [f"{n:,} from {name}" for name, n in sources.items()] + left_out
        ),
        summary("Labelled pool", cohort.train, [f"the largest labelled subset takes {len(rows):,} of these"]),
        summary("Test", cohort.test, []),
    ]
    return parts


def _cost(logs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    seconds = {arm: lines[-1]["seconds"] / (lines[-1]["step"] + 1) for arm, lines in logs.items() if lines}
    cost = [
        (f"{arm}: one pre-training step, mean", f"{1000 * value:.0f} ms") for arm, value in seconds.items()
    ]
    if {"meta", "simclr_warp"} <= seconds.keys():
        ratio = seconds["meta"] / seconds["simclr_warp"]
        cost.append(("meta ÷ the same augmentation without learning", f"{ratio:.2f} times the time a step"))
    if {"meta", "simclr"} <= seconds.keys():
        cost.append(
            ("meta ÷ static SimCLR", f"{seconds['meta'] / seconds['simclr']:.2f} times the time a step")
        )
    return cost
