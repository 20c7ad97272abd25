"""`adaptx bench`: how fast a bundle answers on this machine."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptx.errors import OptionError, OutputExists

if TYPE_CHECKING:
    from adaptx.runtime.bench import Timing

EXAMPLES = """
[bold]Examples[/bold]

  adaptx bench build/bundle

  adaptx bench build/bundle --merged build/sw-int8 --merged build/yo-int8 --plot bench.png

  adaptx bench build/bundle --threads 1,2,4 --shapes 1x16,64x128 --rounds 10 --json

Leave the machine alone meanwhile. Needs no torch; --plot needs matplotlib.
"""
COLUMNS = ("model", "threads", "rows x tokens", "ms", "rows/s", "tokens/s")


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    merged: Annotated[
        list[Path] | None,
        typer.Option("--merged", help="A folder that export --merged wrote, to compare; repeat."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option("--threads", show_default="1, 2, 4 … up to the cores of this process"),
    ] = None,
    shapes: Annotated[
        str, typer.Option("--shapes", help="Rows x tokens, comma-separated.")
    ] = "1x16,8x32,32x48",
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Turns of each model, of 3 to 10 calls.")
    ] = 5,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a plot, a PNG file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the plot.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Time a bundle with adapters mixed, one and none, and merged models beside it."""
    from adaptx.machine import cores
    from adaptx.runtime.bench import bench, check_plot
    from adaptx.runtime.bench import plot as draw

    if plot:
        check_plot()
        if plot.exists() and not overwrite:
            raise OutputExists(f"{plot} exists already: name another file, or pass --overwrite.")
        if not plot.parent.is_dir():
            raise OptionError(f"--plot {plot}: there is no folder {plot.parent}.")
    timings = bench(
        bundle,
        merged or [],
        threads=_threads(threads) if threads else None,
        shapes=_shapes(shapes),
        rounds=rounds,
        say=lambda step: typer.echo(f"{step} …", err=True),
    )
    if as_json:
        found = [
            {
                **asdict(t),
                "rows_per_second": t.rows_per_second,
                "tokens_per_second": t.tokens_per_second,
            }
            for t in timings
        ]
        said = {"bundle": str(bundle), "cores": cores(), "timings": found}
        typer.echo(json.dumps(said, ensure_ascii=False))
    else:
        _show(timings)
    if plot:
        draw(timings, plot, bundle.resolve().name)
        typer.echo(f"Wrote {plot}.", err=True)


def _threads(asked: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", asked):
        raise OptionError(f"--threads {asked} must be whole numbers, as in --threads 1,2,4.")
    return list(dict.fromkeys(map(int, asked.split(","))))


def _shapes(asked: str) -> list[tuple[int, int]]:
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}(,[1-9]\d{0,5}x[1-9]\d{0,5})*", asked):
        raise OptionError(f"--shapes {asked} must be rows x tokens, as in --shapes 1x16,8x32.")
    shapes = [shape.split("x") for shape in dict.fromkeys(asked.split(","))]
    return [(int(rows), int(tokens)) for rows, tokens in shapes]


def _show(timings: list[Timing]) -> None:
    from adaptx.cli.show import print_table

    merged: dict[tuple[int, int, int], float] = {}  # the fastest
    for t in timings:
        if t.model.startswith("merged "):
            key = (t.threads, t.rows, t.tokens)
            merged[key] = min(t.ms, merged.get(key, t.ms))
    rows = []
    for t in timings:
        row = [t.model, t.threads, f"{t.rows}x{t.tokens}", f"{t.ms:.2f}"]
        row += [f"{t.rows_per_second:,.0f}", f"{t.tokens_per_second:,.0f}"]
        if merged:
            row.append(f"{t.ms / merged[t.threads, t.rows, t.tokens]:.2f}")
        rows.append(row)
    print_table([*COLUMNS, "over merged"] if merged else COLUMNS, rows)
