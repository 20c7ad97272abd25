"""The shared benchmark data are read whole; their figures are those that their README gives."""

import os
from collections import Counter
from pathlib import Path

import pytest

from adaptx.data.check import check
from adaptx.data.read import find_split, read_examples, read_pairs, read_passages, read_tagged

pytestmark = pytest.mark.requires_data


def folder(name):
    return Path(os.environ["ADAPTX_DATA"]) / name


def test_sib200_is_read_whole():
    topics = folder("sib200/swh_Latn")
    examples = {
        split: read_examples(find_split(topics, split)) for split in ("train", "dev", "test")
    }
    assert {split: len(rows) for split, rows in examples.items()} == {
        "train": 701,
        "dev": 99,
        "test": 204,
    }
    labels = set((topics / "labels.txt").read_text(encoding="utf-8").split("\n")) - {""}
    assert len(labels) == 7
    assert all({example.label for example in rows} == labels for rows in examples.values())
    assert all(example.text.strip() for rows in examples.values() for example in rows)


def test_afrisenti_is_read_whole():
    sentiment = folder("afrisenti/hau")
    counts = {
        split: Counter(example.label for example in read_examples(find_split(sentiment, split)))
        for split in ("train", "dev", "test")
    }
    assert counts == {
        "train": {"negative": 954, "neutral": 1069, "positive": 977},
        "dev": {"negative": 894, "neutral": 896, "positive": 887},
        "test": {"negative": 1759, "neutral": 1789, "positive": 1755},
    }


@pytest.mark.parametrize(
    ("name", "sentences", "tokens"),
    [
        ("masakhaner1/swa/dev.txt", 300, None),
        ("masakhaner1/amh/test.txt", 500, 7449),
        ("masakhaner1/lug/dev.txt", 200, 3771),
        ("uner/zho/test.txt", 1000, 21415),
        ("uner/eng/dev.txt", 301, 5432),
        ("uner/rus/test.txt", 1000, 19355),
    ],
)
def test_conll_files_have_the_sentences_and_tokens_of_their_readme(name, sentences, tokens):
    found = read_tagged(folder(name))
    assert len(found) == sentences
    assert tokens in (None, sum(len(row.tokens) for row in found))


def test_every_conll_file_is_read_without_a_complaint():
    paths = [*folder("masakhaner1").glob("*/*.txt"), *folder("uner").glob("*/*.txt")]
    assert len(paths) == 37
    for path in paths:
        assert {tag[:2] for row in read_tagged(path) for tag in row.tags} <= {"O", "B-", "I-"}


def test_every_xquad_file_has_its_1190_questions():
    paths = sorted(folder("xquad").glob("*/test.json.gz"))
    assert len(paths) == 9
    for path in paths:
        questions = read_passages(path)
        assert len(questions) == 1190
        assert len({question.context for question in questions}) == 240


def test_every_tatoeba_pair_of_files_is_aligned():
    folders = [path for path in folder("tatoeba").iterdir() if path.is_dir()]
    assert len(folders) == 16
    for path in folders:
        pairs = read_pairs(path / f"test.{path.name}", path / "test.eng")
        assert len(pairs) == {"swh": 390, "amh": 168, "xho": 142}.get(path.name, 1000)


def test_every_classification_file_is_read_without_a_complaint():
    paths = [*folder("sib200").glob("*/*.tsv"), *folder("afrisenti").glob("*/*.tsv.gz")]
    assert len(paths) == 25 * 3 + 4 * 3
    assert sum(len(read_examples(path)) for path in paths) == 25 * 1004 + 26638


@pytest.mark.parametrize(
    ("name", "task", "leaks"),
    [
        ("masakhaner1/swa", "token-classification", 11),
        ("masakhaner1/ibo", "token-classification", 7),
        ("uner/eng", "token-classification", 73),
        ("afrisenti/kin", "classification", 27),
    ],
)
def test_check_finds_the_leaks_that_the_readme_counts(name, task, leaks):
    train, test = (next(folder(name).glob(f"{split}.t*")) for split in ("train", "test"))
    report = check(train, task, against=[test])
    assert report.clean
    assert report.leaks[0].same.exact == leaks


def test_check_finds_the_leak_that_differs_in_white_space_and_label():
    report = check(
        folder("afrisenti/swa/train.tsv.gz"),
        "classification",
        against=[folder("afrisenti/swa/test.tsv.gz")],
    )
    same = report.leaks[0].same
    assert (same.exact, same.normalized, same.contradicting) == (0, 1, 1)
    assert same.places == [(1062, 600)]
