"""Training rows: encoded once when they fit in memory, or read and encoded when their turn comes.

Dimensions: B rows of a batch, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from adaptx.adapters.adapter import Adapter
from adaptx.data.encode import Batch
from adaptx.data.large import IndexedExamples, open_examples
from adaptx.data.read import Example
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from adaptx.tasks import Classification

Data = str | Path | Sequence[Example]


class Rows(Protocol):
    """What the loop asks of training data."""

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each row, int64 `[rows]`, or None where they aren't known beforehand."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def batch(self, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        """The rows at these places, padded, and their targets, int64 `[B]`."""
        ...


@dataclass(frozen=True)
class EncodedRows:
    """Rows in memory: token ids, and targets int64 `[rows]`."""

    encoder: Encoder
    ids: list[list[int]]
    targets: np.ndarray

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        adapter: Adapter,
        task: Classification,
        examples: Sequence[Example],
    ) -> EncodedRows:
        """All examples, encoded as the adapter reads them."""
        texts = [adapter.prefix + example.text for example in examples]
        return cls(encoder, encoder.text.ids(texts, adapter.max_length), task.targets(examples))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 `[rows]`."""
        return np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        """The rows at these places, padded, and their targets."""
        return self.encoder.text.batch(self.ids, rows), self.targets[rows]


@dataclass(frozen=True)
class IndexedRows:
    """Rows of a file larger than memory; a bad one raises its DataError when its turn comes."""

    encoder: Encoder
    adapter: Adapter
    task: Classification
    examples: IndexedExamples

    @property
    def lengths(self) -> None:
        """Not known: nothing was read."""
        return None

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        """The rows at these places, read, encoded and padded, and their targets."""
        taken = self.examples.take(rows)
        held = EncodedRows.of(self.encoder, self.adapter, self.task, taken)
        return held.batch(np.arange(len(taken)))


def training_rows(
    encoder: Encoder, adapter: Adapter, task: Classification, examples: Sequence[Example]
) -> EncodedRows | IndexedRows:
    """The rows of these examples, in the way that they were opened."""
    if isinstance(examples, IndexedExamples):
        return IndexedRows(encoder, adapter, task, examples)
    return EncodedRows.of(encoder, adapter, task, examples)


def open_data(
    data: Data, *, text_column: str | None = None, label_column: str | None = None
) -> Sequence[Example]:
    """Examples of a file (see adaptx.data), or those given."""
    if isinstance(data, (str, Path)):
        return open_examples(data, text_column=text_column, label_column=label_column)
    if not len(data):
        raise OptionError("There are no examples: give rows, or None for no dev set.")
    return data if isinstance(data, IndexedExamples) else list(data)
