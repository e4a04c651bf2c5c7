"""Whatever is wrong in a file of a source: one line that names the file and, where it has lines, the line."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppi_source_files import (
    ALIASES,
    INFO,
    LINKS,
    TERMS,
    hu_arrays,
    read_text,
    string_name,
    world,
    write_gaf,
    write_hu,
    write_ogb,
    write_ohmnet,
    write_string,
    write_text,
)

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.sources import read_source

pytestmark = pytest.mark.slow  # hundreds of damaged files

WORLD = world()
WRITE: dict[str, Callable[[Path], Path]] = {
    "string": lambda folder: write_string(folder, WORLD),
    "gaf": lambda folder: write_gaf(folder, WORLD),
    "ogb": lambda folder: write_ogb(folder, WORLD),
    "ohmnet": write_ohmnet,
}
# (source, file, separator, cells that have to be filled, whether it has a header)
TABLES = [
    ("string", string_name(9606, LINKS), " ", range(10), True),
    ("string", string_name(4932, TERMS), "\t", range(3), True),
    ("gaf", string_name(4932, LINKS), " ", range(10), True),
    ("gaf", string_name(9606, ALIASES), "\t", range(1), True),
    ("gaf", string_name(9606, INFO), "\t", range(2), True),
    ("gaf", "9606.gaf.gz", "\t", (0, 1, 2, 4, 5, 6, 8, 11, 12, 13, 14), False),
    ("ogb", "raw/edge.csv.gz", ",", range(2), False),
    ("ogb", "raw/edge-feat.csv.gz", ",", range(8), False),
    ("ogb", "raw/node_species.csv.gz", ",", range(1), False),
    ("ogb", "raw/node-label.csv.gz", ",", range(6), False),
    ("ogb", "raw/num-node-list.csv.gz", ",", range(1), False),
    ("ogb", "raw/num-edge-list.csv.gz", ",", range(1), False),
    ("ogb", "mapping/nodeidx2proteinid.csv.gz", ",", range(2), False),
    ("ogb", "mapping/labelidx2GO.csv.gz", ",", range(2), False),
    ("ohmnet", "bio-tissue-networks/heart.edgelist", "\t", range(2), False),
    ("ohmnet", "bio-tissue-labels/heart_GO:0000011.lab", "\t", range(2), False),
]
NAMES = [f"{source}-{file}" for source, file, *_ in TABLES]


def _read(source: str, folder: Path) -> None:
    options: dict[str, Any] = {"min_genes": 1} if source in ("string", "gaf") else {}
    read_source(source, folder, **options)


def _refused(source: str, folder: Path, file: str, line: int | None) -> str:
    with pytest.raises(InputError) as caught:
        _read(source, folder)
    said = str(caught.value)
    assert "\n" not in said
    assert Path(file).name in said
    if line is not None:
        assert f"{file}, line {line}:" in said, said
    return said


def _row(lines: list[str]) -> int:
    """A row in the middle: its position; the line is one more."""
    return max(len(lines) // 2, len(lines) - 1 if len(lines) < 3 else 0)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_a_row_that_is_cut_off(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file, separator, filled, _ = table
    path = WRITE[source](tmp_path) / file
    lines = read_text(path)
    at = _row(lines)
    lines[at] = separator.join(lines[at].split(separator)[: max(filled)])
    write_text(path, lines)
    _refused(source, tmp_path, file, at + 1)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_a_row_with_a_cell_too_many(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file, separator, _, _ = table
    path = WRITE[source](tmp_path) / file
    for at in {_row(read_text(path)), len(read_text(path)) - 1}:
        lines = read_text(path)
        lines[at] += f"{separator}9"
        write_text(path, lines)
        _refused(source, tmp_path, file, at + 1)
        WRITE[source](tmp_path)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_every_first_row_with_a_cell_too_many(tmp_path: Path, table: tuple[Any, ...]) -> None:
    """All rows alike are no less wrong: nothing may shift by a column."""
    source, file, separator, _, header = table
    path = WRITE[source](tmp_path) / file
    lines = read_text(path)
    first = int(header) or sum(line.startswith(("!", "#", "node idx", "label idx")) for line in lines[:2])
    write_text(path, [*lines[:first], *(f"{line}{separator}9" for line in lines[first:])])
    _refused(source, tmp_path, file, None if file.endswith("label.csv.gz") else first + 1)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_an_empty_cell_and_a_blank_line(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file, separator, filled, _ = table
    path = WRITE[source](tmp_path) / file
    original = read_text(path)
    at = _row(original)
    for column in (min(filled), max(filled)):
        lines = list(original)
        cells = lines[at].split(separator)
        cells[column] = ""
        lines[at] = separator.join(cells)
        write_text(path, lines)
        _refused(source, tmp_path, file, at + 1)
    write_text(path, [*original[:at], "", *original[at:]])
    _refused(source, tmp_path, file, at + 1)


@pytest.mark.parametrize(
    "table", [t for t in TABLES if t[4]], ids=[n for n, t in zip(NAMES, TABLES, strict=True) if t[4]]
)
def test_a_column_that_is_missing(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file, separator, _, _ = table
    path = WRITE[source](tmp_path) / file
    cells = [line.split(separator) for line in read_text(path)]
    write_text(path, [separator.join(row[:1] + row[2:]) for row in cells])
    assert f"{cells[0][1]} is missing" in _refused(source, tmp_path, file, 1)


PACKED = [t for t in TABLES if t[1].endswith(".gz") and "num-" not in t[1]]


@pytest.mark.parametrize("table", PACKED, ids=[f"{t[0]}-{t[1]}" for t in PACKED])
def test_a_gzip_that_is_cut_off_or_damaged(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file = table[:2]
    path = WRITE[source](tmp_path) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    said = _refused(source, tmp_path, file, None)
    assert "line " in said
    assert "gzip" in said
    path.write_bytes(whole[:-8] + bytes(8))  # another checksum: a whole file that has changed
    assert "gzip" in _refused(source, tmp_path, file, None)
    path.write_bytes(whole[:25])
    assert "gzip" in _refused(source, tmp_path, file, None)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_another_kind_of_file_in_its_place(tmp_path: Path, table: tuple[Any, ...]) -> None:
    source, file = table[:2]
    path = WRITE[source](tmp_path) / file
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(path.name, np.random.default_rng(0).bytes(3000))
    path.write_bytes(archive.getvalue())
    _refused(source, tmp_path, file, None)
    path.write_bytes(gzip.compress(archive.getvalue()))
    _refused(source, tmp_path, file, None)
    path.write_bytes(b"")
    _refused(source, tmp_path, file, None)


@pytest.mark.parametrize(
    ("source", "file", "said"),
    [
        ("string", string_name(9606, TERMS), f"expected {string_name(9606, TERMS)}"),
        ("gaf", string_name(9606, ALIASES), f"expected {string_name(9606, ALIASES)}"),
        ("gaf", "9606.gaf.gz", "taxon 9606: found no annotation that counts"),
        *((t[0], t[1], "no such file") for t in TABLES if t[1].startswith("raw/")),
    ],
)
def test_a_file_that_is_missing(tmp_path: Path, source: str, file: str, said: str) -> None:
    (WRITE[source](tmp_path) / file).unlink()
    assert said in _refused(source, tmp_path, "", None)


def _with(path: Path, at: int, column: int, value: str, separator: str) -> None:
    lines = read_text(path)
    cells = lines[at].split(separator)
    cells[column] = value
    lines[at] = separator.join(cells)
    write_text(path, lines)


@pytest.mark.parametrize(
    ("source", "file", "separator", "column", "value", "said"),
    [
        ("string", string_name(9606, LINKS), " ", 1, "4932.P001", "protein of taxon 9606"),
        ("string", string_name(9606, LINKS), " ", 1, "P001", "9606.IDENTIFIER"),
        ("string", string_name(9606, LINKS), " ", 2, "1001", "a whole number from 0 to 1000"),
        ("string", string_name(9606, LINKS), " ", 2, "-1", "a whole number from 0 to 1000"),
        ("string", string_name(9606, LINKS), " ", 8, "0.5", "textmining: found '0.5'"),
        ("string", string_name(9606, LINKS), " ", 8, "nan", "textmining: found 'nan'"),
        ("string", string_name(9606, LINKS), " ", 3, "99999999999", "fusion: found '99999999999'"),
        ("string", string_name(9606, TERMS), "\t", 0, "4932.P001", "protein of taxon 9606"),
        ("string", string_name(9606, TERMS), "\t", 2, "GO:12", "GO: and seven digits"),
        ("gaf", "9606.gaf.gz", "\t", 4, "0000012", "GO: and seven digits"),
        ("gaf", "9606.gaf.gz", "\t", 8, "X", "P, F or C"),
        ("gaf", "9606.gaf.gz", "\t", 12, "9606", "taxon:NUMBER"),
        ("gaf", string_name(9606, ALIASES), "\t", 0, "P001", "protein of taxon 9606"),
        ("ogb", "raw/edge.csv.gz", ",", 0, "28", "a node from 0 to 27"),
        ("ogb", "raw/edge.csv.gz", ",", 0, "-1", "node 1"),
        ("ogb", "raw/edge.csv.gz", ",", 1, "27", "same species"),
        ("ogb", "raw/edge-feat.csv.gz", ",", 3, "1.5", "a number from 0 to 1"),
        ("ogb", "raw/edge-feat.csv.gz", ",", 3, "nan", "a number from 0 to 1"),
        ("ogb", "raw/edge-feat.csv.gz", ",", 3, "x", "a number from 0 to 1"),
        ("ogb", "raw/node-label.csv.gz", ",", 3, "2", "a whole number from 0 to 1"),
        ("ogb", "mapping/labelidx2GO.csv.gz", ",", 0, "6", "a whole number from 0 to 5"),
        ("ohmnet", "bio-tissue-networks/heart.edgelist", "\t", 0, "x", "two whole numbers"),
        ("ohmnet", "bio-tissue-labels/heart_GO:0000011.lab", "\t", 1, "-1", "two whole numbers"),
        ("ohmnet", "bio-tissue-labels/heart_GO:0000011.lab", "\t", 1, "2", "one of (0, 1)"),
    ],
)
def test_a_cell_that_means_nothing(
    tmp_path: Path, source: str, file: str, separator: str, column: int, value: str, said: str
) -> None:
    path = WRITE[source](tmp_path) / file
    at = 3
    _with(path, at, column, value, separator)
    assert said in _refused(source, tmp_path, file, at + 1)


def test_rows_that_are_missing_at_the_end(tmp_path: Path) -> None:
    for file in ("edge", "edge-feat", "node_species", "node-label"):
        path = write_ogb(tmp_path, WORLD) / "raw" / f"{file}.csv.gz"
        lines = read_text(path)[:-1]
        write_text(path, lines)
        _refused("ogb", tmp_path, path.name, len(lines))
    raw = write_ogb(tmp_path, WORLD) / "raw"
    write_text(raw / "num-edge-list.csv.gz", ["5"])
    assert "5 lines, as num-edge-list says" in _refused("ogb", tmp_path, "edge.csv.gz", None)


def test_a_name_that_a_mapping_lacks(tmp_path: Path) -> None:
    path = write_ogb(tmp_path, WORLD) / "mapping" / "nodeidx2proteinid.csv.gz"
    write_text(path, read_text(path)[:-1])
    assert "no name of 27" in _refused("ogb", tmp_path, path.name, None)


@pytest.mark.parametrize("version", ["!gaf-version: 1.0", "!no version"])
def test_gaf_of_another_version(tmp_path: Path, version: str) -> None:
    path = write_gaf(tmp_path, WORLD) / "9606.gaf.gz"
    write_text(path, [version, *read_text(path)[1:]])
    assert "!gaf-version: 2.0, 2.1 or 2.2" in _refused("gaf", tmp_path, path.name, 1)


def test_gaf_whose_genes_string_does_not_know(tmp_path: Path) -> None:
    write_gaf(tmp_path, WORLD)
    path = tmp_path / string_name(4932, ALIASES)
    write_text(path, [line.replace("SYM", "OTHER") for line in read_text(path)])
    assert "none of" in _refused("gaf", tmp_path, path.name, None)


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in ("string", "gaf", "ogb", "ohmnet", "hu"):
        _refused(source, tmp_path / "absent", "absent", None)
        _refused(source, empty, "empty", None)
    folder = write_gaf(tmp_path / "gaf", WORLD)
    (folder / "go-basic.obo.gz").unlink()
    assert "go-basic.obo" in _refused("gaf", folder, "gaf", None)
    write_gaf(folder, WORLD)
    write_text(folder / "other.obo", ["format-version: 1.2"])
    assert "name it with obo=FILE" in _refused("gaf", folder, "gaf", None)
    folder = write_string(tmp_path / "string", WORLD)
    write_text(folder / string_name(9606, LINKS, packed=False), ["x"])
    assert "one of them" in _refused("string", folder, "string", None)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("string", {"taxa": [7227]}, "7227.protein.links.detailed"),
        ("string", {"taxa": [9606, 9606]}, "each once"),
        ("string", {"thresholds": [1, 2]}, "7 scores"),
        ("string", {"thresholds": [0] * 7}, "7 scores"),
        ("string", {"thresholds": [1000] * 7}, "none of 4932 that counts"),
        ("string", {"aspects": ["proces"]}, "process, function, component"),
        ("string", {"min_genes": 0}, "at least 1"),
        ("string", {"min_genes": 1000}, "no term with 1000 genes"),
        ("string", {"unannotated": "no"}, "unlabelled or negative"),
        ("string", {"taxon": [1]}, "taxon: found an unknown option"),
        ("string", {"taxa": "human"}, "taxa"),
        ("string", {"obo": "absent.obo"}, "absent.obo"),
        ("ogb", {"taxa": [1]}, "taxa: found 1, expected some of [4932, 9606]"),
        ("ogb", {"homology": 2000}, "from 1 to 1000"),
        ("ohmnet", {"tissues": ["hart"]}, "'hart'"),
        ("ohmnet", {"labels": "all"}, "union, tissue, both"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, source: str, options: dict[str, Any], said: str) -> None:
    WRITE[source](tmp_path)
    with pytest.raises(InputError) as caught:
        read_source(source, tmp_path, **options)
    assert said in str(caught.value)


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the nearest is 'string'"):
        read_source("strings", tmp_path)


def test_ohmnet_archives(tmp_path: Path, real_data: Path) -> None:
    path = tmp_path / "ppi.npz"
    whole = (real_data / "ppi" / "ppi_ohmnet24.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        path.write_bytes(content)
        _refused("ohmnet", path, "ppi.npz", None)
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    path.write_bytes(damaged)
    _refused("ohmnet", path, "ppi.npz", None)
    with np.load(real_data / "ppi" / "ppi_ohmnet24.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    changes: dict[str, Any] = {
        "genes": None,
        "genes ": np.array(3),
        "edges/aorta ": arrays["edges/aorta"] + 0.5,
        "Y_union ": arrays["Y_union"].astype(np.int32) + 256 * (arrays["Y_union"] == 1),
        "tissue_label_keys": np.array(["x"]),
        "nodes/aorta": np.array([9999]),
        "edges/aorta": np.array([1, 2]),
        "Y_union": arrays["Y_union"][:5],
        "lab/heart/0003151": np.zeros(3, np.uint8),
        "tissue": np.array([{}], dtype=object),
    }
    for name, value in changes.items():
        key = name.strip()
        np.savez(path, **{k: v for k, v in {**arrays, key: value}.items() if v is not None})
        said = _refused("ohmnet", path, "ppi.npz" if name != "Y_union" else "labels", None)
        assert not (name.endswith(" ") or key == "tissue_label_keys") or f"{key}: found" in said
    np.save(tmp_path / "one.npy", np.arange(3))
    _refused("ohmnet", tmp_path / "one.npy", "one.npy", None)


def test_ohmnet_tar_archives(tmp_path: Path) -> None:
    write_ohmnet(tmp_path, packed=True)
    path = tmp_path / "bio-tissue-labels.tar.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing", gzip.compress(b"no tar" * 200), b""):
        path.write_bytes(content)
        _refused("ohmnet", tmp_path, path.name, None)
    with tarfile.open(path, "w:gz") as archive:
        text = b"# comment\n11\t1\n12\t7\n"
        member = tarfile.TarInfo("bio-tissue-labels/heart_GO:0000011.lab")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    assert "heart_GO:0000011.lab, line 3: label" in _refused("ohmnet", tmp_path, path.name, None)
    path.unlink()
    assert "no bio-tissue-labels" in _refused("ohmnet", tmp_path, "", None)


def _wrong_hu(change: str, arrays: dict[str, list[Any]]) -> None:
    """Make graph 5 wrong."""
    for name in ("edge_index", "edge_attr"):
        arrays[name][5] = arrays[name][5].copy()
    if change == "one direction":
        arrays["edge_index"][5] = arrays["edge_index"][5][:, 1:]
        arrays["edge_attr"][5] = arrays["edge_attr"][5][1:]
    elif change == "channels differ":
        arrays["edge_attr"][5][0, 2] = 1 - arrays["edge_attr"][5][0, 2]
    elif change == "edge twice":
        arrays["edge_index"][5] = np.concatenate([arrays["edge_index"][5]] * 2, axis=1)
        arrays["edge_attr"][5] = np.concatenate([arrays["edge_attr"][5]] * 2)
    elif change == "node outside":
        arrays["edge_index"][5][0, 0] = 100
    elif change == "mask set":
        arrays["edge_attr"][5][0, 8] = 1
    elif change == "half a channel":
        arrays["edge_attr"][5][0, 0] = 0.5
    elif change == "centre outside":
        arrays["center_node_idx"][5] = np.array([100])
    elif change == "label":
        arrays["go_target_pretrain"][5] = np.array([0, 1, 2, 0, 1])
    elif change == "labels too few":
        arrays["go_target_pretrain"][5] = np.array([0, 1])


@pytest.mark.parametrize(
    "change",
    [
        "one direction",
        "channels differ",
        "edge twice",
        "node outside",
        "mask set",
        "half a channel",
        "centre outside",
        "label",
        "labels too few",
    ],
)
def test_a_graph_of_hu_that_is_wrong(tmp_path: Path, change: str) -> None:
    from ppi_extension.data.sources import store_of

    arrays = hu_arrays()
    assert arrays["edge_index"][5].size
    _wrong_hu(change, arrays)
    path = write_hu(tmp_path / "data.pt", arrays)
    with pytest.raises(InputError, match=r"data.pt, graph 5: "):
        store_of(read_source("hu", path), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_file_of_hu_that_is_wrong(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "data.pt"
    arrays = hu_arrays()
    for zipped in (False, True):
        whole = write_hu(path, arrays, zipped).read_bytes()
        for content in (whole[: len(whole) // 2], b"nothing", b""):
            path.write_bytes(content)
            _refused("hu", path, "data.pt", None)
    unlabelled = {name: parts for name, parts in arrays.items() if not name.startswith("go_")}
    write_hu(path, unlabelled)
    assert "the labelled graphs" in _refused("hu", path, "data.pt", None)
    write_hu(path, arrays | {"edge_attr": [a[:, :7] for a in arrays["edge_attr"]]})
    assert "9 attributes of every edge" in _refused("hu", path, "data.pt", None)
    write_hu(path, arrays | {"species_id": arrays["species_id"][:-1]})
    assert "slices of species_id" in _refused("hu", path, "data.pt", None)
    for content in ({"a": 1}, (1, 2), [torch.zeros(2)]):
        torch.save(content, path)
        assert "(data, slices) of Hu et al." in _refused("hu", path, "data.pt", None)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("edge_index", lambda x: x.float(), "edge_index: found torch.float32"),
        ("center_node_idx", lambda x: x + 0.5, "center_node_idx: found torch.float32"),
        ("center_node_idx", lambda x: x[:, None], "center_node_idx: found none or several"),
        ("species_id", lambda x: -x, "graph 0: species_id: found -3702"),
        ("edge_attr", lambda x: x.to_sparse(), "edge_attr: found torch.float32, torch.sparse_coo"),
        ("edge_attr", lambda x: x.bfloat16(), "edge_attr: found torch.bfloat16"),
        ("edge_attr", lambda x: x.requires_grad_(), "with gradients"),
        ("slices", lambda x: {"a": 1}, "slices of x: found dict"),
        ("slices", lambda x: "abc", "slices of x: found str"),
        ("slices", lambda x: None, "slices of x: found NoneType"),
        ("slices", lambda x: x + 0.4, "slices of x: found Tensor, expected a list of whole numbers"),
    ],
)
def test_tensors_of_hu_that_are_of_another_kind(
    tmp_path: Path, name: str, change: Callable[[Any], Any], said: str
) -> None:
    def changed(data: Any, slices: dict[str, Any]) -> None:
        if name == "slices":
            slices["x"] = change(slices["x"])
        else:
            setattr(data, name, change(getattr(data, name)))

    path = write_hu(tmp_path / "data.pt", hu_arrays(), change=changed)
    assert said in _refused("hu", path, "data.pt", None)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("hostile"),))


def test_nothing_in_a_file_of_hu_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    for zipped in (False, True):
        torch.save((_Hostile(), {}), "data.pt", _use_new_zipfile_serialization=zipped)
        _refused("hu", Path("data.pt"), "data.pt", None)
    assert not Path("hostile").exists()
