"""Texts as token ids, each as its own adapter reads it: prefix, limit, windows of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.windows import Input, Window, whole
from adaptx.errors import OptionError
from adaptx.runtime.pool import Resident
from adaptx.tasks import Task


def check_call(texts: Any, max_length: Any) -> None:
    """Raise OptionError for texts that are no list, and a limit that is no number of tokens."""
    if isinstance(texts, (str, bytes)):
        raise OptionError("texts must be a list of texts, not one text.")
    listed = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if not listed or isinstance(texts, Mapping):
        raise OptionError(f"texts must be a list of texts, not a {type(texts).__name__}.")
    whole = isinstance(max_length, (int, np.integer)) and not isinstance(max_length, bool)
    if max_length is not None and not whole:
        raise OptionError(f"max_length={max_length!r} must be a whole number of tokens.")


def plain_ids(
    text: TextEncoder,
    prefix: str,
    texts: Sequence[str],
    rows: Sequence[Resident | None],
    max_length: int | None,
) -> list[list[int]]:
    """The token ids of each text in one window, whatever its adapter's task.

    `prefix` is for rows without an adapter.
    """
    groups: dict[tuple[int | None, str], list[int]] = {}
    for i, row in enumerate(rows):
        own = row.loaded.facts.prefix if row else prefix
        groups.setdefault((_limit(row, max_length), own), []).append(i)
    found: list[list[int]] = [[]] * len(texts)
    for (limit, own), places in groups.items():
        ids = text.ids([own + texts[i] for i in places], limit)
        for i, tokens in zip(places, ids, strict=True):
            found[i] = tokens
    return found


def windows_of(
    text: TextEncoder,
    prefix: str,
    texts: Sequence[Input],
    rows: Sequence[Resident | None],
    max_length: int | None,
) -> list[list[Window]]:
    """The windows of each text, as its own adapter's task reads it.

    `prefix` is for rows without an adapter.
    """
    groups: dict[tuple[int | None, str, Task | None], list[int]] = {}
    for i, row in enumerate(rows):
        own = row.loaded.facts.prefix if row else prefix
        task = row.loaded.task if row else None
        if task is not None and type(task).windows is Task.windows:
            task.check_inputs([texts[i]])
            task = None  # it reads a text as it stands: such rows are tokenized together
        groups.setdefault((_limit(row, max_length), own, task), []).append(i)
    found: list[list[Window]] = [[]] * len(texts)
    for (limit, own, task), places in groups.items():
        inputs = [texts[i] for i in places]
        if task is not None:
            made = task.windows(text, own, inputs, limit)
        else:
            made = [[window] for window in whole(text, own, inputs, limit)]
        for i, windows in zip(places, made, strict=True):
            found[i] = windows
    return found


def refuse_cut(windows: Sequence[Sequence[Window]]) -> None:
    """OptionError for a text that its windows don't hold to its end."""
    for place, its in enumerate(windows, 1):
        for window in its:
            if window.cut:
                slid = window.offsets is not None  # then it is the question that was cut
                room = "half a window, its room" if slid else f"the {len(window.ids)} that are read"
                raise OptionError(
                    f"{'The question of text' if slid else 'Text'} {place} is {window.cut} tokens "
                    f"longer than {room}: shorten it, or let it be cut (too_long='truncate')."
                )


def _limit(row: Resident | None, max_length: int | None) -> int | None:
    """The tokens that are read at most; None: the encoder's own limit."""
    own = row.loaded.facts.max_length if row else None
    limits = [limit for limit in (own, max_length) if limit is not None]
    return min(limits) if limits else None
