"""The soak test, short: `python -m tests.soak --kills 50` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_killed_three_times_comes_to_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "--kills", "3", "--steps", "30", "--out", str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("3 kills, ")
    assert done.stdout.splitlines()[-1].endswith(" 0 that differ from the undisturbed one")
