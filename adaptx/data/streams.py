"""Sources -> a stream of records, or of the error in a record's place; one function a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adaptx.data.aligned import read_aligned
from adaptx.data.conll import read_conll
from adaptx.data.duplicates import normalized
from adaptx.data.records import Document, Example, Labelled, Pair, Passage, Tagged
from adaptx.data.rouge import chosen_by_rouge
from adaptx.data.rows import Row, each
from adaptx.data.sentences import sentence_spans
from adaptx.data.squad import passage_of, read_squad
from adaptx.data.tables import (
    HUB,
    TABLES,
    ending,
    read_lines,
    read_rows,
    text_row,
    unknown_ending,
)
from adaptx.errors import DataError, OptionError

TEXT_COLUMNS = ("text", "sentence", "tweet", "review", "content", "utterance")
LABEL_COLUMNS = ("label", "category", "topic", "class", "sentiment", "intent")
MULTI_COLUMNS = ("labels", "categories", "topics", "tags")
SCORE_COLUMNS = ("score", "similarity", "similarity_score")
TOKEN_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels")
PAIR_COLUMNS = (
    *(("text", "other"), ("premise", "hypothesis"), ("sentence1", "sentence2")),
    *(("text1", "text2"), ("question1", "question2"), ("source", "target")),
    *(("query", "passage"), ("query", "positive"), ("anchor", "positive")),
)
TWO_TEXTS = ("pairs", "retrieval", "similarity", "question-answering")  # tasks of such rows
NEGATIVES = "negatives"
SENTENCE_COLUMNS = ("sentences",)
DOCUMENT_COLUMNS = ("text", "document", "article")
SUMMARY_COLUMNS = ("summary", "highlights")
MARK_COLUMNS = ("labels",)
LISTS = (".jsonl", ".ndjson", ".parquet")  # the tables whose values can be lists
CONLL = (".conll", ".txt", ".tsv", ".iob", ".iob2", ".bio")
SQUAD = (".json",)
PLAIN = (".txt",)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read; None takes the first known name that is there.

    With `labelled` off, labels may be absent.
    """

    text: str | None = None
    label: str | None = None
    other: str | None = None
    labelled: bool = True

    def check(self, task: str) -> None:
        """Raise OptionError for a second text's column where the task's rows have one text."""
        if self.other is not None and task not in TWO_TEXTS:
            raise OptionError(
                f"A row of {task} has one text: leave --other-column (other_column=…) out."
            )


def example_of(columns: Columns, row: Row) -> Example:
    """A text with its label."""
    text = row.text(row.column(columns.text, TEXT_COLUMNS, "text"), "text")
    return Example(text, _label(columns, row), row.path, row.line)


def examples(source: str | Path, columns: Columns) -> Iterator[Example | DataError]:
    """Texts with labels, of any table."""
    return each(read_rows(source), partial(example_of, columns))


def _label(columns: Columns, row: Row) -> str | None:
    return row.label(_label_column(columns, row, LABEL_COLUMNS), needed=columns.labelled)


def _label_column(columns: Columns, row: Row, known: tuple[str, ...]) -> str | None:
    """The column of the label; None where it may be absent, and is."""
    if columns.labelled or columns.label:
        return row.column(columns.label, known, "label")
    return next((name for name in known if row.values.get(name) is not None), None)


def text_of(columns: Columns, row: Row) -> Example:
    """A text alone; a label, where there is one, says nothing."""
    text = row.text(row.column(columns.text, TEXT_COLUMNS, "text"), "text")
    return Example(text, None, row.path, row.line)


def texts(source: str | Path, columns: Columns) -> Iterator[Example | DataError]:
    """Texts, of any table, or of a text file, one a line."""
    if str(source).startswith(HUB) or ending(source) in TABLES:
        return each(read_rows(source), partial(text_of, columns))
    if ending(source) not in PLAIN:
        raise unknown_ending(source, (*PLAIN, *TABLES))
    if columns.text:
        raise OptionError(f"{source} is plain text: it has no column {columns.text!r} to read.")
    return each(each(read_lines(Path(source)), text_row), partial(text_of, columns))


def labelled(source: str | Path, columns: Columns) -> Iterator[Labelled | DataError]:
    """Texts with several labels: a list, or names with | between them."""
    return each(read_rows(source), partial(_labelled_of, columns))


def _labelled_of(columns: Columns, row: Row) -> Labelled:
    text = row.text(row.column(columns.text, TEXT_COLUMNS, "text"), "text")
    column = _label_column(columns, row, (*MULTI_COLUMNS, *LABEL_COLUMNS))
    if column and isinstance(row.values[column], list):
        names = row.names(column, "labels")
    else:
        label = row.label(column, needed=columns.labelled) or ""
        names = tuple(name.strip() for name in label.split("|") if name.strip())
    if not names and columns.labelled:
        raise row.error(
            f"the row has no label (column {column!r}): name at least one, such as 'none', or take "
            f"the row out."
        )
    if len(set(names)) < len(names):
        raise row.error(f"a label stands twice: {', '.join(names)}.")
    return Labelled(text, names, row.path, row.line)


def tagged(source: str | Path, columns: Columns) -> Iterator[Tagged | DataError]:
    """Tagged sentences, of a CoNLL file or of a table with two columns of lists."""
    if _holds_lists(source):
        return each(read_rows(source), partial(_tagged_of, columns))
    if ending(source) not in CONLL:
        raise unknown_ending(source, (*CONLL, *LISTS))
    return read_conll(Path(source))


def _tagged_of(columns: Columns, row: Row) -> Tagged:
    tokens = row.names(row.column(columns.text, TOKEN_COLUMNS, "text"), "tokens")
    column = _label_column(columns, row, TAG_COLUMNS)
    tags = row.names(column, "tags") if column else ()
    if column and len(tokens) != len(tags):
        raise row.error(f"{len(tokens)} tokens, and {len(tags)} tags: each token needs its tag.")
    if not tokens:
        raise row.error("the row has no tokens: take it out.")
    return Tagged(tokens, tags, row.path, row.line)


def passages(source: str | Path, columns: Columns) -> Iterator[Passage | DataError]:
    """Questions about passages, of SQuAD's JSON or of a table laid out like it."""
    if columns.text or columns.label or columns.other:
        raise OptionError(
            "Questions have fixed columns (id, question, context, answers): name none of them."
        )
    if _holds_lists(source):
        found = each(read_rows(source), partial(passage_of, labelled=columns.labelled))
    elif ending(source) in SQUAD:
        found = read_squad(Path(source), labelled=columns.labelled)
    else:
        raise unknown_ending(source, (*SQUAD, *LISTS))
    seen: set[str] = set()

    def once(passage: Passage) -> Passage:
        if passage.id in seen:
            raise passage.error(f"the id {passage.id!r} stands twice: an id names one question.")
        seen.add(passage.id)
        return passage

    return each(found, once)


def pairs(
    source: str | Path, columns: Columns, make: Callable[[Columns, Row], Pair] | None = None
) -> Iterator[Pair | DataError]:
    """Pairs, of a table with two columns of texts, or of two aligned files, "FILE1,FILE2"."""
    first, comma, second = str(source).partition(",")
    if comma and not Path(source).exists() and not first.startswith(HUB):
        return read_aligned(Path(first), Path(second))
    if bool(columns.text) != bool(columns.other):
        raise OptionError("Name both columns of a pair (--text-column, --other-column), or none.")
    return each(read_rows(source), partial(make or _pair_of, columns))


def matches(source: str | Path, columns: Columns) -> Iterator[Pair | DataError]:
    """Pairs that belong together, and hard negatives where there are any; labels say nothing."""
    return pairs(source, replace(columns, labelled=False), _match_of)


def _match_of(columns: Columns, row: Row) -> Pair:
    pair, negatives = _pair_of(columns, row), row.texts(NEGATIVES, "negatives")
    for place, text in enumerate(negatives, 1):
        if normalized(text) == normalized(pair.other):
            raise row.error(
                f"number {place} of the negatives is the row's own positive, {pair.other[:60]!r}: "
                f"take it out."
            )
    return replace(pair, negatives=negatives)


def scored(source: str | Path, columns: Columns) -> Iterator[Pair | DataError]:
    """Pairs with a number that says how near they are."""
    first, comma, _ = str(source).partition(",")
    if comma and not Path(source).exists() and not first.startswith(HUB):
        raise OptionError(f"{source}: two files have no room for scores: give one table.")
    return pairs(source, columns, _scored_of)


def _scored_of(columns: Columns, row: Row) -> Pair:
    name = _label_column(columns, row, (*SCORE_COLUMNS, *LABEL_COLUMNS))
    return _pair_of(replace(columns, label=name), row)


def _pair_of(columns: Columns, row: Row) -> Pair:
    if columns.text is not None:
        names = tuple(row.column(name, (), "pair") for name in (columns.text, columns.other))
    else:
        names = next((two for two in PAIR_COLUMNS if set(two) <= set(row.values)), ())
    if not names:
        known = "; ".join(" and ".join(two) for two in PAIR_COLUMNS)
        raise row.error(
            f"no two columns look like a pair (known: {known}); there is: "
            f"{', '.join(row.values)}. Name both with --text-column and --other-column "
            f"(text_column=…, other_column=…)."
        )
    text, other = (row.text(name, name) for name in names)
    return Pair(text, other, _label(columns, row), row.path, row.line)


def documents(source: str | Path, columns: Columns) -> Iterator[Document | DataError]:
    """Documents with a mark for each sentence, or with a summary that the marks are made of."""
    return each(read_rows(source), partial(_document_of, columns))


def _document_of(columns: Columns, row: Row) -> Document:
    column = row.column(columns.text, (*SENTENCE_COLUMNS, *DOCUMENT_COLUMNS), "text")
    if isinstance(row.values[column], list):
        sentences = row.texts(column, "sentences")
    else:
        text = row.text(column, "text")
        sentences = tuple(text[slice(*span)] for span in sentence_spans(text))
    if not sentences:
        raise row.error("the document has no sentences: take it out.")
    known = (*SUMMARY_COLUMNS, *MARK_COLUMNS)
    given = [name for name in known if row.values.get(name) is not None]
    summary = marks = None
    for name in [row.column(columns.label, (), "label")] if columns.label else given:
        if isinstance(row.values[name], list) or name in MARK_COLUMNS:
            marks = row.marks(name, len(sentences))
        elif summary is None:
            summary = row.text(name, "summary")
    if marks is None and summary is None:
        if columns.labelled:
            raise row.error(
                "the document has neither labels nor a summary: give it labels, a list with 0 or 1 "
                "for each sentence, or a summary."
            )
        marks = (False,) * len(sentences)
    if marks is None:
        marks = chosen_by_rouge(sentences, summary or "")
    return Document(sentences, marks, summary, row.path, row.line)


def _holds_lists(source: str | Path) -> bool:
    return str(source).startswith(HUB) or ending(source) in LISTS


CLASSIFICATION, MASKED = "classification", "masked-language"
# The endings of a task's files, where they aren't those of any table.
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "token-classification": (*CONLL, *LISTS),
    "question-answering": (*SQUAD, *LISTS),
    MASKED: (*PLAIN, *TABLES),
}
# What reads a task's data, by the task's name.
STREAMS: Mapping[str, Callable[[str | Path, Columns], Iterator[Any]]] = {
    CLASSIFICATION: examples,
    "token-classification": tagged,
    "question-answering": passages,
    "pairs": pairs,
    "multi-label": labelled,
    "retrieval": matches,
    "similarity": scored,
    MASKED: texts,
    "extractive-summarization": documents,
}
# What makes a record of a row, for the tasks whose large files aren't read into memory.
RECORDS: Mapping[str, Callable[[Columns, Row], Example]] = {
    CLASSIFICATION: example_of,
    MASKED: text_of,
}
