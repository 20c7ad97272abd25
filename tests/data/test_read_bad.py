import gzip
import json

import pytest

from adaptx.data.read import read_examples
from adaptx.errors import DataError
from tests.data.files import FORMATS, ROWS, as_format, pairs, refusal, write


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.csv", "a.jsonl.gz", "a.csv.gz"])
def test_a_missing_file_is_named(tmp_path, name):
    assert "there is no such file" in refusal(read_examples, tmp_path / name, None)


def test_a_folder_where_a_file_is_wanted_is_refused(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    assert "can't be read" in refusal(read_examples, tmp_path / "a.jsonl", None)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_byte_that_is_not_utf_8_names_its_line(tmp_path, ending, gz):
    lines = as_format(ending, ROWS).encode().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"s", b"\xe9", 1)
    path = write(tmp_path / f"a{ending}{gz}", b"".join(lines))
    message = refusal(read_examples, path, 3)
    assert "this isn't UTF-8 (byte 0xe9 at column" in message
    assert "iconv -t utf-8" in message


def test_a_bad_byte_is_named_by_value_and_column(tmp_path):
    path = write(tmp_path / "a.tsv", b"text\tlabel\nab\tx\nab\xffc\ty\n")
    assert "byte 0xff at column 3)" in refusal(read_examples, path, 3)


def test_a_bad_byte_behind_a_byte_order_mark_is_named_by_its_value(tmp_path):
    path = write(tmp_path / "a.tsv", b"\xef\xbb\xbfte\xffxt\tlabel\nab\tx\n")
    assert "byte 0xff at column" in refusal(read_examples, path, 1)


def test_utf_16_is_refused_in_its_first_line(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tb\n".encode("utf-16"))
    assert "this isn't UTF-8" in refusal(read_examples, path, 1)


@pytest.mark.parametrize("option", ["text", "label"])
@pytest.mark.parametrize(("ending", "line"), [(".jsonl", 1), (".tsv", 2), (".csv", 2)])
def test_a_named_column_that_is_absent_is_named_with_those_there(tmp_path, ending, line, option):
    path = write(tmp_path / f"a{ending}", as_format(ending, ROWS))
    message = refusal(read_examples, path, line, **{f"{option}_column": "body"})
    assert f"there is no column 'body' for the {option}; there is: text, label" in message


def test_a_guessed_text_column_that_is_absent_lists_names_and_the_option(tmp_path):
    path = write(tmp_path / "a.csv", "body,label\nHabari,news\n")
    message = refusal(read_examples, path, 2)
    assert "no column looks like the text (known names: text, sentence, tweet" in message
    assert "there is: body, label" in message
    assert "--text-column (text_column=…)" in message


def test_a_guessed_label_column_that_is_absent_lists_names_and_the_option(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tkind\nHabari\tnews\n")
    message = refusal(read_examples, path, 2)
    assert "no column looks like the label (known names: label, category, topic" in message
    assert "there is: text, kind" in message
    assert "--label-column (label_column=…)" in message


def test_a_json_row_without_the_column_of_its_neighbours_names_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text":"a","label":"x"}\n\n{"label":"x"}\n')
    assert "no column looks like the text" in refusal(read_examples, path, 3)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text":"a","label":"x"}\n{"text":"b","label":"x"}\n{"text":"","label":"x"}'),
        ("a.jsonl", '{"text":"a","label":"x"}\n\n{"text":null,"label":"x"}'),
        ("a.tsv", "text\tlabel\na\tx\n\tx\n"),
        ("a.csv", "text,label\na,x\n,x\n"),
        ("a.csv", 'text,label\na,x\n"",x\n'),
    ],
)
def test_an_empty_text_names_its_line(tmp_path, name, content, labelled):
    message = refusal(read_examples, write(tmp_path / name, content), 3, labelled=labelled)
    assert "the text (column 'text') is empty: give the row a text, or take it out" in message


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_row_of_empty_fields_is_an_empty_text_and_not_a_blank_line(tmp_path, name):
    separator = "\t" if name == "a.tsv" else ","
    rows = [["text", "label"], ["a", "x"], ["", ""], ["b", "y"]]
    path = write(tmp_path / name, "".join(separator.join(row) + "\n" for row in rows))
    assert "the text (column 'text') is empty" in refusal(read_examples, path, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text":"a","label":"x"}\n{"text":"  \\t","label":"x"}\n'),
        ("a.tsv", "text\tlabel\n  \u3000\tx\n"),
        ("a.csv", 'text,label\n"  ",x\n'),
    ],
)
def test_a_text_of_white_space_only_names_its_line(tmp_path, name, content):
    message = refusal(read_examples, write(tmp_path / name, content), 2)
    assert "the text (column 'text') is '" in message


@pytest.mark.parametrize("value", ["7", "true", '["a"]', '{"a": 1}'])
def test_a_text_that_is_no_string_names_its_line_and_what_it_is(tmp_path, value):
    path = write(tmp_path / "a.jsonl", f'{{"text": {value}, "label": "x"}}\n')
    assert f"is {json.loads(value)!r}: give the row a text" in refusal(read_examples, path, 1)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", '{"text":"a","label":"x"}\n\n{"text":"b","label":null}\n', "None"),
        ("a.jsonl", '{"text":"a","label":"x"}\n\n{"text":"b","label":""}\n', "''"),
        ("a.jsonl", '{"text":"a","label":"x"}\n\n{"text":"b","label":true}\n', "True"),
        ("a.jsonl", '{"text":"a","label":"x"}\n\n{"text":"b","label":["x"]}\n', r"['x']"),
        ("a.tsv", "text\tlabel\na\tx\nb\t\n", "''"),
        ("a.csv", "text,label\na,x\nb,  \n", "'  '"),
    ],
)
def test_a_missing_label_names_its_line(tmp_path, name, content, found):
    message = refusal(read_examples, write(tmp_path / name, content), 3)
    assert f"the label (column 'label') is {found}: give the row a label" in message


@pytest.mark.parametrize(
    ("row", "kind"), [('["a", "x"]', "list"), ('"a"', "str"), ("7", "int"), ("null", "NoneType")]
)
def test_a_json_row_that_is_no_object_names_its_line(tmp_path, row, kind):
    path = write(tmp_path / "a.jsonl", f'{{"text":"a","label":"x"}}\n{row}\n')
    message = refusal(read_examples, path, 2)
    assert f"this is a JSON {kind}; an object such as" in message


@pytest.mark.parametrize(
    "row", ['{"text": "a", "label": ', "text,label", "{'text': 'a'}", "[" * 200_000]
)
def test_broken_json_names_its_line(tmp_path, row):
    path = write(tmp_path / "a.jsonl", f'{{"text":"a","label":"x"}}\n{row}\n')
    assert "this isn't JSON: " in refusal(read_examples, path, 2)


def test_a_json_number_of_more_digits_than_python_reads_names_its_line(tmp_path):
    row = f'{{"text": "b", "label": {"7" * 5000}}}'
    path = write(tmp_path / "a.jsonl", f'{{"text":"a","label":"x"}}\n{row}\n')
    assert "this isn't JSON: " in refusal(read_examples, path, 2)


@pytest.mark.parametrize("labelled", [True, False])
def test_half_a_surrogate_pair_in_a_text_names_its_line(tmp_path, labelled):
    path = write(tmp_path / "a.jsonl", '{"text":"a","label":"x"}\n{"text":"\\ud83d","label":"x"}\n')
    assert "lone surrogate" in refusal(read_examples, path, 2, labelled=labelled)


def test_half_a_surrogate_pair_in_a_label_names_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text":"a","label":"x"}\n{"text":"b","label":"\\ud83d"}\n')
    assert "lone surrogate" in refusal(read_examples, path, 2)


def test_an_escaped_surrogate_pair_is_one_character(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text":"\\ud83d\\ude00","label":"x"}\n')
    assert pairs(read_examples(path)) == [("😀", "x")]


@pytest.mark.parametrize("kept", [5, 15, -9, -1])
def test_a_truncated_gzip_is_refused(tmp_path, kept):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_format(".jsonl", ROWS * 50).encode(), mtime=0)[:kept])
    assert "the gzip stream is damaged or truncated" in refusal(read_examples, path, None)


@pytest.mark.parametrize("place", [10, -6, -1])
def test_a_gzip_with_a_changed_byte_is_refused(tmp_path, place):
    path = tmp_path / "a.tsv.gz"
    stream = bytearray(gzip.compress(as_format(".tsv", ROWS).encode(), mtime=0))
    stream[place] ^= 0xFF
    path.write_bytes(stream)
    assert "the gzip stream is damaged or truncated" in refusal(read_examples, path, None)


def test_a_plain_file_with_a_gz_name_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_text(as_format(".jsonl", ROWS), encoding="utf-8")
    assert "the gzip stream is damaged or truncated" in refusal(read_examples, path, None)


@pytest.mark.parametrize(
    ("name", "ending"), [("a.txt", ".txt"), ("a.json", ".json"), ("a.conll.gz", ".conll")]
)
def test_an_unknown_ending_lists_the_known_ones(tmp_path, name, ending):
    message = refusal(read_examples, write(tmp_path / name, "text\na\n"), None)
    assert (
        f"the ending {ending!r} is no known format: .jsonl, .ndjson, .tsv, .csv, .parquet (a text "
        in message
    )


@pytest.mark.parametrize("name", ["train", "train.gz"])
def test_a_name_without_an_ending_is_refused_by_its_name(tmp_path, name):
    message = refusal(read_examples, write(tmp_path / name, "text\na\n"), None)
    assert f"the ending {name!r} is no known format" in message


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, ending, gz, content):
    path = write(tmp_path / f"a{ending}{gz}", content)
    assert "the file has no rows" in refusal(read_examples, path, None)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_file_with_a_header_only_is_refused(tmp_path, name):
    path = write(tmp_path / name, "text\tlabel\n".replace("\t", "," if name == "a.csv" else "\t"))
    assert "the file has no rows" in refusal(read_examples, path, None)


def test_a_tsv_row_with_a_missing_field_names_its_line(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tx\nb\n")
    assert "1 fields, and the header has 2 (text, label)" in refusal(read_examples, path, 3)


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_row_with_too_many_fields_names_its_line(tmp_path, name, separator):
    content = "text,label\na,x\n\nb,c,x\n".replace(",", separator)
    message = refusal(read_examples, write(tmp_path / name, content), 4)
    assert "3 fields, and the header has 2 (text, label)" in message


def test_a_bad_csv_row_after_quoted_line_ends_names_its_own_line(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"a\nb\nc",x\nd\n')
    assert "1 fields, and the header has 2" in refusal(read_examples, path, 5)


def test_a_bad_csv_row_of_several_lines_names_the_line_where_it_begins(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,x\n"b\nc\nd"\n')
    assert "1 fields, and the header has 2" in refusal(read_examples, path, 3)


def test_a_csv_quote_that_is_never_closed_names_the_line_where_it_opens(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\na,x\n"b,x\nc,x\nd,x\n')
    assert "this isn't CSV: " in refusal(read_examples, path, 3)


def test_a_csv_quote_closed_in_the_middle_of_a_field_names_its_line(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"a"b,x\nc,x\n')
    assert "this isn't CSV: " in refusal(read_examples, path, 2)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.tsv"
    path.write_text("text\tlabel\ttext\na\tx\tb\n")
    with pytest.raises(DataError, match="'text' twice") as caught:
        read_examples(path)
    assert caught.value.line == 1
