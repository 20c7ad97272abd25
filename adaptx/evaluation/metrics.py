"""Scores of answers, by task (scikit-learn's and seqeval's definitions, and after SQuAD's).

Most are a sum over rows divided by another: a `Tally` has both by row, which is what intervals are
drawn from. N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptx.errors import OptionError, choices
from adaptx.evaluation.correlation import CORRELATIONS, correlation
from adaptx.evaluation.label_sets import set_tally, set_tally_by_label
from adaptx.evaluation.questions import answer_tally
from adaptx.evaluation.ranking import rank_tally
from adaptx.evaluation.spans import tag_tally, tag_tally_by_label
from adaptx.evaluation.summaries import rouge_tally
from adaptx.evaluation.tally import Tally, ratio
from adaptx.tasks import (
    Classification,
    MultiLabel,
    QuestionAnswering,
    Retrieval,
    Summarization,
    Task,
    TokenClassification,
)
from adaptx.tasks.base import TITLES, title

# How answers of a task are counted, unless they are one label of many, or numbers that correlate.
TALLIES: dict[str, Callable[[Any, Sequence[Any], Sequence[Any]], Tally]] = {
    TokenClassification.kind: tag_tally,
    MultiLabel.kind: set_tally,
    QuestionAnswering.kind: lambda task, records, answers: answer_tally(records, answers),
    Retrieval.kind: lambda task, records, answers: rank_tally(records, answers),
    Summarization.kind: lambda task, records, answers: rouge_tally(records, answers),
}
BY_LABEL: dict[str, Callable[[Any, Sequence[Any], Sequence[Any]], dict[str, Tally]]] = {
    TokenClassification.kind: tag_tally_by_label,
    MultiLabel.kind: set_tally_by_label,
}
DEV_LOSS = "dev_loss"
LOWER = (DEV_LOSS, "perplexity")  # the better


def metric_of(task: Task, asked: str | None) -> str:
    """The metric asked for, or the task's first; OptionError for one that the task hasn't."""
    if asked is not None and asked not in (*task.metrics, DEV_LOSS):
        raise OptionError(
            f"metric={asked!r} is none of {choices((*task.metrics, DEV_LOSS))}, those of "
            f"{task.kind}."
        )
    return asked or task.metrics[0]


def goodness(metric: str, scores: Mapping[str, float]) -> float:
    """A number that is the greater, the better the score is; `metric` may be "<task>.<metric>"."""
    return -scores[metric] if metric.rpartition(".")[2] in LOWER else scores[metric]


def perplexity(loss: float) -> float:
    """The exp of a mean loss in nats; finite where that is."""
    return math.exp(min(loss, 700.0))


def task_scores(task: Task, records: Sequence[Any], answers: Sequence[Any]) -> dict[str, float]:
    """The task's metrics of answers to records."""
    if isinstance(task, Classification):
        return classification_scores(task.targets(records), predicted(task, answers))
    if task.metrics[0] in CORRELATIONS:
        gold, said = scores_of(records, answers)
        return {name: float(correlation(name, gold, said)) for name in task.metrics}
    return {name: ratio(*both) for name, both in tally(task, records, answers).items()}


def scores_of(records: Sequence[Any], answers: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """fp64 `[N]`: the scores of similarity that were given, and those that were answered."""
    gold = np.array([float(record.label) for record in records])
    return gold, np.array([answer.score for answer in answers])


def predicted(task: Task, answers: Sequence[Any]) -> np.ndarray:
    """int64 `[N]`: which of the task's labels each answer is."""
    index = {label: i for i, label in enumerate(task.labels)}
    return np.array([index[answer.label] for answer in answers], np.int64)


def tally(task: Task, records: Sequence[Any], answers: Sequence[Any]) -> Tally:
    """Each metric's numerator and denominator by row, of a task in TALLIES."""
    if task.kind not in TALLIES:
        raise OptionError(f"The task {task.kind!r} has no metrics.")
    return TALLIES[task.kind](task, records, answers)


def tally_by_label(task: Task, records: Sequence[Any], answers: Sequence[Any]) -> dict[str, Tally]:
    """f1, precision and recall of each label that has scores of its own."""
    return BY_LABEL[task.kind](task, records, answers) if task.kind in BY_LABEL else {}


def classification_scores(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and F1 averaged over labels: plain (macro) and by their share (weighted).

    Both int64 `[rows]`. A label that stands in neither is left out of the averages.
    """
    from sklearn.metrics import accuracy_score, f1_score

    def f1(average: str) -> float:
        return float(f1_score(targets, predicted, average=average, zero_division=0))

    return {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def score_line(scores: dict[str, Any]) -> str:
    """`accuracy 0.794  macro F1 0.781  weighted F1 0.792`."""
    return "  ".join(f"{title(name)} {scores[name]:.3f}" for name in scores if name in TITLES)
