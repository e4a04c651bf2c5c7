"""The command line ``ecgmeta``. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ecgmeta._version import __version__
from ecgmeta.runtime.cli import guarded

app = typer.Typer(
    name="ecgmeta",
    help="Pre-train 12-lead ECG encoders while their augmentations learn, by hypergradient, what fine-tuning needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look after recordings.", no_args_is_help=True)
app.add_typer(data_app, name="data")
augment_app = typer.Typer(help="Look into learned augmentations.", no_args_is_help=True)
app.add_typer(augment_app, name="augment")

RunFolder = Annotated[Path, typer.Argument(help="A run folder made by `ecgmeta pretrain`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as pretrain.epochs=20 or labels=100,250.")
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
        Path | None, typer.Option("--out", "-o", help="Run folder; by default runs/CONFIG-ARM-sSEED.")
    ] = None,
) -> None:
    """Pre-train an encoder, then fine-tune, evaluate and report (as far as `through`). Run it again to go on with it."""
    from ecgmeta.experiment.config import read

    experiment = read(config, overrides or [])
    name = f"{config.stem if config else 'default'}-{experiment.pretrain.arm}-s{experiment.seed}"
    _run(out or Path("runs", name), experiment)


@app.command()
def finetune(run: RunFolder, overrides: Overrides = None) -> None:
    """Fine-tune a run's encoders, its comparison arms and the baselines on labelled subsets."""
    from ecgmeta.experiment.stages import run_stage

    run_stage(run, "finetune", overrides or [])


@app.command()
def evaluate(run: RunFolder, overrides: Overrides = None) -> None:
    """Score the fine-tuned encoders on the test recordings: AUROC with 95 % patient-bootstrap intervals."""
    from ecgmeta.experiment.stages import run_stage

    _print_table(run_stage(run, "evaluate", overrides or []))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page that compares several runs.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Write a run's report.html, or one page that compares several runs."""
    from ecgmeta.experiment.stages import compare_runs, run_stage

    if len(runs) == 1:
        run_stage(runs[0], "report", [])
    else:
        typer.echo(f"comparison: {compare_runs(runs, out)}")


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, an encoder's folder, or a hub id (onnx).")
    ],
    format: Annotated[str, typer.Option(help="onnx or safetensors.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="By default RUN/encoder.onnx, or the folder RUN/export for safetensors."
        ),
    ] = None,
) -> None:
    """Write a run's encoder for other programs: ONNX, verified with onnxruntime, or weights with their configuration."""
    from ecgmeta.runtime.errors import InputError

    if format not in ("onnx", "safetensors"):
        raise InputError("export", "--format", format, "onnx or safetensors")
    from ecgmeta.experiment.export import to_onnx, to_safetensors

    if format == "safetensors":
        typer.echo(f"encoder: {to_safetensors(source, out)}")
        return
    done = to_onnx(source, out)
    free = " and ".join(done.dynamic) or "no axis"
    typer.echo(f"encoder: {done.file}, its input described in {done.sidecar}; {free} of any size")
    for kind, value in done.differences.items():
        typer.echo(f"largest difference in onnxruntime, {kind} records: {value:.1e}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """The whole path on the built-in synthetic cohort, in a few minutes on two cores."""
    from ecgmeta.experiment.config import read

    _run(out, read(Path(__file__).parent / "experiment" / "demo.yaml", overrides or []))


@data_app.command("cache")
def data_cache(
    path: Annotated[Path, typer.Argument(help="Folder of recordings.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value as in a run, such as data.duration=5 or data.highpass=0.5."),
    ] = None,
    kind: Annotated[str, typer.Option(help="ptbxl, ludb, wfdb, code15 or mitbih.")] = "wfdb",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Cache folder; name it as data.cache in a run.")
    ] = Path("cache"),
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the run it is made for.")
    ] = None,
    fs: Annotated[float | None, typer.Option(help="Sampling rate, Hz; data.fs for short.")] = None,
    on_error: Annotated[str | None, typer.Option(help="raise or skip; data.on_error for short.")] = None,
) -> None:
    """Decode recordings once into a memory map that runs with the same settings read."""
    from ecgmeta.experiment.cohort import cache
    from ecgmeta.experiment.config import read

    experiment = read(config, overrides or [])
    experiment.data.root, experiment.data.cache = str(path), str(out)
    experiment.data.fs = experiment.data.fs if fs is None else fs
    experiment.data.on_error = on_error or experiment.data.on_error
    typer.echo(repr(cache(experiment, kind)))


@data_app.command("audit")
def data_audit(
    path: Annotated[Path, typer.Argument(help="Folder of recordings.")],
    kind: Annotated[
        str,
        typer.Option(
            help="auto (PTB-XL, LUDB and CODE-15% folders by their own reader), wfdb, ptbxl, ludb or code15."
        ),
    ] = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for audit.json and audit.html.")] = Path(
        "audit"
    ),
    fs: Annotated[
        float | None, typer.Option(help="PTB-XL: only the 100 or 500 Hz files. By default both.")
    ] = None,
    rhythm: Annotated[
        int,
        typer.Option(
            help="Recordings whose heart rate and quality are measured, evenly spaced; -1 means all."
        ),
    ] = 500,
) -> None:
    """Read a whole tree and say what is wrong with it. Exit code 1 where training on it would be invalid."""
    from rich.console import Console

    from ecgmeta.data import audit
    from ecgmeta.report.audit import tables, verdict, write_audit
    from ecgmeta.runtime.progress import progress_bar, say

    with progress_bar() as progress:
        found = audit(path, kind=kind, fs=fs, rhythm=None if rhythm == -1 else rhythm, progress=progress)
    say("drawing the worst recordings")
    written = write_audit(found, out)
    console = Console()
    for table in tables(found):
        console.print(table)
    typer.echo(verdict(found))
    typer.echo("audit: " + ", ".join(map(str, written)))
    if not found.ok:
        raise typer.Exit(1)


@data_app.command("synth")
def data_synth(
    out: Annotated[
        Path, typer.Argument(help="Folder to write: signals.npy (float32 mV), labels.csv, meta.csv.")
    ],
    n: Annotated[int, typer.Option(help="Number of recordings.")] = 2000,
    fs: Annotated[float, typer.Option(help="Sampling rate, Hz.")] = 100.0,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Write the built-in synthetic cohort as files."""
    from ecgmeta.experiment.cohort import synthesise

    typer.echo(repr(synthesise(out, n, fs, seed)))


@augment_app.command("card")
def augment_card(
    augmenter: Annotated[
        str, typer.Argument(help="A saved augmenter: its folder, the run it is in, or a hub id owner/name.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Recordings: a folder, kind:folder (ptbxl, ludb, wfdb, code15, mitbih) or synthetic."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; the numbers go beside it as JSON.")
    ] = Path("card.html"),
    before: Annotated[
        str | None,
        typer.Option(help="The augmenter before it learned; by default augmenter_before beside it."),
    ] = None,
    records: Annotated[int, typer.Option(help="Recordings that are measured, evenly spaced.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the augmentation.")] = 0,
) -> None:
    """Say what an augmenter has learned, show it on ECG paper, and measure what it does to PR, QRS, QT, ST and axis."""
    from ecgmeta.experiment.card import write

    said, written = write(augmenter, data, out, before=before, records=records, seed=seed)
    typer.echo(said)
    typer.echo("card: " + ", ".join(map(str, written)))


@augment_app.command("import")
def augment_import(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of the paper's code (teacher_sd) or of TaskAug's (aug_sd).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    fs: Annotated[
        float | None,
        typer.Option(help="Rate it was learned at, Hz; by default 100 (the paper) or 250 (TaskAug)."),
    ] = None,
    leads: Annotated[
        int | None,
        typer.Option(help="Leads it was learned on; by default those of its first layer, or 12 (TaskAug)."),
    ] = None,
    mean: Annotated[
        float, typer.Option(help="It was learned on (record - mean)/std; mean in mV, 0 for TaskAug.")
    ] = 0.0,
    std: Annotated[float, typer.Option(help="It was learned on (record - mean)/std; std in mV.")] = 1.0,
) -> None:
    """Turn a checkpoint of the authors' released code into an augmenter of this package."""
    from ecgmeta.experiment.export import import_augmenter

    typer.echo(f"{import_augmenter(checkpoint, out, fs=fs, leads=leads, mean=mean, std=std)!r}: {out}")


def _run(folder: Path, experiment: Any) -> None:
    from ecgmeta.experiment.stages import run_experiment

    results = run_experiment(folder, experiment)
    if results is not None:
        _print_table(results)
        typer.echo(
            f"report: {folder / 'report.html'}" if experiment.through == "report" else f"run: {folder}"
        )


def _print_table(results: dict[str, Any] | None) -> None:
    if results is None:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    from ecgmeta.experiment.config import ARMS
    from ecgmeta.experiment.evaluate import table

    columns = (
        Column("arm", min_width=max(map(len, ARMS))),  # no arm's name is cut where the terminal is narrow
        "protocol",
        "labels",
        "seeds",
        "macro AUROC (95 %)",
        f"against {results['reference']}",
        "macro AP",
    )
    shown = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)  # narrow enough for 80 columns
    for row in table(results):
        shown.add_row(*row)
    Console().print(shown)
