"""The commands ``ppi-extension data``. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ppi_extension.data.store import EgoStore

app = typer.Typer(help="Build and look after stores of ego graphs.", no_args_is_help=True)

Store = Annotated[Path, typer.Argument(help="A store made by `ppi-extension data build`.")]
Out = Annotated[Path, typer.Argument(help="Folder of the store, where nothing stands yet.")]
Terms = typer.Option(help="A file with one term a line.", metavar="FILE")


@app.command()
def sources() -> None:
    """The sources that `build` reads, and the keys that each takes."""
    from rich.console import Console

    from ppi_extension.data.stores import source_table

    Console().print(source_table())


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="string, gaf, ogb, ohmnet or hu; see `data sources`.")],
    path: Annotated[Path, typer.Argument(help="What the source reads: a folder or a file.")],
    out: Out,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, such as taxa=[9606,10090] or fanout=10; see `data sources`."),
    ] = None,
    pretrain_terms: Annotated[Path | None, Terms] = None,
    finetune_terms: Annotated[Path | None, Terms] = None,
) -> None:
    """Read protein graphs and functions, cut an ego graph around every labelled gene, and write them as a store.

    Pre-training terms that equal or descend from a fine-tuning term are left out. Without lists of terms, a tenth of those with
    enough genes is drawn for fine-tuning.
    """
    from ppi_extension.data.stores import build_store

    _print(build_store(source, path, out, overrides or [], pretrain_terms, finetune_terms), out)


@app.command()
def info(store: Store) -> None:
    """What a store holds: graphs, tasks, labels, sizes."""
    from ppi_extension.data.store import EgoStore

    _print(EgoStore.open(store), store)


@app.command()
def check(
    store: Store,
    obo: Annotated[
        Path | None,
        typer.Option(help="go-basic.obo: also look for tasks below a fine-tuning task.", metavar="FILE"),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="A JSON file of parts to check instead of drawn ones.", metavar="FILE")
    ] = None,
) -> None:
    """Check files, graphs, labels, the leak rule and splits by gene. Exit code 1 where training on it would be invalid."""
    from ppi_extension.data.checks import check_store
    from ppi_extension.data.store import EgoStore

    wrong = 0
    for finding in check_store(EgoStore.open(store), obo, splits):
        typer.echo(str(finding))
        wrong += not finding.ok
    if wrong:
        raise typer.Exit(1)


@app.command()
def synth(
    out: Out,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as species=2, genes=1000 or useful=8.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Write a planted problem, of which it is known which pre-training tasks help."""
    from ppi_extension.data.stores import synthesise

    _print(synthesise(out, overrides or [], seed), out)


def _print(store: EgoStore, out: Path) -> None:
    from rich.console import Console

    from ppi_extension.data.stores import store_tables

    for table in store_tables(store):
        Console().print(table)
    typer.echo(f"store: {out}")
