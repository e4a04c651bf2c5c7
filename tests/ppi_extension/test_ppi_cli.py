"""The command line: what it offers, and that it answers at once."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from ppi_extension import __version__
from ppi_extension.cli import app


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for command in ("data", "pretrain", "finetune", "evaluate", "report", "demo"):
        assert f" {command} " in shown.output


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__


def test_no_heavy_import_delays_the_help() -> None:
    code = "import sys; from ppi_extension.cli import app; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "torch_geometric", "torchmetrics", "pandas", "matplotlib", "scipy", "lightning_fabric"}
    assert not heavy & set(done.stdout.split())


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["plan"]).exit_code == 2
