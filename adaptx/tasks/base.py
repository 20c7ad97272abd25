"""What every task shares, and what the rest of adaptx asks of one.

B windows of a batch, S tokens, W outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.large import IndexedExamples
from adaptx.data.windows import Input, Window, whole
from adaptx.errors import OptionError, choices
from adaptx.tasks.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper

IGNORED = -100  # a target that counts for nothing
POOLINGS = ("mean", "cls")
TOKENS = "tokens"  # the pooling of a head that reads every token's state

TITLES = {  # of metrics, in a table or a sentence
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "micro_f1": "micro F1",
    "exact_match": "exact match",
    "mrr": "MRR",
    "perplexity": "perplexity",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "ndcg_at_10": "nDCG@10",
    "precision": "precision",
    "recall": "recall",
    "mean": "mean",
}


def title(metric: str) -> str:
    """How a metric is called."""
    return TITLES.get(metric, metric.replace("_", " "))


@dataclass(frozen=True)
class Prediction:
    """The answer to one row: the likeliest label, its probability, and every label's."""

    label: str
    score: float
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.label}\t{self.score:.3f}"


class Task:
    """One file a task, a frozen dataclass; its fields are what `to_json` writes down.

    kind     its name in adaptx.json, in `adaptx data check --task` and in `--task`
    record   what its data is made of (adaptx.data.records)
    labels   what its outputs are called; fit() takes them from the data
    pooling  how token states become what the head reads: "mean", "cls", or TOKENS, all of them
    together whether the windows of a record are trained on together, as one row; else each is a row
    contrasts  whether rows are each other's wrong answers, so that one alone teaches nothing
    has_head whether a head stands on the states; without one they are the answer
    chooses  whether the largest output is the answer: one label of many
    answers  whether it answers texts; else it is for training alone: its metrics come from its
             loss, and `losses` gets the encoder's table of embeddings
    two_texts  whether an input is two texts
    slides   whether what is longer than the encoder reads goes through it in several windows; else
             it loses its end
    listed   whether a list, of words or of sentences, is one text
    by_word  whether its answer has a part for each word
    needs    what an input must be, in words, for who gives another
    smooths  whether its loss knows label smoothing
    problem  transformers' problem_type of a model that gives numbers for a text
    metrics  names of its scores (adaptx.evaluation.metrics); the first chooses the best epoch
             unless another is asked for
    reads    what it does, in words, for a model card
    hub      the task's name on the Hub
    """

    kind: ClassVar[str]
    hub: ClassVar[str]
    record: ClassVar[type]
    together: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False
    has_head: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    answers: ClassVar[bool] = True
    problem: ClassVar[str | None] = None
    two_texts: ClassVar[bool] = False
    slides: ClassVar[bool] = False
    listed: ClassVar[bool] = False
    by_word: ClassVar[bool] = False
    needs: ClassVar[str] = "One text is needed"
    smooths: ClassVar[bool] = True
    labels: tuple[str, ...]
    pooling: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its scores."""
        raise NotImplementedError

    @property
    def reads(self) -> str:
        """What it does, in words: "It reads a text and …"."""
        raise NotImplementedError

    @property
    def outputs(self) -> int | None:
        """How many numbers the head gives; None: as many as the encoder's embeddings have."""
        return len(self.labels)

    def fit(self, train: Sequence[Any], dev: Sequence[Any] = ()) -> Any:
        """The task with its labels, after the data has been checked; DataError for a bad row."""
        raise NotImplementedError

    def check(self, records: Sequence[Any]) -> None:
        """Raise DataError for a record that this task can't learn or answer, with its labels where
        it has them yet, and OptionError as `check_class`.
        """
        self.check_class(records)

    def check_class(self, records: Sequence[Any]) -> None:
        """Raise OptionError for records of another class; a large file's first is looked at."""
        some = records[:1] if isinstance(records, IndexedExamples) else records
        for number, record in enumerate(some, 1):
            if not isinstance(record, self.record):
                raise OptionError(
                    f"The task {self.kind!r} takes records of the class {self.record.__name__} "
                    f"(adaptx.data.records), and number {number} is of {type(record).__name__}."
                )

    def inputs(self, records: Sequence[Any]) -> list[Input]:
        """What is read of each record, to answer it."""
        return [record.text for record in records]

    def training_inputs(self, records: Sequence[Any]) -> list[Any]:
        """What is read of each record, to learn from it."""
        return self.inputs(records)

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """The windows of each input; raises OptionError as `check_inputs`."""
        self.check_inputs(inputs)
        return [[window] for window in whole(text, prefix, inputs, max_length)]

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        """Raise OptionError for one text where the task reads two, for two where it reads one."""
        for one in inputs:
            is_text = isinstance(one, str)
            if is_text if self.two_texts else isinstance(one, (tuple, list)) and len(one) == 2:
                raise OptionError(
                    f"{self.needs} for the task {self.kind!r}; this is "
                    f"{'one text' if is_text else 'two'}: {repr(one)[:80]}."
                )

    def targets(self, records: Sequence[Any], windows: Sequence[Sequence[Window]] = ()) -> Any:
        """What each window (`together`: each record) should answer, as arrays."""
        raise NotImplementedError

    def drawn(
        self,
        text: TextEncoder,
        ids: Sequence[list[int]],
        targets: Sequence[np.ndarray],
        seed: tuple[int, ...],
    ) -> tuple[Sequence[list[int]], Sequence[np.ndarray]]:
        """The windows and targets of a batch, as they are or drawn anew for each `seed`."""
        return ids, targets

    def stacked(self, targets: Sequence[np.ndarray], tokens: int) -> np.ndarray:
        """Targets as one array; with TOKENS `[B, tokens]`, IGNORED at the padding."""
        if self.pooling != TOKENS:
            return np.stack(targets)
        found = np.full((len(targets), tokens), IGNORED, np.int64)
        for row, target in zip(found, targets, strict=True):
            row[: len(target)] = target
        return found

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """How much each row's loss counts in the mean over dev."""
        return np.ones(len(targets), np.int64)

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Outputs `[B, W]`, or `[B, S, W]` with TOKENS, and targets -> the losses, fp32."""
        raise NotImplementedError

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """The answer to an input, from the outputs of its windows: `[W]`, or `[S, W]` each."""
        raise NotImplementedError

    @property
    def scale_of_outputs(self) -> tuple[float, float]:
        """(mean, scale): an answer is mean + scale x output, where the head learns it scaled."""
        return 0.0, 1.0

    def target(
        self, one: Any, answer: Any, label: str | None = None, word: str | None = None
    ) -> Target:
        """What is explained of an answer: what `label` and, `by_word`, `word` ask for, without them
        the answer's own. Raises OptionError for what there isn't, and where there is no score.
        """
        raise OptionError(f"The answers of {self.kind} have no score to explain.")

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading | None:
        """Where the target is read, of the windows of an input; None where no window holds it."""
        raise NotImplementedError

    def swapped(self, one: Any, swap: Swapper) -> Any:
        """An input with terms put in each other's place."""
        return swap(one) if isinstance(one, str) else type(one)(map(swap, one))

    def change(self, before: Any, after: Any, swap: Swapper) -> tuple[bool | None, float | None]:
        """Whether an answer is another after a swap of terms, None where it is a number, which any
        swap moves; and by how much: the probability of the answer before (of several labels: of the
        one that moves most), or the number; None for answers that have neither.
        """
        raise OptionError(f"The answers of {self.kind} can't be compared.")

    def to_json(self) -> dict[str, Any]:
        """What `task_from_json` rebuilds the task from."""
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"kind": self.kind, **plain}

    def check_width(self, hidden_size: int) -> None:
        """Raise OptionError for what can't be on an encoder whose states are so wide."""

    def check_pooling(self, poolings: Sequence[str] = POOLINGS) -> None:
        """Raise OptionError for a pooling that the task hasn't."""
        if self.pooling not in poolings:
            raise OptionError(f"pooling={self.pooling!r} is none of {choices(poolings)}.")


def no_answers(name: str, task: Task) -> str:
    """What to say where an adapter is asked to answer, and its task is for training alone."""
    return (
        f"Adapter {name!r} is of the task {task.kind!r}, which is for training alone: it answers "
        f"no text, and has no place in an export."
    )


def checked_labels(labels: Any) -> tuple[str, ...]:
    """Labels as a tuple of names; OptionError for what can't be any."""
    if isinstance(labels, str):
        raise OptionError(f"labels={labels!r} must be a list of names, not one text.")
    found = tuple(labels)
    if not all(isinstance(label, str) and label for label in found):
        raise OptionError(f"labels={list(found)} must be names that aren't empty.")
    if len(set(found)) != len(found):
        raise OptionError(f"A label stands twice in labels={list(found)}.")
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, fp64, along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=-1, keepdims=True)
