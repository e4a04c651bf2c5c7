"""``python -m examples.studies run NAME``, ``report``, ``list``; from the folder that holds ``examples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgmeta.runtime.cli import guarded
from examples.studies.study import RESULTS, load, read_results, results_file, run_study, studies

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Studies that anyone can repeat.")


@app.command()
def run(
    name: str,
    processes: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    only: Annotated[str, typer.Option(help="Pattern of arm/setting/seed, such as 'meta*/*/3'.")] = "*",
    pilot: Annotated[bool, typer.Option(help="The pilot's seeds, kept in a file of their own.")] = False,
    quick: Annotated[bool, typer.Option(help="The smallest settings: does it run?")] = False,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run the cells that are not done yet. A killed run loses the cells under way; the same command goes on."""
    file = results_file(name, results, pilot=pilot, quick=quick)
    for result in run_study(load(name, quick=quick), file, pilot=pilot, only=only, processes=processes):
        said = result.failed or ", ".join(f"{n} {x:.4g}" for n, x in result.numbers.items())
        print(f"{result.task.name} [{result.seconds:.0f} s] {said}", flush=True)


@app.command()
def report() -> None:
    """Write RESULTS.md and its figures from the cells that are done."""
    from examples.studies.report import write_report

    write_report()


@app.command("list")
def list_studies() -> None:
    """Every study, and how many of its cells are done."""
    for name in studies():
        study = load(name)
        tasks = study.tasks()
        print(
            f"{name}: {len(read_results(results_file(name), tasks))} of {len(tasks)} cells; {study.plan.title}"
        )


if __name__ == "__main__":
    guarded(app)
