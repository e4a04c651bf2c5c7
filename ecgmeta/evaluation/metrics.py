"""Multilabel scores with patient-bootstrap intervals, and the paired difference of two predictors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from ecgmeta.evaluation.bootstrap import (
    Seeds,
    bootstrap_auroc,
    hierarchical_difference,
    label_auroc,
    macro,
    percentile_interval,
)
from ecgmeta.evaluation.checks import (
    both_classes,
    check_bootstrap,
    check_score_sets,
    check_targets,
    number_patients,
)
from ecgmeta.runtime.errors import InputError

Interval = tuple[float, float]
_NAN = float("nan")


@dataclass(frozen=True)
class LabelScore:
    """One label's scores; the numbers are NaN where the label has one class only.

    Attributes:
        name: of the label.
        positives: number of positive records.
        n: number of records.
        auroc: area under the ROC curve.
        interval: its patient-bootstrap interval.
        average_precision: area under the precision-recall steps.
        dropped: resamples in which the label lost one of its classes; they are in neither interval's label mean.
    """

    name: str
    positives: int
    n: int
    auroc: float
    interval: Interval
    average_precision: float
    dropped: int


@dataclass(frozen=True)
class Scores:
    """Scores of one predictor, or the mean of several seeds', on one set of records.

    Attributes:
        macro_auroc: mean AUROC of the labels that have both classes.
        macro_interval: its patient-bootstrap interval.
        macro_ap: mean average precision of the same labels.
        seeds: macro AUROC of each seed's scores; one where one array was given.
        labels: one entry a label, absent ones included (with NaN).
        absent: labels with one class only, left out of both means.
        n_records: number of records.
        n_patients: number of patients resampled.
        by_patient: False where no patients were given and each record was resampled on its own.
        n_boot: number of resamples.
        level: of the intervals.
    """

    macro_auroc: float
    macro_interval: Interval
    macro_ap: float
    seeds: tuple[float, ...]
    labels: tuple[LabelScore, ...]
    absent: tuple[str, ...]
    n_records: int
    n_patients: int
    by_patient: bool
    n_boot: int
    level: float

    @property
    def note(self) -> str:
        """What a reader of the numbers must know, in one line; empty where there is nothing to say."""
        said = []
        if self.absent:
            left = len(self.labels) - len(self.absent)
            names = ", ".join(self.absent)
            said.append(f"macro means are over {left} of {len(self.labels)} labels; one class only: {names}")
        dropped = [f"{s.name} {s.dropped}" for s in self.labels if s.dropped and s.name not in self.absent]
        if dropped:
            said.append(f"of {self.n_boot} resamples, left without one class: {', '.join(dropped)}")
        if not self.by_patient:
            said.append("no patients given: records were resampled one by one")
        return "; ".join(said)

    def to_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold: NaN becomes None; the note is included."""
        return {**{key: _plain(value) for key, value in asdict(self).items()}, "note": self.note}


@dataclass(frozen=True)
class Difference:
    """Macro AUROC of predictor a minus that of predictor b, on the same records and resamples.

    Attributes:
        delta: mean over a's seeds minus mean over b's seeds.
        interval: bootstrap interval of delta; `resampled` says over what.
        seeds_a: macro AUROC of each of a's score sets.
        seeds_b: macro AUROC of each of b's score sets.
        absent: labels with one class only, left out of the means.
        dropped: resamples in which at least one of the other labels lost a class and left that macro mean.
        n_records: number of records.
        n_patients: number of patients resampled.
        n_boot: number of resamples.
        level: of the interval.
        resampled: "patients", where the interval holds the seeds fixed (it says how delta would move with other patients,
            not with other seeds), or "patients and seeds".
        interval_patients: the one over patients alone, whatever `resampled` says.
    """

    delta: float
    interval: Interval
    seeds_a: tuple[float, ...]
    seeds_b: tuple[float, ...]
    absent: tuple[str, ...]
    dropped: int
    n_records: int
    n_patients: int
    n_boot: int
    level: float
    resampled: str = "patients"
    interval_patients: Interval = (_NAN, _NAN)

    def to_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold: NaN becomes None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def multilabel_scores(
    scores: npt.ArrayLike | Sequence[npt.ArrayLike],
    targets: npt.ArrayLike,
    label_names: Sequence[str],
    *,
    patients: Iterable[object] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Scores:
    """Macro and per-label AUROC and average precision, with patient-bootstrap intervals.

    Point estimates are torchmetrics'. An interval of a label that is separated perfectly has width 0: the
    percentile bootstrap cannot see beyond the records it has.

    Args:
        scores: (N, C) of any increasing function of the probability (logits will do), or one such array a seed. Every
            number is then the mean over seeds, and an interval says how that mean would move with other patients.
        targets: (N, C) of 0 and 1.
        label_names: C names, in the order of the columns.
        patients: patient of each record, (N,); without it each record counts as a patient, and the note says so.
        n_boot: number of resamples; 0 leaves the intervals NaN.
        seed: of the resampling.
        level: of the intervals.

    Raises:
        InputError: shapes that disagree, NaN scores, targets other than 0 and 1, or no label with both classes.
    """
    names, truth = tuple(label_names), check_targets(targets, label_names)
    sets = check_score_sets("scores", scores, truth.shape)
    groups = number_patients(patients, len(truth))
    check_bootstrap(n_boot, level)
    scorable = both_classes(truth, names)
    columns = np.flatnonzero(scorable)
    replicates = bootstrap_auroc(
        [values[:, columns] for values in sets], truth[:, columns], groups, n_boot, seed
    )
    by_column = dict(zip(columns.tolist(), replicates.mean(axis=0).T, strict=True))
    labels = tuple(
        _label_score(name, [values[:, c] for values in sets], truth[:, c], by_column.get(c), level)
        for c, name in enumerate(names)
    )
    return Scores(
        macro_auroc=float(np.mean([labels[c].auroc for c in columns])),
        macro_interval=percentile_interval(macro(replicates).mean(axis=0), level),
        macro_ap=float(np.mean([labels[c].average_precision for c in columns])),
        seeds=tuple(float(macro(label_auroc(values[:, columns], truth[:, columns]))) for values in sets),
        labels=labels,
        absent=tuple(name for name, both in zip(names, scorable, strict=True) if not both),
        n_records=len(truth),
        n_patients=int(groups.max()) + 1,
        by_patient=patients is not None,
        n_boot=n_boot,
        level=level,
    )


def paired_difference(
    scores_a: npt.ArrayLike | Sequence[npt.ArrayLike],
    scores_b: npt.ArrayLike | Sequence[npt.ArrayLike],
    targets: npt.ArrayLike,
    label_names: Sequence[str],
    *,
    patients: Iterable[object] | None = None,
    resample_seeds: Seeds = "fixed",
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Macro AUROC of a minus that of b, each a mean over seeds, with common patient resamples.

    With seeds resampled as well the interval says how delta would move with other patients and other seeds; see
    :func:`~ecgmeta.evaluation.bootstrap.hierarchical_difference`, also for what few seeds cost. A side with one seed keeps it.

    Args:
        scores_a: (N, C), or one such array a seed.
        scores_b: likewise; the number of seeds may differ from a's.
        targets: (N, C) of 0 and 1.
        label_names: C names.
        patients: patient of each record, (N,); without it each record counts as a patient.
        resample_seeds: "paired" draws the same seeds for a and b, where seed s of both shares what the seed decides; "apart"
            draws them for each.
        n_boot: number of resamples; 0 leaves the interval NaN.
        seed: of the resampling.
        level: of the interval.

    Raises:
        InputError: as `multilabel_scores`; paired seeds of which one side has more.
    """
    names, truth = tuple(label_names), check_targets(targets, label_names)
    groups = number_patients(patients, len(truth))
    check_bootstrap(n_boot, level)
    scorable = both_classes(truth, names)
    set_a, set_b = (
        check_score_sets("scores_a", scores_a, truth.shape),
        check_score_sets("scores_b", scores_b, truth.shape),
    )
    kept = [values[:, scorable] for values in (*set_a, *set_b)]
    truth = truth[:, scorable]
    points = [float(macro(label_auroc(values, truth))) for values in kept]
    seeds_a, seeds_b = tuple(points[: len(set_a)]), tuple(points[len(set_a) :])
    replicates = bootstrap_auroc(kept, truth, groups, n_boot, seed)
    macros = macro(replicates)
    a, b = macros[: len(set_a)], macros[len(set_a) :]
    if resample_seeds == "paired" and len(a) != len(b):
        found = f"{len(a)} and {len(b)}"
        raise InputError("paired_difference", "seeds", found, "as many of each, or resample_seeds='apart'")
    # Student's width for two or three seeds may leave what a difference of AUROCs can be.
    deltas = np.clip(hierarchical_difference(a, b, resample_seeds, level, seed), -1, 1)
    over_seeds = resample_seeds != "fixed" and max(len(a), len(b)) > 1
    return Difference(
        delta=float(np.mean(seeds_a) - np.mean(seeds_b)),
        interval=percentile_interval(deltas, level),
        seeds_a=seeds_a,
        seeds_b=seeds_b,
        absent=tuple(name for name, both in zip(names, scorable, strict=True) if not both),
        dropped=int(np.isnan(replicates[0]).any(axis=1).sum()),
        n_records=len(truth),
        n_patients=int(groups.max()) + 1,
        n_boot=n_boot,
        level=level,
        resampled="patients and seeds" if over_seeds else "patients",
        interval_patients=percentile_interval(a.mean(axis=0) - b.mean(axis=0), level),
    )


def _label_score(
    name: str,
    scores: Sequence[npt.NDArray[np.float64]],
    target: npt.NDArray[np.int64],
    replicates: npt.NDArray[np.float64] | None,
    level: float,
) -> LabelScore:
    """Mean over seeds of one label's scores; `replicates` (B,) is None for a label with one class only."""
    positives, n = int(target.sum()), len(target)
    if replicates is None:
        return LabelScore(name, positives, n, _NAN, (_NAN, _NAN), _NAN, 0)
    auroc, precision = np.mean([_torchmetrics(score, target) for score in scores], axis=0).tolist()
    dropped = int(np.isnan(replicates).sum())
    return LabelScore(name, positives, n, auroc, percentile_interval(replicates, level), precision, dropped)


def _torchmetrics(score: npt.NDArray[np.float64], target: npt.NDArray[np.int64]) -> tuple[float, float]:
    """AUROC and average precision of one label (N,) that has both classes."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # torchmetrics passes scores outside [0, 1] through a sigmoid, which saturates and invents ties among large
    # logits. Both metrics depend on the order alone, so it is given the dense ranks, scaled into (0, 1).
    distinct, rank = np.unique(score, return_inverse=True)
    preds = torch.as_tensor((rank + 0.5) / len(distinct), dtype=torch.float64)
    truth = torch.as_tensor(target)
    return float(binary_auroc(preds, truth)), float(binary_average_precision(preds, truth))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return None if np.isnan(value) else value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
