"""`adaptx predict`: answers for texts, each with its own adapter or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptx.cli.opening import NONE
from adaptx.errors import OptionError, choices

EXAMPLES = """
[bold]Examples[/bold]

  adaptx predict "Nimefurahi sana" -a adapters/sw-topics

  adaptx predict "Nimefurahi sana" "Inu mi dun" -a adapters/sw-topics -a adapters/yo-topics

  adaptx predict --input texts.jsonl --adapter-column adapter -a adapters/sw -a adapters/yo --json

A text whose adapter is "none" answers with its vector.
"""


def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="The texts.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", "-a", help="One folder for all texts, or one (or none) for each, in order."
        ),
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="JSONL, TSV or CSV, instead of texts.")
    ] = None,
    text_column: Annotated[str | None, typer.Option("--text-column")] = None,
    adapter_column: Annotated[
        str | None,
        typer.Option("--adapter-column", help="Which column of --input names a row's adapter."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="\\[default: the one the adapter names]")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with every label's score.")
    ] = False,
) -> None:
    """Answer texts; rows with different adapters share batches."""
    folders = adapter or [NONE]
    rows = list(texts or [])
    if bool(rows) == (input is not None):
        raise OptionError("Give texts as arguments, or a file with --input: one of the two.")
    named: list[str] | None = None
    if input is not None:
        from adaptx.data.read import read_column, read_examples

        examples = read_examples(input, text_column=text_column, labelled=False)
        rows = [example.text for example in examples]
        named = read_column(input, adapter_column) if adapter_column else None
    elif adapter_column:
        raise OptionError("--adapter-column names a column of --input: give --input too.")
    if named is None and len(folders) not in (1, len(rows)):
        raise OptionError(
            f"{len(folders)} adapters for {len(rows)} texts: give one for all, or one (or "
            f"{NONE!r}) for each."
        )

    from adaptx.cli.opening import open_adapters
    from adaptx.tasks import Prediction

    opened, adapters = open_adapters(folders, encoder)
    if named is not None:
        known = {a.name: a for a in adapters if a is not None}
        if len(known) < sum(a is not None for a in adapters):
            raise OptionError("Two of the adapters given have the same name: rows can't tell them.")
        if unknown := sorted(set(named) - known.keys() - {"", NONE}):
            raise OptionError(
                f"{input}: column {adapter_column!r} names {choices(unknown)}; the adapters given "
                f"are {choices(known) or 'none'}."
            )
        adapters = [known.get(name) for name in named]
    answers = opened.predict(rows, adapters, batch_size=batch_size)
    per_row = adapters * len(rows) if len(adapters) == 1 else adapters
    for text, used, answer in zip(rows, per_row, answers, strict=True):
        line: dict[str, Any] = {"text": text, "adapter": used.name if used else None}
        if isinstance(answer, Prediction):
            line |= {"label": answer.label, "score": answer.score, "scores": answer.scores}
            short = f"{answer.label}\t{answer.score:.3f}"
        else:
            line["vector"] = [round(float(value), 6) for value in answer]
            short = "vector\t[" + ", ".join(f"{v:.3f}" for v in answer[:4]) + f", … {len(answer)}]"
        typer.echo(json.dumps(line, ensure_ascii=False) if as_json else f"{short}\t{text}")
