"""The `adaptx` command: gathers the commands; an error is one paragraph and exit code 2."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptx import __version__
from adaptx.cli import (
    adapters,
    audit,
    bench,
    data,
    doctor,
    encoders,
    eval,
    explain,
    export,
    predict,
    push,
    runs,
    train,
    tune,
    verify,
)
from adaptx.cli.run import run

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Parameter-efficient adapters for multilingual encoders, from training to ONNX on a CPU."
        "\n\n"
        "Exit codes: 0 done, 1 a check found something wrong, 2 bad input (one paragraph says "
        "what, and the remedy)."
    ),
)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("eval", epilog=eval.EXAMPLES)(eval.evaluate)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("audit", epilog=audit.EXAMPLES)(audit.audit)
app.command("predict", epilog=predict.EXAMPLES)(predict.predict)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.add_typer(data.app, name="data")
app.add_typer(adapters.app, name="adapters", epilog=adapters.EXAMPLES)
app.command("push", epilog=push.EXAMPLES)(push.push)
app.add_typer(encoders.app, name="encoders")
app.add_typer(runs.app, name="runs")
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"adaptx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line."""
    run(app)
