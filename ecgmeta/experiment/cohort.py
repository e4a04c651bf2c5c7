"""From a configuration to the recordings of each stage: pre-training, labelled training, test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.experiment.config import Data, Experiment, Synthetic
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_atomic, write_text
from ecgmeta.runtime.progress import Report, progress_bar, say
from ecgmeta.runtime.seeds import derive

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset
    from ecgmeta.data.preprocess import Preprocess

KINDS = ("synthetic", "ptbxl", "ludb", "wfdb", "code15", "mitbih")


@dataclass(frozen=True)
class Cohort:
    """The recordings of an experiment, disjoint by patient and by signal where they must be.

    Attributes:
        pretrain: recordings to pre-train on, without labels; no patient or duplicate signal of ``test`` is among them.
        train: labelled recordings, from which the labelled subsets are drawn.
        test: labelled recordings that only :func:`~ecgmeta.experiment.evaluate.evaluate` scores.
        skipped: recordings left out, each with its reason.
        notes: what a reader of the results should know about the data.
    """

    pretrain: ECGDataset
    train: ECGDataset
    test: ECGDataset
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def labelled(self, n: int, seed: int) -> NDArray[np.int64]:
        """Rows of ``train``: ``n`` labelled recordings (all, where there are fewer), nested in n for one seed."""
        from ecgmeta.evaluation.subsets import labelled_rows

        return labelled_rows(self.train, min(n, len(self.train)), seed)

    def split(self, rows: NDArray[np.int64], seed: int) -> tuple[ECGDataset, ECGDataset]:
        """``rows`` of ``train`` as 80 % to train and 20 % to validate on, by patient: the same for MetaFT and fine-tuning."""
        from ecgmeta.evaluation.subsets import train_validation

        return train_validation(self.train, rows, seed)

    def with_labels(self, names: Sequence[str]) -> Cohort:
        """The same recordings with some of the labels only; subsets are then drawn without a look at the others.

        Args:
            names: as in ``train.label_names``; none: all of them.

        Raises:
            InputError: no such label.
        """
        if not names:
            return self
        return replace(self, train=self.train.with_labels(names), test=self.test.with_labels(names))


def load(
    config: Experiment, progress: Report | None = None, test_patients: frozenset[str] | None = None
) -> Cohort:
    """Read every source once, join signals that stand under two names, and split by patient.

    Args:
        config: which sources, and how they are split.
        progress: told what is being read.
        test_patients: the test patients of a run that has begun, where no folds name them: another label set would
            stratify anew, and so test on patients that pre-training has seen.

    Raises:
        InputError: a source is missing or broken, or a part of the split would be empty.
    """
    from ecgmeta.data import concat
    from ecgmeta.data.auditing.audit import signal_notes
    from ecgmeta.data.duplicates import find_duplicates, group_duplicates

    data = config.data
    labelled = _source(data, data.finetune, True, progress)
    sources = [_source(data, spec, False, progress, reuse=labelled) for spec in data.pretrain]
    if not sources:
        raise InputError("configuration", "data.pretrain", "[]", "at least one source")
    distinct = [labelled, *(s for s in sources if s is not labelled)]
    if progress is not None:
        progress(0, 1, "looking for duplicate signals")
    pool = concat(distinct, labels="drop")
    groups = find_duplicates(pool)
    pool = group_duplicates(pool, groups)
    if progress is not None:
        progress(1, 1, "looking for duplicate signals")
    labelled.meta = pool.meta.iloc[: len(labelled)].reset_index(drop=True)
    train, test = _split(config, labelled, test_patients)
    held_out = set(test.meta["patient"]) | (test_patients or set())
    used = np.concatenate(
        [np.full(len(d), any(d is s for s in sources)) for d in distinct]
    )  # the labelled source need not be pre-trained on
    used &= ~pool.meta["patient"].isin(held_out).to_numpy()
    if data.train_folds:
        fold = pool.meta["fold"]
        used &= (fold.isna() | fold.isin(data.train_folds)).fillna(True).to_numpy(dtype=bool)
    if used.sum() < 2:
        raise InputError("data.pretrain", "recordings outside the test set", int(used.sum()), "at least 2")
    skipped = [line for d in distinct for line in d.skipped]
    # A source that is read both with labels and in windows stands in the pool twice: that is one name, not two.
    before = pool.meta["patient_before"]
    twice = sum(before.iloc[group].nunique() > 1 for group in groups)
    notes = [*_notes(data, twice, skipped), *pool.notes, *signal_notes(pool)]
    return Cohort(pool.subset(np.flatnonzero(used)), train, test, skipped, notes)


def _split(
    config: Experiment, labelled: ECGDataset, test_patients: frozenset[str] | None
) -> tuple[ECGDataset, ECGDataset]:
    from ecgmeta.data.splits import official_folds, patient_split

    data = config.data
    if data.train_folds:
        train, _, test = official_folds(labelled.meta, data.train_folds, (), data.test_folds)
    elif test_patients is not None:
        held_out = labelled.meta["patient"].isin(test_patients).to_numpy()
        train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if not (len(train) and len(test)):
            raise InputError(
                data.finetune, "test patients", f"{len(test)} of {len(labelled)} recordings", "some, not all"
            )
    else:
        fractions = (1 - data.test_fraction, data.test_fraction)
        train, test = patient_split(
            labelled.meta, fractions, derive(config.seed, "test split"), labelled.labels
        )
    return labelled.subset(train), labelled.subset(test)


def preprocess(data: Data, windows: str = "first") -> Preprocess:
    """What is done to every recording of an experiment."""
    from ecgmeta.data.preprocess import Preprocess

    return Preprocess(
        fs=data.fs,
        duration=data.duration,
        windows=windows,  # type: ignore[arg-type]  # checked with the configuration
        highpass=data.highpass,
        lowpass=data.lowpass,
        notch=data.notch,
    )


def _source(
    data: Data, spec: str, labelled: bool, progress: Report | None, reuse: ECGDataset | None = None
) -> ECGDataset:
    """One source; ``reuse`` where it would be read the same way again."""
    if reuse is not None and spec == data.finetune and data.windows == "first":
        return reuse
    kind, _, folder = spec.partition(":")
    if kind not in KINDS:
        raise InputError(
            "configuration", "data source", repr(spec), f"kind or kind:folder with a kind of {list(KINDS)}"
        )
    from ecgmeta.data import CODE15, LUDB, MITBIH, PTBXL, SyntheticCohort, WFDBFolder
    from ecgmeta.data.load import preprocessed

    if kind == "synthetic":
        if progress is not None:
            progress(0, 1, "simulating the synthetic cohort")
        cohort = SyntheticCohort(
            data.synthetic.n, fs=data.fs, duration=data.duration, seed=derive(data.synthetic.seed, "cohort")
        )
        if progress is not None:
            progress(1, 1, "simulating the synthetic cohort")
        filtered = data.highpass or data.lowpass or data.notch
        return preprocessed(cohort, preprocess(data)) if filtered else cohort
    root = Path(data.root, folder)
    options: dict[str, Any] = {
        # The windows of a long record have labels of their own, so all are used.
        **preprocess(data, "all" if kind == "mitbih" else "first" if labelled else data.windows).to_dict(),
        "on_error": data.on_error,
        "cache": data.cache or None,
        "progress": progress,
        "min_positives": data.min_positives if labelled else 0,
    }
    default = {
        "ptbxl": "superdiagnostic",
        "ludb": "diagnoses",
        "wfdb": "scored",
        "code15": "abnormalities",
        "mitbih": "beats",
    }[kind]
    options["labels"] = (data.labels or default) if labelled else "none"
    if kind == "ptbxl":
        options["label_policy"] = data.label_policy
    source: Any = {"ptbxl": PTBXL, "ludb": LUDB, "wfdb": WFDBFolder, "code15": CODE15, "mitbih": MITBIH}[kind]
    return source(root, **options)


def recordings(
    spec: str, fs: float, progress: Report | None = None, *, duration: float = 10.0, simulated: int = 2000
) -> ECGDataset:
    """Every recording of one source, without labels; bad ones are left out and listed in ``skipped``.

    Args:
        spec: as a source in a configuration (``kind``, ``kind:folder``), or a folder, whose kind is then read off its files.
        fs: rate wanted, Hz.
        progress: told what is being read.
        duration: s of each recording.
        simulated: how many, where ``spec`` is ``synthetic``.

    Raises:
        InputError: no such folder, no recordings.
    """
    kind, colon, _ = spec.partition(":")
    if kind not in KINDS and (not colon or Path(spec).is_dir()):
        spec = f"{_kind(Path(spec))}:{spec}"
    data = Data(fs=fs, duration=duration, on_error="skip", synthetic=Synthetic(n=simulated))
    return _source(data, spec, False, progress)


def _kind(folder: Path) -> str:
    """The kind of source in a folder, by the table it comes with; any tree of WFDB records where there is none."""
    from ecgmeta.data.auditing.parts import MARKS

    return next((kind for mark, kind in MARKS.items() if (folder / mark).is_file()), "wfdb")


def _notes(data: Data, groups: int, skipped: list[str]) -> list[str]:
    notes = []
    if any(spec.startswith("synthetic") for spec in [*data.pretrain, data.finetune]):
        notes.append("Synthetic recordings: these numbers say nothing about patients.")
    if groups:
        notes.append(
            f"{groups} signals stand under two or more names; each group counts as one patient and stays on one side."
        )
    if skipped:
        notes.append(f"{len(skipped)} recordings were left out; the run folder lists why.")
    return notes


def cache(config: Experiment, kind: str) -> ECGDataset:
    """Decode the recordings below ``data.root`` into ``data.cache``, as a run with the same settings will look for them."""
    with progress_bar() as progress:
        found = _source(config.data, kind, True, progress)
        if config.data.windows != "first":  # what pre-training reads is another entry
            _source(config.data, kind, False, progress)
    return found


def synthesise(folder: Path, n: int, fs: float, seed: int) -> ECGDataset:
    """Write the synthetic cohort: ``signals.npy`` (records, leads, samples) float32 mV, ``labels.csv``, ``meta.csv``."""
    import pandas as pd

    from ecgmeta.data import SyntheticCohort

    say(f"simulating {n:,} recordings")
    cohort = SyntheticCohort(n, fs=fs, seed=seed)
    labels = pd.DataFrame(cohort.labels.astype(int), columns=list(cohort.label_names))
    write_atomic(folder / "signals.npy", lambda file: np.save(file, cohort.signals))
    write_text(folder / "labels.csv", labels.to_csv(index=False))
    write_text(folder / "meta.csv", cohort.meta.to_csv(index=False))
    return cohort
