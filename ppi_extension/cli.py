"""The command line ``ppi-extension``."""

from __future__ import annotations

import typer

from ecgmeta.runtime.cli import guarded
from ppi_extension import __version__

app = typer.Typer(
    name="ppi-extension",
    help=(
        "Multitask pre-training of graph networks on protein-protein interaction, with one learned weight a task. "
        "The engine it will stand on, ecgmeta.bilevel, is ready; its data sources, graph network and experiments are not yet."
    ),
    pretty_exceptions_enable=False,
    add_completion=False,
)

PLANNED = (
    "data       build ego graphs and labels from STRING, OGB, OhmNet or Hu et al.'s files",
    "pretrain   multitask pre-training with task weights learned by hypergradient",
    "finetune   fine-tune on downstream functions",
    "evaluate   AUROC per task against every baseline",
    "report     which tasks were raised and lowered",
)


def main() -> None:
    """Entry point of the console script."""
    guarded(app)


@app.command()
def plan() -> None:
    """What this command will do once it is built."""
    typer.echo(f"ppi-extension {__version__}: not built yet. It will offer:")
    for line in PLANNED:
        typer.echo(f"  {line}")
