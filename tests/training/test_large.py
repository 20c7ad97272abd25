"""Training on a file larger than memory: rows are read when their turn comes."""

import itertools
import json

import pytest
from peft import LoraConfig

import adaptx as ax
from adaptx.data import large
from adaptx.data.read import read_examples
from adaptx.errors import DataError, OptionError

LORA = LoraConfig(r=2, target_modules=["query"])
TOPICS = ax.tasks.Classification(["afya", "michezo"])
WORDS = ["dawa", "damu", "timu", "mechi", "bao"]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """40 texts of one length, so that sorting by length changes no batch; `large` from here on."""
    monkeypatch.setattr(large, "LARGE", 0)
    orders = itertools.islice(itertools.permutations(WORDS), 40)
    lines = [
        json.dumps({"text": " ".join(words), "label": TOPICS.labels[i % 2]})
        for i, words in enumerate(orders)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "train.jsonl"


def fit(encoder, train, task=TOPICS, config=LORA, **options):
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-2} | options
    return ax.train(encoder, task, config, name="x", train=train, **settings)


def losses(adapter):
    return [entry["loss"] for entry in adapter.facts.training["history"]]


def test_the_losses_are_those_of_the_file_in_memory(small, path):
    rows = read_examples(path)
    lengths = {len(ids) for ids in small.text.ids([row.text for row in rows])}
    assert len(lengths) == 1
    with pytest.raises(OptionError, match="micro_tokens=64 can't be kept: the lengths"):
        fit(small, str(path), micro_tokens=64)
    from_memory, from_file = fit(small, rows), fit(small, str(path))
    assert losses(from_file) == losses(from_memory)
    assert from_file.facts.training["train_rows"] == 40


def test_labels_come_from_the_task_or_from_dev(small, path, tmp_path):
    with pytest.raises(OptionError, match=r"too large to be read for its labels.*--labels"):
        fit(small, path, ax.tasks.Classification())
    dev = read_examples(path)[:6]
    adapter = fit(small, path, ax.tasks.Classification(), dev=dev)
    assert adapter.task.labels == ("afya", "michezo")


def test_a_bad_row_is_named_when_its_turn_comes(small, path):
    lines = path.read_text().splitlines()
    lines[16] = '{"text": "dawa damu", "label": "siasa"}'
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 17: unknown label 'siasa'; allowed: afya, michezo"):
        fit(small, path)


def test_another_file_of_as_many_rows_isnt_gone_on_with(small, path, tmp_path):
    options = {"run": tmp_path / "run", "resume": True}
    trained = fit(small, path, **options)
    again = fit(small, path, **options)
    assert losses(again) == losses(trained)
    text = path.read_text()
    path.write_text(text.replace("dawa damu timu", "timu damu dawa"))
    with pytest.raises(OptionError, match=r"training data was '40 rows, .*and is '40 rows, "):
        fit(small, path, **options)
    path.write_text(text)
    columns = {"text_column": "label", "label_column": "label"}
    with pytest.raises(OptionError, match="the training data was '40 rows"):
        fit(small, path, **options, **columns)


def test_a_probe_needs_all_rows_at_once(small, path):
    with pytest.raises(OptionError, match="larger than memory"):
        fit(small, path, config=None)
