"""Limits: where exactly they lie, for whom, and when a crossing is more than errors explain."""

from __future__ import annotations

import math

import pytest

from ecgmeta.report.criteria import CRITERIA, Person, crossings, st_limit
from ecgmeta.report.intervals import QUANTITIES, Measures

MAN, WOMAN, SOMEONE = Person("male", 60), Person("female", 60), Person()
NORMAL: Measures = {quantity.key: 0.0 for quantity in QUANTITIES} | {
    "heart_rate": 72.0,
    "pr": 160.0,
    "qrs": 92.0,
    "qt": 390.0,
    "qtc": 410.0,
    "axis": 40.0,
}


def met(person: Person = SOMEONE, **measures: float) -> set[str]:
    return {one.name for one in CRITERIA if one.met(one.margin(NORMAL | measures, person))}


@pytest.mark.parametrize(
    ("measures", "person", "names"),
    [
        ({}, SOMEONE, set()),
        ({"heart_rate": 59.9}, SOMEONE, {"Bradycardia"}),
        ({"heart_rate": 100.1}, SOMEONE, {"Tachycardia"}),
        ({"heart_rate": 60.0, "pr": 200.0, "axis": -30.0}, SOMEONE, set()),
        ({"heart_rate": 100.0, "axis": 90.0}, SOMEONE, set()),
        ({"pr": 201}, SOMEONE, {"First-degree AV block"}),
        ({"qrs": 119}, SOMEONE, set()),
        ({"qrs": 120}, SOMEONE, {"Wide QRS (complete block)"}),
        ({"qtc": 455}, MAN, {"Prolonged QTc"}),
        ({"qtc": 455}, WOMAN, set()),
        ({"qtc": 455}, SOMEONE, set()),
        ({"qtc": 460}, WOMAN, {"Prolonged QTc"}),
        ({"axis": -29}, SOMEONE, set()),
        ({"axis": -31}, SOMEONE, {"Left axis deviation"}),
        ({"axis": 91}, SOMEONE, {"Right axis deviation"}),
        ({"axis": 179}, SOMEONE, {"Right axis deviation"}),
        ({"st_V4": 0.3}, SOMEONE, set()),
        ({"st_V4": 0.3, "st_V5": 0.1}, SOMEONE, {"ST elevation"}),
        ({"st_II": 0.12, "st_aVF": 0.11}, SOMEONE, {"ST elevation"}),
        ({"st_II": 0.12, "st_V1": 0.2}, SOMEONE, set()),
        ({"st_V2": 0.16, "st_V3": 0.16}, WOMAN, {"ST elevation"}),
        ({"st_V2": 0.16, "st_V3": 0.16}, MAN, set()),
        ({"st_V5": -0.06, "st_V6": -0.05}, SOMEONE, {"ST depression"}),
    ],
)
def test_limits(measures: Measures, person: Person, names: set[str]) -> None:
    assert met(person, **measures) == names


def test_young_men_may_have_more_st_in_v2_and_v3() -> None:
    assert st_limit("V2", Person("male", 30)) == 0.25
    assert st_limit("V3", Person("male", math.nan)) == 0.2
    assert st_limit("V4", Person("male", 30)) == 0.1


def test_a_crossing_says_which_way_and_how_far() -> None:
    (far,) = crossings(NORMAL, NORMAL | {"qrs": 140.0}, SOMEONE)
    assert far.criterion.name.startswith("Wide QRS")
    assert (far.appeared, far.beyond_noise) == (True, True)
    (back,) = crossings(NORMAL | {"qrs": 121.0}, NORMAL | {"qrs": 118.0}, SOMEONE)
    assert (back.appeared, back.beyond_noise) == (False, False)
    assert back.before == pytest.approx(1)
    assert back.after == pytest.approx(-2)


def test_limits_are_crossed_by_printed_numbers() -> None:
    """No reader is told that 200 ms is above 200 ms."""
    assert crossings(NORMAL, NORMAL | {"pr": 200.4}, SOMEONE) == []
    assert [one.criterion.quantity for one in crossings(NORMAL, NORMAL | {"pr": 200.6}, SOMEONE)] == ["pr"]


def test_what_could_not_be_measured_crosses_nothing() -> None:
    nothing = dict.fromkeys(NORMAL, math.nan)
    assert crossings(NORMAL | {"qrs": 140.0, "heart_rate": 120.0}, nothing, SOMEONE) == []
    assert crossings(NORMAL, NORMAL, SOMEONE) == []


def test_every_criterion_has_a_source_and_the_error_of_its_quantity() -> None:
    errors = {quantity.key: quantity.noise for quantity in QUANTITIES}
    for criterion in CRITERIA:
        assert criterion.source
        assert (
            criterion.noise
            == errors[
                criterion.quantity.replace("st", "st_II")
                if criterion.quantity == "st"
                else criterion.quantity
            ]
        )
