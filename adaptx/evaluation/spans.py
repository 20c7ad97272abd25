"""Named entities: precision, recall and F1 of whole spans (CoNLL-2003's), and words right.

An entity counts when its words and its type are those of the gold one: seqeval's default mode, in
which an I- that continues nothing begins an entity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptx.data.records import Tagged
from adaptx.evaluation.tally import Tally
from adaptx.tasks.token_classification import Tags, TokenClassification


def tag_tally(
    task: TokenClassification, records: Sequence[Tagged], answers: Sequence[Tags]
) -> Tally:
    """Of entities in BIO, and of words."""
    spans = span_tally(records, answers) if task.scheme == "bio" else {}
    return spans | word_tally(task, records, answers)


def tag_tally_by_label(
    task: TokenClassification, records: Sequence[Tagged], answers: Sequence[Tags]
) -> dict[str, Tally]:
    """Of the entities of each type."""
    if task.scheme != "bio":
        return {}
    kinds = dict.fromkeys(label[2:] for label in task.labels if label != "O")
    return {kind: span_tally(records, answers, kind) for kind in kinds}


def span_tally(
    records: Sequence[Tagged], answers: Sequence[Tags], kind: str | None = None
) -> Tally:
    """Each metric's numerator and denominator by sentence, fp64 `[N]`: sums of both, divided.

    `kind` counts the entities of one type alone.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
        return {one for one in get_entities(list(tags)) if kind in (None, one[0])}

    counts = np.zeros((3, len(records)))  # right, answered, gold
    for i, (record, answer) in enumerate(zip(records, answers, strict=True)):
        gold, said = entities(record.tags), entities(answer.tags)
        counts[:, i] = len(gold & said), len(said), len(gold)
    right, said_N, gold_N = counts
    return {
        "f1": (2 * right, said_N + gold_N),
        "precision": (right, said_N),
        "recall": (right, gold_N),
    }


def word_tally(
    task: TokenClassification, records: Sequence[Tagged], answers: Sequence[Tags]
) -> Tally:
    """The share of the words whose tag is right, by sentence as in `span_tally`.

    Gold tags are repaired first where the task repairs them.
    """
    right = [
        sum(a == b for a, b in zip(task.repaired(record.tags), answer.tags, strict=True))
        for record, answer in zip(records, answers, strict=True)
    ]
    words = [len(record.tags) for record in records]
    return {"accuracy": (np.array(right, float), np.array(words, float))}
