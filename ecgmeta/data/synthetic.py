"""A synthetic cohort: twelve-lead records with PTB-XL's five superclasses and nuisances that are known.

Every number obtained on this cohort is synthetic: it shows that code works and what an augmentation recovers, and
says nothing about how well a method does on patients.

The hearts are in ``physiology``, their projection in ``dipole``, what spoils the recording in ``nuisances``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.dipole import LEADS, Floats, twelve_leads, vectorcardiogram
from ecgmeta.data.nuisances import ADDITIVE, KINDS, Level, Nuisances, additive, displaced_leads, warped_clock
from ecgmeta.data.physiology import (
    BLOCKS,
    CLASSES,
    ILLNESSES,
    PREVALENCE,
    TERRITORIES,
    Hearts,
    Rhythm,
    check_prevalence,
    draw_beats,
    draw_hearts,
    fibrillate,
    mean_rate,
)
from ecgmeta.runtime.errors import InputError

__all__ = ["CLASSES", "LEADS", "Level", "Nuisances", "Rhythm", "SyntheticCohort", "simulate"]

BLOCK = 64  # records made together; a cohort is a prefix of any longer one because blocks do not know of n
# Streams of one block: renumbering one changes every cohort.
_HEARTS, _PATIENTS, _BEATS, _ATRIA, _NUISANCES = 0, 1, 2, 3, 10

TRUTH = ("heart_rate", "rhythm", "ectopy", "territory", "branch", *(f"effect_{name}" for name in ILLNESSES))
_UNITS = {"displacement": "cm", "warp": "s", "gain": ""}
_COLUMNS = {kind: "_".join(filter(None, (kind, _UNITS.get(kind, "mv")))) for kind in KINDS}


def _stream(seed: int, block: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block, stream)))


def _patients(
    block: int, repeat_share: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Who each record of a block belongs to: (BLOCK,) subject row, patient names, folds 1 to 10 by patient."""
    rows = np.arange(BLOCK)
    # An odd row may be the second record of the subject before it, so half the rows carry twice the wanted share.
    again = (rows % 2 == 1) & (rng.random(BLOCK) < 2 * repeat_share)
    subject = rows - again
    fold = rng.permutation(BLOCK)[subject] % 10 + 1
    return subject, [f"synthetic-{block * BLOCK + row:06d}" for row in subject], fold


def _spoil(
    vcg: Floats,
    levels: dict[str, Floats],
    nuisances: Nuisances,
    fs: float,
    streams: dict[str, np.random.Generator],
) -> Floats:
    """(batch, 3, samples) dipole -> (batch, 8, samples) independent leads with displacement, noise and gain."""
    samples = vcg.shape[2]
    leads = np.matmul(displaced_leads(levels["displacement"], streams["displacement"]), vcg)
    for kind in ADDITIVE:
        if levels[kind].any():
            leads += additive(kind, levels[kind], samples, fs, nuisances.powerline_hz, streams[kind])
    return leads * levels["gain"][:, None, None]


def _draw_levels(
    nuisances: Nuisances, fs: float, streams: dict[str, np.random.Generator]
) -> dict[str, Floats]:
    """(BLOCK,) magnitude of every nuisance; for the gain, the factor itself (1.0 where it is absent)."""
    levels: dict[str, Floats] = {}
    for kind in KINDS:
        level: Level | None = getattr(nuisances, kind)
        absent = level is None or (kind == "powerline" and nuisances.powerline_hz >= fs / 2)
        levels[kind] = (
            np.zeros(BLOCK, np.float32) if level is None or absent else level.draw(BLOCK, streams[kind])
        )
    sign = np.where(streams["gain"].random(BLOCK) < 0.5, -1, 1)
    levels["gain"] = np.exp(sign * levels["gain"]).astype(np.float32)
    return levels


@dataclass(frozen=True)
class _Cohort:
    """The checked arguments of :func:`simulate` that every block needs."""

    fs: float
    duration: float
    seed: int
    prevalence: Mapping[str, float]
    severity: float
    nuisances: Nuisances
    rhythm: Rhythm
    repeat_share: float

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        _within("fs", self.fs, 50.0, 2000.0, "Hz")
        # Time is float32 inside: 10 minutes keep it finer than 0.1 ms.
        _within("duration", self.duration, 1.0, 600.0, "s")
        _within("severity", self.severity, 0.0, 3.0, "times the default")
        _within("repeat_share", self.repeat_share, 0.0, 0.5, "of the records")
        _whole("seed", self.seed, 0)


def _within(field: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InputError("SyntheticCohort", field, value, f"{low:g} to {high:g} {unit}")


def _whole(field: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise InputError("SyntheticCohort", field, value, f"a whole number, {low} or more")


def _simulate_block(block: int, cohort: _Cohort) -> tuple[Floats, Floats, pd.DataFrame]:
    """``BLOCK`` records, whatever the size of the cohort: signals, labels, meta as in :func:`simulate`."""
    fs, duration, seed = cohort.fs, cohort.duration, cohort.seed
    samples = round(fs * duration)
    streams = {kind: _stream(seed, block, _NUISANCES + index) for index, kind in enumerate(KINDS)}
    subject, patient, fold = _patients(block, cohort.repeat_share, _stream(seed, block, _PATIENTS))
    subjects = draw_hearts(BLOCK, cohort.prevalence, cohort.severity, _stream(seed, block, _HEARTS))
    hearts = subjects.take(subject)
    beat_stream = _stream(seed, block, _BEATS)
    today = hearts.interval * np.exp(
        0.06 * beat_stream.standard_normal(BLOCK)
    )  # a second visit, another rate
    beats, fibrillating = draw_beats(today, duration, cohort.rhythm, beat_stream)
    atria = fibrillate(hearts.waves, fibrillating, samples, fs, _stream(seed, block, _ATRIA))
    levels = _draw_levels(cohort.nuisances, fs, streams)
    clock = warped_clock(levels["warp"], samples, fs, streams["warp"])
    vcg = vectorcardiogram(hearts.waves, beats, clock, fs) + atria
    signals = twelve_leads(_spoil(vcg, levels, cohort.nuisances, fs, streams))
    meta = _meta(block, hearts, patient, fold, fs, samples)
    meta["heart_rate"] = mean_rate(beats, duration)
    meta["rhythm"] = np.where(fibrillating, "fibrillation", "sinus")
    inside = (beats.time >= 0) & (beats.time <= duration)
    meta["ectopy"] = (beats.ectopic * inside).sum(axis=1).astype(np.int64)
    for kind, column in _COLUMNS.items():
        meta[column] = levels[kind]
    return signals, hearts.labels, meta


def _meta(
    block: int, hearts: Hearts, patient: list[str], fold: np.ndarray, fs: float, samples: int
) -> pd.DataFrame:
    """The columns every source has, then the truth about the hearts."""
    first = block * BLOCK
    frame = pd.DataFrame(
        {
            "record": [f"synthetic-record-{first + row:06d}" for row in range(BLOCK)],
            "patient": patient,
            "fold": pd.array(fold, dtype="Int64"),
            "age": hearts.age.astype(float),
            "sex": np.where(hearts.male, "male", "female"),
            "source": "synthetic",
            "original_fs": float(fs),
            "window": 0,
            "valid_samples": samples,
        }
    )
    infarct, blocked = hearts.labels[:, 1] > 0, hearts.labels[:, 3] > 0
    frame["territory"] = np.where(infarct, np.array(TERRITORIES)[hearts.territory], "")
    frame["branch"] = np.where(blocked, np.array(BLOCKS)[hearts.block], "")
    for index, name in enumerate(ILLNESSES):
        frame[f"effect_{name}"] = hearts.effect[:, index]
    return frame


def simulate(
    n: int = 2000,
    *,
    fs: float = 100.0,
    duration: float = 10.0,
    seed: int = 0,
    prevalence: Mapping[str, float] = PREVALENCE,
    severity: float = 1.0,
    nuisances: Nuisances | None = None,
    rhythm: Rhythm | None = None,
    repeat_share: float = 0.1,
) -> tuple[Floats, Floats, pd.DataFrame]:
    """Records, labels and the truth behind them.

    Record i is the same for every ``n``, and the hearts and rhythms are the same for every ``nuisances``: two cohorts
    of one seed differ in their nuisances alone.

    Args:
        n: number of records.
        fs: sampling rate in Hz.
        duration: length of each record in s.
        seed: the cohort; equal seeds give equal cohorts.
        prevalence: share of MI, STTC, CD and HYP, each strictly between 0 and 1; NORM is the rest.
        severity: scale of the illnesses' waveform changes. 1.0 (default) makes them overlap with normal variation;
            0.0 hides the labels altogether, 2.0 makes them plain.
        nuisances: what spoils the recordings; None means ``Nuisances()``, and ``Nuisances.none()`` nothing.
        rhythm: variability, fibrillation and ectopy; None means ``Rhythm()``.
        repeat_share: expected share of records that are a patient's second.

    Returns:
        signals (n, 12, samples) float32 mV in the standard lead order; labels (n, 5) float32 0/1 in the order of
        ``CLASSES``; meta with one row a record: the columns of every source, and the truth.

    Raises:
        InputError: an argument is out of its range.
    """
    _whole("n", n, 1)
    nuisances, rhythm = nuisances or Nuisances(), rhythm or Rhythm()
    cohort = _Cohort(fs, duration, seed, prevalence, severity, nuisances, rhythm, repeat_share)
    signals = np.empty((n, len(LEADS), round(fs * duration)), dtype=np.float32)
    labels, frames = np.empty((n, len(CLASSES)), dtype=np.float32), []
    for block in range(-(-n // BLOCK)):
        x, y, meta = _simulate_block(block, cohort)
        first = block * BLOCK
        keep = min(BLOCK, n - first)
        signals[first : first + keep], labels[first : first + keep] = x[:keep], y[:keep]
        frames.append(meta.iloc[:keep])
    return signals, labels, pd.concat(frames, ignore_index=True)


class SyntheticCohort(ECGDataset):
    """The simulated cohort as a data set; arguments as in :func:`simulate`.

    ``meta`` carries, beside the columns of every source, what was drawn for each record: ``heart_rate`` (1/min),
    ``rhythm``, ``ectopy`` (premature beats inside), ``territory``, ``branch``, ``effect_*`` and the magnitude of each
    nuisance (``wander_mv``, ``powerline_mv``, ``muscle_mv``, ``motion_mv``, ``white_mv``, ``gain`` as a factor,
    ``displacement_cm``, ``warp_s``).

    Example:
        >>> cohort = SyntheticCohort(64, seed=1, nuisances=Nuisances.only("wander"))
        >>> cohort[0][0].shape, cohort.label_names
        (torch.Size([12, 1000]), ('NORM', 'MI', 'STTC', 'CD', 'HYP'))
    """

    def __init__(
        self,
        n: int = 2000,
        *,
        fs: float = 100.0,
        duration: float = 10.0,
        seed: int = 0,
        prevalence: Mapping[str, float] = PREVALENCE,
        severity: float = 1.0,
        nuisances: Nuisances | None = None,
        rhythm: Rhythm | None = None,
        repeat_share: float = 0.1,
    ) -> None:
        signals, labels, meta = simulate(
            n,
            fs=fs,
            duration=duration,
            seed=seed,
            prevalence=prevalence,
            severity=severity,
            nuisances=nuisances,
            rhythm=rhythm,
            repeat_share=repeat_share,
        )
        super().__init__(signals, labels, fs=fs, leads=LEADS, label_names=CLASSES, meta=meta)

    @property
    def truth(self) -> pd.DataFrame:
        """What was drawn for each record: the columns of ``meta`` that no real recording has."""
        return self.meta[[*TRUTH, *_COLUMNS.values()]]
