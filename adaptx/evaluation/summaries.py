"""Extractive summarization: ROUGE of the sentences that were chosen (adaptx.data.rouge)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptx.data.records import Document
from adaptx.data.rouge import rouge_l, rouge_n, words
from adaptx.evaluation.tally import Tally
from adaptx.tasks.summarization import Summary


def rouge_tally(records: Sequence[Document], answers: Sequence[Summary]) -> Tally:
    """ROUGE-1, -2 and -L of each document, over 1: beside its reference, or its own sentences that
    are labelled where it has none.
    """
    found = {name: np.zeros(len(records)) for name in ("rouge_1", "rouge_2", "rouge_l")}
    for i, (record, answer) in enumerate(zip(records, answers, strict=True)):
        said, gold = words(answer.text), words(record.reference)
        found["rouge_1"][i] = rouge_n(said, gold, 1)
        found["rouge_2"][i] = rouge_n(said, gold, 2)
        found["rouge_l"][i] = rouge_l(said, gold)
    ones = np.ones(len(records))
    return {name: (values, ones) for name, values in found.items()}
