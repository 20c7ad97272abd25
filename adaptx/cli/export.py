"""`adaptx export`: adapters as a bundle, one graph for all; or one merged into its encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptx.cli.options import OtherColumn
from adaptx.errors import OptionError, choices

if TYPE_CHECKING:
    from adaptx.data.streams import Columns

EXAMPLES = """
[bold]Examples[/bold]

  adaptx export adapters/sw-topics adapters/yo-topics -o build/bundle --dev sw-topics=sw/dev.tsv

  adaptx export adapters/sw-topics -o build/small --languages sw,en --corpus sw-and-en.tsv

  adaptx export adapters/sw-topics user/lora-news -o build/bundle --trust-base --sites all --dry-run

  adaptx export adapters/sw-topics --merged -o build/sw-int8 --quantize int8 --dev data/dev.tsv
"""


def export(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTERS...", help="Folders, or user/name on the Hub.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Fold one adapter into the encoder, instead of a bundle."),
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", help="int8 or fp32.", show_default="int8; --merged: fp32"),
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            "--bank",
            help="fp32, or fp16 beside int8: the adapters in memory.",
            show_default="fp32",
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            "--sites",
            help="all: adapters that are added later may attach anywhere.",
            show_default="where these attach",
        ),
    ] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(
            "--dev",
            help="Labelled rows to compare torch and ONNX on: ADAPTER=FILE, or FILE for all "
            "adapters that have its labels; repeat.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", help="Points of accuracy that int8 may cost on --dev.", show_default="0.5"
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Of --dev and --corpus.")
    ] = None,
    other_column: OtherColumn = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Of --dev.")] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            "--languages", help="Such as sw,en: keep the vocabulary that their --corpus needs."
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", help="Texts of --languages: LANGUAGE=FILE, or FILE for all; repeat."
        ),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            "--margin",
            min=0,
            help="Pieces kept beside those of --corpus.",
            show_default="as many as measured best",
        ),
    ] = None,
    ort_adapters: Annotated[
        bool,
        typer.Option(
            "--ort-adapters", help="Write OUTPUT-ort, too: for onnxruntime's own adapter API."
        ),
    ] = False,
    trust_base: Annotated[
        bool,
        typer.Option(
            "--trust-base", help="Take a folder that PEFT wrote to belong to the encoder."
        ),
    ] = False,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", show_default="the one an adapter names")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The parity report as JSON.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
) -> None:
    """Export adapters to ONNX; fails, writing nothing, when they don't answer like torch."""
    if quantize not in (None, "int8", "fp32"):
        raise OptionError(f"--quantize {quantize} is no way to quantize; there is int8, fp32.")
    from adaptx.data.streams import Columns

    columns = Columns(text_column, label_column, other_column)
    if merged:
        of_bundles = {
            "--bank": bank,
            "--sites": sites,
            "--max-drop": max_drop,
            "--languages": languages,
            "--corpus": corpus or None,
            "--margin": margin,
            "--ort-adapters": ort_adapters or None,
        }
        if given := [option for option, value in of_bundles.items() if value is not None]:
            raise OptionError(
                f"A merged model takes no {choices(given)}: leave --merged out, or them."
            )
        if len(adapters) != 1 or len(dev or ()) > 1:
            raise OptionError(
                f"--merged folds one adapter into the encoder, with one --dev at most; there are "
                f"{len(adapters)} adapters and {len(dev or ())} --dev. Without --merged, one "
                f"bundle holds them all."
            )
        _merged(
            adapters[0],
            output,
            None if quantize == "fp32" else quantize,
            dev[0] if dev else None,
            columns,
            encoder,
            overwrite,
            as_json,
            dry_run,
        )
        return

    from adaptx.cli.export_bundle import Plan, export_bundle

    plan = Plan(
        output=output,
        quantize=quantize or "int8",
        bank=bank,
        sites=sites,
        dev=tuple(dev or ()),
        max_drop=max_drop,
        columns=columns,
        languages=languages,
        corpus=tuple(corpus or ()),
        margin=margin,
        ort_adapters=ort_adapters,
        trust_base=trust_base,
        overwrite=overwrite,
    )
    export_bundle(adapters, encoder, plan, as_json=as_json, dry_run=dry_run)


def _merged(
    name: str,
    output: Path,
    quantize: str | None,
    dev: str | None,
    columns: Columns,
    encoder: str | None,
    overwrite: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    from adaptx import storage
    from adaptx.cli.opening import open_adapter
    from adaptx.data.large import open_records
    from adaptx.data.streams import CLASSIFICATION
    from adaptx.tasks.base import title

    storage.check_output(output, overwrite, "merged")
    opened, chosen = open_adapter(name, encoder)
    kind = chosen.task.kind if chosen.task else CLASSIFICATION
    rows = open_records(dev, kind, columns) if dev else None

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
    agreement = report.get("agreement")
    same = f", same answer on {agreement:.1%}" if agreement is not None else ""
    typer.echo(
        f"Wrote {output}. On {report['texts']} probe texts: largest logit difference from torch "
        f"{report['max_difference']:.2g} ({report['max_relative_difference']:.1%} of the largest "
        f"logit){same}."
    )
    if "dev" in report:
        metric = report["metric"]
        torch_score, onnx_score = (report["dev"][way][metric] for way in ("torch", "onnx"))
        typer.echo(
            f"{title(metric)} on {report['dev_rows']} dev rows: torch {torch_score:.3f}, "
            f"ONNX {onnx_score:.3f}."
        )
