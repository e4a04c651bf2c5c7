"""The command says what it will do, and what it cannot do yet."""

from __future__ import annotations

from typer.testing import CliRunner

from ppi_extension.cli import app


def test_the_command_says_what_it_will_do() -> None:
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    assert "not built yet" in shown.output
    for word in ("data", "pretrain", "finetune", "evaluate", "report"):
        assert f"  {word}" in shown.output
