import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.check import check
from adaptx.data.large import open_records
from adaptx.data.read import read_pairs
from adaptx.data.streams import PAIR_COLUMNS
from adaptx.errors import DataError, OptionError
from tests.data.files import as_format, refusal, seeded, tabless, write

PAIRS = [("Habari", "Hello", "same"), ("Adé lọ", "Adé went", "same"), ("ሰላም", "No", "other")]


def found(rows):
    return [(row.text, row.other, row.label) for row in rows]


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".tsv", ".csv", ".tsv.gz"])
@pytest.mark.parametrize("columns", PAIR_COLUMNS)
def test_two_usual_columns_are_guessed(tmp_path, ending, columns):
    content = as_format(ending.removesuffix(".gz"), PAIRS, (*columns, "label"))
    assert found(read_pairs(write(tmp_path / f"a{ending}", content))) == PAIRS


def test_named_columns_win_over_the_usual_ones(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tother\tsw\ten\tkind\na\tb\tc\td\te\n")
    named = {"text_column": "sw", "other_column": "en", "label_column": "kind"}
    assert found(read_pairs(path, **named)) == [("c", "d", "e")]


def test_labels_may_be_absent_unless_they_are_asked_for(tmp_path):
    path = write(tmp_path / "a.tsv", "source\ttarget\na\tb\n")
    assert found(read_pairs(path)) == [("a", "b", None)]
    assert "no column looks like the label" in refusal(read_pairs, path, 2, labelled=True)


def test_two_aligned_files_are_read_line_by_line(tmp_path):
    sw = write(tmp_path / "test.sw", "\ufeffHabari\r\n moja\n")
    en = write(tmp_path / "test.en.gz", "Hello\none\u2028two")
    expected = [("Habari", "Hello", None), (" moja", "one\u2028two", None)]
    assert found(read_pairs(sw, en)) == expected
    assert found(read_pairs(f"{sw},{en}")) == expected
    assert [(row.path, row.line) for row in read_pairs(sw, en)] == [(str(sw), 1), (str(sw), 2)]


def test_a_file_whose_name_has_a_comma_is_a_file(tmp_path):
    path = write(tmp_path / "a,b.tsv", "text\tother\nc\td\n")
    assert found(read_pairs(path)) == [("c", "d", None)]


words = tabless.filter(lambda text: text.strip() and not text.startswith("\ufeff"))


@seeded
@given(st.lists(st.tuples(words, words), min_size=1))
def test_any_texts_survive_two_files(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pairs")
    first = write(folder / "a.x", "".join(text + "\n" for text, _ in rows))
    second = write(folder / "a.y", "\n".join(other for _, other in rows))
    assert [(row.text, row.other) for row in read_pairs(first, second)] == rows


@pytest.mark.parametrize(("left", "right"), [("a\nb\nc\n", "x\n"), ("a\n", "x\ny\nz")])
def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path, left, right):
    first, second = write(tmp_path / "a.sw", left), write(tmp_path / "a.en", right)
    message = refusal(read_pairs, first, None, other=second)
    counts = (len(left.split()), len(right.split()))
    assert f"the file has {counts[0]} lines, and {second}" in message
    assert f"with it, {counts[1]}:" in message


def test_an_empty_line_is_refused_where_it_stands(tmp_path):
    first, second = write(tmp_path / "a.sw", "a\nb\n"), write(tmp_path / "a.en", "x\n \n")
    with pytest.raises(DataError, match="the line is empty") as caught:
        read_pairs(first, second)
    assert (caught.value.path, caught.value.line) == (str(second), 2)


def test_a_byte_that_is_not_utf_8_is_refused_where_it_stands(tmp_path):
    first, second = write(tmp_path / "a.sw", "a\nb\n"), write(tmp_path / "a.en", b"x\n\xff\n")
    with pytest.raises(DataError, match="isn't UTF-8") as caught:
        read_pairs(first, second)
    assert (caught.value.path, caught.value.line) == (str(second), 2)


def test_a_missing_file_of_two_is_named(tmp_path):
    first = write(tmp_path / "a.sw", "a\n")
    with pytest.raises(DataError, match=r"a\.en: there is no such file"):
        read_pairs(first, tmp_path / "a.en")
    with pytest.raises(DataError, match=r"a\.en: there is no such file"):
        read_pairs(f"{tmp_path / 'a.en'},{first}")


def test_two_empty_files_have_no_rows(tmp_path):
    first, second = write(tmp_path / "a.sw", ""), write(tmp_path / "a.en", "")
    assert "no rows" in refusal(read_pairs, first, None, other=second)


def test_columns_that_are_no_pair_list_the_known_ones(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tb\n")
    message = refusal(read_pairs, path, 2)
    assert "no two columns look like a pair (known: text and other; premise and hyp" in message
    assert "there is: text, label" in message and "--other-column" in message


def test_one_named_column_of_two_is_refused(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n1\t2\n")
    for column in ("text_column", "other_column"):
        with pytest.raises(OptionError, match="Name both columns"):
            read_pairs(path, **{column: "a"})


def test_a_named_column_that_is_absent_is_named_with_those_there(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n1\t2\n")
    message = refusal(read_pairs, path, 2, text_column="a", other_column="c")
    assert "no column 'c' for the pair; there is: a, b" in message


def test_an_empty_text_of_a_pair_names_its_line_and_column(tmp_path):
    path = write(tmp_path / "a.tsv", "premise\thypothesis\na\tb\nc\t \n")
    assert "the hypothesis (column 'hypothesis') is ' '" in refusal(read_pairs, path, 3)


def read_matches(path):
    return open_records(path, "retrieval")


def test_negatives_are_a_list_of_any_length_or_absent(tmp_path):
    rows = [{"negatives": ["c", "d"]}, {"negatives": []}, {"negatives": None}, {}]
    lines = [json.dumps({"query": "a", "positive": "b", **row}) for row in rows]
    found = read_matches(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [pair.negatives for pair in found] == [("c", "d"), (), (), ()]
    assert {pair.negatives for pair in read_pairs(tmp_path / "a.jsonl")} == {()}


@pytest.mark.parametrize(
    ("negatives", "said"),
    [
        ("c", "are 'c': a list of texts is needed"),
        (["c", 3], r"number 2 of the negatives \(column 'negatives'\) is 3: a text is needed"),
        (["c", " "], "number 2 .* is ' '"),
        (["\ud83d"], "lone surrogate"),
        (["c", "B  é"], "number 2 of the negatives is the row's own positive, 'b e\u0301': take"),
    ],
)
def test_negatives_that_arent_are_refused_with_their_line(tmp_path, negatives, said):
    rows = [
        {"text": "a", "other": "b"},
        {"text": "a", "other": "b e\u0301", "negatives": negatives},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert re.search(said, refusal(read_matches, path, 2))
    report = check(path, "retrieval")
    assert not report.clean and report.problems[0].lines == [2]


def test_a_tables_negatives_need_lists(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tother\tnegatives\na\tb\tc\n")
    assert "JSONL, Parquet and hf: sources can hold" in refusal(read_matches, path, 2)
