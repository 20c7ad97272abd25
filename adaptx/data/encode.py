"""Texts -> token ids -> padded batches, with `tokenizers` alone (no torch, no transformers).

Dimensions: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from adaptx.errors import OptionError


@dataclass(frozen=True)
class Batch:
    """Token ids and their mask, right-padded: both int64 `[B, S]`; mask 1 for a token, 0 for none.

    `rows` int64 `[B]` are the rows' places in the list that was batched.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    rows: np.ndarray


class TextEncoder:
    """Turns texts into token ids, with the special tokens, truncated to `max_length` tokens."""

    def __init__(self, tokenizer: Tokenizer, *, pad_id: int, max_length: int):
        self.tokenizer, self.pad_id, self.max_length = tokenizer, pad_id, max_length
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """The token ids of each text; `max_length` may lower the encoder's own, never raise it.

        A longer text loses its end, and keeps its closing special tokens. Raises OptionError for a
        limit below the special tokens, and for what isn't a text.
        """
        return self.cut(texts, max_length)[0]

    def cut(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """`ids`, and how many tokens of each text were cut off."""
        check_texts(texts)
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        bare = len(self.tokenizer.encode("").ids)  # how many special tokens frame a text
        if limit < bare:
            raise OptionError(f"max_length={limit} is less than the {bare} special tokens.")
        encoded = [item.ids for item in self.tokenizer.encode_batch(list(texts))]
        found = [
            ids if len(ids) <= limit else self._truncated(text, limit - bare)
            for ids, text in zip(encoded, texts, strict=True)
        ]
        return found, [len(ids) - len(kept) for ids, kept in zip(encoded, found, strict=True)]

    def _truncated(self, text: str, length: int) -> list[int]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(length)
        processed = self.tokenizer.post_process(encoding)
        return list(processed.ids)

    def batch(
        self, ids: Sequence[Sequence[int]], rows: Sequence[int] | np.ndarray, least: int = 1
    ) -> Batch:
        """The given rows of `ids`, padded to the longest of them, and to `least` tokens."""
        longest = max(least, *(len(ids[row]) for row in rows))
        input_ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(ids[row])] = ids[row]
            mask[i, : len(ids[row])] = 1
        return Batch(input_ids, mask, np.asarray(rows, dtype=np.int64))

    def batches(self, ids: Sequence[Sequence[int]], size: int) -> Iterator[Batch]:
        """All rows in batches of at most `size`, rows of like length together (less padding)."""
        if size < 1:
            raise OptionError(f"batch_size={size} must be at least 1.")
        order = np.argsort([-len(row) for row in ids], kind="stable")
        for start in range(0, len(order), size):
            yield self.batch(ids, order[start : start + size])


def check_texts(texts: Sequence[object]) -> None:
    """Raise OptionError for what isn't a text, or can't be written as UTF-8, naming its place."""
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise OptionError(f"Text {place} is a {type(text).__name__}, not a text: {text!r}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise OptionError(f"Text {place} isn't valid Unicode: {error}.") from None
