import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from adaptx.data.read import (
    find_split,
    read_column,
    read_examples,
    read_pairs,
    read_passages,
    read_tagged,
)
from tests.data.files import ROWS, no_nul, pairs, refusal, seeded

TOPICS = ["politics", "travel", "sports"]


def table(path, columns, classes=None, **options):
    """A Parquet file; `classes` gives columns Hugging Face's metadata for class names."""
    written = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if classes is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": classes}})}
        written = written.replace_schema_metadata(metadata)
    parquet.write_table(written, path, **options)
    return path


def label(names):
    return {"names": names, "_type": "ClassLabel"}


@seeded
@given(st.lists(st.tuples(no_nul.filter(str.strip), no_nul.filter(str.strip)), min_size=1))
def test_any_texts_survive_parquet(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    table(path, {"text": [text for text, _ in rows], "label": [name for _, name in rows]})
    assert pairs(read_examples(path)) == [(text, name.strip()) for text, name in rows]


def test_rows_are_numbered_across_batches_and_row_groups(tmp_path):
    texts = [f"Habari {i}" for i in range(5000)]
    path = table(tmp_path / "a.parquet", {"text": texts, "label": ["x"] * 5000}, row_group_size=700)
    found = read_examples(path)
    assert [row.text for row in found] == texts
    assert [row.line for row in found] == list(range(1, 5001))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([t for t, _ in ROWS], pa.large_string()),
        pa.array([t for t, _ in ROWS], pa.string_view()),
        pa.array([t for t, _ in ROWS]).dictionary_encode(),
    ],
)
def test_every_kind_of_string_column_is_a_text(tmp_path, column):
    path = table(tmp_path / "a.parquet", {"tweet": column, "topic": [name for _, name in ROWS]})
    assert pairs(read_examples(path)) == ROWS


def test_numbered_classes_become_their_names_and_minus_one_is_none(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"text": ["a", "b", "c"], "label": [2, 0, -1]},
        {"text": {"dtype": "string", "_type": "Value"}, "label": label(TOPICS)},
    )
    found = read_examples(path, labelled=False)
    assert [row.label for row in found] == ["sports", "politics", None]
    assert "the label (column 'label') is None" in refusal(read_examples, path, 3)


def test_a_class_that_has_no_name_is_refused_with_the_names(tmp_path):
    path = table(
        tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, 3]}, {"label": label(TOPICS)}
    )
    message = refusal(read_examples, path, 2)
    assert "column 'label' is 3" in message and "0 to 2 (politics, travel, sports)" in message


def test_numbers_without_names_are_their_own_names(tmp_path):
    path = table(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, 1]})
    assert [row.label for row in read_examples(path)] == ["0", "1"]


@pytest.mark.parametrize("metadata", ["no JSON", "[]", '{"info": 7}', '{"info": {"features": 7}}'])
def test_metadata_of_another_shape_is_ignored(tmp_path, metadata):
    written = pa.table({"text": ["a"], "label": [1]})
    path = table(tmp_path / "a.parquet", written.replace_schema_metadata({"huggingface": metadata}))
    assert pairs(read_examples(path)) == [("a", "1")]


@pytest.mark.parametrize("shape", ["Sequence", "List", "old"])
def test_tags_that_are_numbered_become_their_names(tmp_path, shape):
    tags = label(["O", "B-PER", "I-PER"])
    feature = [tags] if shape == "old" else {"feature": tags, "_type": shape}
    path = table(
        tmp_path / "a.parquet",
        {"tokens": [["Rais", "Samia", "Suluhu"]], "ner_tags": [[0, 1, 2]]},
        {"ner_tags": feature},
    )
    (row,) = read_tagged(path)
    assert row.tokens == ("Rais", "Samia", "Suluhu")
    assert row.tags == ("O", "B-PER", "I-PER")


def test_a_tag_that_has_no_name_is_refused(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"tokens": [["Rais"]], "ner_tags": [[9]]},
        {"ner_tags": {"feature": label(["O"]), "_type": "Sequence"}},
    )
    assert "column 'ner_tags' is 9" in refusal(read_tagged, path, 1)


def test_questions_and_pairs_are_read_from_parquet(tmp_path):
    answers = {"text": ["Dodoma"], "answer_start": [16]}
    path = table(
        tmp_path / "qa.parquet",
        pa.Table.from_pylist(
            [
                {
                    "id": "q1",
                    "question": "Wapi?",
                    "context": "Mji mkuu ni ule Dodoma",
                    "answers": answers,
                }
            ]
        ),
    )
    (passage,) = read_passages(path)
    assert passage.answers == (("Dodoma", 16),)
    path = table(
        tmp_path / "nli.parquet",
        {"premise": ["a"], "hypothesis": ["b"], "label": [1]},
        {"label": label(["entailment", "neutral"])},
    )
    (pair,) = read_pairs(path)
    assert (pair.text, pair.other, pair.label) == ("a", "b", "neutral")


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([7, 8]), "int64"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([["a"], ["b"]]), "list<"),
        (pa.array([True, False]), "bool"),
    ],
)
def test_a_text_column_of_another_type_is_named_with_both_types(tmp_path, column, found):
    path = table(tmp_path / "a.parquet", {"text": column, "label": ["x", "y"]})
    message = refusal(read_examples, path, 1)
    assert f"the column 'text' has the type {found}" in message
    assert "the text needs string" in message


@pytest.mark.parametrize(
    ("column", "found"), [(pa.array([True]), "bool"), (pa.array([[1]]), "list<")]
)
def test_a_label_column_of_another_type_is_named_with_both_types(tmp_path, column, found):
    path = table(tmp_path / "a.parquet", {"text": ["a"], "label": column})
    message = refusal(read_examples, path, 1)
    assert f"the column 'label' has the type {found}" in message
    assert "the label needs string or integer" in message


def test_a_tokens_column_of_another_type_is_named_with_both_types(tmp_path):
    path = table(tmp_path / "a.parquet", {"tokens": ["Rais Samia"], "tags": [["O", "O"]]})
    message = refusal(read_tagged, path, 1)
    assert "'tokens' has the type string, and the tokens needs list of strings" in message


def test_an_absent_text_names_its_row(tmp_path):
    path = table(tmp_path / "a.parquet", {"text": ["a", None], "label": ["x", "y"]})
    assert "the text (column 'text') is empty" in refusal(read_examples, path, 2)


def test_a_text_that_is_not_utf_8_names_its_row(tmp_path):
    raw = pa.array([b"a", b"\xff", b"c"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = table(tmp_path / "a.parquet", {"text": text, "label": ["x", "y", "z"]})
    assert "isn't UTF-8" in refusal(read_examples, path, 2)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    written = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    assert "'text' stands twice" in refusal(
        read_examples, table(tmp_path / "a.parquet", written), None
    )


def test_a_missing_column_lists_those_there(tmp_path):
    path = table(tmp_path / "a.parquet", {"body": ["a"], "label": ["x"]})
    assert "there is: body, label" in refusal(read_examples, path, 1)
    assert read_column(path, "body") == ["a"]


def test_other_columns_may_hold_anything(tmp_path):
    day = datetime.datetime(2024, 1, 1)
    path = table(tmp_path / "a.parquet", {"text": ["a"], "label": ["x"], "at": [day], "b": [b"\0"]})
    assert pairs(read_examples(path)) == [("a", "x")]


@pytest.mark.parametrize(
    "kind", [pa.date32(), pa.duration("s"), pa.timestamp("us", "Nowhere/Atlantis"), pa.time64("us")]
)
def test_times_that_python_cant_hold_are_no_hindrance(tmp_path, kind):
    wide = kind.bit_width == 64
    times = pa.array([2**62 if wide else 2**31 - 1], pa.int64() if wide else pa.int32()).view(kind)
    path = table(tmp_path / "a.parquet", {"text": ["a"], "label": ["x"], "at": times})
    assert pairs(read_examples(path)) == [("a", "x")]


@pytest.mark.parametrize("content", [b"", b"text\tlabel\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert "can't be read as Parquet" in refusal(read_examples, path, None)


def test_a_damaged_page_is_refused(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"text": [f"Habari {i}" for i in range(500)], "label": ["x"] * 500},
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    stream = bytearray(path.read_bytes())
    stream[200:260] = b"\xff" * 60
    path.write_bytes(stream)
    assert "can't be read as Parquet" in refusal(read_examples, path, None)


def test_missing_empty_gzipped_and_folders_are_refused(tmp_path):
    assert "no such file" in refusal(read_examples, tmp_path / "none.parquet", None)
    empty = table(tmp_path / "a.parquet", pa.schema([("text", pa.string())]).empty_table())
    assert "the file has no rows" in refusal(read_examples, empty, None)
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    assert "compressed inside" in refusal(read_examples, tmp_path / "a.parquet.gz", None)
    (tmp_path / "b.parquet").mkdir()
    assert "can't be read as Parquet" in refusal(read_examples, tmp_path / "b.parquet", None)


def test_a_split_may_be_parquet(tmp_path):
    path = table(tmp_path / "validation.parquet", {"text": ["a"]})
    assert find_split(tmp_path, "dev") == Path(path)
