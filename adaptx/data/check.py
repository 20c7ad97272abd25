"""What a data file holds and what is wrong with it: all of it, not the first error only."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.data.duplicates import digest, normalized
from adaptx.data.records import Passage, Record, Tagged
from adaptx.data.streams import STREAMS, Columns
from adaptx.errors import DataError, OptionError, choices

Judge = Callable[[Any], object]
PAIRS = "pairs"
SHOWN = 10  # problems, lines of one problem, and pairs of equal rows
_BATCH = 1000  # rows whose lengths are counted together


@dataclass
class Problem:
    """One thing that is wrong: on how many lines, and the first of them."""

    message: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int | None) -> None:
        """Count it once more."""
        self.count += 1
        if line is not None and len(self.lines) < SHOWN:
            self.lines.append(line)


@dataclass
class Same:
    """Rows whose text stands elsewhere too; `places` are lines, or ids, of the first (there, here).

    `exact` are the same to the last character; `normalized` differ in case, white space or
    Unicode's composition alone; `contradicting` are those of either whose labels differ.
    """

    exact: int = 0
    normalized: int = 0
    contradicting: int = 0
    places: list[tuple[int | str, int | str]] = field(default_factory=list)


@dataclass
class Lengths:
    """Lengths of what is read at once, in the report's unit.

    `truncated` is the share of rows that lose their end, `windowed` that of rows which are read in
    several windows; None where a task does the other, or no limit is known.
    """

    min: int
    median: int
    p95: int
    max: int
    truncated: float | None
    windowed: float | None


@dataclass
class Leak:
    """How many rows of another file stand in the checked one too, and what else differs."""

    path: str
    rows: int
    bad_rows: int
    same: Same
    unseen_labels: list[str]


@dataclass
class Report:
    """What `check` found. `labels` are counted by row, of tagged sentences by token."""

    path: str
    task: str
    rows: int = 0
    bad_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    entities: dict[str, int] = field(default_factory=dict)
    entities_begun_inside: int = 0
    unit: str = "characters"
    lengths: dict[str, Lengths] = field(default_factory=dict)
    duplicates: Same = field(default_factory=Same)
    leaks: list[Leak] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every row, of the other files too, can be read."""
        return not (self.bad_rows or any(leak.bad_rows for leak in self.leaks))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {"clean": self.clean, **asdict(self)}


@dataclass(frozen=True)
class Measure:
    """How texts are measured: `count` gives the length of each.

    limit     the longest that fits
    together  whether a row's texts are read together: `count` gets tuples of them
    slides    whether what is longer is read in several windows; else it loses its end
    """

    count: Callable[[Sequence[Any]], Sequence[int]]
    unit: str
    limit: int | None = None
    together: bool = False
    slides: bool = False


CHARACTERS = Measure(lambda texts: [len(text) for text in texts], "characters")


def check(
    source: str | Path,
    task: str,
    columns: Columns | None = None,
    *,
    against: Sequence[str | Path] = (),
    labels: Sequence[str] = (),
    measure: Measure = CHARACTERS,
    judge: Judge = lambda record: None,
) -> Report:
    """Read all of a source, and report what it holds and what is wrong with it.

    `task` is one of streams.STREAMS. `labels` are the only ones allowed, if given. `against` are
    the sources that must not share a text with this one. `judge` raises a DataError for a record
    that can be read and not used, as `tasks.Task.check` does. Pairs need labels where one has one.
    Memory grows with the number of rows, not with their length. Raises DataError where a source
    can't be read at all, or has no rows.
    """
    if task not in STREAMS:
        raise OptionError(f"task={task!r} is none of {choices(STREAMS)}.")
    columns = columns or Columns()
    columns.check(task)
    report = Report(str(source), task, unit=measure.unit)
    counts: Counter[str] = Counter()
    entities: Counter[str] = Counter()
    seen = _Seen()
    lengths: dict[str, array] = {}
    good = _good(STREAMS[task](source, columns), labels, judge, report)
    while batch := list(islice(good, _BATCH)):
        for record in batch:
            counts.update(record.labels)
            seen.meet(record, report.duplicates, add=True)
            if isinstance(record, Tagged):
                report.entities_begun_inside += _count_entities(record.tags, entities)
        for name, texts in _texts(batch, measure.together).items():
            lengths.setdefault(name, array("q")).extend(measure.count(texts))
    if not report.rows:
        raise DataError("the file has no rows.", source)
    report.labels, report.entities = (dict(sorted(found.items())) for found in (counts, entities))
    report.lengths = {name: _lengths(found, measure) for name, found in lengths.items()}
    report.leaks = [_leak(other, task, columns, judge, seen, counts) for other in against]
    return report


def _good(
    found: Iterator[Record | DataError], labels: Sequence[str], judge: Judge, report: Report
) -> Iterator[Record]:
    """The records that are good; the others are counted in the report."""
    problems: dict[str, Problem] = {}
    bare = Problem("the row has no label, and others have one: give it a label, or take it out.")
    labelled = False
    for item in found:
        report.rows += 1
        item = _judged(item, labels, judge)
        if not isinstance(item, DataError):
            labelled |= bool(item.labels)
            if not item.labels:
                bare.add(item.line)
            yield item
            continue
        report.bad_rows += 1
        if item.message in problems or len(problems) < SHOWN:  # beyond: counted, not shown
            problems.setdefault(item.message, Problem(item.message)).add(item.line)
    if report.task == PAIRS and labelled and bare.count:
        report.bad_rows += bare.count
        problems[bare.message] = bare
    report.problems = list(problems.values())


def _judged(item: Record | DataError, labels: Sequence[str], judge: Judge) -> Record | DataError:
    """The item, or what is wrong with it."""
    if isinstance(item, DataError):
        return item
    if labels and not isinstance(item, Passage) and set(item.labels) - set(labels):
        unknown = [label for label in item.labels if label not in labels]
        said = f"unknown label {choices(sorted(set(unknown)))}; allowed: {choices(labels)}."
        if isinstance(item, Tagged):
            return item.wrong(item.tags.index(unknown[0]), said)
        return item.error(said)
    try:
        judge(item)
    except DataError as error:
        return error
    return item


class _Seen:
    """The texts met so far: by the normalized text's digest the first line and its answer."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[int | str, int]] = {}
        self._exact: set[int] = set()

    def meet(self, record: Record, same: Same, *, add: bool) -> None:
        """Count the record in `same` if its text was met; remember it if `add`."""
        text = "\n".join(record.texts.values())
        exact, key = digest(text), digest(normalized(text))
        answer = digest(repr(record.answers if isinstance(record, Passage) else record.labels))
        place = record.id if isinstance(record, Passage) else record.line
        if key in self._first:
            there, first = self._first[key]
            same.exact += exact in self._exact
            same.normalized += exact not in self._exact
            same.contradicting += first != answer
            if len(same.places) < SHOWN:
                same.places.append((there, place))
        elif add:
            self._first[key] = (place, answer)
        if add:
            self._exact.add(exact)


def _leak(
    source: str | Path,
    task: str,
    columns: Columns,
    judge: Judge,
    seen: _Seen,
    known: Counter[str],
) -> Leak:
    other = Report(str(source), task)
    same, labels = Same(), set()
    for record in _good(STREAMS[task](source, columns), (), judge, other):
        seen.meet(record, same, add=False)
        labels |= set(record.labels)
    unseen = sorted(labels - known.keys())
    return Leak(str(source), other.rows, other.bad_rows, same, unseen)


def _count_entities(tags: Sequence[str], counts: Counter[str]) -> int:
    """Add the entities of BIO tags to `counts`; how many begin with I-."""
    before, inside = "O", 0
    for tag in tags:
        mark, _, name = tag.partition("-")
        begun_inside = mark == "I" and name != before.partition("-")[2]
        if name and (mark == "B" or begun_inside):
            counts[name] += 1
        inside += begun_inside
        before = tag
    return inside


def _texts(batch: Sequence[Record], together: bool) -> dict[str, list[Any]]:
    """What is measured of each record, by name."""
    if together:
        name = " and ".join(batch[0].texts)
        return {name: [tuple(record.texts.values()) for record in batch]}
    return {name: [record.texts[name] for record in batch] for name in batch[0].texts}


def _lengths(found: array, measure: Measure) -> Lengths:
    values = np.sort(np.frombuffer(found, np.int64))
    low, middle, high, top = (int(values[int(q * (len(values) - 1))]) for q in (0, 0.5, 0.95, 1))
    long = None if measure.limit is None else float((values > measure.limit).mean())
    slides = measure.slides
    return Lengths(low, middle, high, top, None if slides else long, long if slides else None)
