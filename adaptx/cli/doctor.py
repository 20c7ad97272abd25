"""`adaptx doctor`: what is here, what is missing, and the command that mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

EXAMPLES = """
[bold]Examples[/bold]

  adaptx doctor

  adaptx doctor --json

Exit codes: 0 nothing is wrong (warnings count as nothing), 1 there is a problem.
"""
MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "red")}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="The findings as one JSON object.")
    ] = False,
) -> None:
    """Check this machine: versions, threads, memory, GPU, caches; each finding with its remedy."""
    from adaptx.cli.checks import all_checks

    found = []
    for check in all_checks():
        found.append(check)
        if not as_json:
            mark, colour = MARKS[check.level]
            label = typer.style(f"{mark:>8}", fg=colour, bold=check.level != "ok")
            typer.echo(f"{label}  {check.name}: {check.said}")
            if check.remedy:
                typer.echo(f"{'':>10}-> {check.remedy}")
    problems = sum(check.level == "problem" for check in found)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "checks": [asdict(check) for check in found]}))
    elif problems:
        typer.echo(f"{problems} problem{'s' * (problems > 1)} found.")
    if problems:
        raise typer.Exit(1)
