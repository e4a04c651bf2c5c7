"""The commands `ppi-extension data`: what they print, what they find, and one line with exit code 2 for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ppi_source_files import hu_arrays, string_name, world, write_hu, write_obo, write_string

from ecgmeta.runtime.cli import guarded
from ppi_extension.data.builder import BuildSettings
from ppi_extension.data.checks import Finding, check_store
from ppi_extension.data.cli import app
from ppi_extension.data.sources import read_source, store_of
from ppi_extension.data.store import EgoStore
from ppi_extension.splits import save_parts

WORLD = world()
SMALL = ("min_genes=1", "min_positives=1", "min_negatives=1", "finetune_fraction=0.3")


def call(*words: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as left:
        guarded(lambda: app([str(word) for word in words]))
    return int(left.value.code or 0)


def _string(folder: Path) -> Path:
    return write_string(folder / "string", WORLD)


def test_help_loads_neither_torch_nor_pandas() -> None:
    code = "import sys; import ppi_extension.data.cli, ppi_extension.data.sources; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "scipy", "torch_geometric"} & set(done.stdout.split())


def test_sources_and_their_keys_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sources") == 0
    shown = capsys.readouterr().out
    for word in (
        "string",
        "gaf",
        "ogb",
        "ohmnet",
        "hu",
        "thresholds",
        "homology",
        "tissues",
        "fanout",
        "limit",
    ):
        assert word in shown


def test_a_store_is_built_described_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    assert call("build", "string", _string(tmp_path), out, *SMALL, "depth=1", "seed=3", "taxa=[9606]") == 0
    built = capsys.readouterr().out
    assert f"store: {out}" in built.replace("\n", "")
    store = EgoStore.open(out)
    assert store.graph_names == ("9606",)
    assert store.info["settings"]["depth"] == 1
    assert store.info["settings"]["seed"] == 3
    assert store.info["notes"]["source"] == "string"
    assert store.info["notes"]["options"]["taxa"] == [9606]
    assert call("info", out) == 0
    shown = capsys.readouterr().out
    assert "9606" in shown
    assert f"{len(store)} ego graphs" in shown.replace("\n", "")
    assert shown in built
    assert call("check", out, "--obo", tmp_path / "string" / "go-basic.obo") in (
        0,
        1,
    )  # 14 genes divide badly
    found = capsys.readouterr().out.splitlines()
    assert [
        line for line in found if line.startswith("ok    leak rule: no pre-training task equals or descends")
    ]
    assert [line for line in found if line.startswith("ok    split: no gene on two sides")]


def test_lists_of_terms_are_files(tmp_path: Path) -> None:
    (tmp_path / "ft.txt").write_text("GO:0000012\n\n")
    (tmp_path / "pt.txt").write_text("GO:0000010\nGO:0000013\nGO:0000020\n")
    lists = ("--finetune-terms", tmp_path / "ft.txt", "--pretrain-terms", tmp_path / "pt.txt")
    assert call("build", "string", _string(tmp_path), tmp_path / "store", *SMALL, *lists) == 0
    store = EgoStore.open(tmp_path / "store")
    assert store.finetune_terms == ("GO:0000012",)
    assert store.pretrain_terms == ("GO:0000010", "GO:0000020")  # ...13 descends from ...12
    assert store.info["settings"]["dropped_terms"] == ["GO:0000013"]


def test_ready_made_graphs_are_named_by_the_same_lists(tmp_path: Path) -> None:
    path = write_hu(tmp_path / "data.pt", hu_arrays())
    (tmp_path / "ft.txt").write_text("a\nb\nc\n")
    assert call("build", "hu", path, tmp_path / "store", "--finetune-terms", tmp_path / "ft.txt") == 0
    assert EgoStore.open(tmp_path / "store").finetune_terms == ("a", "b", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("build", "strings", "{string}", "{out}"), "the nearest is 'string'"),
        (("build", "string", "{tmp}/absent", "{out}"), "no such folder"),
        (("build", "string", "{string}", "{out}", "tax=[1]"), "the nearest is 'taxa'"),
        (("build", "string", "{string}", "{out}", "depth=deep"), "depth: found 'deep'"),
        (("build", "string", "{string}", "{out}", "depth"), "key=value"),
        (("build", "string", "{string}", "{out}", *SMALL, "depth=0"), "depth"),
        (("build", "string", "{string}", "{out}", "limit=0", "min_genes=1"), "limit"),
        (("build", "string", "{string}", "{out}", "min_genes=999"), "min_genes"),
        (("build", "string", "{string}", "{out}", "taxa=[1]"), "1.protein.links.detailed"),
        (("build", "string", "{string}", "{out}", "--finetune-terms", "{tmp}/absent.txt"), "absent.txt"),
        (
            ("build", "string", "{string}", "{out}", *SMALL, "--finetune-terms", "{string}/go-basic.obo"),
            "terms",
        ),
        (("build", "hu", "{string}/go-basic.obo", "{out}"), "(data, slices)"),
        (("build", "hu", "{string}/go-basic.obo", "{out}", "depth=1"), "an unknown key"),
        (("build", "string", "{string}", "{string}"), "something stands there"),
        (("info", "{tmp}/absent"), "no such folder"),
        (("info", "{string}"), "info.json"),
        (("check", "{string}"), "info.json"),
        (("synth", "{string}"), "something stands there"),
        (("synth", "{out}", "genes=1"), "genes: found 1"),
        (("synth", "{out}", "gene=1"), "the nearest is 'genes'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    places = {"tmp": tmp_path, "string": _string(tmp_path), "out": tmp_path / "out"}
    assert call(*(word.format(**places) for word in words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_broken_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _string(tmp_path)
    path = folder / string_name(9606, "links.detailed")
    path.write_bytes(path.read_bytes()[:-30])
    assert call("build", "string", folder, tmp_path / "out") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert f"{path}, line" in error[0]
    assert not (tmp_path / "out").exists()


def _store(tmp_path: Path, **settings: object) -> EgoStore:
    data = read_source("string", _string(tmp_path), min_genes=1)
    chosen = BuildSettings(min_positives=1, min_negatives=1, finetune_terms=("GO:0000012",))
    return store_of(data, tmp_path / "store", chosen)


def _wrong(found: list[Finding]) -> set[str]:
    return {finding.what for finding in found if not finding.ok}


def test_check_finds_a_task_below_a_fine_tuning_task(tmp_path: Path) -> None:
    data = read_source("string", _string(tmp_path), min_genes=1)
    blind = type(data)(data.graphs, data.labels, None)  # built without the ontology: nothing is dropped
    settings = BuildSettings(min_positives=1, min_negatives=1, finetune_terms=("GO:0000012",))
    store = store_of(blind, tmp_path / "store", settings)
    assert "leak rule" not in _wrong(list(check_store(store)))
    found = list(check_store(store, write_obo(tmp_path)))
    assert "leak rule" in _wrong(found)
    assert "GO:0000013, GO:0000014" in next(str(f) for f in found if f.what == "leak rule")


def test_check_finds_a_gene_on_two_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _store(tmp_path)
    rows = np.arange(len(store))
    parts = tmp_path / "parts.json"
    save_parts(parts, {"train": rows[:9], "test": rows[9:]})
    assert "split" not in _wrong(list(check_store(store, splits=parts)))
    save_parts(parts, {"train": rows[:9], "test": rows[8:]})
    assert call("check", store.folder, "--splits", parts) == 1
    assert f"WRONG split: 1 genes on two sides, such as {store.genes[8]}" in capsys.readouterr().out
    save_parts(parts, {"train": rows + 1})
    assert call("check", store.folder, "--splits", parts) == 2
    parts.write_text(json.dumps({"train": ["x"]}))
    assert call("check", store.folder, "--splits", parts) == 2


def test_check_finds_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _store(tmp_path).folder / "targets.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert call("check", path.parent) == 2
    assert "targets.npy: checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "value", "said"),
    [("_centers", 200, "its centre is no node"), ("_targets", 0, "a loop"), ("_targets", 200, "leaves it")],
)
def test_check_finds_graphs_that_are_none(tmp_path: Path, array: str, value: int, said: str) -> None:
    """A store whose checksums are right and whose content is wrong, as a faulty writer would leave it."""
    store = _store(tmp_path)
    values = np.array(getattr(store, array))
    values[len(values) // 2] = value
    setattr(store, array, values)
    found = [finding for finding in check_store(store) if finding.what == "graphs"]
    assert len(found) == 1
    assert not found[0].ok
    assert said in found[0].said


def test_the_planted_problem_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "planted"
    assert call("synth", out, "genes=120", "species=2", "useful=3", "--seed", 4) == 0
    store = EgoStore.open(out)
    assert len(store) == 240
    kinds = store.info["notes"]["kinds"]
    assert set(kinds) == set(store.pretrain_terms)
    assert list(kinds.values()).count("useful") == 3
    assert call("check", out) == 0
    assert "WRONG" not in capsys.readouterr().out
