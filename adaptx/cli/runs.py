"""`adaptx runs`: what was trained, how runs differ, and their learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptx import storage
from adaptx.errors import FolderError, OptionError

if TYPE_CHECKING:
    from adaptx.training.runs import Run

LIST_EXAMPLES = """
[bold]Examples[/bold]

  adaptx runs list

  adaptx runs list experiments --json

States: running, done, failed, diverged, interrupted (by a signal, after a checkpoint), and stopped:
killed before it could say so. The last two go on with `adaptx train … --run RUN --resume`; a job of
many adapters, <job>/<adapter> here, with the job's folder.
"""
COMPARE_EXAMPLES = """
[bold]Examples[/bold]

  adaptx runs compare runs/sw-topics-20250102-101500 runs/sw-topics-20250102-113000
"""
PLOT_EXAMPLES = """
[bold]Examples[/bold]

  adaptx runs plot runs/sw-topics-20250102-101500 -o curves.png

  adaptx runs plot runs/sw-* --metric macro_f1 -o curves.svg
"""
SHARED = ("encoder", "method", "precision", "processes", "train_rows", "dev_rows")

app = typer.Typer(no_args_is_help=True, help="List, compare and plot training runs.")
Folders = Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_runs(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look \\[default: $ADAPTX_RUNS, else runs].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
) -> None:
    """List the runs of a folder, those of jobs of many too, the oldest first.

    A damaged one is a row that says so.
    """
    from adaptx.cli.show import duration, print_table
    from adaptx.training.runs import find_runs, read_run, runs_dir, since

    under = folder or runs_dir()
    if folder is not None and not folder.is_dir():
        raise FolderError(f"There is no folder {folder}.")
    found: list[Run] = []
    damaged: dict[Path, str] = {}
    for path in find_runs(under):
        try:
            found.append(read_run(path))
        except FolderError as error:
            damaged[path] = str(error)
    found.sort(key=lambda run: run.started)
    if as_json:
        wrong = [{"folder": str(p), "state": "damaged", "error": e} for p, e in damaged.items()]
        typer.echo(json.dumps([*map(_as_json, found), *wrong], ensure_ascii=False))
        return
    if not found and not damaged:
        typer.echo(f"There are no runs in {under}.")
        return
    rows: list[Sequence[object]] = [
        (
            *(_name(run.folder, under), run.state, run.method, run.encoder, _best(run)),
            f"{run.epochs}/{run.settings.get('epochs', run.epochs)}",
            *(duration(run.seconds), duration(since(run.started))),
        )
        for run in found
    ]
    rows += [(_name(path, under), "damaged", *[None] * 6) for path in damaged]
    columns = ("run", "state", "method", "encoder", "best on dev", "epochs", "took", "age")
    print_table(columns, rows, left=5)
    for said in damaged.values():
        typer.echo(said, err=True)


@app.command("compare", epilog=COMPARE_EXAMPLES)
def compare(
    runs: Folders,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what differs between runs, and their scores, side by side."""
    from adaptx.cli.show import duration, print_table

    found = _read(runs)
    settings = _columns([_settings(run) for run in found])
    differ = {name: v for name, v in settings.items() if any(other != v[0] for other in v)}
    scores = _columns([_scores(run) for run in found])
    folders = [str(run.folder) for run in found]
    if as_json:
        typer.echo(json.dumps({"runs": folders, "differ": differ, "scores": scores}))
        return
    columns = ("", *(Path(folder).resolve().name for folder in folders))
    rows = [(name, *map(_short, values)) for name, values in differ.items()]
    print_table(columns, rows or [("(no setting differs)", *[""] * len(found))])
    took = ("took", *(duration(run.seconds) for run in found))
    typer.echo()
    print_table(columns, [*((name, *map(_short, v)) for name, v in scores.items()), took])


@app.command("plot", epilog=PLOT_EXAMPLES)
def plot(
    runs: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", help="A PNG, SVG or PDF file.")],
    metric: Annotated[
        str | None, typer.Option("--metric", help="Of dev \\[default: what chose the best epoch].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Plot learning curves: the training loss by step, and dev's metric by epoch."""
    storage.check_file_output(output, overwrite)
    found = _read(runs)

    from adaptx.training.curves import plot_runs

    plot_runs(found, output, metric)
    typer.echo(f"Wrote {output}.")


def _name(run: Path, under: Path) -> str:
    """What a run is called in a list of the runs under a folder, or of it alone."""
    return run.name if run == under else run.relative_to(under).as_posix()


def _read(folders: Sequence[Path]) -> list[Run]:
    from adaptx.training.runs import read_run

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise OptionError("A run was given twice.")
    return [read_run(folder) for folder in folders]


def _as_json(run: Run) -> dict[str, Any]:
    return {**asdict(run), "folder": str(run.folder)}


def _columns(runs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Each name that a run has, in order, with the value of every run (None where it has none)."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: [run.get(name) for run in runs] for name in names}


def _settings(run: Run) -> dict[str, Any]:
    task = run.task or {}
    return {
        **{name: getattr(run, name) for name in SHARED},
        **run.config,
        **run.settings,
        **{f"task {name}": value for name, value in task.items()},
        **{f"{name} version": value for name, value in run.versions.items()},
    }


def _scores(run: Run) -> dict[str, Any]:
    """How it ended: the best epoch's scores on dev, and how fast the training steps went."""
    from adaptx.training.runs import read_log

    steps, epochs = read_log(run, "step"), read_log(run, "epoch")
    busy = sum(e.get("seconds") or 0 for e in epochs)
    finished = [s for s in steps if s["epoch"] <= run.epochs]
    speed = round(sum(s["tokens"] for s in finished) / busy) if busy else None
    best = {"best " + k: v for k, v in (run.best or {}).items() if k != "seconds"}
    return {"state": run.state, **best, "epochs": run.epochs, "tokens/s": speed}


def _best(run: Run) -> str | None:
    metric = str(run.settings.get("metric"))
    value = (run.best or {}).get(metric)
    return f"{metric} {value:.3f}" if isinstance(value, (int, float)) else None


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else value
