"""The standard twelve leads: their order, matching by name, and the identities the limb leads obey.

Einthoven and Goldberger, for potentials measured at one instant:
III = II − I, aVR = −(I + II)/2, aVL = I − II/2, aVF = II − I/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError

STANDARD_LEADS: tuple[str, ...] = (
    *("I", "II", "III", "aVR", "aVL", "aVF"),
    *("V1", "V2", "V3", "V4", "V5", "V6"),
)
# Each derived lead as coefficients on (I, II).
LIMB_COEFFICIENTS: dict[str, tuple[float, float]] = {
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}
_BY_FOLDED = {name.casefold(): name for name in STANDARD_LEADS}


def canonical(name: str) -> str:
    """The standard spelling of a lead name in any case (``AVR`` → ``aVR``); other names are only stripped."""
    return _BY_FOLDED.get(name.strip().casefold(), name.strip())


def lead_tuple(names: Sequence[str], where: object) -> tuple[str, ...]:
    """Lead names as a tuple.

    Raises:
        InputError: a lone string, whose letters would be taken for names.
    """
    if isinstance(names, str):
        raise InputError(where, "leads", repr(names), f"a list of names, such as [{names!r}]")
    return tuple(names)


def match_leads(found: Sequence[str], wanted: Sequence[str], where: object) -> list[int | None]:
    """Position in `found` of every lead in `wanted`, by name and whatever the case; None where it is absent.

    Raises:
        InputError: a wanted lead stands twice in `found`, so a choice would be a guess.
    """
    places, twice = _places(tuple(found), tuple(wanted))
    if twice is not None:
        lead, count = twice
        raise InputError(where, f"lead {lead}", f"{count} signals of that name", "one")
    return list(places)


@lru_cache(maxsize=256)
def _places(
    found: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[tuple[int | None, ...], tuple[str, int] | None]:
    """What :func:`match_leads` returns, and the lead that stands more than once with its count: the records of a source have
    the same leads, thousands of times."""
    names = [canonical(name).casefold() for name in found]
    places: list[int | None] = []
    for lead in wanted:
        folded = canonical(lead).casefold()
        count = names.count(folded)
        if count > 1:
            return (), (lead, count)
        places.append(names.index(folded) if count else None)
    return tuple(places), None


def lead_terms(
    found: Sequence[str], wanted: Sequence[str], where: object, derive: bool | Literal["all"] = False
) -> list[tuple[tuple[int, float], ...]]:
    """Each wanted lead as a sum of the leads found.

    Args:
        found: the leads at hand.
        wanted: the leads to make, matched by name and whatever the case.
        where: named in errors.
        derive: compute III, aVR, aVL and aVF from I and II where `found` lacks them (True) or always (``"all"``).

    Returns:
        for each wanted lead its (position in `found`, coefficient) pairs.

    Raises:
        InputError: a lead that is neither there nor derivable; a name that stands twice.
    """
    if derive not in (False, True, "all"):
        raise InputError(where, "derive", repr(derive), "False, True or 'all'")
    terms: list[tuple[tuple[int, float], ...]] = []
    for lead, place in zip(wanted, match_leads(found, wanted, where), strict=True):
        name = canonical(lead)
        one, two = (
            match_leads(found, ("I", "II"), where) if derive and name in LIMB_COEFFICIENTS else (None, None)
        )
        if one is not None and two is not None and (place is None or derive == "all"):
            a, b = LIMB_COEFFICIENTS[name]
            terms.append(((one, a), (two, b)))
        elif place is not None and not (derive == "all" and name in LIMB_COEFFICIENTS):
            terms.append(((place, 1.0),))
        else:
            hint = (
                " (III, aVR, aVL and aVF can be derived, from I and II)" if name in LIMB_COEFFICIENTS else ""
            )
            raise InputError(
                where, f"lead {lead}", f"only {', '.join(found)}", f"a signal of that name{hint}"
            )
    return terms


def limb_errors(signals: NDArray[np.floating], leads: Sequence[str]) -> NDArray[np.float64]:
    """Largest deviation from the four limb-lead identities.

    Args:
        signals: (..., leads, samples), mV.
        leads: the name of every lead; I, II and all of `LIMB_COEFFICIENTS` must be there.

    Returns:
        (..., 4) mV: max over time of ``|lead − (a I + b II)|``, in the order III, aVR, aVL, aVF.

    Raises:
        InputError: a limb lead is missing.
    """
    needed = ("I", "II", *LIMB_COEFFICIENTS)
    places = match_leads(leads, needed, "limb_errors")
    if None in places:
        raise InputError("limb_errors", "leads", ", ".join(leads), f"all of {', '.join(needed)}")
    index = dict(zip(needed, (p for p in places if p is not None), strict=True))
    one, two = (signals[..., index[name], :].astype(np.float64) for name in ("I", "II"))
    errors = [
        np.abs(signals[..., index[name], :] - (a * one + b * two)).max(axis=-1)
        for name, (a, b) in LIMB_COEFFICIENTS.items()
    ]
    return np.stack(errors, axis=-1)
