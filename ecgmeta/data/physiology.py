"""Hearts and rhythms for the synthetic cohort: who is ill, how it shows in the waves, when the heart beats.

Illness is a liability-threshold model (Falconer 1965): each of MI, STTC, CD and HYP has a Gaussian liability, part of
it shared; the label says whether it passes the threshold that gives the wanted prevalence, and the waveform change grows
smoothly across that threshold, so borderline hearts look borderline. NORM is the absence of all four.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from ecgmeta.data.dipole import QRS, WAVES, Beats, Floats, Ints, Waves, normal_waves
from ecgmeta.runtime.errors import InputError

CLASSES = (
    "NORM",
    "MI",
    "STTC",
    "CD",
    "HYP",
)  # PTB-XL's diagnostic superclasses, in the order of the label matrix
ILLNESSES = CLASSES[1:]
PREVALENCE: Mapping[str, float] = {"MI": 0.25, "STTC": 0.24, "CD": 0.22, "HYP": 0.12}  # close to PTB-XL's
TERRITORIES = ("anterior", "inferior", "lateral")
BLOCKS = ("left", "right")
SHARED_LIABILITY = 0.15  # brings the share of NORM to PTB-XL's 0.43 at the default prevalence

_P = slice(0, 2)
_QRS = list(QRS)
_SEPTAL, _INFARCT, _MAIN, _BASAL, _TERMINAL, _LATE, _ST, _T = range(2, 10)
# Where each territory faces, x left, y foot, z back.
_FACING = np.array([[0.30, 0.05, -0.95], [-0.05, 0.98, 0.20], [0.93, -0.25, 0.27]], dtype=np.float32)
_APEX = np.array([0.75, 0.45, -0.48], dtype=np.float32)


@dataclass
class Hearts:
    """A batch of subjects.

    Attributes:
        waves: their beat.
        labels: (batch, 5) float32 0/1 in the order of ``CLASSES``.
        effect: (batch, 4) size of the waveform change of each of ``ILLNESSES``; about 1 in a typical case.
        territory: (batch,) index into ``TERRITORIES`` of a (possible) infarct.
        block: (batch,) index into ``BLOCKS``: which bundle branch conducts late.
        interval: (batch,) resting RR interval in s.
        age: (batch,) years.
        male: (batch,) bool.
    """

    waves: Waves
    labels: Floats
    effect: Floats
    territory: Ints
    block: Ints
    interval: Floats
    age: Floats
    male: np.ndarray

    def take(self, rows: Ints) -> Hearts:
        """The hearts at ``rows`` (a subject may be recorded twice)."""
        w = self.waves
        waves = Waves(w.vector[rows], w.centre[rows], w.before[rows], w.after[rows])
        return Hearts(
            waves=waves,
            labels=self.labels[rows],
            effect=self.effect[rows],
            territory=self.territory[rows],
            block=self.block[rows],
            interval=self.interval[rows],
            age=self.age[rows],
            male=self.male[rows],
        )


@dataclass(frozen=True)
class Rhythm:
    """What the heart's timing may do.

    Attributes:
        variability: scale of sinus variability; 1.0 gives respiratory swings of 1 to 5 % of the RR interval, slower
            (0.1 Hz) ones of 1 to 3 % and 0.5 % of noise; 0.0 a metronome.
        fibrillation: share of records in atrial fibrillation (no P wave, f waves, irregular).
        ectopy: share of records with ventricular premature beats (3 to 20 % of their beats).
    """

    variability: float = 1.0
    fibrillation: float = 0.04
    ectopy: float = 0.06

    def __post_init__(self) -> None:
        if not 0.0 <= self.variability <= 3.0:
            raise InputError("Rhythm", "variability", self.variability, "a factor in [0, 3]")
        for name, share in (("fibrillation", self.fibrillation), ("ectopy", self.ectopy)):
            if not 0.0 <= share <= 1.0:
                raise InputError("Rhythm", name, share, "a probability in [0, 1]")


def check_prevalence(prevalence: Mapping[str, float]) -> None:
    """Raises InputError unless ``prevalence`` gives MI, STTC, CD and HYP each a share strictly between 0 and 1."""
    if set(prevalence) != set(ILLNESSES):
        found = ", ".join(prevalence) or "nothing"
        raise InputError("SyntheticCohort", "prevalence", found, "MI, STTC, CD, HYP (NORM is the rest)")
    for name, share in prevalence.items():
        if not 0.0 < share < 1.0:
            raise InputError(
                "SyntheticCohort", f"prevalence[{name}]", share, "a share strictly between 0 and 1"
            )


def _rotations(sd: np.ndarray, batch: int, rng: np.random.Generator) -> Floats:
    """(batch, 3, 3) rotations by Gaussian axis-angle vectors (Rodrigues); ``sd``: SDs in radians about x, y, z."""
    angles = sd * rng.standard_normal((batch, 3))
    size = np.linalg.norm(angles, axis=1)[:, None, None] + 1e-9
    x, y, z = (angles / size[:, 0]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    turn = np.eye(3) + np.sin(size) * cross + (1 - np.cos(size)) * np.matmul(cross, cross)
    return turn.astype(np.float32)


def _lognormal(rng: np.random.Generator, sd: float, *shape: int) -> Floats:
    return np.exp(sd * rng.standard_normal(shape)).astype(np.float32)


def _vary_subjects(waves: Waves, age: Floats, male: np.ndarray, rng: np.random.Generator) -> None:
    """Axis, size, intervals and shape of each heart, in place: the variation that hides the labels."""
    batch = len(waves.centre)
    frontal, horizontal = np.radians(26), np.radians(18)
    spread = np.array([np.radians(12), horizontal, frontal])
    lie = _rotations(spread, batch, rng)
    own_t = _rotations(np.radians([12.0, 12.0, 12.0]), batch, rng)
    own_p = _rotations(np.radians([12.0, 12.0, 12.0]), batch, rng)
    v = waves.vector
    v *= _lognormal(rng, 0.12, batch, len(WAVES), 1)
    # Women and the old have lower voltages on average; the spread is wider than the difference.
    size = _lognormal(rng, 0.28, batch) * np.where(male, 1.06, 0.92) * (1 - 0.002 * (age - 60))
    v[:, _QRS] *= size[:, None, None]
    v[:, _SEPTAL] *= _lognormal(rng, 0.3, batch, 1)
    # Many healthy hearts have a small late right-sided force (an rSr' in V1): what makes partial blocks hard to tell.
    v[:, _LATE] = 0.14 * np.abs(rng.standard_normal((batch, 1))) * np.array([-0.6, -0.1, -0.7])
    v[:, [_ST, _T]] *= (_lognormal(rng, 0.3, batch) * np.sqrt(size))[:, None, None]
    v[:, _ST] *= _lognormal(rng, 0.5, batch, 1)
    v[:, _P] *= _lognormal(rng, 0.25, batch, 1, 1)
    v[:, _T] = np.einsum("bij,bj->bi", own_t, v[:, _T])
    v[:, _P] = np.einsum("bij,bwj->bwi", own_p, v[:, _P])
    waves.vector = np.einsum("bij,bwj->bwi", lie, v).astype(np.float32)
    spread_qrs = _lognormal(rng, 0.09, batch, 1)
    for part in (waves.centre, waves.before, waves.after):
        part[:, _QRS] *= spread_qrs
    waves.centre[:, _P] -= (0.022 * rng.standard_normal((batch, 1))).clip(-0.04, 0.06).astype(np.float32)


def _repolarisation(waves: Waves, interval: Floats, rng: np.random.Generator) -> None:
    """QT follows the square root of RR (Bazett) with a spread of 4 %; at high rates the PR interval shrinks a little."""
    factor = np.sqrt(interval)[:, None] * _lognormal(rng, 0.04, len(interval), 1)
    for part in (waves.centre, waves.before, waves.after):
        part[:, [_ST, _T]] *= factor
    waves.centre[:, _P] *= np.clip(interval, 0.5, 1.0)[:, None] ** 0.3


def _infarct(waves: Waves, effect: Floats, facing: Floats, rng: np.random.Generator) -> None:
    """Q wave pointing away from the scar, R lost along it; ST elevation when recent, T inversion when not."""
    v, batch = waves.vector, len(effect)
    recent = rng.random(batch).astype(np.float32) ** 2
    e, towards = effect[:, None], facing
    v[:, _INFARCT] -= 0.42 * _lognormal(rng, 0.3, batch, 1) * e * towards
    for wave, share in ((_SEPTAL, 0.6), (_MAIN, 0.4), (_BASAL, 0.2)):
        along = np.maximum(np.sum(v[:, wave] * towards, axis=1, keepdims=True), 0)
        v[:, wave] -= np.minimum(share * e, 0.9) * along * towards
    v[:, _ST] += 0.20 * (e * recent[:, None]) * towards
    v[:, _T] -= 0.30 * (e * (1 - 1.2 * recent[:, None])) * towards


def _st_t_change(waves: Waves, effect: Floats, rng: np.random.Generator) -> None:
    """T flattened to inverted, ST depressed away from the apex, in shares that differ from heart to heart."""
    v, mix = waves.vector, rng.random(len(effect)).astype(np.float32)[:, None]
    e = effect[:, None]
    v[:, _T] *= 1 - e * (0.5 + 0.8 * mix)
    v[:, _ST] -= e * (0.14 - 0.08 * mix) * _APEX
    for part in (waves.centre, waves.before, waves.after):
        part[:, _T] *= 1 + 0.05 * effect


def _block(waves: Waves, effect: Floats, left: np.ndarray, rng: np.random.Generator) -> None:
    """A bundle branch conducts late: QRS of about 130 to 160 ms, terminal forces to that side, T discordant."""
    v, batch = waves.vector, len(effect)
    e_left, e_right = np.where(left, effect, 0.0)[:, None], np.where(left, 0.0, effect)[:, None]
    size = _lognormal(rng, 0.35, batch, 1)
    to_right = np.array([-0.44, -0.05, -0.48], dtype=np.float32)
    to_left = np.array([0.50, 0.10, 0.52], dtype=np.float32)
    v[:, _LATE] += size * (e_right * to_right + e_left * to_left)
    v[:, _T] -= size * (0.28 * e_right * to_right + 0.60 * e_left * to_left)
    v[:, _ST] -= size * (0.03 * e_right * to_right + 0.12 * e_left * to_left)
    v[:, _SEPTAL] *= 1 - np.minimum(1.5 * e_left, 1.8)
    v[:, _TERMINAL] *= 1 - np.minimum(e_left, 1.0)
    waves.centre[:, _LATE] += 0.004 * (effect - 1)
    for part in (waves.before, waves.after):
        part[:, _QRS] *= 1 + 0.40 * np.minimum(e_left, 1.5) + 0.08 * np.minimum(e_right, 1.5)


def _hypertrophy(waves: Waves, effect: Floats, rng: np.random.Generator) -> None:
    """Tall, leftward and posterior QRS; strain (ST down, T inverted over the left ventricle); a larger left atrium."""
    v, strain = waves.vector, rng.random(len(effect)).astype(np.float32)[:, None]
    e = effect[:, None]
    v[:, [_MAIN, _BASAL]] *= 1 + 0.42 * e[:, None]
    v[:, _BASAL] += e * np.array([0.15, -0.05, 0.30], dtype=np.float32)
    v[:, _T] -= e * strain * np.array([0.42, 0.15, -0.12], dtype=np.float32)
    v[:, _ST] -= e * strain * np.array([0.08, 0.03, -0.05], dtype=np.float32)
    v[:, 1] *= 1 + 0.5 * e
    for part in (waves.before, waves.after):
        part[:, _QRS] *= 1 + 0.07 * np.minimum(e, 2.0)


def draw_hearts(
    batch: int, prevalence: Mapping[str, float], severity: float, rng: np.random.Generator
) -> Hearts:
    """``batch`` subjects with labels and waves; ``severity`` scales every illness's waveform change."""
    common = rng.standard_normal((batch, 1))
    liability = np.sqrt(SHARED_LIABILITY) * common + np.sqrt(1 - SHARED_LIABILITY) * rng.standard_normal(
        (batch, 4)
    )
    beyond = liability - ndtri(1 - np.array([prevalence[name] for name in ILLNESSES]))
    ill = beyond > 0
    labels = np.concatenate([~ill.any(axis=1, keepdims=True), ill], axis=1).astype(np.float32)
    shown = expit(beyond / 0.18) * (0.75 + 0.35 * np.maximum(beyond, 0)) * _lognormal(rng, 0.3, batch, 4)
    effect = (severity * shown).astype(np.float32)
    age = (60 + 16 * (0.35 * common[:, 0] + 0.94 * rng.standard_normal(batch))).clip(18, 95).round()
    male = rng.random(batch) < 0.52
    territory = rng.choice(3, size=batch, p=[0.45, 0.4, 0.15])
    block = rng.choice(2, size=batch, p=[0.4, 0.6])
    interval = (60 / 70 * _lognormal(rng, 0.17, batch)).clip(0.45, 1.4)
    waves = normal_waves(batch)
    age = age.astype(np.float32)
    _vary_subjects(waves, age, male, rng)
    _hypertrophy(waves, effect[:, 3], rng)
    _infarct(waves, effect[:, 0], _FACING[territory], rng)
    _st_t_change(waves, effect[:, 1], rng)
    _block(waves, effect[:, 2], block == 0, rng)
    _repolarisation(waves, interval, rng)
    return Hearts(waves, labels, effect, territory, block, interval, age, male)


def draw_beats(
    interval: Floats, duration: float, rhythm: Rhythm, rng: np.random.Generator
) -> tuple[Beats, np.ndarray]:
    """R-peak times and what each beat is.

    Args:
        interval: (batch,) mean RR in s.
        duration: length of the record in s.
        rhythm: shares of fibrillation and ectopy, scale of variability.
        rng: the stream of the rhythm.

    Returns:
        Beats covering [0, duration] with margin, and (batch,) bool: in atrial fibrillation.
    """
    batch = len(interval)
    fibrillating = rng.random(batch) < rhythm.fibrillation
    irritable = rng.random(batch) < rhythm.ectopy
    rate = np.where(irritable, rng.uniform(0.03, 0.2, batch), 0.0)
    breath, breath_phase = rng.uniform(0.15, 0.35, batch), rng.uniform(0, 2 * np.pi, batch)
    slow_phase = rng.uniform(0, 2 * np.pi, batch)
    swing = rhythm.variability * rng.uniform(0.01, 0.05, batch)
    slow = rhythm.variability * rng.uniform(0.01, 0.03, batch)
    louder = rng.uniform(0.01, 0.06, batch)
    now = -interval * rng.uniform(1.0, 2.0, batch)
    before = np.array(interval, dtype=np.float64)
    early = np.zeros(batch, dtype=bool)
    columns: list[tuple[np.ndarray, ...]] = []
    while True:
        phase = 2 * np.pi * breath * now + breath_phase
        gain = 1 + louder * np.sin(phase)
        columns.append((now, gain, np.clip(before / interval, 0.6, 1.5) ** 0.35, early.astype(np.float64)))
        # One more than two beats past the end: the last mid-time between beats must lie beyond the record.
        if now.min() > duration + 2.0:
            break
        noise, coin = rng.standard_normal(batch), rng.random(batch)
        sinus = 1 + swing * np.sin(phase) + slow * np.sin(2 * np.pi * 0.1 * now + slow_phase)
        sinus += 0.005 * rhythm.variability * noise
        factor = np.where(fibrillating, np.exp(0.2 * noise), sinus)
        coming = (coin < rate) & ~early
        factor = factor * np.where(coming, 0.68, 1.0) * np.where(early, 1.32, 1.0)
        before = np.maximum(interval * factor, 0.32)
        now, early = now + before, coming
    parts = [np.stack(part, axis=1).astype(np.float32) for part in zip(*columns, strict=True)]
    return Beats(*parts), fibrillating


def fibrillate(waves: Waves, rows: np.ndarray, samples: int, fs: float, rng: np.random.Generator) -> Floats:
    """Takes the P wave from the hearts where ``rows`` is True and returns their f waves, (batch, 3, samples) mV."""
    batch = len(rows)
    hz, phase = rng.uniform(4.5, 8.0, (batch, 1)), rng.uniform(0, 2 * np.pi, (batch, 2))
    size = rng.uniform(0.03, 0.10, (batch, 1, 1)) * rows[:, None, None]
    waves.vector[rows, _P] = 0.0
    time = np.arange(samples) / fs
    turn = 2 * np.pi * hz * time + 0.8 * np.sin(2 * np.pi * 0.4 * time + phase[:, :1])
    wave = np.sin(turn + phase[:, 1:]) + 0.35 * np.sin(2 * (turn + phase[:, 1:]))
    direction = np.array([0.2, 0.7, -0.7])[None, :, None]
    return (size * direction * wave[:, None]).astype(np.float32)


def mean_rate(beats: Beats, duration: float) -> Floats:
    """(batch,) beats a minute: 60 over the mean RR interval among R peaks inside [0, ``duration``].

    A record with fewer than two peaks inside takes the interval that spans its start.
    """
    inside = (beats.time >= 0) & (beats.time <= duration)
    first = np.argmax(inside, axis=1)
    count = np.maximum(inside.sum(axis=1), 2)
    rows = np.arange(len(first))
    span = beats.time[rows, first + count - 1] - beats.time[rows, first]
    return (60 * (count - 1) / span).astype(np.float32)
