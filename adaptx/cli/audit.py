"""`adaptx audit`: score gaps between groups of rows, and answers under swapped terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptx.cli.options import LabelColumn, OtherColumn, TextColumn
from adaptx.cli.show import give
from adaptx.errors import OptionError

if TYPE_CHECKING:
    from adaptx.evaluation.audit import Audit

EXAMPLES = """
[bold]Examples[/bold]

  adaptx audit adapters/sw-topics --data test.tsv --group-column gender

  adaptx audit adapters/sw-topics --data test.tsv --swaps names.tsv --html audit.html

  adaptx audit adapters/sw-topics --data test.tsv --swaps names.tsv --examples 20 --json

A line of names.tsv holds terms that should be interchangeable, with tabs between them, such as

Asha, John and Mohammed. Swaps need no labels; groups do.
"""


def audit(
    adapter: Annotated[str, typer.Argument(help="A folder, or user/name on the Hub.")],
    data: Annotated[str, typer.Option("--data", "-d", help="A file of any format of its task.")],
    group_column: Annotated[
        str | None, typer.Option("--group-column", help="Which column says a row's group.")
    ] = None,
    swaps: Annotated[
        Path | None,
        typer.Option("--swaps", help="TSV or JSON: sets of terms that may change places."),
    ] = None,
    text_column: TextColumn = None,
    other_column: OtherColumn = None,
    label_column: LabelColumn = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="How many of the worst swaps to show.")
    ] = 5,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", show_default="the one the adapter names")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of one file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Audit an adapter: scores by group with the largest gap, answers when terms are swapped."""
    from adaptx import storage
    from adaptx.adapters.finding import find_folder
    from adaptx.cli.opening import facts_with_task, open_adapter
    from adaptx.data.large import open_records
    from adaptx.data.read import read_column
    from adaptx.data.streams import Columns
    from adaptx.data.swaps import read_swaps
    from adaptx.evaluation.audit import check_audited
    from adaptx.tasks import task_from_json

    if group_column is None and swaps is None:
        raise OptionError("There is nothing to audit: give --group-column, --swaps, or both.")
    if html:
        storage.check_file_output(html, overwrite)
    folder = find_folder(adapter)
    facts = facts_with_task(folder)
    task = check_audited(facts.name, task_from_json(facts.task or {}))
    sets = read_swaps(swaps) if swaps else None
    columns = Columns(text_column, label_column, other_column, labelled=group_column is not None)
    records = open_records(data, task.kind, columns)
    groups = read_column(data, group_column, "group") if group_column else None

    opened, loaded = open_adapter(folder, encoder)

    from adaptx.evaluation.audit import audit
    from adaptx.explaining.page import audit_page

    found = audit(
        opened,
        loaded,
        records,
        groups=groups,
        swaps=sets,
        examples=examples,
        batch_size=batch_size,
    )
    give(found, as_json, show, html, audit_page)


def show(found: Audit) -> None:
    """Print the tables of an audit, and what must be known beside them."""
    from adaptx.cli.show import plain, print_table
    from adaptx.evaluation.audit_tables import parts

    for number, part in enumerate(parts(found)):
        if number:
            typer.echo()
        if part.rows:
            print_table(part.columns, part.rows, left=part.left, title=part.title)
        for note in part.notes:
            typer.echo(plain(note))
