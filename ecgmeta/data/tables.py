"""Reading the tables beside the recordings, and the spellings of age and sex in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ecgmeta.runtime.errors import InputError

OVER_89 = 90.0  # what stands for an age that a database hides as "over 89" (PTB-XL: 300, LUDB: ">89")
_SEX = {"f": "female", "female": "female", "1": "female", "m": "male", "male": "male", "0": "male"}
_UNKNOWN = {"", "nan", "none", "na", "n/a", "unknown", "-"}

LONGEST = 30  # characters of a number; pandas breaks on one that no float can hold


def read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """A csv file with the columns `required`.

    Raises:
        InputError: missing or unreadable file, missing column, no row.
    """
    try:
        table = pd.read_csv(path, low_memory=False)  # one type a column, whatever its length
    except FileNotFoundError:
        raise InputError(path, "table", "no such file", "a csv file") from None
    except (OSError, ValueError) as error:  # pandas' parser errors and undecodable bytes are ValueErrors
        raise InputError(path, "table", str(error)[:200], "a readable csv file") from None
    missing = [column for column in required if column not in table]
    if missing:
        raise InputError(path, "columns", ", ".join(map(str, table.columns))[:200], ", ".join(missing))
    if table.empty:
        raise InputError(path, "rows", "none", "at least one")
    return table


def whole_numbers(table: pd.DataFrame, column: str, path: Path) -> pd.Series[int]:
    """A column as Int64, missing where it is empty.

    Raises:
        InputError: anything but a whole number, with its line.
    """
    short = table[column].astype(str).str.len() <= LONGEST
    values = pd.to_numeric(table[column].where(short), errors="coerce")
    wrong = (
        (values.isna() & table[column].notna())
        | (values.notna() & ~(values % 1 == 0))
        | (values.abs() > 2**53)
    )
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(path, f"{column}, row {row + 1}", repr(table[column].iloc[row]), "a whole number")
    return values.astype("Int64")


def as_age(value: object, where: object) -> float:
    """Years; NaN where unknown; `OVER_89` for 300 and ">89".

    Raises:
        InputError: not an age.
    """
    text = str(value).strip()
    if text.casefold() in _UNKNOWN:
        return math.nan
    if text.startswith(">"):
        return OVER_89
    try:
        years = float(text)
    except ValueError:
        years = -1.0
    if years == 300:
        return OVER_89
    if not 0 <= years <= 125:
        raise InputError(where, "age", repr(text), "years from 0 to 125, or NaN")
    return years


def as_sex(value: object) -> str:
    """ "female", "male" or "unknown" from any of the spellings in use (PTB-XL: 0 male, 1 female)."""
    text = str(value).strip().casefold()
    return _SEX.get(text.removesuffix(".0"), "unknown")
