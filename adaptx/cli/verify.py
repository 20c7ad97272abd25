"""`adaptx verify`: whether a bundle answers here as torch did where it was exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = """
[bold]Examples[/bold]

  adaptx verify build/bundle

  adaptx verify build/bundle --threads 1 --json

Exit codes: 0 it answers like torch, 1 an adapter is out of bounds (the output says which, and by

how much), 2 bad input: a file that was changed, or no bundle. Needs no torch.
"""
COLUMNS = ("", "adapter", "largest difference", "same label", "but for ties", "cosine")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, show_default="all that this process may use"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Compare a bundle's answers with torch's, which it brings along; every file is checked too."""
    from adaptx.runtime.runtime import Runtime
    from adaptx.runtime.verify import verify

    with Runtime.open(bundle, threads=threads) as runtime:
        report = verify(runtime)
        kind = runtime.facts.quantization
    failed = [name for name, found in report.items() if found["failed"]]
    if as_json:
        said = {"bundle": str(bundle), "quantization": kind, "ok": not failed, "adapters": report}
        typer.echo(json.dumps(said, ensure_ascii=False))
    else:
        show_report({kind: report})
        if failed:
            typer.echo(f"{len(failed)} of {len(report)} are out of bounds: don't serve this here.")
    if failed:
        raise typer.Exit(1)


def show_report(ways: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print a row for each graph (fp32, int8) and adapter, and then what is out of bounds."""
    from adaptx.cli.show import plain, print_table

    rows, failed = [], []
    for way, report in ways.items():
        for name, found in report.items():
            shares = [_share(found.get(key)) for key in ("agreement", "agreement_but_for_ties")]
            difference = f"{found['max_relative_difference']:.2g}"
            cosine = found.get("cosine")
            said = f"{cosine:.4f}" if cosine is not None else None
            rows.append((way, name, difference, *shares, said))
            failed += [f"{name} ({way}): {'; '.join(found['failed'])}."] if found["failed"] else []
    print_table(COLUMNS, rows, left=2)
    for line in failed:
        typer.echo(plain(line))


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
