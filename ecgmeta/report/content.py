"""What a report says, as plain data: the experiment fills these, `page.render` shows them.

Nothing here knows run folders, torch or matplotlib. Every text field may hold any text (it is escaped when
shown), every part may be left empty (its section is then left out), and a number that could not be computed is
``nan``, shown as "not scored", never as a quiet 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.page.charts import Curve as Curve
from ecgmeta.runtime.page.charts import Estimate as Estimate
from ecgmeta.runtime.page.charts import Histogram as Histogram

Protocol = Literal["full", "linear"]
PROTOCOLS: dict[str, str] = {"full": "Full fine-tuning", "linear": "Linear probe"}


@dataclass(frozen=True)
class LabelScore:
    """One label of one row: its AUROC and how many test records carry it."""

    auroc: Estimate
    positives: int


@dataclass(frozen=True)
class ResultRow:
    """One arm under one protocol at one label count.

    Args:
        arm: name of the arm, e.g. ``"meta"``.
        protocol: ``"full"`` fine-tunes every weight, ``"linear"`` fits a head on a frozen encoder.
        labels: labelled records used for training.
        seeds: runs behind the estimate.
        auroc: macro-AUROC on the test records.
        per_label: score of every label that could be scored.
        difference: paired AUROC difference, this arm minus the table's ``reference``, at equal protocol and labels.
        absent: labels that could not be scored (one class only in the test records).
        average_precision: macro average precision; the column appears when any row has one.
    """

    arm: str
    protocol: Protocol
    labels: int
    seeds: int
    auroc: Estimate
    per_label: Mapping[str, LabelScore] = field(default_factory=dict)
    difference: Estimate | None = None
    absent: Sequence[str] = ()
    average_precision: Estimate | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(
                "report", f"protocol of arm {self.arm}", repr(self.protocol), "'full' or 'linear'"
            )


@dataclass(frozen=True)
class ResultsTable:
    """Every row of the comparison, in any order.

    Args:
        rows: the arms; at least one.
        reference: the arm that ``ResultRow.difference`` is taken against.
        tested_on: one line, e.g. ``"LUDB test fold: 40 records of 40 patients, never seen in training"``.
        interval: how the intervals were made, e.g. ``"patient bootstrap, 1,000 resamples"``.
        notes: sentences under the table: what sets rows apart that look alike.
    """

    rows: Sequence[ResultRow]
    reference: str | None = None
    tested_on: str = ""
    interval: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Parameter:
    """A learned quantity before and after meta-learning; numbers or ready text, None where there is none."""

    name: str
    unit: str
    before: float | str | None
    after: float | str | None


@dataclass(frozen=True)
class AugmenterSummary:
    """What the learned augmentation became."""

    name: str
    parameters: Sequence[Parameter] = ()
    distributions: Sequence[Histogram] = ()
    text: str = ""


@dataclass(frozen=True, eq=False)
class ViewPair:
    """One recording and one augmented view of it, for a picture.

    Args:
        record: name of the recording.
        caption: a sentence under the picture.
        fs: samples per second.
        leads: L lead names.
        original: (L, samples), mV; NaN is a gap.
        augmented: (L, samples), mV, same shape.

    Raises:
        InputError: the shapes differ, or are not (len(leads), samples).
    """

    record: str
    caption: str
    fs: float
    leads: Sequence[str]
    original: NDArray[np.floating[Any]]
    augmented: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        for name, signal in (("original", self.original), ("augmented", self.augmented)):
            expected = f"({len(self.leads)} leads, samples), the same for both"
            if signal.ndim != 2 or len(signal) != len(self.leads) or signal.shape != self.original.shape:
                raise InputError(f"record {self.record}", f"{name} view", f"shape {signal.shape}", expected)


@dataclass(frozen=True)
class DatasetSummary:
    """One set of recordings: ``fs`` in Hz and ``duration`` in s after preprocessing, ``labels`` name -> positives."""

    name: str
    records: int
    patients: int | None = None
    fs: float | None = None
    duration: float | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ReportContent:
    """A whole report, in the order it is read.

    Args:
        title: heading of the page.
        summary: plain sentences a clinician can read: what was trained on what, and how much it helped.
        warnings: anything a reader must know before believing the numbers.
        results: the comparison.
        curves: losses, hypergradient norm, ...
        augmenter: what was learned.
        examples: original against augmented recordings.
        data: the recordings used.
        cost: (what, value) pairs, e.g. ``("φ step, time", "3.1 times a SimCLR step")``.
        command: the exact command that repeats the run.
        environment: versions, device, seed, commit: name -> value.
        config_yaml: the resolved configuration.
    """

    title: str
    summary: Sequence[str] = ()
    warnings: Sequence[str] = ()
    results: ResultsTable | None = None
    curves: Sequence[Curve] = ()
    augmenter: AugmenterSummary | None = None
    examples: Sequence[ViewPair] = ()
    data: Sequence[DatasetSummary] = ()
    cost: Sequence[tuple[str, str]] = ()
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    config_yaml: str = ""
