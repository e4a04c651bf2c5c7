"""The hierarchy of functions: against sets written out by hand, and a second route through matrix powers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from ecgmeta.runtime.errors import InputError
from ppi_extension.data.terms import ancestors, leaking, propagate, read_obo

OBO = """\
format-version: 1.2
ontology: go

[Term]
id: GO:0008150
name: biological_process
namespace: biological_process

[Term]
id: GO:0000002
name: growth
namespace: biological_process
alt_id: GO:0900002
is_a: GO:0008150 ! biological_process

[Term]
id: GO:0000003
name: "quoted: and colon"
namespace: biological_process
is_a: GO:0000002 {xref="x"} ! growth
relationship: part_of GO:0000005 ! cell
relationship: regulates GO:0000006 ! other

[Term]
id: GO:0000005
name: cell
namespace: cellular_component

[Term]
id: GO:0000006
name: other
namespace: biological_process
is_a: GO:0008150

[Term]
id: GO:0000007
name: obsolete thing
namespace: biological_process
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


def _write(folder: Path, text: str = OBO, name: str = "go-basic.obo") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["go-basic.obo", "go-basic.obo.gz"])
def test_the_file_is_read(tmp_path: Path, name: str) -> None:
    found = read_obo(_write(tmp_path, name=name))
    assert found.hierarchy == {
        "GO:0008150": (),
        "GO:0000002": ("GO:0008150",),
        "GO:0000003": ("GO:0000002", "GO:0000005"),  # is_a and part_of; regulates says nothing upwards
        "GO:0000005": (),
        "GO:0000006": ("GO:0008150",),
    }
    assert found.names["GO:0000003"] == '"quoted: and colon"'
    assert found.aspects["GO:0000005"] == "cellular_component"
    assert found.current == {"GO:0900002": "GO:0000002"}


def test_ancestors_and_the_leak_rule(tmp_path: Path) -> None:
    hierarchy = read_obo(_write(tmp_path)).hierarchy
    assert ancestors(hierarchy, "GO:0000003") == {"GO:0000002", "GO:0000005", "GO:0008150"}
    assert ancestors(hierarchy, "GO:0008150") == ancestors(hierarchy, "not a term") == set()
    everything = list(hierarchy)
    assert leaking(everything, ["GO:0000002"], hierarchy) == {"GO:0000002", "GO:0000003"}
    assert leaking(everything, ["GO:0000005"], hierarchy) == {"GO:0000005", "GO:0000003"}  # over part_of
    assert leaking(everything, ["GO:0000003"], hierarchy) == {"GO:0000003"}  # what stands above may stay
    assert leaking(["a", "b"], ["b", "c"], {}) == {"b"}
    assert leaking(everything, [], hierarchy) == set()


def test_a_cycle_ends() -> None:
    ring = {"a": ("b",), "b": ("c",), "c": ("a",)}
    assert ancestors(ring, "a") == {"b", "c"}
    assert leaking(["a"], ["c"], ring) == {"a"}


def test_annotations_are_carried_up_as_by_repeated_multiplication() -> None:
    """Second route: (I + A)^T applied until nothing changes, on a random acyclic hierarchy."""
    rng = np.random.default_rng(0)
    terms = [f"t{k:02d}" for k in range(30)]
    up = np.triu(rng.random((30, 30)) < 0.12, 1)
    hierarchy = {terms[k]: tuple(terms[j] for j in np.flatnonzero(up[k])) for k in range(30)}
    given = rng.random((40, 30)) < 0.05
    expected = given.copy()
    for _ in terms:
        expected |= (expected.astype(int) @ up.astype(int)) > 0
    chosen = np.flatnonzero(given.any(axis=0))
    carried, names = propagate(csr_array(given[:, chosen]), [terms[k] for k in chosen], hierarchy)
    assert list(names) == sorted(set(names))
    columns = [terms.index(name) for name in names]
    np.testing.assert_array_equal(carried.toarray(), expected[:, columns])
    assert expected.sum() == carried.toarray().sum() > given.sum()  # nothing is lost with the terms left out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: growth", "growth", "line 11: line: found 'growth'"),
        ("id: GO:0000002\n", "", "line 9: term: found no id line"),
        ("part_of GO:0000005 ! cell", "part_of", "line 21: relationship"),
        ("is_a: GO:0008150 ! b", "is_a: GO:0008159 ! b", "line 14: GO:0008159: found no name"),
        ("[Term]", "[Thing]", r"line 4: line: found '\[Thing\]'"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = _write(tmp_path, OBO.replace(old, new))
    with pytest.raises(InputError, match=said) as caught:
        read_obo(path)
    assert str(path) in str(caught.value)


def test_no_file_and_half_a_gzip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_obo(tmp_path / "absent.obo")
    path = _write(tmp_path, OBO * 50, "go.obo.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"line \d+: gzip"):
        read_obo(path)
