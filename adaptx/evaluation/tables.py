"""The result of `adaptx eval` as tables for a terminal: by language, by label."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from adaptx.evaluation.side_by_side import ALL
from adaptx.tasks.base import TITLES, title


def show_tables(result: dict[str, Any], console: Console) -> None:
    """Print what `SideBySide.to_json` counted: scores by language, then by label."""
    console.print(_by_language(result))
    if any(one["labels"] for one in next(iter(result.values()))["languages"].values()):
        console.print(_by_label(result))


def _by_language(result: dict[str, Any]) -> Table:
    first = next(iter(result))
    reports = result[first]["languages"]
    names = [name for name in next(iter(reports.values())) if name in TITLES]
    table = _table("By language; in brackets 95% intervals")
    for name in ("data", "adapter"):
        table.add_column(name, overflow="fold")
    for name in ("rows", *map(title, names)):
        table.add_column(name, justify="right")
    if len(result) > 1:
        table.add_column(f"{title(names[0])}, less {first}'s", justify="right", overflow="fold")
    for language in reports:
        table.add_section()
        for adapter, found in result.items():
            report = found["languages"][language]
            low, high = report["interval"]
            line = [
                language,
                adapter,
                str(report["rows"]),
                f"{report[names[0]]:.3f} ({low:.3f} to {high:.3f})",
                *(f"{report[name]:.3f}" for name in names[1:]),
            ]
            if less := found["differences_to_first"].get(language):
                chief = less[names[0]]
                line += [
                    f"{chief['difference']:+.3f} ({chief['low']:+.3f} to {chief['high']:+.3f})"
                ]
            table.add_row(*line)
    return table


def _by_label(result: dict[str, Any]) -> Table:
    languages = list(next(iter(result.values()))["languages"])
    single = [name for name in languages if name != ALL] if len(languages) > 1 else []
    table = _table(f"By label, {'all rows' if single else languages[0]}")
    for name in ("label", "adapter"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "precision", "recall", "F1", *(f"F1 {name}" for name in single[:6])):
        table.add_column(name, justify="right")
    labels = next(iter(result.values()))["languages"][languages[-1]]["labels"]
    for label in labels:
        table.add_section()
        for adapter, found in result.items():
            scores = found["languages"][languages[-1]]["labels"][label]
            table.add_row(
                label,
                adapter,
                str(scores["rows"]),
                *(f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")),
                *(f"{found['languages'][name]['labels'][label]['f1']:.3f}" for name in single[:6]),
            )
    return table


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD

    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
