"""Training rows: encoded once when they fit in memory, or read and encoded when their turn comes.

Dimensions: B rows of a batch, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adaptx.adapters.adapter import Adapter
from adaptx.data.encode import Batch
from adaptx.data.large import IndexedExamples, open_records
from adaptx.data.streams import Columns
from adaptx.data.windows import Window
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, choices
from adaptx.tasks import Task

Data = str | Path | Sequence[Any]
Span = tuple[int, int, int, int]  # windows from, to; their tokens; the place of their head
Seed = tuple[int, ...]


class Rows(Protocol):
    """What the loop asks of training data."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each row, int64 `[rows]`, or None where they aren't known beforehand."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def batch(self, rows: np.ndarray, seed: Seed = ()) -> tuple[Batch, Any, np.ndarray]:
        """The rows at these places, padded, their targets, and how much each of their losses counts
        in the sum over rows. A task that draws them anew does so for each `seed`.
        """
        ...

    def said(self, rows: np.ndarray) -> str:
        """Which rows of the data these are, counted from 1 as people do."""
        ...


@dataclass(frozen=True)
class EncodedRows:
    """Rows in memory. A row to train on is a window of a record, or all of them (`task.together`).

    records  what they were made of
    windows  of each record
    targets  of each row: an array, or a list of arrays
    """

    encoder: Encoder
    task: Task
    records: Sequence[Any]
    windows: list[list[Window]]
    targets: Any

    @classmethod
    def of(
        cls, encoder: Encoder, adapter: Adapter, task: Task, records: Sequence[Any]
    ) -> EncodedRows:
        """All records, encoded as the adapter reads them."""
        inputs = task.training_inputs(records)
        windows = adapter.windows(encoder.text, inputs) if len(records) else []
        return cls(encoder, task, records, windows, task.targets(records, windows))

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of every window, record after record."""
        return [window.ids for windows in self.windows for window in windows]

    @cached_property
    def counts(self) -> np.ndarray:
        """How many windows each row has, int64 `[rows]`."""
        if self.task.together:
            return np.array([len(windows) for windows in self.windows], np.int64)
        return np.ones(len(self.ids), np.int64)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each row's windows begin in `ids`, int64 `[rows]`."""
        found: np.ndarray = np.cumsum(self.counts) - self.counts
        return found

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 `[rows]`."""
        ends = np.cumsum([0, *(len(ids) for ids in self.ids)])
        found: np.ndarray = ends[self.starts + self.counts] - ends[self.starts]
        return found

    def __len__(self) -> int:
        return len(self.counts)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the windows of these rows stand in `ids`, row after row."""
        starts, counts = self.starts[rows], self.counts[rows]
        return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])

    def drawn(
        self, rows: np.ndarray, seed: Seed = ()
    ) -> tuple[Sequence[list[int]], Sequence[np.ndarray]]:
        """Token ids of the windows of these rows, and the rows' targets."""
        ids = [self.ids[place] for place in self.places(rows)]
        return self.task.drawn(self.encoder.text, ids, [self.targets[row] for row in rows], seed)

    def batch(self, rows: np.ndarray, seed: Seed = ()) -> tuple[Batch, np.ndarray, np.ndarray]:
        """The rows at these places, padded, and their targets; each loss counts 1."""
        ids, targets = self.drawn(rows, seed)
        batch = self.encoder.text.batch(ids, range(len(ids)))
        shares = np.ones(len(rows), np.float32)
        return batch, self.task.stacked(targets, batch.input_ids.shape[1]), shares

    def said(self, rows: np.ndarray) -> str:
        """Which rows of the data these are windows of."""
        if self.task.together:
            return _numbers(rows)
        counts = [len(windows) for windows in self.windows]
        return _numbers(np.repeat(np.arange(len(counts)), counts)[rows])


@dataclass(frozen=True)
class IndexedRows:
    """Rows of a file larger than memory; a bad one raises its DataError when its turn comes."""

    encoder: Encoder
    adapter: Adapter
    task: Task
    examples: IndexedExamples

    @property
    def lengths(self) -> None:
        """Not known: nothing was read."""
        return None

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray, seed: Seed = ()) -> tuple[Batch, np.ndarray, np.ndarray]:
        """The rows at these places, read, encoded and padded, and their targets.

        All windows of a row are in the batch, and count together as one.
        """
        taken = self.examples.take(rows)
        held = EncodedRows.of(self.encoder, self.adapter, self.task, taken)
        batch, targets, _ = held.batch(np.arange(len(held)), seed)
        counts = np.array([len(windows) for windows in held.windows])
        return batch, targets, np.repeat(1 / counts, counts).astype(np.float32)

    def said(self, rows: np.ndarray) -> str:
        """Which rows of the file these are."""
        return _numbers(rows)


@dataclass(frozen=True)
class MixedRows:
    """The rows of several sources, numbered one source after another.

    names  of each source
    heads  of each source, the place of its head
    """

    each: Sequence[EncodedRows]
    names: Sequence[str]
    heads: Sequence[int]
    pad_id: int

    @property
    def lengths(self) -> None:
        """Rows aren't sorted by length: a batch has rows of every source."""
        return None

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.each)

    def batch(
        self, rows: np.ndarray, seed: Seed = ()
    ) -> tuple[Batch, list[tuple[int, Span, Any]], np.ndarray]:
        """The windows of these rows, source after source, padded; of each source that has rows
        here, its place, its span and its targets; each loss counts 1.
        """
        parts: list[tuple[int, Batch, Any]] = []
        for place, own in self._by_source(rows):
            part, targets, _ = self.each[place].batch(own, seed)
            parts.append((place, part, targets))
        shapes = [batch.input_ids.shape for _, batch, _ in parts]
        total, longest = sum(many for many, _ in shapes), max(tokens for _, tokens in shapes)
        ids = np.full((total, longest), self.pad_id, np.int64)
        mask = np.zeros_like(ids)
        spans, at = [], 0
        for place, batch, targets in parts:
            many, tokens = batch.input_ids.shape
            ids[at : at + many, :tokens] = batch.input_ids
            mask[at : at + many, :tokens] = batch.attention_mask
            spans.append((place, (at, at + many, tokens, self.heads[place]), targets))
            at += many
        return Batch(ids, mask, np.arange(total)), spans, np.ones(len(rows), np.float32)

    def said(self, rows: np.ndarray) -> str:
        """Which rows of which source these are."""
        return ", ".join(
            f"{self.names[place]} {self.each[place].said(own)}"
            for place, own in self._by_source(rows)
        )

    def _by_source(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each source that has some of the rows, and their places in it."""
        starts = np.cumsum([0, *(len(held) for held in self.each)])
        for place in range(len(self.each)):
            own = rows[(rows >= starts[place]) & (rows < starts[place + 1])] - starts[place]
            if len(own):
                yield place, own


def _numbers(rows: np.ndarray) -> str:
    return f"rows {choices(row + 1 for row in np.unique(rows).tolist())}"


def training_rows(
    encoder: Encoder, adapter: Adapter, task: Task, records: Sequence[Any]
) -> EncodedRows | IndexedRows:
    """The rows of these records, in the way that they were opened."""
    if isinstance(records, IndexedExamples):
        return IndexedRows(encoder, adapter, task, records)
    return EncodedRows.of(encoder, adapter, task, records)


def open_data(data: Data, task: Task, columns: Columns) -> Sequence[Any]:
    """A file's records, as the task reads them (see adaptx.data), or those given.

    Raises DataError for a bad file, OptionError for no records, or those of another task.
    """
    if isinstance(data, (str, Path)):
        return open_records(data, task.kind, columns)
    if not len(data):
        raise OptionError("There are no examples: give rows, or None for no dev set.")
    records = data if isinstance(data, IndexedExamples) else list(data)
    task.check_class(records)
    return records
