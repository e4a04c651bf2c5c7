"""A cardiac dipole, its beats, and its projection onto twelve leads.

The heart is one current dipole ``p(t) = Σ_beats Σ_waves a_w · exp(−½ ((t − R_k − c_w) / s_w)²)`` with a vector
``a_w`` in mV for every wave, in Frank's axes: x to the left, y to the feet, z to the back. The sum-of-Gaussians
form follows McSharry et al. (IEEE TBME 2003) and, in three dimensions, Sameni et al. (EURASIP JASP 2007); the wave
table below is our own. Leads are the published regression of Dower et al. (Clin. Cardiol. 1980).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INDEPENDENT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")

# Rows: INDEPENDENT; columns: x (left), y (foot), z (back). Dower et al. 1980.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ],
    dtype=np.float32,
)

_WILSON = 1.0 / 3.0
# Rows: INDEPENDENT; columns: ELECTRODES. I = LA − RA, II = LL − RA, V_i = e_i − (RA + LA + LL) / 3.
FROM_ELECTRODES = np.zeros((8, 9), dtype=np.float32)
FROM_ELECTRODES[0, [0, 1]] = -1.0, 1.0
FROM_ELECTRODES[1, [0, 2]] = -1.0, 1.0
FROM_ELECTRODES[2:, :3] = -_WILSON
FROM_ELECTRODES[2:, 3:] = np.eye(6)

WAVES = ("p_right", "p_left", "septal", "infarct", "main", "basal", "terminal", "late", "st", "t")
QRS = tuple(WAVES.index(name) for name in ("septal", "infarct", "main", "basal", "terminal", "late"))


@dataclass
class Waves:
    """What each heart of a batch draws in one beat; every array is float32 and starts with (batch, waves).

    Attributes:
        vector: (batch, waves, 3) peak dipole in mV along x, y, z.
        centre: (batch, waves) peak time in s after the R peak.
        before: (batch, waves) Gaussian width in s up to the peak.
        after: (batch, waves) Gaussian width in s beyond it (T falls faster than it rises).
    """

    vector: Floats
    centre: Floats
    before: Floats
    after: Floats


@dataclass
class Beats:
    """When the beats fall and how each differs from the record's template.

    Attributes:
        time: (batch, beats) R-peak times in s, increasing; they start before 0 and end after the record.
        gain: (batch, beats) amplitude factor (respiration).
        repolarisation: (batch, beats) factor on the timing of ST and T (QT follows the preceding RR interval).
        ectopic: (batch, beats) 1.0 for a ventricular premature beat, else 0.0.
    """

    time: Floats
    gain: Floats
    repolarisation: Floats
    ectopic: Floats


def normal_waves(batch: int) -> Waves:
    """The table of an average normal heart, repeated ``batch`` times (mV, s); subjects vary around it."""
    table = {
        #             x      y      z      centre  before after
        "p_right": (0.040, 0.070, -0.040, -0.160, 0.019, 0.019),
        "p_left": (0.055, 0.050, 0.035, -0.130, 0.021, 0.021),
        "septal": (-0.140, -0.050, -0.340, -0.020, 0.0075, 0.0075),
        "infarct": (0.000, 0.000, 0.000, -0.017, 0.011, 0.013),
        "main": (1.020, 0.680, 0.100, 0.000, 0.0098, 0.0098),
        "basal": (0.280, 0.080, 0.800, 0.014, 0.0098, 0.0098),
        "terminal": (-0.200, -0.120, 0.200, 0.030, 0.009, 0.009),
        "late": (0.000, 0.000, 0.000, 0.060, 0.017, 0.019),
        "st": (0.030, 0.020, -0.030, 0.120, 0.045, 0.060),
        "t": (0.290, 0.200, -0.220, 0.275, 0.058, 0.040),
    }
    rows = np.repeat(np.array([table[name] for name in WAVES], dtype=np.float32)[None], batch, axis=0)
    return Waves(rows[..., :3].copy(), rows[..., 3].copy(), rows[..., 4].copy(), rows[..., 5].copy())


def premature_waves(waves: Waves) -> Waves:
    """Waves of a ventricular premature beat of the same heart: wide, tall, from the right, T discordant.

    Returns:
        Waves with (batch, 3) entries: upstroke, downstroke, T.
    """
    main = waves.vector[:, WAVES.index("main")]
    t_centre = waves.centre[:, WAVES.index("t")]
    size = np.linalg.norm(main, axis=1, keepdims=True)
    direction = np.array([0.75, -0.45, 0.5], dtype=np.float32)
    first = (0.4 * main + size * direction).astype(np.float32)
    vector = np.stack([first, -0.3 * first, -0.35 * first], axis=1)
    times = np.broadcast_to(np.array([0.01, 0.075, 0.0], dtype=np.float32), (len(main), 3)).copy()
    times[:, 2] = t_centre + 0.05
    widths = np.broadcast_to(np.array([0.026, 0.026, 0.065], dtype=np.float32), (len(main), 3)).copy()
    return Waves(vector, times, widths, widths.copy())


def _nearest_beat(boundaries: Floats, shift: Floats, clock: Floats, fs: float) -> Ints:
    """(batch, samples) index of the beat whose wave, centred ``shift`` s after R, is nearest each sample.

    ``boundaries`` (batch, beats − 1) are the mid-times between R peaks on the heart's clock; ``clock`` (batch,
    samples) is that clock at each sample. The clock is inverted to first order, ``t ≈ s − (clock(s) − s)``:
    the choice only matters half an RR away from the wave, where its Gaussian is already near zero.
    """
    batch, samples = clock.shape
    wanted = boundaries + shift[:, None]
    position = np.clip((wanted * fs).astype(np.int64), 0, samples - 1)
    drift = np.take_along_axis(clock, position, axis=1) - position / fs
    first = np.ceil((wanted - drift) * fs).astype(np.int64)
    inside = first < samples
    marks = (np.arange(batch)[:, None] * samples + np.clip(first, 0, samples - 1))[inside]
    steps = np.bincount(marks, minlength=batch * samples).reshape(batch, samples)
    return np.cumsum(steps, axis=1)


def _add_waves(out: Floats, waves: Waves, beats: Beats, weight: Floats, clock: Floats, fs: float) -> None:
    """Adds to ``out`` (batch, 3, samples) every wave of every beat, each beat weighted by (batch, beats) ``weight``."""
    boundaries = 0.5 * (beats.time[:, 1:] + beats.time[:, :-1])
    count = waves.centre.shape[1]
    curves = np.empty((out.shape[0], count, out.shape[2]), dtype=np.float32)
    for index in range(count):
        centre = waves.centre[:, index]
        beat = _nearest_beat(boundaries, centre, clock, fs)
        # Repolarisation stretches what comes later than 0.1 s after R; the QRS keeps its own time.
        late = (centre > 0.1)[:, None]
        stretch = np.where(late, beats.repolarisation, np.float32(1.0))
        peak = np.take_along_axis(beats.time + stretch * centre[:, None], beat, axis=1)
        delta = clock - peak
        width = np.where(delta < 0, waves.before[:, index, None], waves.after[:, index, None])
        height = np.take_along_axis(weight, beat, axis=1)
        curves[:, index] = height * np.exp(-0.5 * np.square(delta / width))
    out += np.matmul(waves.vector.transpose(0, 2, 1), curves)


def vectorcardiogram(waves: Waves, beats: Beats, clock: Floats, fs: float) -> Floats:
    """The dipole over time.

    Args:
        waves: the hearts, (batch, waves, ...).
        beats: their rhythm, (batch, beats).
        clock: (batch, samples) time in s on the heart's own clock at every sample; ``arange / fs`` when not warped.
        fs: sampling rate in Hz.

    Returns:
        (batch, 3, samples) float32 mV along x, y, z.
    """
    out = np.zeros((clock.shape[0], 3, clock.shape[1]), dtype=np.float32)
    _add_waves(out, waves, beats, beats.gain * (1 - beats.ectopic), clock, fs)
    rows = np.flatnonzero(beats.ectopic.any(axis=1))
    if len(rows):
        some = Waves(waves.vector[rows], waves.centre[rows], waves.before[rows], waves.after[rows])
        picked = Beats(
            *(part[rows] for part in (beats.time, beats.gain, beats.repolarisation, beats.ectopic))
        )
        extra = out[rows]
        _add_waves(extra, premature_waves(some), picked, picked.gain * picked.ectopic, clock[rows], fs)
        out[rows] = extra
    return out


def twelve_leads(independent: Floats) -> Floats:
    """Twelve leads from the eight independent ones, the rest derived by Einthoven's and Goldberger's identities.

    III = II − I, aVR = −(I + II)/2, aVL = I − II/2, aVF = II − I/2.

    Args:
        independent: (batch, 8, samples) in the order of ``INDEPENDENT``.

    Returns:
        (batch, 12, samples) in the order of ``LEADS``; same dtype.
    """
    one, two = independent[:, 0], independent[:, 1]
    out = np.empty((independent.shape[0], 12, independent.shape[2]), dtype=independent.dtype)
    out[:, 0], out[:, 1], out[:, 2] = one, two, two - one
    out[:, 3], out[:, 4], out[:, 5] = -(one + two) / 2, one - two / 2, two - one / 2
    out[:, 6:] = independent[:, 2:]
    return out
