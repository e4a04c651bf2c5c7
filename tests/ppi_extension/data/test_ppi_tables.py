"""Tables in chunks: the same rows whatever the chunk, and lines counted through all of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.tables import Column, Numbering, read_lines, read_table

COLUMNS = (
    Column("name"),
    Column("score", int, 0, 1000),
    Column("share", float, 0, 1),
    Column("note", empty=True),
)
HEADER = "#name\tscore\tshare\tnote"
NOTE = '"quoted, 5" #1'
ROWS = [f"p{k % 4}\t{k}\t{k / 16:g}\t{'' if k % 3 else NOTE}" for k in range(11)]


def _write(path: Path, lines: list[str], end: str = "\n") -> Path:
    data = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["table.txt", "table.txt.gz"])
@pytest.mark.parametrize("chunk", [1, 3, 11, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_do_not_depend_on_the_chunk(tmp_path: Path, name: str, chunk: int, end: str) -> None:
    path = _write(tmp_path / name, ["! a remark", HEADER, *ROWS], end)
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, text: str, left: float | None = None) -> None:
        told.append((done, total))

    parts = list(read_table(path, COLUMNS, skip=1, chunk=chunk, progress=progress))
    assert [part.first for part in parts] == list(range(3, 14, chunk))
    rows = [row for part in parts for row in part.rows.astype(object).to_numpy().tolist()]
    assert rows == [[f"p{k % 4}", k, k / 16, "" if k % 3 else NOTE] for k in range(11)]
    assert told[-1][0] == told[-1][1] > 0
    number = Numbering()
    codes = np.concatenate([number(part.rows["name"]) for part in parts])
    assert number.names()[codes].tolist() == [row[0] for row in rows]
    assert len(number.names()) == 4


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("row", [0, 5, 10])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p\t1", "row: found 2 cells"),
        ("p\t1\t0.5\t\t9", "row: found 5 cells"),
        ("\t1\t0.5\t", "name: found ''"),
        ("p\tx\t0.5\t", "score: found 'x'"),
        ("p\t1.5\t0.5\t", "score: found '1.5'"),
        ("p\t1001\t0.5\t", "score: found '1001', expected a whole number from 0 to 1000"),
        ("p\t4294967297\t0.5\t", "score: found '4294967297'"),
        ("p\t99999999999999999999\t0.5\t", "score: found '99999999999999999999'"),
        ("p\t1\t\t", "share: found ''"),
        ("p\t1\tnan\t", "share: found 'nan'"),
        ("p\t1\tinf\t", "share: found 'inf'"),
        ("p\t1\t-0.1\t", "share: found '-0.1'"),
    ],
)
def test_what_is_wrong_is_found_on_its_line(
    tmp_path: Path, chunk: int, row: int, text: str, said: str
) -> None:
    lines = [HEADER, *ROWS]
    lines[row + 1] = text
    path = _write(tmp_path / "table.txt", lines)
    with pytest.raises(InputError) as caught:
        list(read_table(path, COLUMNS, chunk=chunk))
    assert str(caught.value).startswith(f"{path}, line {row + 2}: {said}")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    lines = "\n".join([HEADER, *ROWS]).encode()
    path.write_bytes(lines + b"\np\xff\t1\t0.5\t\n")
    with pytest.raises(InputError, match=r"table.txt, line 13: text: found bytes that are no UTF-8"):
        list(read_table(path, COLUMNS))


def test_a_table_without_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows: found none"):
        list(read_table(_write(tmp_path / "table.txt", [HEADER]), COLUMNS))
    path = _write(tmp_path / "table.txt", [])
    with pytest.raises(InputError, match="line 1: header: found ''"):
        list(read_table(path, COLUMNS))
    with pytest.raises(InputError, match="rows: found none"):
        list(read_table(path, COLUMNS, header=False))


def test_rows_that_are_all_too_long(tmp_path: Path) -> None:
    """pandas would drop the last cell of each and warn."""
    path = _write(tmp_path / "table.txt", [HEADER, *(f"{row}\t9" for row in ROWS)])
    for chunk in (1, 4, 100):
        with pytest.raises(InputError, match=r"table.txt, line 2: row: found 5 cells"):
            list(read_table(path, COLUMNS, chunk=chunk))


def test_last_cells_that_may_be_empty_may_be_missing(tmp_path: Path) -> None:
    (part,) = read_table(_write(tmp_path / "table.txt", [HEADER, "a\t1\t0.5", "b\t2\t0.5\tx"]), COLUMNS)
    assert part.rows["note"].tolist() == ["", "x"]
    path = _write(tmp_path / "table.txt", [HEADER, "a\t1\t0.5", "b\tx\t0.5"])
    with pytest.raises(InputError, match=r"line 3: score: found 'x'"):
        list(read_table(path, COLUMNS))


def test_lines_are_counted_up_to_where_a_gzip_breaks_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = _write(tmp_path / "table.txt.gz", [f"line {x}" for x in rng.random(20_000)])
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="gzip") as caught:
        list(read_lines(path))
    line = int(str(caught.value).removeprefix(f"{path}, line ").partition(":")[0])
    assert 5000 < line < 20_000
