"""Mined negatives against a search by hand; `adaptx data mine-negatives`."""

import json

import numpy as np
import pytest

import adaptx as ax
from adaptx.data.large import open_records
from adaptx.data.records import Pair
from adaptx.errors import OptionError
from adaptx.training.negatives import mine_negatives
from tests.cli.test_cli import refused, run

PAIRS = [
    Pair("Bei ya sukari", "Sukari imepanda bei"),
    Pair("Bei ya sukari", "Kilo ya sukari ni ghali"),
    Pair("Mechi ya leo", "Timu imeshinda mechi"),
    Pair("Dawa ya homa", "Mgonjwa alipewa dawa"),
    Pair("Shule mpya", "Wanafunzi wamepata shule"),
    Pair("Habari za mechi", "Timu  imeshinda MECHI"),
]


@pytest.mark.parametrize("below", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_negatives_are_the_nearest_texts_that_dont_belong(small, count, below):
    def unit(texts):
        found = small.embed(texts)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    # The second "Timu imeshinda mechi" is the same text but for case and white space.
    others = list(dict.fromkeys(pair.other for pair in PAIRS[:5]))
    a, b = unit([pair.text for pair in PAIRS]), unit(others)
    mined = mine_negatives(small, PAIRS, count=count, below=below)
    own = [{0, 1}, {0, 1}, {2}, {3}, {4}, {2}]
    for i, pair in enumerate(mined):
        mine = 2 if i == 5 else i
        limit = below * (a[i] @ b[mine])
        right = [j for j in range(5) if j not in own[i] and a[i] @ b[j] < limit]
        right.sort(key=lambda j, i=i: -(a[i] @ b[j]))
        assert list(pair.negatives) == [others[j] for j in right[:count]]
        assert (pair.text, pair.other) == (PAIRS[i].text, PAIRS[i].other)


def test_what_cant_mine_is_refused(small):
    for options in ({"count": 0}, {"count": 1.5}, {"below": 0}, {"below": 2}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}="):
            mine_negatives(small, PAIRS, **options)
    topics = ax.Adapter.new(small, ax.tasks.Classification(("a", "b")), None, name="topics")
    with pytest.raises(OptionError, match="isn't of retrieval"):
        mine_negatives(small, PAIRS, topics)


def test_the_command_writes_what_training_reads(small_folders, small, tmp_path):
    source, target = tmp_path / "pairs.tsv", tmp_path / "train.jsonl"
    source.write_text("text\tother\n" + "".join(f"{p.text}\t{p.other}\n" for p in PAIRS))
    words = ["data", "mine-negatives", source, "-o", target, "-e", small_folders["bert"]]
    said = run(*words, "--count", "2").stdout
    assert "Wrote" in said and "6 rows" in said
    found = open_records(target, "retrieval")
    assert [pair.negatives for pair in found] == [
        pair.negatives for pair in mine_negatives(small, PAIRS, count=2)
    ]
    assert json.loads(target.read_text().splitlines()[0])["text"] == "Bei ya sukari"
    assert "--overwrite" in refused(*words)
