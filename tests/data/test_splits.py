import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx import storage
from adaptx.data.large import open_records
from adaptx.data.read import Example, Passage, read_examples
from adaptx.data.records import Labelled, Pair
from adaptx.data.splits import split_examples, split_passages, write_split
from adaptx.errors import DataError, OptionError, OutputExists
from tests.conftest import ROOT
from tests.data.files import seeded

TASKS = ROOT / "recipes" / "data" / "tasks"
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def rows(*counts):
    return [
        Example(f"text {label} {i}", f"label {label}")
        for label, count in enumerate(counts)
        for i in range(count)
    ]


@seeded
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 9))
def test_every_part_has_its_share_of_every_label_and_of_all(counts, seed):
    examples = rows(*counts, 30)
    parts = split_examples(examples, SHARES, seed=seed)
    assert Counter(row for part in parts.values() for row in part) == Counter(examples)
    for name, share in SHARES.items():
        assert abs(len(parts[name]) - share * len(examples)) < 2
        found = Counter(row.label for row in parts[name])
        for label, count in Counter(row.label for row in examples).items():
            assert abs(found[label] - share * count) < 3


labels = st.sampled_from(["x", "y", "z"])
some_texts = st.sampled_from(
    ["Habari", "habari", " HABARI ", "Adé", "Ade\u0301", "b", "c", "d", "e"]
)


@seeded
@given(st.lists(st.tuples(some_texts, labels), min_size=30), st.integers(0, 9))
def test_texts_that_are_the_same_stay_in_one_part(pairs, seed):
    examples = [Example(*pair) for pair in pairs] + rows(40)
    parts = split_examples(examples, {"train": 0.5, "test": 0.5}, seed=seed)
    for same in (["Habari", "habari", " HABARI "], ["Adé", "Ade\u0301"], ["b"], ["c"]):
        homes = {name for name, part in parts.items() for row in part if row.text in same}
        assert len(homes) <= 1


def test_parts_keep_the_order_of_the_examples():
    examples = rows(40, 40)
    for part in split_examples(examples, SHARES).values():
        places = [examples.index(row) for row in part]
        assert places == sorted(places)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    examples = rows(50, 50)
    first, second = (split_examples(examples, SHARES, seed=seed) for seed in (0, 1))
    assert first != second
    backwards = split_examples(examples[::-1], SHARES, seed=0)
    assert {n: set(part) for n, part in backwards.items()} == {n: set(p) for n, p in first.items()}


def test_the_split_is_the_same_in_every_process():
    code = """
from adaptx.data.read import Example
from adaptx.data.splits import split_examples
rows = [Example(f"text {i}", f"label {i % 3}") for i in range(60)]
parts = split_examples(rows, {"train": 0.8, "dev": 0.1, "test": 0.1}, seed=7)
print([row.text.split()[1] for row in parts["test"]])
"""
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout == "['5', '7', '24', '26', '27', '28']\n"


def test_rows_without_labels_are_split_too():
    parts = split_examples([Example(str(i)) for i in range(20)], {"train": 0.5, "test": 0.5})
    assert [len(part) for part in parts.values()] == [10, 10]


@pytest.mark.parametrize(
    "shares", [{}, {"train": 1.0}, {"train": 0.9, "test": 0.2}, {"train": 1.0, "test": 0.0}]
)
def test_shares_that_are_no_shares_are_refused(shares):
    with pytest.raises(OptionError, match=r"[Ss]hares"):
        split_examples(rows(20), shares)


def test_a_part_that_would_be_empty_is_refused():
    with pytest.raises(
        DataError, match=r"3 rows \(3 different texts\) leave dev, test without any"
    ):
        split_examples(rows(3), SHARES)
    with pytest.raises(DataError, match=r"9 rows \(1 different texts\) leave test without"):
        split_examples([Example("a", "x")] * 9, {"train": 0.5, "test": 0.5})


def test_a_written_split_is_read_back(tmp_path):
    examples = [Example(f"{i} ሰላም \u2028👑\n\t", "a/b") for i in range(20)]
    parts = split_examples(examples, {"train": 0.5, "test": 0.5})
    write_split(parts, tmp_path / "s", {"source": "here", "seed": 0})
    for name, part in parts.items():
        found = read_examples(tmp_path / "s" / f"{name}.jsonl")
        assert [(row.text, row.label) for row in found] == [(row.text, row.label) for row in part]
    manifest = storage.read_manifest(tmp_path / "s", "data")
    assert manifest["rows"] == {"train": 10, "test": 10}
    assert manifest["files"].keys() == {"train.jsonl", "test.jsonl"}
    assert json.loads((tmp_path / "s" / "adaptx.json").read_text())["source"] == "here"
    with pytest.raises(OutputExists):
        write_split(parts, tmp_path / "s", {})
    write_split(parts, tmp_path / "s", {}, overwrite=True)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("token-classification", "names.conll"),
        ("multi-label", "reviews.jsonl"),
        ("pairs", "inference.tsv"),
        ("question-answering", "questions.json"),
        ("similarity", "nearness.tsv"),
        ("retrieval", "searches.jsonl"),
        ("extractive-summarization", "documents.jsonl"),
        ("masked-language", "passages.txt"),
    ],
)
def test_the_rows_of_every_task_are_split_and_read_back(tmp_path, task, name):
    rows = open_records(TASKS / name, task)
    by = split_passages if task == "question-answering" else split_examples
    parts = by(rows, {"train": 0.5, "test": 0.5})
    write_split(parts, tmp_path / "s", {})
    found = []
    for part, wanted in parts.items():
        read = open_records(tmp_path / "s" / f"{part}.jsonl", task)
        assert [r.row for r in read] == [r.row for r in wanted]
        assert [(r.texts, r.labels) for r in read] == [(r.texts, r.labels) for r in wanted]
        found += read
    assert sorted(str(r.row) for r in found) == sorted(str(r.row) for r in rows)


def test_every_set_of_labels_is_shared_out_and_equal_pairs_stay_together():
    sets = [("a",), ("b",), ("a", "b"), ("b", "a")]
    several = [Labelled(f"text {i}", sets[i % 4]) for i in range(80)]
    for part in split_examples(several, {"train": 0.5, "test": 0.5}).values():
        assert Counter(frozenset(row.names) for row in part) == {
            frozenset("a"): 10, frozenset("b"): 10, frozenset("ab"): 20,
        }  # fmt: skip
    pairs = [Pair(f"text {i % 40}", f"other {i // 40}") for i in range(80)]
    parts = split_examples(pairs + pairs, {"train": 0.5, "test": 0.5})
    assert [len(part) for part in parts.values()] == [80, 80]
    assert set(parts["train"]).isdisjoint(parts["test"])


def questions(paragraphs, language="en"):
    return [
        Passage(f"{paragraph}-{i}", "?", f"passage {paragraph} in {language}")
        for paragraph, count in enumerate(paragraphs)
        for i in range(count)
    ]


@seeded
@given(st.integers(120, 240), st.integers(0, 9))
def test_a_passages_questions_stay_together_and_every_language_is_split_alike(count, seed):
    paragraphs = [1 + i % 5 for i in range(count)]
    english = questions(paragraphs)
    parts = split_passages(english, SHARES, seed=seed)
    assert sorted(row.id for part in parts.values() for row in part) == sorted(
        row.id for row in english
    )
    homes = [{row.context for row in part} for part in parts.values()]
    assert sum(map(len, homes)) == len(paragraphs)
    assert abs(len(homes[0]) - 0.8 * len(paragraphs)) < 4 * (0.16 * len(paragraphs)) ** 0.5
    zulu = split_passages(questions(paragraphs, "zu"), SHARES, seed=seed)
    assert [[row.id for row in part] for part in zulu.values()] == [
        [row.id for row in part] for part in parts.values()
    ]
    assert split_passages(english, SHARES, seed=seed + 1) != parts


def test_passages_that_cant_be_split_are_refused():
    with pytest.raises(DataError, match="1 passages leave dev, test without any"):
        split_passages(questions([3]), {"train": 0.98, "dev": 0.01, "test": 0.01})
    with pytest.raises(OptionError, match=r"sum to 1\.1"):
        split_passages(questions([3]), {"train": 0.9, "test": 0.2})
