"""Whether an adapter treats groups alike: score gaps between them, answers under swapped terms.

A swap puts two terms that should be interchangeable ("Asha", "John") in each other's place; an
answer that then changes rested on them. Counterfactual tests of this kind: Kiritchenko & Mohammad
2018, arXiv 1805.04508; Garg et al. 2019, arXiv 1809.10610.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.swaps import check_swaps, pairs_of, swapper
from adaptx.errors import OptionError
from adaptx.evaluation.compare import ratio_resamples
from adaptx.evaluation.evaluate import checked_task, no_head
from adaptx.evaluation.groups import GroupAudit, audit_groups, check_groups
from adaptx.tasks import Task

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

EXAMPLES = 5


@dataclass(frozen=True)
class Swap:
    """One row under one swap.

    changed  whether the answer is another; None where it is a number, which any swap moves
    change   of the probability of the answer before (of several labels: of the one that moves
             most), or of the number; None for tags and sentences, which have none
    """

    row: int
    terms: tuple[str, str]
    before: str
    after: str
    answer_before: str
    answer_after: str
    changed: bool | None
    change: float | None


@dataclass(frozen=True)
class Swapped:
    """What some swaps came to.

    rows, swaps    how many rows hold a term, and how often two were swapped in one
    changed        share of the swaps that changed the answer, with its 95% interval: the bootstrap
                   over rows, as swaps of one row hang together
    mean_change, mean_size  mean of the changes, and of how large they are
    """

    rows: int
    swaps: int
    changed: float | None
    interval: tuple[float, float] | None
    mean_change: float | None
    mean_size: float | None

    @classmethod
    def of(cls, swaps: Sequence[Swap]) -> Swapped:
        """Count swaps; there is at least one."""
        rows = sorted({swap.row for swap in swaps})
        changed, interval = None, None
        if swaps[0].changed is not None:
            place = {row: i for i, row in enumerate(rows)}
            tally = np.zeros((2, len(rows)))
            for swap in swaps:
                tally[:, place[swap.row]] += bool(swap.changed), 1
            changed = float(tally[0].sum() / tally[1].sum())
            low, high = np.quantile(ratio_resamples(*tally), [0.025, 0.975])
            interval = float(low), float(high)
        moved = np.array([swap.change for swap in swaps if swap.change is not None])
        means = [float(x.mean()) if len(moved) else None for x in (moved, np.abs(moved))]
        return cls(len(rows), len(swaps), changed, interval, *means)


@dataclass(frozen=True)
class SwapAudit:
    """Answers under swaps.

    total    all of them; `pairs`, by the terms: those that changed most answers first
    without  rows that hold none of the terms
    unused   terms that no row holds
    worst    the swaps that changed an answer, or moved it most
    """

    total: Swapped
    pairs: dict[tuple[str, str], Swapped]
    without: int
    unused: tuple[str, ...]
    worst: tuple[Swap, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name; pairs as a list."""
        found = asdict(self)
        found["pairs"] = [
            {"terms": list(terms), **asdict(one)} for terms, one in self.pairs.items()
        ]
        return found


@dataclass(frozen=True)
class Audit:
    """An audit of an adapter; a part that wasn't asked for is None."""

    adapter: str
    rows: int
    groups: GroupAudit | None
    swaps: SwapAudit | None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "adapter": self.adapter,
            "rows": self.rows,
            "groups": self.groups.to_json() if self.groups else None,
            "swaps": self.swaps.to_json() if self.swaps else None,
        }


def audit(
    encoder: Encoder,
    adapter: Adapter,
    records: Sequence[Any],
    *,
    groups: Sequence[str] | None = None,
    swaps: Sequence[Sequence[str]] | None = None,
    examples: int = EXAMPLES,
    batch_size: int = 32,
) -> Audit:
    """Score gaps between groups of rows, and how answers change when terms are swapped.

    groups   the group of each record, "" for none: needs labels
    swaps    sets of terms that should be interchangeable (adaptx.data.swaps.read_swaps); needs none
    examples  how many of the worst swaps to keep

    Raises OptionError where neither is given, for an adapter that answers nothing or with vectors,
    for fewer than two groups, and where no record holds a term; DataError for a bad label or set of
    terms.
    """
    task = check_audited(adapter.name, adapter.task)
    if groups is None and swaps is None:
        raise OptionError("There is nothing to audit: give groups, swaps, or both.")
    if not records:
        raise OptionError("There are no rows to audit.")
    task.check_class(records)
    inputs = task.inputs(records)
    if groups is not None:
        task.check(records)
        check_groups(records, groups)
    sets = check_swaps(swaps or ())
    variants = _variants(task, inputs, sets) if swaps is not None else []
    answers = encoder.predict(inputs, adapter, batch_size=batch_size)
    by_group = audit_groups(task, records, answers, groups) if groups is not None else None
    by_swap = None
    if swaps is not None:
        said = encoder.predict([one for _, _, one in variants], adapter, batch_size=batch_size)
        found = [
            _swap(task, row, terms, inputs[row], one, answers[row], answer)
            for (row, terms, one), answer in zip(variants, said, strict=True)
        ]
        by_swap = _swap_audit(task, found, inputs, sets, examples)
    return Audit(adapter.name, len(records), by_group, by_swap)


def check_audited(name: str, task: Task | None) -> Task:
    """An adapter's task, whose answers can be audited; OptionError where it gives none."""
    task = checked_task(name, task)
    if not task.has_head:
        raise no_head(name)
    return task


def _variants(
    task: Task, inputs: Sequence[Any], sets: Sequence[tuple[str, ...]]
) -> list[tuple[int, tuple[str, str], Any]]:
    """(row, terms, the input with them swapped) wherever that makes another."""
    found = []
    for terms in pairs_of(sets):
        swap = swapper(terms)
        for row, one in enumerate(inputs):
            if (made := task.swapped(one, swap)) != one:
                found.append((row, terms, made))
    if not found:
        raise OptionError(
            f"None of the {len(inputs)} rows holds one of the terms "
            f"({', '.join(term for terms in sets for term in terms)}) as words of their own: there "
            f"is nothing to swap."
        )
    return sorted(found, key=lambda one: one[0])


def _swap(
    task: Task, row: int, terms: tuple[str, str], one: Any, other: Any, before: Any, after: Any
) -> Swap:
    changed, change = task.change(before, after, swapper(terms))
    said, then = one_line(str(before)), one_line(str(after))
    return Swap(row, terms, one_line(one), one_line(other), said, then, changed, change)


def one_line(one: Any) -> str:
    """An input or answer in one line."""
    if isinstance(one, tuple):
        return " / ".join(map(one_line, one))
    return " ".join((one if isinstance(one, str) else " ".join(one)).split())


def _swap_audit(
    task: Task,
    found: Sequence[Swap],
    inputs: Sequence[Any],
    sets: Sequence[tuple[str, ...]],
    examples: int,
) -> SwapAudit:
    by_pair: dict[tuple[str, str], list[Swap]] = {}
    for swap in found:
        by_pair.setdefault(swap.terms, []).append(swap)
    pairs = {terms: Swapped.of(swaps) for terms, swaps in by_pair.items()}
    worst = sorted(found, key=lambda swap: (-bool(swap.changed), -abs(swap.change or 0)))
    held = {term for terms in sets for term in terms if _is_held(task, term, inputs)}
    return SwapAudit(
        total=Swapped.of(found),
        pairs=dict(
            sorted(
                pairs.items(), key=lambda one: (-(one[1].changed or 0), -(one[1].mean_size or 0))
            )
        ),
        without=len(inputs) - len({swap.row for swap in found}),
        unused=tuple(term for terms in sets for term in terms if term not in held),
        worst=tuple(worst[:examples]),
    )


def _is_held(task: Task, term: str, inputs: Sequence[Any]) -> bool:
    """Whether a row holds a term: whether it changes when the term is put in another's place."""
    swap = swapper((term, "\0"))
    return any(task.swapped(one, swap) != one for one in inputs)
