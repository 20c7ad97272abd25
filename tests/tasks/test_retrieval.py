import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from adaptx.data.records import Pair
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.tasks import Retrieval, task_from_json

seeded = settings(derandomize=True, deadline=None, max_examples=40)


def test_it_is_written_down_and_refuses_what_cant_be():
    task = Retrieval(temperature=0.1, dimensions=[8, 4])
    assert task_from_json(task.to_json()) == task and task.dimensions == (8, 4)
    for options in ({"temperature": 0}, {"dimensions": (0,)}, {"labels": ("a",)}, {"pooling": "x"}):
        with pytest.raises(OptionError):
            Retrieval(**options)
    with pytest.raises(DataError, match="less than two pairs"):
        Retrieval().fit([Pair("a", "b")])


@pytest.mark.parametrize("sizes", [(), (6, 2)])
def test_losses_are_the_formula_one_by_one(sizes):
    """Cosines over the temperature; each text's own partner among all; both ways; each size."""
    task = Retrieval(temperature=0.2, dimensions=sizes)
    vectors = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    found = task.losses(vectors, torch.zeros(3, dtype=torch.long))
    a, b = vectors[0::2], vectors[1::2]

    def cosine(x, y, size):
        x, y = x[:size], y[:size]
        return float(x @ y / (x.norm() * y.norm())) / 0.2

    for i in range(3):
        wanted = 0.0
        for size in sizes or (6,):
            for one, two in ((a, b), (b, a)):
                scores = [cosine(one[i], two[j], size) for j in range(3)]
                wanted += math.log(sum(map(math.exp, scores))) - scores[i]
        assert float(found[i]) == pytest.approx(wanted / (2 * len(sizes or (6,))), abs=1e-5)


@seeded
@given(st.integers(0, 999), st.integers(2, 15))
def test_scores_are_those_of_each_search(seed, rows):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, 2, 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = task_scores(Retrieval(), [Pair("a", "b")] * rows, list(vectors))
    cosines = vectors[:, 0] @ vectors[:, 1].T
    ranks = [1 + sum(cosines[i] > cosines[i, i]) for i in range(rows)]
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found["recall_at_10"] == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(np.eye(rows), cosines, k=10))


def test_a_tie_counts_as_lost():
    same = [np.ones((2, 2)) / math.sqrt(2)] * 3
    assert task_scores(Retrieval(), [Pair("a", "b")] * 3, same)["recall_at_1"] == 0


def test_a_text_is_one_vector_and_a_pair_two(small):
    task = Retrieval()
    windows = task.windows(small.text, "query: ", ["a b", ("c", "d e")])
    assert [len(one) for one in windows] == [1, 2]
    assert windows[1][1].ids == small.text.ids(["query: d e"])[0]
    one = task.answer("a b", windows[0], [np.array([3.0, 4.0])])
    assert one == pytest.approx([0.6, 0.8])
    assert task.answer(("c", "d e"), windows[1], [np.ones(2), np.ones(2)]).shape == (2, 2)
