import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data import large
from adaptx.data.large import IndexedExamples, open_examples
from adaptx.data.read import read_examples
from adaptx.data.streams import Columns
from adaptx.errors import DataError
from tests.data.files import ROWS, as_format, refusal, write

ENDINGS = [".jsonl", ".ndjson", ".tsv"]


def outcome(read):
    """What reading gives: the examples, or the error's words."""
    try:
        return list(read())
    except DataError as error:
        return str(error)


def one_by_one(rows):
    return [rows[i] for i in range(len(rows))]


jsonl_lines = st.sampled_from(
    [
        *('{"text": "a", "label": "x"}', '  {"text": "ሰላም 👑", "label": "y"}', "", " ", "\t", "\r"),
        *("\u3000", "\x85", "\x1c", '{"text": "c\u2028d", "label": "z"}', "{", "\ufeff"),
    ]
)
tsv_lines = st.sampled_from(
    ["a\tx", " \t ", "ሰላም 👑\ty", "", "\r", "\r\r", " ", "\u3000", "text\tlabel", "b", "\ufeff"]
)


def any_file(ending, start, lines, line_end, last):
    return (start + line_end.join(lines) + (line_end if last else "")).encode()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from(ENDINGS),
    st.sampled_from(["", "\ufeff", "text\tlabel\n", "\ufefftext\tlabel\r\n", "\n\ntext\tlabel\n"]),
    st.data(),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([1, 7, 64, 1 << 20]),
)
def test_an_indexed_file_equals_the_eager_reader_on_any_file(
    tmp_path_factory, ending, start, data, line_end, last, block
):
    lines = data.draw(st.lists(tsv_lines if ending == ".tsv" else jsonl_lines, max_size=8))
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(any_file(ending, start, lines, line_end, last))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "_BLOCK", block)
        eager = outcome(lambda: read_examples(path))
        indexed = outcome(lambda: one_by_one(IndexedExamples(path)))
        passed = outcome(lambda: IndexedExamples(path))
    assert indexed == passed == eager


@pytest.fixture
def rows(tmp_path):
    texts = [(f"Habari {i} 👑", f"k{i % 3}") for i in range(1000)]
    return IndexedExamples(write(tmp_path / "a.tsv", as_format(".tsv", texts)))


def test_rows_are_found_in_any_order(rows):
    eager = read_examples(rows.path)
    order = np.random.default_rng(0).permutation(1000)
    assert rows.take(order) == [eager[i] for i in order]
    assert rows[17] == eager[17] and rows[-1] == eager[-1]
    assert rows[3:40:7] == eager[3:40:7] and rows[::-1] == eager[::-1]
    assert rows.take([]) == []
    assert len(rows) == 1000 and eager[5] in rows


@pytest.mark.parametrize("index", [1000, -1001])
def test_a_row_that_is_not_there_is_an_index_error(rows, index):
    with pytest.raises(IndexError):
        rows[index]


@pytest.mark.parametrize("indices", [[1000], [-1], [0, 5000]])
def test_take_counts_from_0_to_the_last_row(rows, indices):
    with pytest.raises(IndexError, match="rows 0 to 999"):
        rows.take(indices)


def test_threads_share_it_and_it_can_be_pickled(rows):
    eager = read_examples(rows.path)
    again = pickle.loads(pickle.dumps(rows))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: (rows[i], again[i]), [i * 7 % 1000 for i in range(2000)]))
    assert found == [(eager[i * 7 % 1000],) * 2 for i in range(2000)]


def test_a_bad_row_is_refused_with_its_line_when_it_is_met(tmp_path):
    content = '{"text":"a","label":"x"}\n\n{"text":"","label":"x"}\n{"text":"c","label":"x"}\n'
    found = IndexedExamples(write(tmp_path / "a.jsonl", content))
    assert found[0].text == "a" and found[2].text == "c"
    message = refusal(lambda path: found[1], tmp_path / "a.jsonl", 3)
    assert "is empty" in message


def test_a_file_that_changed_is_refused(rows):
    rows.path.write_bytes(rows.path.read_bytes() + b"more\tx\n")
    for read in (lambda path: rows[0], lambda path: list(rows)):
        assert "has changed since it was opened" in refusal(read, rows.path, None)


def test_large_files_are_indexed_and_small_ones_and_other_formats_read(tmp_path, monkeypatch):
    names = [f"a{e}{gz}" for e, gz in product([*ENDINGS, ".csv"], ["", ".gz"])]
    for name in names:
        write(tmp_path / name, as_format("." + name.split(".")[1], ROWS))
    assert all(type(open_examples(tmp_path / name)) is list for name in names)
    monkeypatch.setattr(large, "LARGE", 10)
    kinds = {name: type(open_examples(tmp_path / name)) for name in names}
    indexed = {name for name, kind in kinds.items() if kind is IndexedExamples}
    assert indexed == {"a.jsonl", "a.ndjson", "a.tsv"}
    for name in names:
        assert list(open_examples(tmp_path / name)) == read_examples(tmp_path / name)


def test_columns_are_those_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LARGE", 0)
    path = write(tmp_path / "a.tsv", "body\tkind\na\tx\n")
    named = open_examples(path, text_column="body", label_column="kind")
    assert isinstance(named, IndexedExamples)
    assert (named[0].text, named[0].label) == ("a", "x")
    bare = open_examples(path, text_column="body", labelled=False)
    assert bare[0].label is None


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, ending, content):
    path = write(tmp_path / f"a{ending}", content)
    assert "no rows" in refusal(lambda path: IndexedExamples(path), path, None)


def test_what_cannot_be_indexed_names_the_remedy(tmp_path):
    for name in ("a.csv", "a.parquet", "a.jsonl.gz"):
        with pytest.raises(DataError, match="adaptx data convert"):
            IndexedExamples(tmp_path / name, Columns())
    with pytest.raises(DataError, match="no such file"):
        IndexedExamples(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="no such file"):
        open_examples(tmp_path / "none.tsv")
