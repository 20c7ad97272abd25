import pytest

from adaptx.data.read import find_split
from adaptx.data.streams import CONLL
from adaptx.errors import DataError
from tests.data.files import ROWS, as_format, write


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


def test_a_split_of_another_task_is_found_by_its_formats(tmp_path):
    write(tmp_path / "test.conll", "Habari O\n")
    assert find_split(tmp_path, "test", CONLL) == tmp_path / "test.conll"
    with pytest.raises(DataError, match="has no test file"):
        find_split(tmp_path, "test")
