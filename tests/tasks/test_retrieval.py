import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from sklearn.metrics import ndcg_score

import adaptx as ax
from adaptx.data.records import Pair
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.evaluation.report import AnswersReport
from adaptx.evaluation.side_by_side import ALL, SideBySide
from adaptx.tasks import Retrieval, task_from_json
from adaptx.training.rows import EncodedRows

seeded = settings(derandomize=True, deadline=None, max_examples=40)


def test_it_is_written_down_and_refuses_what_cant_be():
    task = Retrieval(temperature=0.1, dimensions=[8, 4])
    assert task_from_json(task.to_json()) == task and task.dimensions == (8, 4)
    for options in ({"temperature": 0}, {"dimensions": (0,)}, {"labels": ("a",)}, {"pooling": "x"}):
        with pytest.raises(OptionError):
            Retrieval(**options)
    with pytest.raises(DataError, match="less than two pairs"):
        Retrieval().fit([Pair("a", "b")])


rows = st.lists(
    st.builds(
        Pair,
        st.sampled_from("abcd"),
        st.sampled_from("stuv"),
        negatives=st.lists(st.sampled_from("suwxyz"), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=5,
)


@seeded
@given(rows, st.sampled_from([(), (6, 2)]), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_losses_are_the_formula_one_by_one(records, sizes, smoothing, seed):
    """Cosines over the temperature; each text's own partner among all that isn't right for it too,
    and all negatives; both ways; each size.
    """
    task = Retrieval(temperature=0.2, dimensions=sizes)
    counts = [2 + len(record.negatives) for record in records]
    vectors = torch.randn(sum(counts), 6, generator=torch.Generator().manual_seed(seed))
    targets = torch.from_numpy(task.stacked(task.targets(records), 0))
    found = task.losses(vectors, targets, smoothing)
    each = torch.split(vectors, counts)
    negatives = [
        (text, vector)
        for record, its in zip(records, each, strict=True)
        for text, vector in zip(record.negatives, its[2:], strict=True)
    ]

    def cosine(x, y, size):
        x, y = x[:size], y[:size]
        return float(x @ y / (x.norm() * y.norm())) / 0.2

    def loss(scores):
        """The first is the right one's."""
        total = math.log(sum(map(math.exp, scores)))
        return (1 - smoothing) * (total - scores[0]) + smoothing * (total - np.mean(scores))

    for i, mine in enumerate(records):
        wrong = [
            j
            for j, other in enumerate(records)
            if other.text != mine.text and other.other != mine.other
        ]
        hard = [vector for text, vector in negatives if text != mine.other]
        a, b = each[i][:2]
        wanted = 0.0
        for size in sizes or (6,):
            right = cosine(a, b, size)
            there = [cosine(a, each[j][1], size) for j in wrong]
            wanted += loss([right, *there, *(cosine(a, c, size) for c in hard)])
            wanted += loss([right, *(cosine(b, each[j][0], size) for j in wrong)])
        assert float(found[i]) == pytest.approx(wanted / (2 * len(sizes or (6,))), abs=1e-4)


def test_rows_with_more_and_fewer_negatives_share_a_batch(small):
    task = Retrieval()
    records = [Pair("a", "b", negatives=("c", "d e f g")), Pair("h i", "j"), Pair("k", "l m n")]
    adapter = ax.Adapter.new(small, task, LoraConfig(r=2, target_modules=["query"]), name="x")
    rows = EncodedRows.of(small, adapter, task, records)
    alone = [small.text.ids([small.prefix + text])[0] for text in ("a", "b", "c", "d e f g")]
    assert len(rows) == 3 and rows.counts.tolist() == [4, 2, 2]
    assert rows.lengths[0] == sum(map(len, alone))
    batch, targets, shares = rows.batch(np.array([2, 0]))
    assert len(batch.input_ids) == 6 and targets[:, 0].tolist() == [0, 1, 0, 1, 2, 2]
    assert batch.input_ids[2:, :3].tolist() == [ids[:3] for ids in alone]
    assert shares.tolist() == [1, 1]
    assert [len(one) for one in task.windows(small.text, "", task.inputs(records))] == [2, 2, 2]


def test_dimensions_beyond_the_encoders_are_refused_before_any_work(small):
    pairs = [Pair("a", "b"), Pair("c", "d")]
    lora = LoraConfig(r=2, target_modules=["query"])
    task = Retrieval(dimensions=(99999, 32, 16))
    with pytest.raises(OptionError, match="have 32 numbers, so they can't be cut to 99999"):
        ax.train(small, task, lora, name="x", train=pairs, epochs=1)
    assert ax.Adapter.new(small, Retrieval(dimensions=(32, 16)), lora, name="x").sites


def test_one_pair_with_a_negative_is_enough():
    assert Retrieval().fit([Pair("a", "b", negatives=("c",))]) == Retrieval()


def searched(records, seed):
    """Vectors of the records' texts, alike for equal texts, and their scores."""
    generator = np.random.default_rng(seed)
    drawn = {}

    def vector(kind, text):
        if (kind, text) not in drawn:
            v = generator.normal(size=4)
            drawn[kind, text] = v / np.linalg.norm(v)
        return drawn[kind, text]

    vectors = [np.stack([vector("a", r.text), vector("b", r.other)]) for r in records]
    return np.stack(vectors), task_scores(Retrieval(), records, vectors)


def test_a_pair_alone_in_its_micro_batch_is_refused(small):
    pairs = [Pair(f"habari {i}", f"news {i}") for i in range(6)]
    lora = LoraConfig(r=2, target_modules=["query"])
    options = {"name": "x", "batch_size": 4, "epochs": 1}
    for alone in ({"accumulate": 3}, {"batch_size": 1}):
        with pytest.raises(OptionError, match="less than two each"):
            ax.train(small, Retrieval(), lora, train=pairs, **(options | alone))
    with pytest.raises(OptionError, match="micro_tokens=64 can't be kept: retrieval learns from"):
        ax.train(small, Retrieval(), lora, train=pairs, **options, micro_tokens=64)
    member = ax.Member("x", lora, pairs, task=Retrieval(), settings={"batch_size": 1})
    with pytest.raises(OptionError, match="x: Retrieval learns from the other pairs"):
        ax.train_many(small, [member])
    some = [*pairs[:5], Pair("habari", "news", negatives=("other",))]
    for trained in (pairs, some):
        adapter = ax.train(
            small, Retrieval(), lora, train=trained, accumulate=2 + 2 * (trained is some), **options
        )
        assert adapter.facts.training["history"][0]["loss"] > 0


@seeded
@given(st.integers(0, 999), st.integers(2, 15))
def test_scores_are_those_of_each_search(seed, rows):
    records = [Pair(f"a{i}", f"b{i}") for i in range(rows)]
    vectors, found = searched(records, seed)
    cosines = vectors[:, 0] @ vectors[:, 1].T
    ranks = [1 + sum(cosines[i] > cosines[i, i]) for i in range(rows)]
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found["recall_at_10"] == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(np.eye(rows), cosines, k=10))


@seeded
@given(rows, st.integers(0, 999))
def test_a_right_answer_is_no_error_of_its_query(records, seed):
    """Texts equal to its own answer, or to another of the same query's, aren't searched."""
    vectors, found = searched(records, seed)
    cosines = vectors[:, 0] @ vectors[:, 1].T
    ranks = []
    for i, mine in enumerate(records):
        right = {other.other for other in records if other.text == mine.text}
        wrong = [j for j, other in enumerate(records) if other.other not in right]
        ranks.append(1 + sum(cosines[i, j] >= cosines[i, i] for j in wrong))
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_two_questions_of_one_passage_are_both_found():
    east, north = np.eye(2)
    records = [Pair("wapi?", "Dodoma"), Pair("lini?", "Dodoma"), Pair("nani?", "Asha")]
    vectors = [np.stack([v, v]) for v in (east, east, north)]
    assert set(task_scores(Retrieval(), records, vectors).values()) == {1.0}


def test_data_sets_together_are_each_searched_alone():
    """`all` of two data sets with the same vectors has the scores of each."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(12, 2, 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    sw, en = (
        AnswersReport(Retrieval(), [Pair(f"{x}{i}", f"{x}{i}") for i in range(12)], list(vectors))
        for x in ("sw", "en")
    )
    together = SideBySide({"search": {"sw": sw, "en": en}})
    assert together.report("search", ALL).scores == pytest.approx(sw.scores)
    assert sw.scores["mrr"] < 0.9 and together.report("search", ALL).rows == 24


def test_a_tie_counts_as_lost():
    records, same = [Pair(x, x) for x in "abc"], [np.ones((2, 2)) / math.sqrt(2)] * 3
    assert task_scores(Retrieval(), records, same)["recall_at_1"] == 0


def test_a_text_is_one_vector_and_a_pair_two(small):
    task = Retrieval()
    windows = task.windows(small.text, "query: ", ["a b", ("c", "d e")])
    assert [len(one) for one in windows] == [1, 2]
    assert windows[1][1].ids == small.text.ids(["query: d e"])[0]
    one = task.answer("a b", windows[0], [np.array([3.0, 4.0])])
    assert one == pytest.approx([0.6, 0.8])
    assert task.answer(("c", "d e"), windows[1], [np.ones(2), np.ones(2)]).shape == (2, 2)


def test_documents_are_ranked_by_their_cosine_and_ties_stand_as_given(small):
    adapter = ax.Adapter.new(
        small,
        Retrieval(),
        LoraConfig(r=2, init_lora_weights=False, target_modules=["query"]),
        name="x",
    )
    same = "Bei imepanda"
    documents = ["Mto umefurika", same, "Mto", same, "leo " * 90, same]
    query, *vectors = small.predict(["Bei ya leo", *documents], adapter)
    cosines = [float(query @ vector) for vector in vectors]
    found = small.rank("Bei ya leo", documents, adapter, batch_size=2)
    assert [one.score for one in found] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    assert sorted(one.place for one in found) == list(range(6))
    for one in found:
        assert one.text == documents[one.place]
        assert one.score == pytest.approx(cosines[one.place], abs=1e-5)
    assert [one.place for one in found if one.text == same] == [1, 3, 5]
    assert small.rank("Bei ya leo", documents, adapter, batch_size=2, top=2) == found[:2]
    plain = small.embed(["Bei ya leo", *documents])
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    best = small.rank("Bei ya leo", documents, top=1)[0]
    assert best.score == pytest.approx(float((plain[1:] @ plain[0]).max()), abs=1e-5)


@pytest.mark.parametrize(
    ("query", "documents", "options", "said"),
    [
        ("a", [], {}, "no documents"),
        ("a", "b", {}, "no documents to rank: give a list"),
        (("a", "b"), ["c"], {}, "must be one text"),
        ("a", ["b", 3], {}, "Text 2 is a int"),
        ("a", ["b"], {"top": 0}, "top=0"),
        ("a", ["b"], {"adapter": ax.tasks.Classification(("x", "y"))}, "'x' is of the task 'cl"),
    ],
)
def test_what_cant_be_ranked_is_refused(small, query, documents, options, said):
    if "adapter" in options:
        options = {"adapter": ax.Adapter.new(small, options["adapter"], None, name="x")}
    with pytest.raises(OptionError, match=said):
        small.rank(query, documents, **options)
