"""Tables and durations as commands print them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1, title: str = ""
) -> None:
    """Print rows as a table on stdout; the first `left` columns are text, the others figures.

    Where stdout is no terminal, lines are as long as they need to be.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(map(plain, columns)):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else plain(cell)) for cell in row))
    wide = None if sys.stdout.isatty() else 1000
    Console(width=wide, highlight=False).print(table)


def give(
    found: Any,
    as_json: bool,
    show: Callable[[Any], None],
    html: Path | None,
    page: Callable[[Any], str],
) -> None:
    """Print what a command found, as JSON or by `show`; write its page where one is asked for."""
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        show(found)
    if html:
        html.write_text(page(found), encoding="utf-8")
        print(f"Wrote {html}.", file=sys.stderr)


def plain(value: object) -> str:
    """Text for a terminal: a folder may come from anyone, so no control characters of its own."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "�" for c in text)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    whole = round(seconds)
    for unit, below, size, rest in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // rest} {below}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
