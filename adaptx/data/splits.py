"""Splits that are the same everywhere, keep the shares of labels, and don't leak."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adaptx import storage
from adaptx.data.duplicates import digest, normalized
from adaptx.data.records import Passage, Record
from adaptx.errors import DataError, OptionError, choices

R = TypeVar("R", bound=Record)


def split_examples(
    examples: Sequence[R], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[R]]:
    """The examples in parts of the given shares, such as `{"train": 0.8, "test": 0.2}`.

    Every part has about its share of each label; of rows with several, of each set of labels.
    Texts that are the same (see adaptx.data.duplicates), of pairs both, stay in one part, so that
    none leaks into another. The same examples and seed give the same parts on every machine; a part
    keeps the examples' order.

    Rows are ordered by label, then by a hash of seed and text. Along that order each goes to the
    part that is furthest below its share: at most a row or two off in every label, unless
    duplicates force more. Raises OptionError for shares that don't sum to 1, and DataError where a
    part would have no rows.
    """
    _check(shares)
    groups: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(normalized("\n".join(example.texts.values())), []).append(place)

    def order(text: str) -> tuple[str, int, str]:
        labels = Counter("|".join(sorted({*examples[place].labels})) for place in groups[text])
        return (
            min(labels, key=lambda label: (-labels[label], label)),
            digest(f"{seed} {text}"),
            text,
        )

    parts: dict[str, list[int]] = {name: [] for name in shares}
    seen = 0
    for text in sorted(groups, key=order):
        seen += len(groups[text])
        below = {name: share * seen - len(parts[name]) for name, share in shares.items()}
        parts[max(below, key=lambda name: below[name])] += groups[text]
    if empty := [name for name, places in parts.items() if not places]:
        raise DataError(
            f"{len(examples)} rows ({len(groups)} different texts) leave {choices(empty)} without "
            f"any: give it a larger share, or more rows.",
            examples[0].path if examples else None,
        )
    return {name: [examples[place] for place in sorted(places)] for name, places in parts.items()}


def split_passages(
    passages: Sequence[Passage], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[Passage]]:
    """The questions in parts of about the given shares, those about one passage always together.

    A passage goes by a hash of seed and its first question's id, so files that ask the same
    questions in other languages fall apart in the same way. Passages that are equal stay together.
    Raises OptionError for shares that don't sum to 1, and DataError where a part would be empty.
    """
    _check(shares)
    *ends, _ = itertools.accumulate(shares.values())
    ends.append(1.0)
    part_of: dict[str, str] = {}  # by passage
    parts: dict[str, list[Passage]] = {name: [] for name in shares}
    for one in passages:
        if one.context not in part_of:
            place = digest(f"{seed} {one.id}")
            below = (name for name, end in zip(shares, ends, strict=True) if place < end * 2**64)
            part_of[one.context] = next(below)
        parts[part_of[one.context]].append(one)
    if empty := [name for name, rows in parts.items() if not rows]:
        raise DataError(
            f"{len(part_of)} passages leave {choices(empty)} without any: give a larger share, "
            f"another seed, or more passages.",
            passages[0].path if passages else None,
        )
    return parts


def _check(shares: Mapping[str, float]) -> None:
    if len(shares) < 2 or not all(share > 0 for share in shares.values()):
        raise OptionError(f"Shares of {dict(shares)}: give at least two parts, each above 0.")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise OptionError(
            f"The shares of {choices(shares)} sum to {sum(shares.values()):g}, not 1."
        )


def write_split(
    parts: Mapping[str, Sequence[Record]],
    folder: str | Path,
    facts: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Write each part as `<name>.jsonl`, a row a record, into a new folder, with `facts`."""
    with storage.new_folder(folder, overwrite=overwrite, kind="data") as made:
        for name, part in parts.items():
            lines = (json.dumps(record.row, ensure_ascii=False) for record in part)
            (made / f"{name}.jsonl").write_text(
                "".join(line + "\n" for line in lines), encoding="utf-8", newline="\n"
            )
        rows = {name: len(part) for name, part in parts.items()}
        storage.write_manifest(made, "data", {**facts, "rows": rows})
