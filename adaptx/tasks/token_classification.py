"""A tag for each word: named entities (BIO), parts of speech.

logits_SL = hidden_SH W_LH^T + b_L at a word's first token; loss = cross entropy, its mean over the
words of a window. BIO is decoded by the best path that it allows (Viterbi 1967). A text longer than
the encoder reads goes through it in overlapping windows; a word is answered by the window in which
it has the most context.

S tokens, W words, L tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.records import Tagged
from adaptx.data.windows import Window, sliding
from adaptx.errors import DataError, OptionError, choices
from adaptx.tasks.base import IGNORED, TOKENS, Task, checked_labels, softmax
from adaptx.tasks.target import Reading, Target, index_of, log_odds
from adaptx.tasks.words import (
    Spans,
    first_tokens,
    reading_tokens,
    text_of,
    token_starts,
    word_spans,
)

if TYPE_CHECKING:
    from torch import Tensor

    from adaptx.data.swaps import Swapper

SCHEMES = ("bio", "plain")


@dataclass(frozen=True)
class Entity:
    """A name in a text: `text[start:end]`, in characters; the score is its words' mean."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tags:
    """The answer to one text: its words, a tag for each, and the entities that BIO tags make.

    tags   "" for a word that became no token, where there is no O for what is outside
    spans  where the words are, in characters of the text, or of a list's words joined by spaces
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    entities: tuple[Entity, ...]
    bio: bool
    spans: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Entities, or words with their tags."""
        if self.bio:
            return {"entities": [asdict(entity) for entity in self.entities]}
        return {"words": list(self.words), "tags": list(self.tags)}

    def __str__(self) -> str:
        if self.bio:
            found = (f"[{e.label} {e.text}] {e.score:.3f}" for e in self.entities)
            return ", ".join(found) or "no entity"
        return " ".join(f"{w}/{t}" for w, t in zip(self.words, self.tags, strict=True))


@dataclass(frozen=True)
class TokenClassification(Task):
    """One of `labels`, the tags, for each word.

    Without labels, `fit` takes those of the training data. `scheme` is "bio" (O, B-LOC, I-LOC …,
    whose runs make entities) or "plain" (any tags, such as parts of speech). With `repair`, an I-
    that continues nothing begins an entity; without it such data is refused. A text is read word by
    word: pass a text, or a list of its words.
    """

    labels: tuple[str, ...] = ()
    scheme: str = "bio"
    repair: bool = False
    pooling: str = TOKENS

    kind = "token-classification"
    hub = "token-classification"
    record = Tagged
    slides = True
    listed = True
    by_word = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_labels(self.labels))
        self.check_pooling((TOKENS,))
        if self.scheme not in SCHEMES:
            raise OptionError(f"scheme={self.scheme!r} is none of {choices(SCHEMES)}.")
        if self.scheme == "bio":
            for label in self.labels:
                if _split(label) is None:
                    raise OptionError(f"The label {label!r} is no BIO tag: {_REMEDY}.")
                if self.repair and label[0] == "I" and f"B{label[1:]}" not in self.labels:
                    raise OptionError(
                        f"labels={list(self.labels)} have {label!r} and no 'B{label[1:]}', which "
                        f"repair writes where an entity begins: add it."
                    )

    @property
    def reads(self) -> str:
        """What it does, in words."""
        what = "finds the entities in it" if self.scheme == "bio" else "tags each of its words"
        return f"It reads a text and {what}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of entities in BIO; and the share of words whose tag is right."""
        return ("f1", "precision", "recall", "accuracy") if self.scheme == "bio" else ("accuracy",)

    def fit(self, train: Sequence[Tagged], dev: Sequence[Tagged] = ()) -> TokenClassification:
        """The task with its tags, in BIO B- and I- of each type; DataError for a bad row."""
        if not train:
            raise DataError("there are no training examples.")
        found = self._found(train)
        unseen = sorted(self._found(dev) - found)
        if unseen and not self.labels:
            tag = unseen[0]
            typed = ((record, [_type(t, self.scheme) for t in record.tags]) for record in dev)
            record, types = next(one for one in typed if tag in one[1])
            raise record.wrong(
                types.index(tag),
                f"{tag!r} stands in dev but not in train (which has {choices(sorted(found))}): it "
                f"can't be learnt. Add rows of it to train, or take it out of dev.",
            )
        task = self if self.labels else replace(self, labels=self._labels(found))
        if len(task.labels) < 2:
            raise DataError(
                f"there is one tag only, {choices(task.labels)}: tagging needs at least two.",
                train[0].path or None,
            )
        task.check(train)
        task.check(dev)
        return task

    def check(self, records: Sequence[Tagged]) -> None:
        """Raise DataError for an unknown tag, and for BIO that isn't (see `repair`)."""
        super().check(records)
        known = set(self.labels)
        for record in records:
            before = "O"
            for place, tag in enumerate(record.tags):
                if self.scheme == "bio":
                    self._check_bio(record, place, before)
                if known and tag not in known:
                    raise record.wrong(
                        place, f"unknown tag {tag!r}; allowed: {choices(self.labels)}."
                    )
                before = tag

    def _check_bio(self, record: Tagged, place: int, before: str) -> None:
        tag = record.tags[place]
        if (parts := _split(tag)) is None:
            raise record.wrong(place, f"the tag {tag!r} is none of BIO's: {_REMEDY}.")
        mark, name = parts
        if mark == "I" and not self.repair and name != (_split(before) or ("", ""))[1]:
            raise record.wrong(
                place,
                f"{tag} follows {before}, so it continues no entity: begin it with B-{name}, or "
                f"let that be done (repair=True, --repair).",
            )

    def _found(self, records: Iterable[Tagged]) -> set[str]:
        """Types in BIO, else tags."""
        for record in records:
            if self.scheme == "bio" and (bad := [t for t in record.tags if _split(t) is None]):
                place = record.tags.index(bad[0])
                raise record.wrong(place, f"the tag {bad[0]!r} is none of BIO's: {_REMEDY}.")
        found = {_type(tag, self.scheme) for record in records for tag in record.tags}
        return found - {""}

    def _labels(self, found: set[str]) -> tuple[str, ...]:
        if self.scheme == "plain":
            return tuple(sorted(found))
        return ("O", *(f"{mark}-{name}" for name in sorted(found) for mark in "BI"))

    def inputs(self, records: Sequence[Tagged]) -> list[Any]:
        """The words of each sentence."""
        return [list(record.tokens) for record in records]

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Any], max_length: int | None = None
    ) -> list[list[Window]]:
        """Overlapping windows, with offsets; each input is a text, or a list of words."""
        return sliding(text, prefix, [text_of(one) for one in inputs], max_length)

    def targets(
        self, records: Sequence[Tagged], windows: Sequence[Sequence[Window]] = ()
    ) -> list[np.ndarray]:
        """int64 `[S]` of each window: the tag at a word's first token, IGNORED elsewhere."""
        index = {label: i for i, label in enumerate(self.labels)}
        found = []
        for record, its_windows in zip(records, windows, strict=True):
            spans = word_spans(list(record.tokens))
            tags = self.repaired(record.tags)
            for number, window in enumerate(its_windows):
                target = np.full(len(window.ids), IGNORED, np.int64)
                for word, token in first_tokens(spans, window, number == 0):
                    target[token] = index[tags[word]]
                found.append(target)
        return found

    def repaired(self, tags: Sequence[str]) -> list[str]:
        """Tags as they are, or with `repair` BIO in which each entity begins with B-."""
        if self.scheme != "bio" or not self.repair:
            return list(tags)
        found, before = [], ""
        for tag in tags:
            mark, name = _split(tag) or ("O", "")
            found.append(f"B-{name}" if mark == "I" and name != before else tag)
            before = name
        return found

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Logits `[B, S, L]`, targets int64 `[B, S]` -> the mean over each row's words, fp32."""
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(
            outputs.float().transpose(1, 2),
            targets,
            reduction="none",
            ignore_index=IGNORED,
            label_smoothing=smoothing,
        )
        return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    def answer(self, one: Any, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Tags:
        """The tags of a text's words, or of the words given."""
        text, spans = text_of(one), word_spans(one, token_starts(windows))
        read = reading_tokens(spans, windows)
        logits_WL = self._logits(read, outputs)
        scores_WL = softmax(logits_WL)
        path = self._path(np.log(np.maximum(scores_WL, 1e-30)))
        unread = "O" if "O" in self.labels else ""
        tags = [
            self.labels[i] if token >= 0 else unread
            for i, (_, token) in zip(path, read, strict=True)
        ]
        scores = scores_WL[np.arange(len(path)), path]
        words = tuple(text[start:end] for start, end in spans)
        bio = self.scheme == "bio"
        entities = _entities(text, spans, tags, scores) if bio else ()
        return Tags(words, tuple(tags), entities, bio, tuple(spans))

    def target(
        self, one: Any, answer: Tags, label: str | None = None, word: str | None = None
    ) -> Target:
        """The log-odds of a tag at a word, of the surest entity's first, else of the first word."""
        spans = answer.spans
        if not spans:
            raise OptionError("The text has no word.")
        if word is None:
            entity = max(answer.entities, key=lambda e: e.score, default=None)
            place = next((i for i, s in enumerate(spans) if entity and s[0] == entity.start), 0)
        elif word in answer.words:
            place = answer.words.index(word)
        elif word.isdecimal() and 1 <= int(word) <= len(spans):
            place = int(word) - 1
        else:
            raise OptionError(
                f"word={word!r} is none of the text's ({choices(answer.words)}), nor the number of "
                f"one."
            )
        label = label if label is not None else answer.tags[place]
        text = text_of(one)[slice(*spans[place])]
        if not label:
            raise OptionError(f"No token stands for {text!r}, so it has no tag to explain.")
        index = index_of(self.labels, label)
        return Target(f"{label} at {text!r}", index=index, span=spans[place])

    def reading(
        self, target: Target, windows: Sequence[Window], outputs: Sequence[np.ndarray]
    ) -> Reading | None:
        """The word's first token, where it has the most context."""
        assert target.span is not None
        ((number, token),) = reading_tokens([target.span], windows)
        if token < 0:
            return None
        return Reading(number, lambda out_BSL: log_odds(out_BSL[:, token], target.index))

    def swapped(self, one: Any, swap: Swapper) -> Any:
        """The text, or its words, as many as there were."""
        return swap(one) if isinstance(one, str) else swap.words(one)

    def change(self, before: Tags, after: Tags, swap: Swapper) -> tuple[bool | None, float | None]:
        """Whether the kinds of what is tagged are others."""
        return _kinds(before) != _kinds(after), None

    def _logits(self, read: Sequence[tuple[int, int]], outputs: Sequence[np.ndarray]) -> np.ndarray:
        """`[W, L]`: of each word, at the (window, token) that it is read from.

        A word that became no token is outside of everything, where the tags know an outside.
        """
        found = np.zeros((len(read), len(self.labels)))
        if "O" in self.labels:
            found[:, self.labels.index("O")] = 1e3
        for word, (number, token) in enumerate(read):
            if token >= 0:
                found[word] = outputs[number][token]
        return found

    def _path(self, log_p_WL: np.ndarray) -> np.ndarray:
        """The likeliest tags `[W]` of those that the scheme allows."""
        if self.scheme != "bio" or not len(log_p_WL):
            return log_p_WL.argmax(1)
        parts = [_split(label) or ("O", "") for label in self.labels]
        allowed = np.array(
            [[mark != "I" or name == before for mark, name in parts] for _, before in parts]
        )
        never_LL = np.where(allowed, 0.0, -np.inf)  # [before, after]
        start_L = np.array([-np.inf if mark == "I" else 0.0 for mark, _ in parts])
        best_L, back = log_p_WL[0] + start_L, []
        for row_L in log_p_WL[1:]:
            through_LL = best_L[:, None] + never_LL
            back.append(through_LL.argmax(0))
            best_L = through_LL.max(0) + row_L
        path = [int(best_L.argmax())]
        for step in reversed(back):
            path.append(int(step[path[-1]]))
        return np.array(path[::-1])


_REMEDY = (
    "O, or B- or I- with a type; for other tags, such as parts of speech, take the scheme plain "
    "(scheme='plain', --scheme plain)"
)


def _kinds(tags: Tags) -> list[str]:
    """The entities' types in their order; of other tags, those of neighbours once if alike.

    Swapped terms may have unequally many words, so tags can't be compared word by word.
    """
    if tags.bio:
        return [entity.label for entity in tags.entities]
    return [tag for tag, _ in groupby(tags.tags)]


def _split(tag: str) -> tuple[str, str] | None:
    """(mark, type) of a BIO tag; ("O", "") for O; None for any other."""
    if tag == "O":
        return "O", ""
    mark, dash, name = tag.partition("-")
    return (mark, name) if mark in ("B", "I") and dash and name else None


def _type(tag: str, scheme: str) -> str:
    return tag if scheme == "plain" else (_split(tag) or ("", ""))[1]


def _entities(
    text: str, spans: Spans, tags: Sequence[str], scores: np.ndarray
) -> tuple[Entity, ...]:
    found: list[Entity] = []
    begun: list[int] = []

    def end() -> None:
        if begun:
            start, stop = spans[begun[0]][0], spans[begun[-1]][1]
            name = tags[begun[0]].partition("-")[2]
            found.append(Entity(name, text[start:stop], start, stop, float(scores[begun].mean())))
            begun.clear()

    for i, tag in enumerate(tags):
        if not tag.startswith("I-"):
            end()
        if tag not in ("O", ""):
            begun.append(i)
    end()
    return tuple(found)
