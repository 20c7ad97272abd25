import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.large import open_records
from adaptx.data.read import Example, read_column, read_examples, read_passages
from adaptx.data.records import Document, Labelled, Pair, Passage, Tagged
from adaptx.data.streams import Columns
from tests.data.files import (
    FORMATS,
    ROWS,
    as_format,
    no_nul,
    pairs,
    printable,
    refusal,
    seeded,
    tabless,
    write,
)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_examples_gzipped_or_not(tmp_path, ending, gz):
    path = write(tmp_path / f"train{ending}{gz}", as_format(ending, ROWS))
    assert pairs(read_examples(path)) == ROWS
    assert pairs(read_examples(str(path))) == ROWS


@pytest.mark.parametrize(("ending", "first"), [(".jsonl", 1), (".tsv", 2), (".csv", 2)])
def test_an_example_knows_its_file_and_line(tmp_path, ending, first):
    path = write(tmp_path / f"train{ending}", as_format(ending, ROWS))
    places = [(example.path, example.line) for example in read_examples(path)]
    assert places == [(str(path), first + i) for i in range(3)]


def test_an_example_points_an_error_at_its_place():
    error = Example("a", "b", "train.tsv", 7).error("no good.")
    assert (str(error), error.path, error.line) == ("train.tsv, line 7: no good.", "train.tsv", 7)
    nowhere = Example("a").error("no good.")
    assert (str(nowhere), nowhere.path, nowhere.line) == ("no good.", None, None)


@pytest.mark.parametrize("text", ["text", "sentence", "tweet", "review", "content", "utterance"])
@pytest.mark.parametrize("label", ["label", "category", "topic", "class", "sentiment", "intent"])
def test_the_usual_column_names_are_guessed(tmp_path, text, label):
    path = write(tmp_path / "a.tsv", f"id\t{label}\t{text}\n7\tpolitics\tHabari\n")
    assert pairs(read_examples(path)) == [("Habari", "politics")]


def test_of_two_known_column_names_the_first_known_is_taken(tmp_path):
    path = write(tmp_path / "a.csv", "tweet,text,topic,label\nw,x,y,z\n")
    assert pairs(read_examples(path)) == [("x", "z")]


@pytest.mark.parametrize("ending", FORMATS)
def test_named_columns_win_over_the_usual_ones(tmp_path, ending):
    rows = [("usual", "usual", "asked", "kind")]
    content = as_format(ending, rows, ("text", "label", "body", "of"))
    path = write(tmp_path / f"a{ending}", content)
    named = read_examples(path, text_column="body", label_column="of")
    assert pairs(named) == [("asked", "kind")]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, ending, gz):
    path = write(tmp_path / f"a{ending}{gz}", "\ufeff" + as_format(ending, ROWS))
    assert pairs(read_examples(path)) == ROWS


@pytest.mark.parametrize("ending", FORMATS)
def test_windows_line_ends_are_no_part_of_the_last_column(tmp_path, ending):
    content = as_format(ending, ROWS, ("label", "text")).replace("\n", "\r\n")
    path = write(tmp_path / f"a{ending}", content)
    assert [(e.text, e.label) for e in read_examples(path)] == [(b, a) for a, b in ROWS]


@pytest.mark.parametrize("ending", FORMATS)
def test_the_last_line_needs_no_line_end(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", as_format(ending, ROWS).rstrip("\n"))
    assert pairs(read_examples(path)) == ROWS


@pytest.mark.parametrize("ending", FORMATS)
def test_blank_lines_are_skipped_and_still_counted(tmp_path, ending):
    content = as_format(ending, ROWS).splitlines()
    path = write(tmp_path / f"a{ending}", "\n\n".join(content) + "\n\n")
    examples = read_examples(path)
    assert pairs(examples) == ROWS
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    assert all(example.text in lines[example.line - 1] for example in examples)


def test_a_tsv_keeps_quotes_literally(tmp_path):
    text = '"Ndiyo," alisema. It\'s "fine"""'
    path = write(tmp_path / "a.tsv", f'text\tlabel\n{text}\tnews\n"\t"\n')
    assert pairs(read_examples(path)) == [(text, "news"), ('"', '"')]


def test_a_tsv_text_may_hold_what_unicode_calls_a_line_end(tmp_path):
    text = "moja\u2028mbili\x85tatu\x0cnne"
    path = write(tmp_path / "a.tsv", f"text\tlabel\n{text}\tnews\n")
    assert pairs(read_examples(path)) == [(text, "news")]


def test_a_csv_field_may_hold_quotes_commas_and_line_ends(tmp_path):
    content = 'text,label\n"moja, ""mbili""\ntatu\r\nnne",news\nHabari,"sports, local"\n'
    examples = read_examples(write(tmp_path / "a.csv", content))
    assert pairs(examples) == [
        ('moja, "mbili"\ntatu\r\nnne', "news"),
        ("Habari", "sports, local"),
    ]
    assert [example.line for example in examples] == [2, 5]


def test_spaces_around_header_names_and_labels_are_dropped_but_texts_are_kept(tmp_path):
    path = write(tmp_path / "a.tsv", " text \t label\n  Habari \t news \n")
    assert pairs(read_examples(path)) == [("  Habari ", "news")]


def test_a_field_of_more_than_131072_characters_is_read(tmp_path):
    text = "a" * 200_000
    path = write(tmp_path / "a.csv", f"text,label\n{text},news\n")
    assert pairs(read_examples(path)) == [(text, "news")]


def test_numbers_as_labels_become_their_names(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": -1}, {"text": "c", "label": 2.5}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert [example.label for example in read_examples(path)] == ["0", "-1", "2.5"]
    path = write(tmp_path / "gaps.jsonl", '{"text": "a", "label": 1.0}')  # as pandas writes gaps
    assert [example.label for example in read_examples(path)] == ["1"]
    for missing in ("NaN", "Infinity", "null"):
        path = write(tmp_path / "b.jsonl", f'{{"text": "a", "label": {missing}}}')
        assert "give the row a label" in refusal(read_examples, path, 1)
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t0\nb\t1\n")
    assert [example.label for example in read_examples(path)] == ["0", "1"]


def test_unlabelled_reading_needs_no_label_column(tmp_path):
    path = write(tmp_path / "a.tsv", "text\nHabari\nSalamu\n")
    assert pairs(read_examples(path, labelled=False)) == [("Habari", None), ("Salamu", None)]


def test_unlabelled_reading_takes_the_labels_that_are_there(tmp_path):
    rows = [
        {"text": "a", "label": "news"},
        {"text": "b"},
        {"text": "c", "label": None},
        {"text": "d", "label": " "},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    examples = read_examples(path, labelled=False)
    assert [example.label for example in examples] == ["news", None, None, None]


@pytest.mark.parametrize("absent", [{}, {"labels": None, "tags": None, "answers": None}])
@pytest.mark.parametrize(
    ("task", "row", "record"),
    [
        ("classification", {"text": "a"}, Example("a")),
        ("multi-label", {"text": "a"}, Labelled("a", ())),
        ("pairs", {"text": "a", "other": "b"}, Pair("a", "b")),
        ("similarity", {"text": "a", "other": "b"}, Pair("a", "b")),
        ("token-classification", {"tokens": ["a", "b"]}, Tagged(("a", "b"), ())),
        (
            "question-answering",
            {"id": "q", "question": "Nani?", "context": "Asha."},
            Passage("q", "Nani?", "Asha."),
        ),
        ("extractive-summarization", {"sentences": ["a", "b"]}, Document(("a", "b"), (False,) * 2)),
    ],
)
def test_rows_of_every_task_are_read_without_their_labels(tmp_path, task, row, record, absent):
    path = write(tmp_path / "a.jsonl", json.dumps({**row, **absent}) + "\n")
    (found,) = open_records(path, task, Columns(labelled=False))
    assert replace(found, path="", line=0) == record
    refusal(open_records, path, 1, task=task)


@pytest.mark.parametrize("absent", [{}, {"answers": None}])
def test_squads_questions_are_read_without_their_answers(tmp_path, absent):
    asked = {"id": "q", "question": "Nani?", **absent}
    squad = {"data": [{"paragraphs": [{"context": "Asha.", "qas": [asked]}]}]}
    path = write(tmp_path / "a.json", json.dumps(squad))
    found = open_records(path, "question-answering", Columns(labelled=False))
    assert found == [Passage("q", "Nani?", "Asha.", path=str(path))]
    assert "a list is needed" in refusal(read_passages, path, None)


def test_unlabelled_reading_still_wants_a_label_column_that_was_named(tmp_path):
    path = write(tmp_path / "a.tsv", "text\nHabari\n")
    message = refusal(read_examples, path, 2, labelled=False, label_column="of")
    assert "there is no column 'of' for the label; there is: text" in message


@seeded
@given(st.lists(st.tuples(printable, printable), min_size=1))
def test_any_texts_survive_jsonl(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    write(path, as_format(".jsonl", rows))
    assert pairs(read_examples(path)) == [(text, label.strip()) for text, label in rows]
    escaped = [json.dumps({"text": text, "label": label}) for text, label in rows]
    write(path, "\n".join(escaped))
    assert pairs(read_examples(path)) == [(text, label.strip()) for text, label in rows]


@seeded
@given(st.lists(st.tuples(no_nul.filter(str.strip), no_nul.filter(str.strip)), min_size=1))
def test_any_texts_survive_the_csv_module(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert pairs(read_examples(path)) == [(text, label.strip()) for text, label in rows]


@seeded
@given(st.lists(st.tuples(tabless.filter(str.strip), tabless.filter(str.strip)), min_size=1))
def test_any_texts_without_tabs_and_line_ends_survive_tsv(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("tsv") / "a.tsv", as_format(".tsv", rows))
    assert pairs(read_examples(path)) == [(text, label.strip()) for text, label in rows]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_column_is_read_in_file_order(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", as_format(ending, ROWS, ("text", "of")))
    assert read_column(path, "of") == [label for _, label in ROWS]


def test_absent_column_values_are_empty_and_numbers_are_text(tmp_path):
    values = ["null", '""', '"sw"', "7", "0"]
    rows = "".join(f'{{"adapter": {value}}}\n' for value in values)
    path = write(tmp_path / "a.jsonl", rows)
    assert read_column(path, "adapter") == ["", "", "sw", "7", "0"]


def test_a_column_that_is_absent_is_named_with_those_there(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,x\n")
    message = refusal(read_column, path, 2, column="adapter")
    assert "there is no column 'adapter'" in message and "there is: text, label" in message
