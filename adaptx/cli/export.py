"""`adaptx export`: an adapter, merged into its encoder, as an ONNX model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adaptx.errors import OptionError

EXAMPLES = """
[bold]Examples[/bold]

  adaptx export adapters/sw-topics --merged -o build/sw-topics

  adaptx export adapters/sw-topics --merged -o build/sw-topics --dry-run

  adaptx export adapters/sw-topics --merged -o build/sw-int8 --quantize int8 --dev data/dev.tsv
"""


def export(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model's new folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Fold the adapter into the encoder's weights.")
    ] = False,
    quantize: Annotated[str | None, typer.Option("--quantize", help="int8.")] = None,
    dev: Annotated[
        Path | None, typer.Option("--dev", help="Labelled data to compare torch and ONNX on.")
    ] = None,
    text_column: Annotated[str | None, typer.Option("--text-column", help="Of --dev.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Of --dev.")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", show_default="the one the adapter names")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The parity report as JSON.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
) -> None:
    """Export an adapter to ONNX; fails, writing nothing, when it doesn't answer like torch."""
    from adaptx import storage
    from adaptx.cli.opening import open_adapter
    from adaptx.data.read import read_examples

    if not merged:
        raise OptionError("There is one kind of export so far, the merged model: pass --merged.")
    if quantize not in (None, "int8"):
        raise OptionError(f"--quantize {quantize} is no way to quantize; there is int8.")
    storage.check_output(output, overwrite, "merged")
    rows = read_examples(dev, text_column=text_column, label_column=label_column) if dev else None
    opened, chosen = open_adapter(adapter, encoder)

    from adaptx.onnx.merged import export_merged

    if dry_run:
        size = opened.parameters * (1 if quantize else 4) / 1e6
        typer.echo(
            f"Would merge {chosen.name} ({chosen.facts.method}) into {opened.name} and write "
            f"{output}, {quantize or 'fp32'}, about {size:.0f} MB, if it answers like torch on the "
            f"probe texts{f' and {len(rows)} dev rows' if rows else ''}."
        )
        return
    typer.echo(f"Exporting {chosen.name} to {output} …", err=True)
    report = export_merged(opened, chosen, output, quantize=quantize, dev=rows, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(
        f"Wrote {output}. On {report['texts']} probe texts: largest logit difference from torch "
        f"{report['max_difference']:.2g} ({report['max_relative_difference']:.1%} of the largest "
        f"logit), same label on {report['agreement']:.1%}."
    )
    if "dev" in report:
        torch_score, onnx_score = (report["dev"][kind]["accuracy"] for kind in ("torch", "onnx"))
        typer.echo(
            f"Accuracy on {report['dev_rows']} dev rows: torch {torch_score:.3f}, "
            f"ONNX {onnx_score:.3f}."
        )
