"""Large text tables, plain or gzipped, read in chunks; whatever is wrong in them is answered with file and line."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 1_000_000  # rows; about 60 MB of a STRING file once parsed
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)  # what a gzip that is cut off or overwritten raises
_BEYOND = "beyond the last column"
_KINDS = {int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as errors call it.
        kind: str (read as a categorical), int or float.
        low, high: the smallest and largest number allowed; NaN never is.
        empty: whether a text may be empty.
    """

    name: str
    kind: type[str] | type[int] | type[float] = str
    low: float = -math.inf
    high: float = math.inf
    empty: bool = False

    def expected(self) -> str:
        """What should stand there, for people."""
        bounded = self.kind is not str and math.isfinite(self.low + self.high)
        return _KINDS[self.kind] + (f" from {self.low:g} to {self.high:g}" if bounded else "")

    def accepts(self, text: str) -> bool:
        """Whether ``text`` may stand there."""
        if self.kind is str:
            return self.empty or bool(text)
        try:
            number = int(text) if self.kind is int else float(text)
            return self.low <= number <= self.high
        except ValueError:
            return False


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a table.

    Attributes:
        path: the file.
        first: line of the file on which the first row stands, from 1.
        rows: categorical, integer and float columns.
    """

    path: Path
    first: int
    rows: pd.DataFrame

    def refuse(self, wrong: NDArray[np.bool_], column: str, expected: str) -> None:
        """Raise InputError for the first row that is ``wrong`` (rows,), if there is one."""
        if wrong.any():
            row = int(wrong.argmax())
            found = self.rows[column].iloc[row]
            shown = repr(str(found)) if isinstance(found, np.generic) else repr(found)
            raise InputError(f"{self.path}, line {self.first + row}", column, shown, expected)


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file for reading, gunzipped if it is a gzip whatever its name: (its content, the file, which knows its position).

    Raises:
        InputError: no such file.
    """
    if not path.is_file():
        raise InputError(path, "file", "no such file", "a file that can be read")
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw) as content:
            yield cast("IO[bytes]", content), raw


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line from 1, its text without the end) of a UTF-8 file, plain or gzipped.

    Raises:
        InputError: no such file, a gzip that breaks off, a line that is not UTF-8.
    """
    number = 0
    with open_bytes(path) as (content, _):
        try:
            for line in content:
                number += 1
                yield number, line.decode("utf-8").rstrip("\r\n")
        except _BROKEN as error:
            raise _cut(path, number + 1, error) from None
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {number}", "text", "bytes that are no UTF-8", "UTF-8") from None


def _cut(path: Path, line: int, error: BaseException) -> InputError:
    text = str(error) or type(error).__name__
    return InputError(f"{path}, line {line}", "gzip", text[:120], "a whole gzip: fetch the file again")


def read_table(
    path: Path,
    columns: Sequence[Column],
    *,
    separator: str = "\t",
    header: bool = True,
    skip: int = 0,
    chunk: int = CHUNK,
    progress: Report | None = None,
) -> Iterator[Chunk]:
    """The rows of a table, ``chunk`` at a time.

    Args:
        columns: all that the file has, in order; cells are never quoted. Last ones that may be empty may be missing in a row.
        header: whether the first line names the columns, then as in ``columns``; a ``#`` before the first is nothing.
        skip: lines before the header.
        progress: called with megabytes read of the file's.

    Raises:
        InputError: no such file, a gzip that breaks off, another header, a row with more or fewer cells, or a cell that its
            column does not accept; with the line.
    """
    import pandas as pd

    if header:
        _check_header(path, columns, separator, skip)
    first = skip + int(header) + 1
    # int32 would wrap a number that is too large, and it might land in the allowed range
    dtypes: dict[str, Any] = {
        column.name: {str: "category", int: "int64", float: "float32"}[column.kind] for column in columns
    }
    options: dict[str, Any] = {
        "names": [*dtypes, _BEYOND], "dtype": {**dtypes, _BEYOND: "category"}, "header": None, "index_col": False,
        "sep": separator,
        "skiprows": first - 1, "skip_blank_lines": False, "quoting": 3, "na_filter": False, "chunksize": chunk,
    }  # fmt: skip
    size = max(path.stat().st_size, 1) if path.is_file() else 1
    with open_bytes(path) as (content, raw):
        try:
            for rows in _parsed(iter(pd.read_csv(content, encoding="utf-8", **options))):
                if not len(rows):
                    raise pd.errors.EmptyDataError
                part = Chunk(path, first + int(rows.index[0]), rows)
                _check_cells(part, columns)
                yield part
                if progress is not None:
                    _show(progress, raw.tell(), size, path)
        except InputError:
            raise
        except pd.errors.EmptyDataError:
            raise InputError(path, "rows", "none", "at least one") from None
        except (*_BROKEN, OSError, OverflowError, ValueError, pd.errors.ParserWarning) as error:
            raise _first_wrong(path, columns, separator, first, error) from None


def _show(progress: Report, done: int, size: int, path: Path) -> None:
    megabyte = 2**20
    progress(-(-done // megabyte), -(-size // megabyte), f"reading {path.name}: MB")


def _check_header(path: Path, columns: Sequence[Column], separator: str, skip: int) -> None:
    number, text = next(islice(read_lines(path), skip, None), (skip + 1, ""))
    found, wanted = text.removeprefix("#").split(separator), [column.name for column in columns]
    if found != wanted:
        missing = [f"; {name} is missing" for name in wanted if name not in found]
        expected = f"the columns {' '.join(wanted)}" + "".join(missing[:1])
        raise InputError(f"{path}, line {number}", "header", repr(text[:200]), expected)


def _parsed(reader: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Chunks whose rows all have as many cells as there are columns, or fewer.

    pandas refuses a row that has more cells than the one before, but where a chunk begins it drops them: from the whole first
    chunk with a warning, from a later row without a word. So there is a further column, in which nothing may stand.

    Raises:
        ValueError: a row has more.
    """
    from pandas.errors import ParserWarning

    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)
            rows = next(reader, None)
        if rows is None:
            return
        if (rows.pop(_BEYOND).cat.categories != "").any():
            raise ValueError("a row with a cell too many")
        yield rows


def _cells(path: Path, line: int, text: str, found: Sequence[str], columns: Sequence[Column]) -> InputError:
    return InputError(f"{path}, line {line}", "row", f"{len(found)} cells in {text[:80]!r}", len(columns))


def _check_cells(part: Chunk, columns: Sequence[Column]) -> None:
    """What pandas lets pass: empty texts, numbers out of range."""
    for column in columns:
        values = part.rows[column.name]
        if column.kind is not str:
            numbers = values.to_numpy()
            part.refuse(~((numbers >= column.low) & (numbers <= column.high)), column.name, column.expected())
        elif not column.empty and "" in values.cat.categories:
            part.refuse((values == "").to_numpy(), column.name, "text")


def _first_wrong(
    path: Path, columns: Sequence[Column], separator: str, first: int, error: BaseException
) -> InputError:
    """The first line that is wrong, found line by line: slow, but only once something is."""
    try:
        for number, text in read_lines(path):
            if number < first:
                continue
            cells = text.split(separator)
            if len(cells) > len(columns) or not all(column.empty for column in columns[len(cells) :]):
                return _cells(path, number, text, cells, columns)
            for column, cell in zip(columns, cells, strict=False):
                if not column.accepts(cell):
                    return InputError(
                        f"{path}, line {number}", column.name, repr(cell[:80]), column.expected()
                    )
    except InputError as broken:
        return broken
    return InputError(path, "table", str(error)[:200], "a readable table")


class Numbering:
    """Numbers for names, from 0, in the order in which they are met."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def __call__(self, names: pd.Series[Any]) -> NDArray[np.int64]:
        """(rows,) the number of each name of a categorical column; a new name gets the next."""
        categories = names.cat.categories
        numbers = [self._number.setdefault(name, len(self._number)) for name in categories]
        return np.array(numbers, np.int64)[names.cat.codes.to_numpy()]

    def names(self) -> NDArray[np.str_]:
        """All names; position is number."""
        return np.array(list(self._number), dtype=np.str_)
