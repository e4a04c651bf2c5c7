"""From what a database says of a record to a 0/1 matrix in a fixed, documented order.

PTB-XL: SCP-ECG statements and their classes (Wagner et al., Scientific Data 2020). Challenge: the 30 scored diagnoses of
PhysioNet/CinC 2021 as SNOMED-CT codes, of which four pairs are scored as one, so 26 labels. LUDB: the text of ``ludb.csv``.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
PTBXL_SETS = ("all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm")
PtbxlSet = Literal["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm"]


def multi_hot(codes: Iterable[Collection[str]], names: Sequence[str]) -> NDArray[np.float32]:
    """(records, names) with a 1 where a record has the name; names unknown to `names` are ignored."""
    place = {name: column for column, name in enumerate(names)}
    rows = [[place[code] for code in record if code in place] for record in codes]
    out = np.zeros((len(rows), len(names)), dtype=np.float32)
    of = np.repeat(np.arange(len(rows)), [len(columns) for columns in rows])
    out[of, np.array(list(chain.from_iterable(rows)), dtype=np.intp)] = 1
    return out


# --- PTB-XL ---------------------------------------------------------------------------------------------------------


def parse_scp_codes(text: str, where: object) -> tuple[str, ...]:
    """``"{'NORM': 100.0, 'SR': 0.0}"`` → ("NORM", "SR").

    Every statement counts, whatever its likelihood: 0 means "not said", not "absent" (form and rhythm statements always
    have 0), and the benchmark and the paper both count it.
    """
    codes = _scp_codes(text)
    if codes is None:
        raise InputError(where, "scp_codes", repr(text)[:80], "a dict of statement to likelihood")
    return codes


@lru_cache(maxsize=4096)  # many records have the same
def _scp_codes(text: str) -> tuple[str, ...] | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: {[]: 1}
        return None
    return tuple(found) if isinstance(found, dict) and all(isinstance(code, str) for code in found) else None


def ptbxl_labels(
    codes: Sequence[Collection[str]], statements: pd.DataFrame, which: PtbxlSet, where: object
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The label matrix of one of the six label sets.

    Args:
        codes: the SCP statements of each record.
        statements: ``scp_statements.csv`` with the statement as its index.
        which: the set; its order is NORM, MI, STTC, CD, HYP for ``"superdiagnostic"`` and alphabetical for all others.
        where: named in errors.

    Returns:
        (records, labels) 0/1 and the names.

    Raises:
        InputError: an unknown set; a record with a statement that the table does not have.
    """
    if which not in PTBXL_SETS:
        raise InputError(where, "labels", repr(which), ", ".join(PTBXL_SETS))
    strange = sorted({code for record in codes for code in record} - set(statements.index))
    if strange:
        raise InputError(where, "scp_codes", ", ".join(strange), "statements of scp_statements.csv")
    target = _ptbxl_targets(statements, which)
    names = SUPERCLASSES if which == "superdiagnostic" else tuple(sorted(set(target.values())))
    mapped = [[target[code] for code in record if code in target] for record in codes]
    return multi_hot(mapped, names), names


def _ptbxl_targets(statements: pd.DataFrame, which: PtbxlSet) -> dict[str, str]:
    """Statement → label, for the statements that the set covers."""
    if which == "all":
        return {code: code for code in statements.index}
    if which in ("form", "rhythm", "diagnostic"):
        return {code: code for code in statements.index[statements[which] == 1]}
    column = "diagnostic_class" if which == "superdiagnostic" else "diagnostic_subclass"
    chosen = statements.loc[statements["diagnostic"] == 1, column].dropna()
    return dict(zip(chosen.index, chosen, strict=True))


# --- Challenge ------------------------------------------------------------------------------------------------------


@cache
def scored_diagnoses() -> tuple[dict[str, str], tuple[str, ...]]:
    """SNOMED-CT code → label for the scored diagnoses, equivalent codes together, and the 26 labels in order."""
    text = files("ecgmeta.data").joinpath("snomed.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    mapping = {row["code"]: row["label"] for row in rows}
    mapping |= {row["equivalent"]: row["label"] for row in rows if row["equivalent"]}
    return mapping, tuple(row["label"] for row in rows)


def snomed_labels(codes: Iterable[Collection[str]]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(records, 26) 0/1 and the labels of `scored_diagnoses`; codes that are not scored are ignored."""
    mapping, names = scored_diagnoses()
    return multi_hot(
        ([mapping[code] for code in record if code in mapping] for record in codes), names
    ), names


# --- LUDB -----------------------------------------------------------------------------------------------------------

# Label → what the text of ludb.csv starts with (case and spaces apart), grouped by the column it stands in.
LUDB_DIAGNOSES: dict[str, dict[str, str]] = {
    "Rhythms": {
        "sinus_rhythm": "sinus rhythm",
        "sinus_bradycardia": "sinus bradycardia",
        "sinus_tachycardia": "sinus tachycardia",
        "sinus_arrhythmia": "sinus arrhythmia",
        "irregular_sinus_rhythm": "irregular sinus rhythm",
        "atrial_fibrillation": "atrial fibrillation",
        "atrial_flutter": "atrial flutter",
        "wandering_atrial_pacemaker": "wandering atrial pacemaker",
        "aberrant_conduction": "aberrant conduction",
    },
    "Electric axis of the heart": {
        "normal_axis": "electric axis of the heart: normal",
        "left_axis_deviation": "electric axis of the heart: left axis deviation",
        "right_axis_deviation": "electric axis of the heart: right axis deviation",
        "vertical_axis": "electric axis of the heart: vertical",
        "horizontal_axis": "electric axis of the heart: horizontal",
    },
    "Conduction abnormalities": {
        "sinoatrial_block": "sinoatrial blockade",
        "av_block_1": "i degree av",
        "av_block_3": "iii degree av",
        "incomplete_rbbb": "incomplete right bundle branch block",
        "complete_rbbb": "complete right bundle branch block",
        "incomplete_lbbb": "incomplete left bundle branch block",
        "complete_lbbb": "complete left bundle branch block",
        "left_anterior_hemiblock": "left anterior hemiblock",
        "nonspecific_ivcd": "non-specific intravintricular conduction delay",
    },
    "Extrasystolies": {
        "atrial_extrasystole": "atrial extrasystole",
        "ventricular_extrasystole": "ventricular extrasystole",
    },
    "Hypertrophies": {
        "lvh": "left ventricular hypertrophy",
        "lv_overload": "left ventricular overload",
        "rvh": "right ventricular hypertrophy",
        "lah": "left atrial hypertrophy",
        "la_overload": "left atrial overload",
        "rah": "right atrial hypertrophy",
        "ra_overload": "right atrial overload",
    },
    "Cardiac pacing": {"pacemaker": ""},
    "Ischemia": {
        "ischemia": "ischemia",
        "stemi": "stemi",
        "scar": "scar formation",
        "undefined_ischemia_or_scar": "undefined ischemia/scar",
    },
    "Non-specific repolarization abnormalities": {
        "nonspecific_repolarization": "non-specific repolarization abnormalities"
    },
    "Other states": {"early_repolarization": "early repolarization"},
}
LUDB_LABELS = tuple(label for column in LUDB_DIAGNOSES.values() for label in column)


def ludb_diagnoses(cell: object, column: str, where: object) -> tuple[str, ...]:
    """The labels of one cell of ``ludb.csv`` (a diagnosis a line).

    Raises:
        InputError: a diagnosis that is not in `LUDB_DIAGNOSES`.
    """
    if not isinstance(cell, str):
        return ()
    found: list[str] = []
    for line in filter(None, (" ".join(text.split()).casefold() for text in cell.splitlines())):
        labels = [
            label for label, start in LUDB_DIAGNOSES[column].items() if re.match(re.escape(start), line)
        ]
        if not labels:
            known = ", ".join(repr(text) for text in LUDB_DIAGNOSES[column].values())
            raise InputError(where, column, repr(line), f"one that begins with {known}")
        found += [label for label in labels if label not in found]
    return tuple(found)
