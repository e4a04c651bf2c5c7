"""Are the limb leads under their own names? The identities of `leads` answer, from the second moments of six signals.

With x the six limb leads and A the 4 × 6 matrix of the identities (III − II + I = 0, ...), a sound record has A x = 0. Where it
has not, the names may be permuted (A P x = 0), some leads turned over (A P S x = 0 with signs S), or each scaled by a
gain of its own (A G x = 0 with a diagonal G, an eigenvector problem). All of that needs only M = E[x xᵀ].

Every permutation of the six names breaks an identity, so every one can be found. Exchanged *electrodes* break none (they
permute the potentials): see `electrodes`. The chest leads obey no identity, and nothing here speaks of their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.leads import LIMB_COEFFICIENTS

LIMB_LEADS = ("I", "II", *LIMB_COEFFICIENTS)
SOUND = (
    0.03  # root of residual power over lead power; the worst of 330 real records, coarsely rounded, has 0.013
)
EXPLAINED = 0.02  # what an explanation must reach
LOCAL = 0.05  # mV: a deviation at one moment that rounding does not make (the real records: 0.003)
_GAIN_RANGE = 30.0  # gains further apart than this explain anything
_UNEQUAL = 1.03  # gains closer than this are equal


@dataclass(frozen=True)
class LimbVerdict:
    """What the identities say.

    Attributes:
        kind: ``"sound"``, ``"order"``, ``"inverted"``, ``"gain"``, ``"local"`` (broken at moments) or ``"unexplained"``.
        residual: root of residual power over lead power, under the names as they are.
        truth: for ``"order"`` and ``"inverted"``, what each changed name holds: {"aVF": "aVL", "aVR": "−aVR"}.
        gains: for ``"gain"``, the factor of each lead in the order of `LIMB_LEADS`, relative to their median.
        largest: mV, the largest deviation from an identity at one moment.
    """

    kind: str
    residual: float
    largest: float
    truth: tuple[tuple[str, str], ...] = ()
    gains: tuple[float, ...] = ()


@cache
def _identities() -> NDArray[np.float64]:
    """A: (4, 6) on `LIMB_LEADS`; a row is a derived lead minus its formula."""
    out = np.zeros((len(LIMB_COEFFICIENTS), len(LIMB_LEADS)))
    for row, (name, (a, b)) in enumerate(LIMB_COEFFICIENTS.items()):
        out[row, 0], out[row, 1] = -a, -b
        out[row, LIMB_LEADS.index(name)] = 1
    return out


def judge(limb: NDArray[np.floating]) -> LimbVerdict:
    """Judge six limb leads.

    Args:
        limb: (6, samples) mV in the order of `LIMB_LEADS`, finite, none of them flat. Constant offsets do not matter.
    """
    x = limb.astype(np.float64)
    x -= np.median(x, axis=1, keepdims=True)
    x -= x.mean(axis=1, keepdims=True)
    moments = x @ x.T / x.shape[1]
    deviation = _identities() @ x
    residual, largest = _residual(moments), float(np.abs(deviation).max())
    if residual <= SOUND:
        local = largest > max(LOCAL, 0.1 * float(np.ptp(x, axis=1).max()))
        return LimbVerdict("local" if local else "sound", residual, largest)
    if truth := _relabelled(moments, signed=False):
        return LimbVerdict("order", residual, largest, truth=truth)
    if gains := _gains(moments):
        return LimbVerdict("gain", residual, largest, gains=gains)
    # Last, because 46,080 relabellings take 40 ms.
    if truth := _relabelled(moments, signed=True):
        return LimbVerdict("inverted", residual, largest, truth=truth)
    return LimbVerdict("unexplained", residual, largest)


def _residual(moments: NDArray[np.float64]) -> float:
    """sqrt(tr(A M Aᵀ) / tr(M))."""
    a = _identities()
    return float(np.sqrt(max(np.trace(a @ moments @ a.T), 0.0) / max(np.trace(moments), 1e-30)))


@cache
def _relabellings(signed: bool) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Which stored lead each name might hold, with which sign: (n, 6) places, (n, 6) signs, (n,) number of changes."""
    places = np.array(list(permutations(range(6))))
    signs = np.array(list(product((1.0, -1.0), repeat=6)) if signed else [(1.0,) * 6])
    all_places = np.repeat(places, len(signs), axis=0)
    all_signs = np.tile(signs, (len(places), 1))
    changes = (all_places != np.arange(6)).sum(axis=1) + (all_signs < 0).sum(axis=1)
    return all_places, all_signs, changes


def _relabelled(moments: NDArray[np.float64], signed: bool) -> tuple[tuple[str, str], ...]:
    """The relabelling with the fewest changes under which the identities hold; empty where none does, or two as simple do."""
    places, signs, changes = _relabellings(signed)
    a = _identities()
    # The signal of name k is signs[k] · x[places[k]], so its form is A' = A · (signed permutation).
    forms = np.zeros((len(places), *a.shape))
    np.put_along_axis(
        forms, np.broadcast_to(places[:, None, :], forms.shape), a[None] * signs[:, None, :], axis=2
    )
    power = np.einsum("nij,jk,nik->n", forms, moments, forms, optimize=True)
    residual = np.sqrt(np.maximum(power, 0.0) / max(float(np.trace(moments)), 1e-30))
    fits = np.flatnonzero(residual <= EXPLAINED)
    if not fits.size:
        return ()
    fewest = fits[changes[fits] == changes[fits].min()]
    best = fewest[np.argmin(residual[fewest])]
    others = fewest[fewest != best]
    if others.size and residual[others].min() < 3 * residual[best]:
        return ()  # a heart that moves along one line fits many names
    # Name k should be fed from places[best][k]: so the stored lead at that place holds the signal of k.
    holds = {LIMB_LEADS[int(place)]: (k, signs[best][k]) for k, place in enumerate(places[best])}
    said = {name: ("−" if sign < 0 else "") + LIMB_LEADS[k] for name, (k, sign) in holds.items()}
    return tuple((name, said[name]) for name in LIMB_LEADS if said[name] != name)


def _gains(moments: NDArray[np.float64]) -> tuple[float, ...] | None:
    """Factor that each stored lead was multiplied by, relative to the median; None where no gains explain the leads.

    Minimise ‖A G x‖² over diagonal G at equal power: (AᵀA ∘ M) g = λ diag(M) g, smallest λ.
    """
    a = _identities()
    scale = np.sqrt(np.diag(moments))
    form = (a.T @ a) * moments / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(form)
    weights = vectors[:, 0] / scale  # what x is to be multiplied by
    if np.sqrt(max(values[0], 0.0)) > EXPLAINED or (weights > 0).any() == (weights < 0).any():
        return None
    if values[1] < 4 * max(values[0], 1e-12):
        return None  # two sets of gains fit: nothing is explained
    gains = 1 / np.abs(weights)
    gains /= np.median(gains)
    spread = float(gains.max() / gains.min())
    return tuple(float(g) for g in gains) if _UNEQUAL < spread < _GAIN_RANGE else None
