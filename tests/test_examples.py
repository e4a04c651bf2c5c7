"""Every example runs, and ends as its docstring says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_wrong_examples_end_with_smaller_weights(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "01_engine.py"), run_name="__main__")
    right, wrong = map(float, re.findall(r"\d\.\d\d", capsys.readouterr().out.splitlines()[-1]))
    assert right > wrong + 0.15
