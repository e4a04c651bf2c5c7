"""Recordings in a Parquet table (the extra ``parquet``): one row a recording, one column of lists a lead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.leads import match_leads
from ecgmeta.runtime.errors import InputError


def read_parquet(
    path: Path, leads: Sequence[str] | None
) -> tuple[NDArray[np.float32], tuple[str, ...], pd.DataFrame]:
    """Read the leads and the other columns of a Parquet file.

    Args:
        path: the file.
        leads: the columns to take, in any case; None for every column of lists, in the order of the file.

    Returns:
        (N, leads, samples) float32, the names of the leads, and a table of the columns that are not lists.

    Raises:
        InputError: pyarrow is missing; no such file or not Parquet; no column of lists of floating numbers, a lead that is
            not there, lists of different lengths.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(path, "pyarrow", "not installed", "pip install 'ecgmeta[parquet]'") from None
    if not path.is_file():
        raise InputError(path, "file", "no such file", "a Parquet file")
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(path, "file", str(error)[:200], "a Parquet file") from None
    lists = [field.name for field in table.schema if _is_list(pa, field.type)]
    if not lists or not len(table):
        raise InputError(
            path, "columns", ", ".join(table.column_names), "a column of lists for each lead, and a row"
        )
    chosen = tuple(lists) if leads is None else tuple(leads)
    columns = []
    for lead, place in zip(chosen, match_leads(lists, chosen, path), strict=True):
        if place is None:
            raise InputError(path, f"lead {lead}", f"only {', '.join(lists)}", "a column of that name")
        columns.append(_column(pa, table[lists[place]], f"{path}, column {lists[place]}"))
    if len({column.shape[1] for column in columns}) > 1:
        found = ", ".join(f"{name} {column.shape[1]}" for name, column in zip(chosen, columns, strict=True))
        raise InputError(path, "samples", found, "the same number in every lead")
    others = table.drop_columns(lists).to_pandas()
    return np.stack(columns, axis=1), chosen, others.reset_index(drop=True)


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _column(pa: Any, column: Any, where: str) -> NDArray[np.float32]:
    """(rows, samples) of a column of lists."""
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type.value_type):
        raise InputError(where, "type", column.type.value_type, "lists of floating numbers in mV")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(float)
    odd = np.flatnonzero(lengths != lengths[0])  # a missing list is NaN, which equals nothing
    if odd.size or not lengths[0] > 0:
        row = int(odd[0]) if odd.size else 0
        raise InputError(
            where, f"row {row}", f"{lengths[row]:g} samples", f"{lengths[0]:g}, as in row 0, and at least 1"
        )
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(column), -1)
