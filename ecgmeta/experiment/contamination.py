"""What training has seen, recorded in its run, so that no later evaluation scores it unawares.

Patients are compared by name. Signals are compared by prints (see :mod:`ecgmeta.data.duplicates`), so that a recording
under another name, from another database or at another rate is known again, and without the recordings it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_atomic

if TYPE_CHECKING:
    from ecgmeta.data import ECGDataset

PRETRAIN, METAFT, TEST = 1, 2, 3  # parts of a run; a recording can be in the first two

_NUMBERS = 256  # of a print: 512 bytes a recording, and cosines right to about 0.01 where they are near 1
# Cosine of two prints. The same recording at another rate, gain or filter has 0.99, with a lead gone 0.94; different ones of
# LUDB and the challenge set have at most 0.73, of the synthetic cohort 0.85.
_SAME = 0.9
_BLOCK = 1024


@dataclass(frozen=True)
class Seen:
    """The recordings of a run when its training began.

    Attributes:
        prints: (N, 256), of length 1, or 0 for a flat recording.
        records: name of each.
        parts: PRETRAIN, METAFT or TEST. Test recordings stand here as those that were compared signal by signal.
    """

    prints: NDArray[np.float32]
    records: NDArray[np.str_]
    parts: NDArray[np.int8]

    def of(self, *parts: int) -> Seen:
        """The recordings of some parts."""
        rows = np.isin(self.parts, parts)
        return Seen(self.prints[rows], self.records[rows], self.parts[rows])


def metaft_records(config: Experiment, cohort: Cohort) -> ECGDataset:
    """The labelled recordings that meta-learning sees."""
    chosen = cohort.with_labels(config.meta.label_names)
    return chosen.train.subset(chosen.labelled(config.meta.labels, config.seed))


def note_seen(run: Run, cohort: Cohort, guiding: ECGDataset | None) -> None:
    """Write ``seen.npz``: prints and names of what this run's training sees, and of the test recordings it was kept from.

    Args:
        run: whose training begins.
        cohort: its recordings.
        guiding: the labelled ones that guide it; None in an arm that sees no label.
    """
    parts = [(PRETRAIN, cohort.pretrain), (TEST, cohort.test)]
    if guiding is not None:
        parts.append((METAFT, guiding))
    arrays = {
        "prints": np.concatenate([_prints(data) for _, data in parts]).astype(np.float16),
        "records": np.array([name for _, data in parts for name in record_names(data)]),
        "parts": np.array([part for part, data in parts for _ in range(len(data))], dtype=np.int8),
    }
    write_atomic(run.seen, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_seen(run: Run) -> Seen | None:
    """What ``seen.npz`` holds; None for a run without it.

    Raises:
        InputError: a broken file.
    """
    if not run.seen.is_file():
        return None
    try:
        with np.load(run.seen, allow_pickle=False) as arrays:
            return Seen(arrays["prints"].astype(np.float32), arrays["records"], arrays["parts"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(run.seen, "content", error, "what `ecgmeta pretrain` wrote") from error


def contaminated(config: Experiment, runs: Mapping[str, Run], cohort: Cohort) -> list[str]:
    """One line for each way in which the test recordings were seen in training, where that is not refused.

    Raises:
        InputError: there is one, and ``evaluate.contaminated`` is "refuse".
    """
    lines = []
    for arm, run in runs.items():
        for what, found in (
            ("test patients", _seen_patients(run, cohort.test)),
            ("test signals", _seen_signals(run, cohort.test)),
        ):
            if not found:
                continue
            text = f"{len(found)} that pre-training of {arm} has seen, first {found[0]}"
            if config.evaluate.contaminated == "refuse":
                expected = f"{what[5:]} that no pre-training has seen, or evaluate.contaminated=report"
                raise InputError(run.folder, what, text, expected)
            lines.append(f"Contaminated: {what}: {text}. Scores of {arm} are too good to be believed.")
    return lines


def _seen_patients(run: Run, test: ECGDataset) -> list[str]:
    data = run.info.get("data", {})
    known = {patient for part in ("pretrain", "metaft") for patient in data.get(part, ())}
    return sorted(set(test.meta["patient"]) & known)


def _seen_signals(run: Run, test: ECGDataset) -> list[str]:
    """Test recordings whose print is that of one which training saw, each with the name it had there."""
    seen = read_seen(run)
    if seen is None:
        return []
    trained, tested = seen.of(PRETRAIN, METAFT), seen.of(TEST)
    prints, names = _prints(test), record_names(test)
    rows = [row for row, name in enumerate(names) if not _is_recorded(name, prints[row], tested)]
    found = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        cosine = prints[block] @ trained.prints.T
        for row, best, value in zip(block, cosine.argmax(axis=1), cosine.max(axis=1), strict=True):
            if value >= _SAME:
                found.append(f"{names[row]} (there {trained.records[best]})")
    return found


def _is_recorded(name: str, one: NDArray[np.float32], tested: Seen) -> bool:
    """Whether a recording was tested on when the run began: then it was compared there, more exactly than prints can be."""
    return bool((tested.prints[tested.records == name] @ one >= _SAME).any())


def record_names(data: ECGDataset) -> list[str]:
    """One name for each recording or window, the same in every run."""
    columns = (data.meta[key] for key in ("source", "record", "window"))
    return [f"{source}/{record}#{window}" for source, record, window in zip(*columns, strict=True)]


def _prints(data: ECGDataset) -> NDArray[np.float32]:
    from ecgmeta.data.duplicates import dataset_fingerprints

    prints = dataset_fingerprints(data, _NUMBERS)
    length = np.linalg.norm(prints, axis=1, keepdims=True)
    return (prints / np.where(length > 0, length, np.inf)).astype(np.float32)
