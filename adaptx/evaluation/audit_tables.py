"""An audit as tables and sentences: what the terminal and the page have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptx.errors import choices
from adaptx.evaluation.audit import Audit, SwapAudit, Swapped
from adaptx.evaluation.groups import GroupAudit
from adaptx.tasks.base import title

FEW = 30  # rows


@dataclass(frozen=True)
class Part:
    """A table, whose first `left` columns are text, and sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()
    left: int = 1


def parts(found: Audit) -> Iterator[Part]:
    """The parts of an audit, in the order in which they are read."""
    if found.groups:
        yield _groups(found.groups)
    if found.swaps:
        yield _pairs(found.swaps, found.rows)
        if found.swaps.worst:
            yield _worst(found.swaps)


def _groups(found: GroupAudit) -> Part:
    names = list(next(iter(found.groups.values())).scores)
    others = [name for name in names if name != found.metric]
    rows = [
        (
            name,
            group.rows,
            _with_interval(group.scores[found.metric], group.interval),
            *(f"{group.scores[other]:.3f}" for other in others),
        )
        for name, group in found.groups.items()
    ]
    gap = found.gap
    notes = [
        f"Largest gap in {title(found.metric)}: {found.best} less {found.worst}, "
        f"{gap.difference:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})."
    ]
    if gap.low <= 0:
        notes.append("The interval holds 0: these rows can't tell the two groups apart.")
    if len(found.groups) > 2:
        notes.append(
            f"Of {len(found.groups)} groups the two that lie furthest apart were chosen, which "
            f"alone makes a gap: look at the same two on other rows."
        )
    if small := [name for name, group in found.groups.items() if group.rows < FEW]:
        notes.append(
            f"Fewer than {FEW} rows: {choices(small)}. Intervals of so few are too narrow, and of "
            f"rows that are all right or all wrong they are a point."
        )
    if found.without:
        notes.append(f"{found.without} rows name no group and are left out.")
    heads = ("group", "rows", title(found.metric), *map(title, others))
    return Part("By group; in brackets 95% intervals", heads, rows, notes)


def _pairs(found: SwapAudit, rows: int) -> Part:
    lines = [("all", *_figures(found.total))]
    lines += [(" ↔ ".join(terms), *_figures(one)) for terms, one in found.pairs.items()]
    notes = [f"{found.total.rows} of {rows} rows hold a term; {found.without} hold none."]
    if found.unused:
        notes.append(f"In no row: {', '.join(found.unused)}.")
    heads = ("terms", "rows", "swaps", "answers changed", "mean change", "mean size of it")
    return Part("Terms swapped; in brackets 95% intervals", heads, lines, notes)


def _figures(one: Swapped) -> tuple[object, ...]:
    changed = None
    if one.changed is not None and one.interval is not None:
        changed = _with_interval(one.changed, one.interval)
    means = (
        None if one.mean_change is None else f"{one.mean_change:+.4f}",
        None if one.mean_size is None else f"{one.mean_size:.4f}",
    )
    return (one.rows, one.swaps, changed, *means)


def _worst(found: SwapAudit) -> Part:
    rows = [
        (
            swap.row + 1,
            " ↔ ".join(swap.terms),
            swap.before,
            swap.answer_before,
            swap.after,
            swap.answer_after,
            None if swap.change is None else f"{swap.change:+.3f}",
        )
        for swap in found.worst
    ]
    heads = ("row", "terms", "text", "answer", "swapped", "answer then", "change")
    return Part("The swaps that change most", heads, rows, left=6)


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
