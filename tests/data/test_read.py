import csv
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data.read import Example, find_split, read_column, read_examples
from adaptx.errors import DataError

ROWS = [("Habari ya asubuhi", "politics"), ("Adé lọ sí Ìbàdàn", "travel"), ("ሰላም 👑", "sports")]
FORMATS = [".jsonl", ".ndjson", ".tsv", ".csv"]
seeded = settings(derandomize=True, deadline=None, max_examples=60)
printable = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def as_format(ending, rows, header=("text", "label")):
    if ending in (".jsonl", ".ndjson"):
        objects = [dict(zip(header, row, strict=True)) for row in rows]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)
    separator = "\t" if ending == ".tsv" else ","
    return "".join(separator.join(row) + "\n" for row in [header, *rows])


def pairs(examples):
    return [(example.text, example.label) for example in examples]


def refusal(read, path, line, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    error = caught.value
    assert (Path(error.path), error.line) == (path, line)
    assert str(error).startswith(f"{path}: " if line is None else f"{path}, line {line}: ")
    return str(error)


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


no_nul = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@seeded
@given(st.lists(st.tuples(no_nul.filter(str.strip), no_nul.filter(str.strip)), min_size=1))
def test_any_texts_survive_the_csv_module(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert pairs(read_examples(path)) == [(text, label.strip()) for text, label in rows]


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
    ("name", "ending"), [("a.txt", ".txt"), ("a.json", ".json"), ("a.parquet.gz", ".parquet")]
)
def test_an_unknown_ending_lists_the_known_ones(tmp_path, name, ending):
    message = refusal(read_examples, write(tmp_path / name, "text\na\n"), None)
    assert (
        f"the ending {ending!r} is no known format: .jsonl, .ndjson, .tsv, .csv, gzipped or not"
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


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".csv"])
@pytest.mark.parametrize(
    ("split", "stem"),
    [("train", "train"), ("dev", "dev"), ("dev", "validation"), ("dev", "valid"), ("test", "test")],
)
def test_a_split_is_found_in_every_format_and_usual_name(tmp_path, split, stem, ending, gz):
    path = write(tmp_path / f"{stem}{ending}{gz}", as_format(ending, ROWS))
    assert find_split(tmp_path, split) == path
    assert find_split(str(tmp_path), split) == path


def test_dev_wins_over_validation(tmp_path):
    for stem in ("validation", "dev", "valid"):
        write(tmp_path / f"{stem}.tsv", as_format(".tsv", ROWS))
    assert find_split(tmp_path, "dev") == tmp_path / "dev.tsv"


def test_a_folder_without_the_split_lists_what_is_there(tmp_path):
    write(tmp_path / "test.tsv", "text\n")
    write(tmp_path / "labels.txt", "a\n")
    with pytest.raises(DataError) as caught:
        find_split(tmp_path, "dev")
    message = str(caught.value)
    assert f"{tmp_path} has no dev file (dev or validation or valid, with the ending" in message
    assert "it has: labels.txt, test.tsv." in message


def test_a_folder_with_nothing_in_it_says_so(tmp_path):
    with pytest.raises(DataError, match=r"has no train file .*; it has: nothing"):
        find_split(tmp_path, "train")


def test_a_folder_of_a_splits_name_is_no_split(tmp_path):
    (tmp_path / "train.tsv").mkdir()
    with pytest.raises(DataError, match=r"it has: train\.tsv"):
        find_split(tmp_path, "train")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_split(tmp_path / "nowhere", "train")


@pytest.mark.requires_data
def test_sib200_is_read_whole():
    folder = Path(os.environ["ADAPTX_DATA"]) / "sib200" / "swh_Latn"
    examples = {
        split: read_examples(find_split(folder, split)) for split in ("train", "dev", "test")
    }
    assert {split: len(rows) for split, rows in examples.items()} == {
        "train": 701,
        "dev": 99,
        "test": 204,
    }
    labels = set((folder / "labels.txt").read_text(encoding="utf-8").split("\n")) - {""}
    assert len(labels) == 7
    assert all({example.label for example in rows} == labels for rows in examples.values())
    assert all(example.text.strip() for rows in examples.values() for example in rows)


@pytest.mark.requires_data
def test_afrisenti_is_read_whole():
    folder = Path(os.environ["ADAPTX_DATA"]) / "afrisenti" / "hau"
    counts = {
        split: Counter(example.label for example in read_examples(find_split(folder, split)))
        for split in ("train", "dev", "test")
    }
    assert counts == {
        "train": {"negative": 954, "neutral": 1069, "positive": 977},
        "dev": {"negative": 894, "neutral": 896, "positive": 887},
        "test": {"negative": 1759, "neutral": 1789, "positive": 1755},
    }


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.tsv"
    path.write_text("text\tlabel\ttext\na\tx\tb\n")
    with pytest.raises(DataError, match="'text' twice") as caught:
        read_examples(path)
    assert caught.value.line == 1
