"""`adaptx data`: check a data file, split it, convert it, mine hard negatives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptx.adapters.folder import NONE
from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.cli.options import OtherColumn, Repair, Scheme
from adaptx.cli.show import print_table
from adaptx.errors import MissingExtra, OptionError, choices

if TYPE_CHECKING:
    from adaptx import tasks
    from adaptx.data.check import Measure, Report, Same
    from adaptx.data.records import Record
    from adaptx.data.streams import Columns

CHECK_EXAMPLES = """
[bold]Examples[/bold]

  adaptx data check train.tsv --against test.tsv

  adaptx data check train.conll --task token-classification --json

  adaptx data check tags.conll --task token-classification --scheme plain

  adaptx data check test.sw,test.en --task pairs --encoder none

  adaptx data check hf:USER/NAME/sw:train --text-column tweet
"""
SPLIT_EXAMPLES = """
[bold]Examples[/bold]

  adaptx data split all.jsonl -o data/sw

  adaptx data split all.tsv -o data/sw --shares train=90,test=10 --dry-run

  adaptx data split all.conll -o data/names --task token-classification
"""
CONVERT_EXAMPLES = """
[bold]Examples[/bold]

  adaptx data convert train.parquet train.jsonl

  adaptx data convert hf:USER/NAME/sw:train train.jsonl
"""
MINE_EXAMPLES = """
[bold]Examples[/bold]

  adaptx data mine-negatives pairs.tsv -o train.jsonl

  adaptx data mine-negatives pairs.tsv -o train.jsonl -a adapters/sw-search --count 8
"""
PARTS = ("train", "dev", "test")
app = typer.Typer(no_args_is_help=True, help="Check a data file, split it, convert it.")
Source = Annotated[
    str, typer.Argument(help="JSONL, TSV, CSV, Parquet, CoNLL, SQuAD, A,B or hf:NAME:SPLIT.")
]
Text = Annotated[str | None, typer.Option("--text-column", help="Otherwise text, sentence …")]
Label = Annotated[str | None, typer.Option("--label-column", help="Otherwise label, category …")]


class Task(str, Enum):
    """What the rows are for."""

    classification = "classification"
    multi_label = "multi-label"
    pairs = "pairs"
    token_classification = "token-classification"
    question_answering = "question-answering"
    retrieval = "retrieval"
    similarity = "similarity"
    masked_language = "masked-language"
    extractive_summarization = "extractive-summarization"


@app.command("check", epilog=CHECK_EXAMPLES)
def check(
    source: Source,
    task: Annotated[Task, typer.Option("--task", help="What the rows are.")] = Task.classification,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="A file that must share no text with it; may be repeated."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", "-e", help="Whose tokens to count, or none; otherwise the bundled one's."
        ),
    ] = None,
    text_column: Text = None,
    other_column: OtherColumn = None,
    label_column: Label = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Comma-separated: no other is allowed.")
    ] = None,
    scheme: Scheme = None,
    repair: Repair = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Say what a file holds and all that is wrong with it; exit code 1 when a row is bad.

    Rows, shares of labels, lengths in tokens, duplicates, texts that also stand in other files.
    Duplicates and leaks are warnings: the exit code stays 0.
    """
    from adaptx.data.check import check as run_check
    from adaptx.tasks import make_task

    asked = make_task(task.value, scheme=scheme, repair=repair or None)
    allowed = [name.strip() for name in labels.split(",")] if labels else []
    report = run_check(
        source,
        task.value,
        _columns(task, text_column, label_column, other_column),
        against=against or (),
        labels=allowed,
        measure=_measure(encoder, asked),
        judge=lambda record: asked.check([record]),
    )
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _show(report)
    raise typer.Exit(0 if report.clean else 1)


@app.command("split", epilog=SPLIT_EXAMPLES)
def split(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    task: Annotated[Task, typer.Option("--task", help="What the rows are.")] = Task.classification,
    shares: Annotated[
        str, typer.Option("--shares", help="Of train, dev and test, or by name: train=90,test=10.")
    ] = "80,10,10",
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another split.")] = 0,
    text_column: Text = None,
    other_column: OtherColumn = None,
    label_column: Label = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The counts as JSON.")] = False,
) -> None:
    """Split a file into train, dev and test: by label, repeatable, without leaks.

    Each part is JSONL. Questions about one passage stay together.
    """
    from adaptx import storage
    from adaptx.data.large import open_records
    from adaptx.data.splits import split_examples, split_passages, write_split

    storage.check_output(output, overwrite, "data")
    wanted = _shares(shares)
    columns = _columns(task, text_column, label_column, other_column)
    rows = list(open_records(source, task.value, columns))
    by = split_passages if task is Task.question_answering else split_examples
    parts = by(rows, wanted, seed=seed)
    if not dry_run:
        facts = {"source": source, "task": task.value, "seed": seed, "shares": wanted}
        write_split(parts, output, facts, overwrite)
    found = {name: _counts(task, part) for name, part in parts.items()}
    labels = sorted({label for part in found.values() for label in part})
    counts = {name: {label: part[label] for label in labels} for name, part in found.items()}
    if as_json:
        typer.echo(json.dumps(counts, ensure_ascii=False))
        return

    from rich.console import Console

    console = Console()
    head = ["label", *(f"{name} ({len(part)})" for name, part in parts.items())]
    print_table(head, [[label, *(counts[name][label] for name in parts)] for label in labels])
    console.print(f"{'Would write' if dry_run else 'Wrote'} {output}.", soft_wrap=True)


@app.command("convert", epilog=CONVERT_EXAMPLES)
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(help="The new .jsonl file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write any table as JSONL, row by row: large files are then read without being loaded."""
    from adaptx.data.convert import convert as run_convert

    rows = run_convert(source, target, overwrite=overwrite)
    typer.echo(f"Wrote {target}: {rows} rows.")


@app.command("mine-negatives", epilog=MINE_EXAMPLES)
def mine_negatives(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new .jsonl file.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", "-a", help="Of retrieval: ranks with it.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", "-e", help="Who ranks; otherwise the adapter's, or the bundled."),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Negatives of a row, at most.")] = 4,
    text_column: Text = None,
    other_column: OtherColumn = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write pairs with hard negatives: texts of other pairs that stand near, and don't belong."""
    from adaptx.data.convert import check_target, write_lines
    from adaptx.data.read import read_pairs

    check_target(output, overwrite=overwrite)
    pairs = read_pairs(source, text_column=text_column, other_column=other_column)

    from adaptx.cli.opening import open_adapters
    from adaptx.training.negatives import mine_negatives

    opened, (ranks,) = open_adapters([str(adapter) if adapter else NONE], encoder)
    found = mine_negatives(opened, pairs, ranks, count=count)
    rows = write_lines(
        output,
        (
            json.dumps(
                {"text": pair.text, "other": pair.other, "negatives": list(pair.negatives)},
                ensure_ascii=False,
            )
            for pair in found
        ),
        source,
    )
    few = sum(len(pair.negatives) < count for pair in found)
    typer.echo(f"Wrote {output}: {rows} rows, {few} of them with fewer than {count} negatives.")


def _columns(task: Task, text: str | None, label: str | None, other: str | None) -> Columns:
    """The columns of a task's rows; pairs may be without labels where none was asked for."""
    from adaptx.data.streams import Columns

    return Columns(text, label, other, labelled=task is not Task.pairs or label is not None)


def _counts(task: Task, rows: Sequence[Record]) -> Counter[str]:
    """How often each label stands in the rows; scores are all alike, and so is no label."""
    if task is Task.similarity:
        return Counter({"scored": len(rows)})
    return Counter(label for row in rows for label in row.labels or ("no label",))


def _shares(text: str) -> dict[str, float]:
    items = [item.strip() for item in text.split(",")]
    if "=" not in text and len(items) <= len(PARTS):
        items = [f"{name}={item}" for name, item in zip(PARTS, items, strict=False)]
    try:
        found = {name.strip(): float(value) for name, _, value in (i.partition("=") for i in items)}
    except ValueError:
        raise OptionError(f"--shares {text}: numbers are needed, such as 80,10,10.") from None
    if unknown := found.keys() - set(PARTS):
        raise OptionError(f"--shares {text}: {choices(unknown)} is none of {choices(PARTS)}.")
    total = sum(found.values())
    if len(found) < len(items) or not abs(total - 100) < 1e-6:  # a NaN too
        raise OptionError(
            f"--shares {text}: the shares must sum to 100, and they sum to {total:g}."
        )
    return {name: value / 100 for name, value in found.items()}


def _measure(encoder: str | None, task: tasks.Task) -> Measure:
    """Tokens of the encoder; characters where none was asked for and the bundled isn't there."""
    from adaptx import storage
    from adaptx.data.check import CHARACTERS, Measure

    if encoder == NONE:
        return CHARACTERS
    try:
        from adaptx.encoder.opening import FAMILIES, find_folder, load_tokenizer, positions

        folder = find_folder(encoder or DEFAULT_ENCODER, None)
    except (ModuleNotFoundError, MissingExtra):
        if encoder:
            raise
        return CHARACTERS
    family = storage.read_json(folder / "config.json").get("model_type")
    if family not in FAMILIES:
        raise OptionError(f"{folder} is of the family {family!r}; adaptx has {choices(FAMILIES)}.")

    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = load_tokenizer(folder, config)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Measure(
        lambda texts: [len(found.ids) for found in tokenizer.encode_batch(list(texts))],
        "tokens",
        positions(config),
        together=task.two_texts,
        slides=task.slides,
    )


def _show(report: Report) -> None:
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{report.path}: {report.rows} rows, {report.bad_rows or 'none'} of them bad.")
    for problem in report.problems:
        more = ", …" if problem.count > len(problem.lines) else ""
        lines = f"line {', '.join(map(str, problem.lines))}{more}: " if problem.lines else ""
        times = f" ({problem.count} rows)" if problem.count > 1 else ""
        say(f"  {lines}{problem.message}{times}")
    if rest := report.bad_rows - sum(problem.count for problem in report.problems):
        say(f"  … and {rest} more bad rows.")
    for name, found in (("label", report.labels), ("entity", report.entities)):
        total = sum(found.values())
        if found:
            rows = [[label, count, f"{count / total:.1%}"] for label, count in found.items()]
            print_table([name, "count", "share"], rows)
    if report.lengths:
        windows = any(found.windowed is not None for found in report.lengths.values())
        long = "several windows" if windows else "too long"
        rows = [
            [
                name,
                f.min,
                f.median,
                f.p95,
                f.max,
                _share(f.windowed if windows else f.truncated),
            ]
            for name, f in report.lengths.items()
        ]
        print_table(["length in " + report.unit, "min", "median", "95%", "max", long], rows)
    if report.entities_begun_inside:
        say(f"Warning: {report.entities_begun_inside} entities begin with I-, not B-.")
    if said := _same(report.duplicates):
        say(f"Warning: duplicates: {said}")
    for leak in report.leaks:
        bad = f", {leak.bad_rows} of them bad" if leak.bad_rows else ""
        said = _same(leak.same)
        found_there = f"leaks: {said}" if said else "none stands in both."
        say(f"{'Warning: ' if said else ''}{leak.path}: {leak.rows} rows{bad}; {found_there}")
        if leak.unseen_labels:
            say(
                f"Warning: {leak.path} has labels that {report.path} lacks: "
                f"{choices(leak.unseen_labels)}."
            )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _same(same: Same) -> str:
    if not same.exact + same.normalized:
        return ""
    what = "questions" if isinstance(same.places[0][0], str) else "lines"
    places = ", ".join(f"{there} and {here}" for there, here in same.places[:5])
    return (
        f"{same.exact} the same to the last character, {same.normalized} but for case, white space "
        f"or composition; {same.contradicting} with another label ({what} {places}"
        f"{', …' if same.exact + same.normalized > 5 else ''})."
    )
