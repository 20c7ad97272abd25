import datetime
import errno
import resource

import pyarrow as pa
import pytest
from pyarrow import parquet

from adaptx.data.convert import convert
from adaptx.data.read import read_column, read_examples
from adaptx.errors import DataError, OptionError, OutputExists
from tests.data.files import ROWS, as_format, pairs, write


@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.jsonl.gz", "a.ndjson"])
def test_any_table_becomes_jsonl_with_all_its_columns(tmp_path, name):
    rows = [(*row, "zaidi") for row in ROWS]
    content = as_format("." + name.split(".")[1], rows, ("text", "label", "more"))
    source, target = write(tmp_path / name, content), tmp_path / "b.jsonl"
    assert convert(source, target) == 3
    assert pairs(read_examples(target)) == ROWS
    assert read_column(target, "more") == ["zaidi"] * 3
    assert {path.name for path in tmp_path.iterdir()} == {name, "b.jsonl"}


def test_a_target_that_is_there_is_replaced_only_when_asked(tmp_path):
    source = write(tmp_path / "a.tsv", as_format(".tsv", ROWS))
    target = write(tmp_path / "b.jsonl", "mine\n")
    with pytest.raises(OutputExists, match="--overwrite"):
        convert(source, target)
    assert target.read_text() == "mine\n"
    convert(source, target, overwrite=True)
    assert pairs(read_examples(target)) == ROWS


def test_a_bad_row_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path):
    source = write(tmp_path / "a.tsv", "text\tlabel\na\tx\nb\n")
    target = write(tmp_path / "b.jsonl", "mine\n")
    with pytest.raises(DataError, match="line 3"):
        convert(source, target, overwrite=True)
    with pytest.raises(DataError, match="no rows"):
        convert(write(tmp_path / "c.tsv", ""), target, overwrite=True)
    assert target.read_text() == "mine\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv", "b.jsonl", "c.tsv"}


@pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), b"a", float("nan")])
def test_a_value_that_json_cannot_hold_is_refused_with_its_row(tmp_path, value):
    parquet.write_table(pa.table({"text": ["a"], "of": [value]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="line 1: JSON can't hold this row"):
        convert(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_half_a_surrogate_pair_is_refused_with_its_row(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match="line 1: JSON can't hold this row"):
        convert(source, tmp_path / "b.jsonl")


@pytest.mark.parametrize("name", ["b.tsv", "b", "b.jsonl.gz"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match=r"must end in \.jsonl"):
        convert(tmp_path / "a.tsv", tmp_path / name)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OutputExists, match="there is no folder"):
        convert(tmp_path / "a.tsv", tmp_path / "none" / "b.jsonl")


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "a.tsv", as_format(".tsv", ROWS * 50_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OutputExists, match="can't be written") as caught:
            convert(source, tmp_path / "b.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv"}
