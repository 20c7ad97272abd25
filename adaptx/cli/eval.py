"""`adaptx eval`: scores of adapters by language and label, side by side."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptx.cli.options import LabelColumn, OtherColumn, TextColumn
from adaptx.errors import OptionError, choices

if TYPE_CHECKING:
    from adaptx.adapters.folder import Facts
    from adaptx.evaluation.report import AnyReport
    from adaptx.tasks import Task

EXAMPLES = """
[bold]Examples[/bold]

  adaptx eval adapters/sw-topics --data data/swh/test.tsv

  adaptx eval adapters/sw-topics --data sw=data/swh/test.tsv --data en=data/eng/test.tsv --card

  adaptx eval adapters/probe adapters/lora --data data/swh --data data/eng -o runs/eval

  adaptx eval adapters/sw-ner --data masakhaner/swa/test.txt

The other adapters are compared with the first.
"""


def evaluate(
    names: Annotated[
        list[str], typer.Argument(metavar="ADAPTERS...", help="Folders, or user/name on the Hub.")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", "-d", help="NAME=FILE or FILE, labelled; or a folder with a test file."
        ),
    ],
    text_column: TextColumn = None,
    other_column: OtherColumn = None,
    label_column: LabelColumn = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", show_default="the one an adapter names")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for report.json and plots.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write scores and README.md into the adapters' folders.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
) -> None:
    """Score adapters on labelled data, by language and label; compare several."""
    from adaptx import storage
    from adaptx.adapters.finding import find_folder
    from adaptx.data.large import open_records
    from adaptx.data.streams import Columns

    if card and (away := [name for name in names if not Path(name).is_dir()]):
        raise OptionError(f"--card writes into folders here, and {choices(away)} isn't one.")
    adapters = [find_folder(name) for name in names]
    if output:
        storage.check_output(output, overwrite, "evaluation")
    facts, task = _checked(adapters)
    files = dict(_named(item, task.kind) for item in data)
    if len(files) < len(data):
        raise OptionError(f"Two --data have the same name ({choices(files)}): use NAME=FILE.")
    columns = Columns(text_column, label_column, other_column)
    rows = {name: open_records(path, task.kind, columns) for name, path in files.items()}
    for records in rows.values():
        task.check(records)
    if card:
        for folder in adapters:
            storage.check_output(folder, overwrite=True)
    if dry_run:
        sets = ", ".join(f"{name} ({len(records)} rows)" for name, records in rows.items())
        typer.echo(f"Would evaluate {', '.join(facts)} on {sets}.")
        return

    from adaptx.cli.opening import open_each
    from adaptx.evaluation.evaluate import evaluate
    from adaptx.evaluation.side_by_side import SideBySide
    from adaptx.evaluation.write import write_card, write_evaluation

    labels = list(task.labels)
    reports: dict[str, dict[str, AnyReport]] = {}
    opened = open_each(adapters, encoder)
    for name, (its_encoder, adapter) in zip(facts, opened, strict=True):
        reports[name] = {}
        for language, records in rows.items():
            typer.echo(f"Evaluating {name} on {language}, {len(records)} rows …", err=True)
            reports[name][language] = evaluate(
                its_encoder, adapter, records, labels=labels, batch_size=batch_size
            )
    compared = SideBySide(reports)
    scores = compared.to_json()
    result: dict[str, Any] = {
        "labels": labels,
        "data": {
            name: {"file": Path(source).name, "sha256": _sha256(source), "rows": len(rows[name])}
            for name, source in files.items()
        },
        "adapters": {
            name: {"folder": str(folder), "encoder": facts[name].encoder, **scores[name]}
            for name, folder in zip(facts, adapters, strict=True)
        },
    }
    _show(scores, result, as_json)  # first: a full disk then loses no scores
    if output:
        write_evaluation(output, compared, result, overwrite=overwrite)
        typer.echo(f"Wrote {output}.", err=True)
    for name, folder in zip(facts, adapters, strict=True) if card else ():
        write_card(folder, scores[name]["languages"], result["data"])
        typer.echo(f"Wrote the model card in {folder}.", err=True)


def _show(scores: dict[str, Any], result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return

    from rich.console import Console

    from adaptx.evaluation.tables import show_tables

    show_tables(scores, Console(width=None if sys.stdout.isatty() else 120, highlight=False))


def _sha256(source: str) -> str | None:
    """A file's; a dataset on the Hub has none."""
    from adaptx import storage

    return storage.sha256(Path(source)) if Path(source).is_file() else None


def _named(item: str, task: str) -> tuple[str, str]:
    """(name, source) of one --data; a name that isn't given is the file's, or its folder's."""
    from adaptx.data.read import FORMATS, SPLITS, find_split
    from adaptx.data.streams import ENDINGS
    from adaptx.evaluation.side_by_side import ALL

    name, equals, rest = item.partition("=")
    if not equals or Path(item).exists():
        name, rest = "", item
    path = Path(rest)
    if path.is_dir():
        path = find_split(path, "test", ENDINGS.get(task, FORMATS))
        rest = str(path)
    stem = path.name.split(".")[0]
    split = any(stem in names for names in SPLITS.values())
    name = name or (path.resolve().parent.name if split else stem)
    if not re.fullmatch(r"[\w-]{1,40}", name) or name == ALL:
        raise OptionError(
            f"--data {item}: {name!r} can't be the name of a data set: choose letters, digits, - "
            f"and _, but not {ALL!r}, as in --data sw={rest}."
        )
    return name, rest


def _checked(adapters: list[Path]) -> tuple[dict[str, Facts], Task]:
    """The adapters' facts, each by a name of its own, and their task, when they can be compared."""
    from adaptx.cli.opening import facts_with_task
    from adaptx.evaluation.evaluate import check_labels, checked_task
    from adaptx.tasks import task_from_json

    found = [facts_with_task(folder) for folder in adapters]
    names = [facts.name for facts in found]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in adapters]
    if len(set(names)) < len(names):
        raise OptionError(f"An adapter is given twice: {choices(names)}.")
    facts = dict(zip(names, found, strict=True))
    tasks = {
        name: checked_task(name, task_from_json(one.task or {})) for name, one in facts.items()
    }
    if len(kinds := {task.kind for task in tasks.values()}) > 1:
        raise OptionError(f"Adapters of different tasks don't compare: {choices(sorted(kinds))}.")
    check_labels({name: task.labels for name, task in tasks.items()})
    return facts, tasks[names[0]]
