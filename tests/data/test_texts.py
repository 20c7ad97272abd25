"""Plain text for masked language modelling: one passage a line, or a table's column of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.check import check
from adaptx.data.large import IndexedExamples, open_records
from adaptx.data.streams import Columns
from adaptx.errors import DataError, OptionError
from tests.data.files import FORMATS, ROWS, as_format, refusal, seeded, write

KIND = "masked-language"


def read(path, **options):
    return open_records(path, KIND, **options)


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_lines_are_texts_and_blank_ones_none(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", "\ufeffHabari\r\n\n  \nAdé lọ\n ሰላም 👑 ")
    assert [(one.text, one.line) for one in read(path)] == [
        ("Habari", 1), ("Adé lọ", 4), (" ሰላም 👑 ", 5)
    ]  # fmt: skip
    assert {one.label for one in read(path)} == {None}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_gives_its_texts_and_its_labels_say_nothing(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", as_format(ending, ROWS))
    assert [(one.text, one.label) for one in read(path)] == [(text, None) for text, _ in ROWS]


@seeded
@given(
    st.lists(st.sampled_from(["Habari", "ሰላም", "", " ", "\t", "\u3000", "\r", "a\tb"]), max_size=9)
)
def test_an_indexed_text_file_equals_the_eager_reader(tmp_path_factory, lines):
    path = write(tmp_path_factory.getbasetemp() / "any.txt", "\n".join(lines))
    try:
        wanted = list(read(path))
    except DataError:
        with pytest.raises(DataError, match="no rows"):
            IndexedExamples(path, task=KIND)
        return
    indexed = IndexedExamples(path, task=KIND)
    assert list(indexed) == wanted == [indexed[i] for i in range(len(indexed))]


def test_what_is_wrong_is_said_with_its_line(tmp_path):
    assert "no rows" in refusal(read, write(tmp_path / "empty.txt", "\n \n"), None)
    assert "isn't UTF-8" in refusal(read, write(tmp_path / "bad.txt", b"a\n\xff\n"), 2)
    missing = refusal(read, write(tmp_path / "a.jsonl", '{"label": "x"}\n'), 1)
    assert "no column looks like the text" in missing
    assert "no known format: .txt, .jsonl" in refusal(read, write(tmp_path / "a.doc", "a"), None)
    assert "there is no such file" in refusal(read, tmp_path / "none.txt", None)
    path = write(tmp_path / "a.txt", "a\n")
    with pytest.raises(OptionError, match="plain text: it has no column"):
        read(path, columns=Columns("body"))
    with pytest.raises(DataError, match="adaptx data convert"):
        IndexedExamples(path)  # for classification


def test_the_check_counts_lines_and_finds_those_that_stand_twice(tmp_path):
    path = write(tmp_path / "a.txt", "Habari\nhabari \n\nAsante\n")
    report = check(path, KIND)
    assert report.clean and report.rows == 3 and not report.labels
    assert report.duplicates.normalized == 1 and report.duplicates.contradicting == 0
    assert report.lengths["text"].max == 7
