"""Arrows point down: the imports of each room are read and compared with DESIGN's map."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room may import itself and these. `bilevel` knows nobody; `runtime` is the ground everyone else may stand on.
GROUND = {"runtime"}
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "bilevel": set(),
    "runtime": set(),
    "data": GROUND,
    "augment": GROUND,
    "encoders": GROUND,
    "simclr": GROUND | {"augment", "encoders"},
    "evaluation": GROUND | {"data", "augment", "encoders"},
    "report": GROUND | {"data", "augment", "encoders"},
    "experiment": GROUND | {"bilevel", "data", "augment", "encoders", "simclr", "evaluation", "report"},
    "cli": GROUND | {"experiment", "data", "report"},
    "__main__": {"cli"},
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _room(path: Path) -> str:
    parts = path.relative_to(ROOT / "ecgmeta").with_suffix("").parts
    return parts[0]


MODULES = sorted((ROOT / "ecgmeta").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_arrow_points_up(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    own = {name.split(".")[1] for name in _imports(path) if name.startswith("ecgmeta.")}
    extra = own - ALLOWED[room] - {room, "__version__", "_version"}
    assert not extra, f"{path.name} in {room} imports {sorted(extra)}"


@pytest.mark.parametrize("path", sorted((ROOT / "ppi_extension").rglob("*.py")), ids=lambda p: p.name)
def test_the_protein_package_sees_only_the_engine_and_the_runtime(path: Path) -> None:
    own = {name.split(".")[1] for name in _imports(path) if name.startswith("ecgmeta.")}
    assert own <= {"bilevel", "runtime", "_version", "__version__"}


@pytest.mark.parametrize("path", sorted((ROOT / "ecgmeta" / "bilevel").rglob("*.py")), ids=lambda p: p.name)
def test_the_engine_needs_torch_and_the_standard_library_only(path: Path) -> None:
    tops = {name.split(".")[0] for name in _imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"torch", "ecgmeta"}


def _loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_torch() -> None:
    assert "torch" not in _loaded("import ecgmeta")


@pytest.mark.slow
def test_importing_the_engine_loads_no_domain_library() -> None:
    heavy = {"wfdb", "pandas", "neurokit2", "lightly", "torch_geometric", "torchmetrics", "lightning_fabric"}
    assert not heavy & _loaded("import ecgmeta.bilevel")
