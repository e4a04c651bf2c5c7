"""The command line ``ppi-extension``. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ecgmeta.runtime.cli import guarded
from ppi_extension import __version__
from ppi_extension.data.cli import app as data_app

app = typer.Typer(
    name="ppi-extension",
    help="Multitask pre-training of graph networks on protein interactions, with a weight for each task that is learned by "
    "hypergradient from what fine-tuning needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")

Folder = Annotated[
    Path, typer.Argument(help="The folder of an experiment, made by `ppi-extension pretrain`.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as pretrain.epochs=20 or arms=[supervised,meta].")
]


def main() -> None:
    """Entry point of the console script."""
    guarded(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def pretrain(
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of differences from the defaults.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Its folder; by default runs/CONFIG.")
    ] = None,
) -> None:
    """Pre-train every arm from every seed, then fine-tune, evaluate and report (as far as `through`). Run it again to go on."""
    from ppi_extension.experiment.config import read

    experiment = read(config, overrides or [])
    _run(out or Path("runs", f"ppi-{config.stem if config else 'default'}"), experiment)


@app.command()
def finetune(folder: Folder, overrides: Overrides = None) -> None:
    """Fine-tune the encoders of all runs on the downstream functions."""
    from ppi_extension.experiment.stages import run_stage

    run_stage(folder, "finetune", overrides or [])


@app.command()
def evaluate(folder: Folder, overrides: Overrides = None) -> None:
    """Score every arm on the test genes: mean AUROC over functions, paired differences over seeds with 95 % intervals."""
    from ppi_extension.experiment.stages import run_stage

    _print_table(run_stage(folder, "evaluate", overrides or []))


@app.command()
def report(folder: Folder) -> None:
    """Write report.html: which tasks were raised and lowered, and what it brought."""
    from ppi_extension.experiment.stages import run_stage

    run_stage(folder, "report", [])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Its folder.")] = Path("runs/ppi-demo"),
    overrides: Overrides = None,
) -> None:
    """The whole path on a planted problem, where it is known which tasks help, in minutes on two cores."""
    from ppi_extension.experiment.config import read

    results = _run(out, read(Path(__file__).parent / "experiment" / "demo.yaml", overrides or []))
    if results is not None:
        from ppi_extension.experiment.tables import interval

        for row in results["rows"]:
            if row["arm"] == "oracle" and row.get("difference"):
                gain = interval(row["difference"], "+", 3)
                typer.echo(
                    f"ideal weights against {results['reference']}, each at its best length: {gain} AUROC"
                )


def _run(folder: Path, experiment: Any) -> dict[str, Any] | None:
    from ppi_extension.experiment.stages import run_experiment

    results = run_experiment(folder, experiment)
    if results is not None:
        _print_table(results)
        ended = experiment.through == "report"
        typer.echo(f"report: {folder / 'report.html'}" if ended else f"experiment: {folder}")
    return results


def _print_table(results: dict[str, Any] | None) -> None:
    if results is None:
        return
    from rich.console import Console
    from rich.table import Column, Table

    from ppi_extension.experiment.evaluate import table

    arm = Column("arm", min_width=16)  # no arm's name is cut where the terminal is narrow
    shown = Table(arm, "protocol", "steps", "seeds", "AUROC (95 %)", f"against {results['reference']}")
    for row in table(results):
        shown.add_row(*row)
    Console().print(shown)
