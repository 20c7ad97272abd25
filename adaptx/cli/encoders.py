"""`adaptx encoders`: which there are, and how they do on one's own languages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptx.errors import OptionError

if TYPE_CHECKING:
    from adaptx.training.choose import Figures, Sample, Size

LIST_EXAMPLES = """
[bold]Examples[/bold]

  adaptx encoders list
"""
COMPARE_EXAMPLES = """
[bold]Examples[/bold]

  adaptx encoders compare bundled:multilingual-e5-small --data sw=recipes/data/swh

  adaptx encoders compare FacebookAI/xlm-roberta-base ./mine --data sw=sw.tsv --json

A file gives tokens and latency; a folder with train and test (and dev) a probe's score, too.
"""
COLUMNS = (
    *("language", "encoder", "tokens/word", "characters/token", "tokens/text", "unknown"),
    *("ms alone", "ms in a batch", "probe accuracy"),
)

app = typer.Typer(no_args_is_help=True, help="List encoders, and compare them on your languages.")


@app.command("list", epilog=LIST_EXAMPLES)
def list_encoders(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the families that work, and the encoders of this machine."""
    from dataclasses import asdict

    from adaptx.cli.cached import cached_encoders
    from adaptx.cli.show import print_table
    from adaptx.encoder.opening import FAMILIES

    found = cached_encoders()
    if as_json:
        here = [asdict(encoder) for encoder in found]
        typer.echo(json.dumps({"families": list(FAMILIES), "encoders": here}))
        return
    typer.echo(f"Families that work: {', '.join(FAMILIES)}.\n")
    rows = [
        (e.name, e.family, e.why or "yes", f"{e.size / 1e6:.0f} MB" if e.size else "not made yet")
        for e in found
    ]
    print_table(("on this machine", "family", "opens without a network", "size"), rows, left=3)


@app.command("compare", epilog=COMPARE_EXAMPLES)
def compare(
    names: Annotated[
        list[str], typer.Argument(help="Hub names, folders, or bundled:… names.", metavar="NAME...")
    ],
    data: Annotated[
        list[str], typer.Option("--data", help="LANG=FILE or LANG=FOLDER; may be repeated.")
    ],
    text_column: Annotated[str | None, typer.Option("--text-column", help="Of --data.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Of --data.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, one for each encoder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data, say what would be done, and stop.")
    ] = False,
) -> None:
    """Compare encoders: tokens per word, unknown share, size, latency here, and a probe's score."""
    if len(set(names)) < len(names):
        raise OptionError("An encoder was given twice.")
    paths = [_language_and_path(entry) for entry in data]
    if len({language for language, _ in paths}) < len(paths):
        raise OptionError("A language was given twice in --data.")

    from adaptx.training.choose import as_json as to_json
    from adaptx.training.choose import figures_of, read_sample, size_of

    columns = {"text_column": text_column, "label_column": label_column}
    samples = [read_sample(language, path, **columns) for language, path in paths]
    if dry_run:
        said = ", ".join(
            f"{s.language} ({len(s.texts)} texts, {'a probe' if s.train else 'no probe'})"
            for s in samples
        )
        typer.echo(f"Would open {', '.join(names)}, and measure each on {said}.")
        return

    import torch
    from rich.console import Console

    from adaptx.cli.show import print_table
    from adaptx.encoder.encoder import Encoder
    from adaptx.encoder.opening import find_folder

    for name in names:  # each is found, and downloaded, before the first is measured
        find_folder(name, None)
    sizes: list[Size] = []
    rows: list[Figures] = []
    console = Console(stderr=True, highlight=False)
    for name in names:
        with console.status(f"Opening {name}"):
            encoder = Encoder.from_pretrained(name)
        sizes.append(size_of(encoder))
        for sample in samples:
            with console.status(f"{name}: {_doing(sample)}"):
                rows.append(figures_of(encoder, sample))
            cells = zip(COLUMNS[2:], _cells(rows[-1]), strict=True)
            line = f"{name}, {sample.language}: " + "; ".join(f"{k} {v}" for k, v in cells)
            console.print(line, markup=False, soft_wrap=True)
        if as_json:
            mine = rows[-len(samples) :]
            typer.echo(json.dumps(to_json(sizes[-1], mine), ensure_ascii=False))
        del encoder  # its memory, before the next one is opened
    if as_json:
        return
    print_table(
        ("encoder", "family", "weights", "of them vocabulary", "fp32", "longest text"),
        [
            (
                *(s.encoder, s.family, f"{s.weights:.0f} M", f"{s.vocabulary:.0f} M"),
                *(f"{s.megabytes:.0f} MB", f"{s.longest} tokens"),
            )
            for s in sizes
        ],
        left=2,
    )
    typer.echo()
    order = [sample.language for sample in samples]
    rows.sort(key=lambda row: order.index(row.language))
    print_table(COLUMNS, [(r.language, r.encoder, *_cells(r)) for r in rows], left=2)
    typer.echo(f"\nms for a text: torch, {torch.get_num_threads()} CPU threads, medians.")


def _language_and_path(entry: str) -> tuple[str, Path]:
    language, equals, path = entry.partition("=")
    if not (language and equals and path):
        raise OptionError(
            f"--data {entry} must be LANG=FILE or LANG=FOLDER, such as sw=data/sw/test.tsv."
        )
    return language, Path(path)


def _doing(sample: Sample) -> str:
    probe = f", a probe on {len(sample.train)} rows" if sample.train else ""
    return f"{sample.language}, {len(sample.texts)} texts{probe}"


def _cells(row: Figures) -> Sequence[str]:
    tokens, probe = row.tokens, row.probe
    return (
        f"{tokens.tokens_per_word:.2f}" if tokens.tokens_per_word else "-",
        f"{tokens.characters_per_token:.2f}",
        f"{tokens.tokens_per_text:.1f}",
        f"{tokens.unknown:.2%}",
        f"{row.alone:.1f}",
        f"{row.batched:.1f}",
        f"{probe['accuracy']:.3f} ({probe['rows']} rows)" if probe else "-",
    )
