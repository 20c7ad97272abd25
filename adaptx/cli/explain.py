"""`adaptx explain`: which words an answer rests on, and where in the encoder the adapter acts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptx.cli.show import give

if TYPE_CHECKING:
    from adaptx.explaining.explain import Explanation

EXAMPLES = """
[bold]Examples[/bold]

  adaptx explain adapters/sw-topics "Timu yetu imeshinda fainali"

  adaptx explain adapters/sw-topics "Timu yetu imeshinda fainali" --label health --html why.html

  adaptx explain adapters/sw-qa "Samia alizaliwa wapi?" --passage "Samia alizaliwa Zanzibar."

  adaptx explain adapters/sw-names "Asha aliondoka Dodoma Jumatatu." --word Dodoma --json

A word's figures are above 0 where it speaks for the answer. docs/explain.md says how they are made

and what they don't say.
"""
FOR, AGAINST = (0, 114, 178), (213, 94, 0)  # Okabe & Ito's blue and vermilion


def explain(
    adapter: Annotated[str, typer.Argument(help="A folder, or user/name on the Hub.")],
    text: Annotated[str, typer.Argument(help="The text.")],
    passage: Annotated[
        str | None,
        typer.Option("--passage", help="Read with the text: a passage, or a pair's second text."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help="A label, tag, sentence, or span of the passage.",
            show_default="the answer",
        ),
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(
            "--word",
            help="For tagging: whose tag, by the word or its number.",
            show_default="the first of the surest entity",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Points of the integral: more come closer.")
    ] = 64,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", show_default="the one the adapter names")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of one file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything as JSON, tokens too.")
    ] = False,
) -> None:
    """Explain an answer: what each word contributes, which layers and sites the adapter changes."""
    from adaptx import storage
    from adaptx.cli.opening import open_adapter

    if html:
        storage.check_file_output(html, overwrite)
    opened, loaded = open_adapter(adapter, encoder)

    from adaptx.explaining.explain import explain
    from adaptx.explaining.page import explanation_page

    found = explain(
        opened,
        loaded,
        text if passage is None else (text, passage),
        label=label,
        word=word,
        steps=steps,
        batch_size=batch_size,
    )
    give(found, as_json, show, html, explanation_page)


def show(found: Explanation) -> None:
    """Print an explanation: the text with its words coloured, tables below it."""
    from rich.console import Console
    from rich.text import Text

    from adaptx.cli.show import plain, print_table
    from adaptx.explaining.show import SITES, headline, layer_rows, notes, site_rows, word_rows

    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)

    def say(line: str) -> None:
        console.print(Text(plain(line)))

    say(headline(found))
    for which in range(len(found.texts)):
        console.print(Text("\n  ").append_text(_coloured(found, which)))
    console.print(Text("  blue speaks for it; orange, underlined, against\n", style="dim"))
    print_table(*word_rows(found), title=f"Words, in {found.unit}")
    console.print()
    for note in notes(found):
        say(note)
    if found.layers:
        columns, rows = layer_rows(found)
        most = max(found.layers) or 1
        bars = ["█" * round(24 * change / most) for change in found.layers]
        console.print()
        print_table(
            (columns[0], "", columns[1]),
            [(row[0], bar, row[1]) for row, bar in zip(rows, bars, strict=True)],
            left=2,
            title="What the adapter changes",
        )
    if found.sites:
        console.print()
        print_table(
            *site_rows(found),
            title=f"The {min(SITES, len(found.sites))} sites that change most, of "
            f"{len(found.sites)}",
        )


def _coloured(found: Explanation, which: int) -> Any:
    """A text in which a word's background is the stronger, the more it contributes."""
    from rich.text import Text

    from adaptx.cli.show import plain
    from adaptx.explaining.show import strengths

    text, line, at = found.texts[which], Text(), 0
    for word, strength in zip(found.words, strengths(found.words), strict=True):
        if word.which != which or strength is None:
            continue
        share = abs(strength)
        mixed = [255 + (part - 255) * share for part in (FOR if strength >= 0 else AGAINST)]
        style = (
            f"{'white' if share > 0.6 else 'black'} on rgb({','.join(f'{c:.0f}' for c in mixed)})"
        )
        line.append(plain(text[at : word.start]))
        line.append(
            plain(text[word.start : word.end]), style + (" underline" if strength < 0 else "")
        )
        at = word.end
    return line.append(plain(text[at:]))
