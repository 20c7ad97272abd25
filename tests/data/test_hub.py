"""`hf:` sources, on local folders: the tests reach no Hub."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from adaptx.data.read import read_column, read_examples, read_tagged
from adaptx.errors import DataError
from tests.data.files import ROWS, as_format, pairs, write

CONFIGS = """---
configs:
- config_name: sw
  data_files:
  - split: train
    path: sw/train.jsonl
  - split: test
    path: sw/test.jsonl
- config_name: yo
  data_files:
  - split: train
    path: yo/train.jsonl
---
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The cache of `datasets` in a folder of these tests, and no Hub."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.config.HF_HUB_OFFLINE = True
    yield
    datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE = before


@pytest.fixture
def plain(tmp_path):
    folder = tmp_path / "news"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", as_format(".jsonl", ROWS))
    return folder


@pytest.fixture
def with_configs(tmp_path):
    folder = tmp_path / "languages"
    for language in ("sw", "yo"):
        (folder / language).mkdir(parents=True)
        for split in ("train", "test"):
            write(folder / language / f"{split}.jsonl", as_format(".jsonl", ROWS))
    (folder / "README.md").write_text(CONFIGS)
    return folder


def refused(source, read=read_examples):
    with pytest.raises(DataError) as caught:
        read(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert str(caught.value).count(f"{source}: ") == 1
    return caught.value.message


def test_a_folder_of_files_is_read_by_its_split(plain):
    found = read_examples(f"hf:{plain}:train")
    assert pairs(found) == ROWS
    assert [(row.path, row.line) for row in found] == [(f"hf:{plain}:train", i) for i in (1, 2, 3)]
    assert read_column(f"hf:{plain}:test", "label") == [name for _, name in ROWS]


def test_a_path_object_is_taken_too_and_a_part_of_a_split(plain):
    assert pairs(read_examples(Path(f"hf:{plain}:train[:2]"))) == ROWS[:2]
    assert len(read_examples(f"hf:{plain}:train+test")) == 6


def test_a_relative_folder_is_found(plain, monkeypatch):
    monkeypatch.chdir(plain.parent)
    assert pairs(read_examples("hf:./news:train")) == ROWS
    assert pairs(read_examples(Path("hf:./news:train"))) == ROWS


def test_a_config_is_chosen_by_its_name(with_configs):
    assert pairs(read_examples(f"hf:{with_configs}/sw:test")) == ROWS


def test_classes_of_a_saved_dataset_become_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["afya", "siasa"]),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "tokens": [["Samia"]] * 2, "ner_tags": [[1]] * 2}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "p" / "train.parquet")
    made.save_to_disk(tmp_path / "saved")
    for source in (
        tmp_path / "p" / "train.parquet",
        f"hf:{tmp_path}/p:train",
        f"hf:{tmp_path}/saved:train",
    ):
        assert pairs(read_examples(source)) == [("a", "siasa"), ("b", "afya")]
        assert read_tagged(source)[0].tags == ("B-PER",)


def test_numbers_where_a_text_is_needed_are_refused_with_their_type(tmp_path):
    (tmp_path / "n").mkdir()
    write(tmp_path / "n" / "train.csv", "text,label\n7,x\n")
    with pytest.raises(DataError, match="'text' has the type int64, and the text needs string"):
        read_examples(f"hf:{tmp_path}/n:train")


def test_a_split_that_is_absent_is_refused_with_those_there(plain):
    assert "Unknown split \"dev\". Should be one of ['train', 'test']" in refused(f"hf:{plain}:dev")


def test_a_config_that_is_absent_or_missing_is_refused_with_those_there(with_configs):
    assert "'ha' not found. Available: ['sw', 'yo']" in refused(f"hf:{with_configs}/ha:train")
    assert "available configs: ['sw', 'yo']" in refused(f"hf:{with_configs}:train")


def test_a_folder_that_is_absent_is_named(tmp_path):
    assert f"there is no folder {tmp_path}/none" in refused(f"hf:{tmp_path}/none:train")


def test_without_the_hub_the_error_says_so_and_what_helps(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("hf:someone/some-data:train")
    assert "the Hub can't be reached (HF_HUB_OFFLINE is set)" in message
    assert "someone/some-data" in message and "hf:./FOLDER:SPLIT" in message
    assert "some-data" in refused("hf:someone/some-data/sw:train")


@pytest.mark.parametrize(
    "source", ["hf:", "hf:name", "hf:name:", "hf::train", "hf:a/b/c/d:train", "hf:a//b:x"]
)
def test_a_source_that_is_written_wrongly_shows_how_it_is_written(source):
    assert "hf:USER/NAME:SPLIT, hf:USER/NAME/CONFIG:SPLIT" in refused(source)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "doesn't contain any data files" in refused(f"hf:{tmp_path}/empty:train")


def test_a_damaged_file_is_refused_with_its_cause(tmp_path):
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "train.jsonl", '{"text": "a"}\n{"text":\n')
    assert "JSON parse error" in refused(f"hf:{tmp_path}/bad:train")


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_no_script_and_no_pickle_of_a_dataset_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text(
        "import pathlib; pathlib.Path('executed').touch()"
    )
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(Boom()))
    assert "scripts" in refused("hf:./scripted:train")
    assert "no dataset of tables (pandas)" in refused("hf:pandas:train")
    assert "no dataset of tables" in refused("hf:text:train")
    assert not (tmp_path / "executed").exists()


def test_reading_says_nothing_on_the_terminal(plain, tmp_path):
    code = f"from adaptx.data.read import read_examples; read_examples('hf:{plain}:train')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
