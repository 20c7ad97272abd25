"""`adaptx predict`: answers for texts, each with its own adapter or none; in torch, or a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptx.adapters.folder import NONE
from adaptx.errors import OptionError, choices

if TYPE_CHECKING:
    import numpy as np

    from adaptx.data.windows import Input
    from adaptx.tasks.retrieval import Ranked

EXAMPLES = """
[bold]Examples[/bold]

  adaptx predict "Nimefurahi sana" -a adapters/sw-topics

  adaptx predict "Nimefurahi sana" "Inu mi dun" -a adapters/sw-topics -a adapters/yo-topics

  adaptx predict --input texts.jsonl --adapter-column adapter -a adapters/sw -a adapters/yo --json

  adaptx predict "Samia alizaliwa wapi?" --passage "Samia alizaliwa Zanzibar." -a adapters/sw-qa

  adaptx predict "bei ya mchele" --rank passages.txt --top 3 -a adapters/sw-search

  adaptx predict "Nimefurahi sana" --bundle build/bundle -a sw-topics

  adaptx predict --input texts.jsonl --bundle build/bundle --language sw --json

A text whose adapter is "none" answers with its vector. A bundle needs no torch, and --json says

how many tokens of a text it didn't read ("truncated").
"""
BATCH = 32


def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="The texts.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            help="A folder, or a name in --bundle: one for all texts, or one (or none) for each.",
        ),
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="JSONL, TSV or CSV, instead of texts.")
    ] = None,
    text_column: Annotated[str | None, typer.Option("--text-column")] = None,
    passage: Annotated[
        str | None,
        typer.Option("--passage", help="Read with each text: the passage that answers a question."),
    ] = None,
    other_column: Annotated[
        str | None,
        typer.Option("--other-column", help="Of --input: the second text, as --passage."),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="FILE",
            help="Of documents, one a line (.txt, or a table): the nearest to the text.",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Of --rank: how many.", show_default="all")
    ] = None,
    adapter_column: Annotated[
        str | None,
        typer.Option("--adapter-column", help="Which column of --input names a row's adapter."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="A bundle that answers, instead of torch.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Of --bundle: take the adapter for it.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="\\[default: the one the adapter names]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, show_default=str(BATCH))
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with every label's score.")
    ] = False,
) -> None:
    """Answer texts; rows with different adapters share batches."""
    if bundle is not None and (encoder or batch_size):
        raise OptionError("--encoder and --batch-size are for torch: leave them out.")
    if rank is not None:
        useless = {
            "--input": input, "--passage": passage, "--other-column": other_column,
            "--adapter-column": adapter_column, "--language": language,
        }  # fmt: skip
        if given := [name for name, value in useless.items() if value is not None]:
            raise OptionError(f"{choices(given)} would have no effect with --rank: leave it out.")
        if not texts or len(texts) > 1 or len(adapter or ()) > 1:
            raise OptionError("--rank takes one text, the query, and at most one adapter.")
        where = adapter[0] if adapter else NONE, bundle, encoder, batch_size or BATCH
        for one in _ranked(texts[0], rank, text_column, top, *where):
            typer.echo(json.dumps(one.to_json(), ensure_ascii=False) if as_json else str(one))
        return
    if top is not None:
        raise OptionError("--top says how many of --rank's documents: give --rank too.")
    rows: list[Input] = list(texts or [])
    if bool(rows) == (input is not None):
        raise OptionError("Give texts as arguments, or a file with --input: one of the two.")
    named: list[str] | None = None
    if input is not None:
        from adaptx.data.read import read_column, read_examples

        examples = read_examples(input, text_column=text_column, labelled=False)
        rows = [example.text for example in examples]
        if other_column:
            others = read_column(input, other_column)
            rows = [(row.text, other) for row, other in zip(examples, others, strict=True)]
        named = read_column(input, adapter_column) if adapter_column else None
    elif adapter_column or other_column:
        option = "--adapter-column" if adapter_column else "--other-column"
        raise OptionError(f"{option} names a column of --input: give --input too.")
    if passage is not None:
        if other_column:
            raise OptionError("Give --passage or --other-column, not both.")
        rows = [(str(text), passage) for text in rows]
    asked = adapter or [NONE]
    if named is None and len(asked) not in (1, len(rows)):
        raise OptionError(
            f"{len(asked)} adapters for {len(rows)} texts: give one for all, or one (or {NONE!r}) "
            f"for each."
        )
    if bundle is not None:
        if language is not None and (adapter or named):
            raise OptionError("Give adapters or --language, not both.")
        found = _of_bundle(bundle, rows, named or asked, language)
    elif language is not None:
        raise OptionError("--language is for --bundle: name the adapter's folder with --adapter.")
    else:
        found = _in_torch(rows, asked, named, encoder, batch_size or BATCH, adapter_column)
    for text, (name, answer, more) in zip(rows, found, strict=True):
        _show(text, name, answer, more, as_json)


Found = tuple[str | None, Any, dict[str, Any]]


def _in_torch(
    rows: Sequence[Input],
    folders: Sequence[str],
    named: Sequence[str] | None,
    encoder: str | None,
    batch_size: int,
    column: str | None,
) -> list[Found]:
    """The adapter's name and the answer of each text."""
    from adaptx.cli.opening import open_adapters

    opened, adapters = open_adapters(folders, encoder)
    if named is not None:
        known = {a.name: a for a in adapters if a is not None}
        if len(known) < sum(a is not None for a in adapters):
            raise OptionError("Two of the adapters given have the same name: rows can't tell them.")
        if unknown := sorted(set(named) - known.keys() - {"", NONE}):
            raise OptionError(
                f"Column {column!r} names {choices(unknown)}; the adapters given are "
                f"{choices(known) or 'none'}."
            )
        adapters = [known.get(name) for name in named]
    answers = opened.predict(rows, adapters, batch_size=batch_size)
    each = adapters * len(rows) if len(adapters) == 1 else adapters
    return [
        (used.name if used else None, answer, {})
        for used, answer in zip(each, answers, strict=True)
    ]


def _of_bundle(
    bundle: Path, rows: Sequence[Input], asked: Sequence[str], language: str | None
) -> list[Found]:
    """The same of a bundle's adapters, and how many tokens of a text weren't read."""
    from adaptx.runtime.runtime import Runtime

    each = list(asked) * len(rows) if len(asked) == 1 else list(asked)
    names = None if language else [None if name in ("", NONE) else name for name in each]
    with Runtime.open(bundle) as runtime:
        answers = runtime.predict(rows, names, language=language)
    found: list[Found] = []
    for one in answers:
        found.append((one.adapter, one.value, {"truncated": one.truncated}))
    return found


def _ranked(
    query: str,
    source: str,
    text_column: str | None,
    top: int | None,
    name: str,
    bundle: Path | None,
    encoder: str | None,
    batch_size: int,
) -> list[Ranked]:
    """The documents of a file that are nearest to the query."""
    from adaptx.data.read import read_texts

    documents = [row.text for row in read_texts(source, text_column=text_column)]
    if bundle is None:
        from adaptx.cli.opening import open_adapters

        opened, (adapter,) = open_adapters([name], encoder)
        return opened.rank(query, documents, adapter, top=top, batch_size=batch_size)
    from adaptx.runtime.runtime import Runtime

    with Runtime.open(bundle) as runtime:
        return runtime.rank(query, documents, None if name == NONE else name, top=top)


def _show(text: Input, name: str | None, answer: Any, more: dict[str, Any], as_json: bool) -> None:
    import numpy as np

    first, other = (text, None) if isinstance(text, str) else text
    line: dict[str, Any] = {"text": first, "adapter": name}
    if other is not None:
        line |= {"other": other}
    if isinstance(answer, np.ndarray) and answer.ndim == 2:  # of two texts, each read alone
        one, two = answer
        cosine = float(one @ two)
        line |= {"vector": _rounded(one), "other_vector": _rounded(two), "cosine": cosine}
        short = f"cosine {cosine:.3f}\t{_shortened(one)}\t{_shortened(two)}"
    elif isinstance(answer, np.ndarray):
        line |= {"vector": _rounded(answer)}
        short = f"vector\t{_shortened(answer)}"
    else:
        line |= answer.to_json()
        short = str(answer)
    line |= more
    typer.echo(json.dumps(line, ensure_ascii=False) if as_json else f"{short}\t{first}")


def _rounded(vector: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in vector]


def _shortened(vector: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:.3f}" for v in vector[:4]) + f", … {len(vector)}]"
