"""Single-label classification of two texts: inference (NLI), paraphrase.

Both texts go through the encoder together, with its separator between them; the rest is
adaptx.tasks.classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptx.data.records import Pair
from adaptx.data.windows import Input
from adaptx.tasks.classification import Classification


@dataclass(frozen=True)
class PairClassification(Classification):
    """One of `labels` for each pair of texts (data.records.Pair)."""

    kind = "pairs"
    record = Pair
    two_texts = True
    needs = "Two texts are needed, as (text, other) or with --passage,"

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return f"It reads two texts and answers with one of {len(self.labels)} labels"

    def inputs(self, records: Sequence[Any]) -> list[Input]:
        """Both texts of each pair."""
        return [(record.text, record.other) for record in records]
