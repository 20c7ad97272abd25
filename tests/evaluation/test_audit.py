"""Audits against counting by hand."""

import re

import numpy as np
import pytest
import scipy.stats
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Document, Example, Labelled, Pair, Passage, Tagged
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.audit import Swap, Swapped
from adaptx.evaluation.audit_tables import parts
from adaptx.evaluation.groups import audit_groups
from adaptx.explaining.page import audit_page
from adaptx.tasks import Prediction
from adaptx.tasks.similarity import Score

TOPICS = ax.tasks.Classification(("afya", "michezo"))
NAMES = [("Asha", "John", "Mohammed")]
TEXTS = ["Asha alishinda mechi", "John alienda hospitali na Asha", "Mvua inanyesha", "Ashante sana"]


def adapter_for(encoder, task):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    made = ax.Adapter.new(encoder, task, config, name="x", seed=2)
    made.head.weight.data *= 20
    return made.eval()


def said(label, score=0.9):
    other = {"afya": "michezo", "michezo": "afya"}[label]
    return Prediction(label, score, {label: score, other: 1 - score})


def test_groups_are_scored_as_by_hand():
    gold = ["afya"] * 6 + ["michezo"] * 6
    answered = ["afya"] * 5 + ["michezo"] + ["michezo"] * 3 + ["afya"] * 3
    groups = ["w"] * 5 + ["m"] * 6 + [" "]
    records = [Example("x", label) for label in gold]
    found = audit_groups(TOPICS, records, [said(label) for label in answered], groups)
    assert {name: one.rows for name, one in found.groups.items()} == {"m": 6, "w": 5}
    assert found.groups["w"].scores["accuracy"] == 1
    assert found.groups["m"].scores["accuracy"] == pytest.approx(3 / 6)
    assert (found.best, found.worst, found.without) == ("w", "m", 1)
    assert found.gap.difference == pytest.approx(0.5)
    # Of 6 rows of which 3 are right, a resample has binomially many right; of w all are.
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 6, 0.5) / 6
    assert found.groups["m"].interval == pytest.approx((low, high))
    assert (found.gap.low, found.gap.high) == pytest.approx((1 - high, 1 - low))
    assert found.gap.not_above_zero == pytest.approx(scipy.stats.binom.pmf(6, 6, 0.5), abs=0.005)


def test_groups_of_other_tasks_are_scored_by_their_own_metric():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=40)
    noise = np.where(np.arange(40) < 20, 0.1, 3.0) * rng.normal(size=40)
    records = [Pair("a", "b", str(value)) for value in gold]
    groups = ["near"] * 20 + ["far"] * 20
    answers = [Score(float(value)) for value in gold + noise]
    found = audit_groups(ax.tasks.Similarity(), records, answers, groups)
    wanted = scipy.stats.spearmanr(gold[20:], (gold + noise)[20:]).statistic
    assert found.groups["far"].scores["spearman"] == pytest.approx(wanted)
    assert (found.metric, found.best) == ("spearman", "near")
    assert found.gap.low > 0


def test_swaps_are_counted_as_predict_answers_the_swapped_texts(small):
    adapter = adapter_for(small, TOPICS)
    records = [Example(text) for text in TEXTS]
    found = ax.audit(small, adapter, records, swaps=NAMES, examples=50).swaps
    by_hand = [
        (0, ("Asha", "John"), "John alishinda mechi"),
        (0, ("Asha", "Mohammed"), "Mohammed alishinda mechi"),
        (1, ("Asha", "John"), "Asha alienda hospitali na John"),
        (1, ("Asha", "Mohammed"), "John alienda hospitali na Mohammed"),
        (1, ("John", "Mohammed"), "Mohammed alienda hospitali na Asha"),
    ]
    assert {(s.row, s.terms, s.after) for s in found.worst} == set(by_hand)
    before = small.predict(TEXTS, adapter)
    changes, changed = {}, {}
    for row, terms, text in by_hand:
        (after,) = small.predict([text], adapter)
        old = before[row]
        changes[row, terms] = after.scores[old.label] - old.score
        changed[row, terms] = after.label != old.label
    for swap in found.worst:
        assert swap.change == pytest.approx(changes[swap.row, swap.terms], abs=1e-5)
        assert swap.changed == changed[swap.row, swap.terms]
    assert (found.total.rows, found.total.swaps, found.without, found.unused) == (
        2,
        5,
        2,
        ("Mohammed",),
    )
    assert found.total.changed == pytest.approx(np.mean(list(changed.values())))
    assert found.total.mean_change == pytest.approx(np.mean(list(changes.values())), abs=1e-5)
    pair = found.pairs["Asha", "John"]
    of_pair = [changes[row, ("Asha", "John")] for row in (0, 1)]
    assert (pair.rows, pair.swaps) == (2, 2)
    assert pair.mean_size == pytest.approx(np.abs(of_pair).mean(), abs=1e-5)
    sizes = [(bool(s.changed), abs(s.change)) for s in found.worst]
    assert sizes == sorted(sizes, reverse=True)


def test_swaps_of_one_row_hang_together():
    """The interval is that of the rows: two swaps of a row are drawn together."""

    def swap(row, changed, change):
        return Swap(row, ("a", "b"), "", "", "", "", changed, change)

    rows = [swap(row, row < 5, -0.4 if row < 5 else 0.1) for row in range(10) for _ in "ab"]
    found = Swapped.of(rows)
    assert (found.rows, found.swaps, found.changed) == (10, 20, 0.5)
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 10, 0.5) / 10
    assert found.interval == pytest.approx((low, high))
    assert found.mean_change == pytest.approx(-0.15)
    assert found.mean_size == pytest.approx(0.25)
    numbers = Swapped.of([swap(0, None, 0.2), swap(1, None, -0.4)])
    assert (numbers.changed, numbers.interval) == (None, None)
    assert numbers.mean_change == pytest.approx(-0.1)
    tags = Swapped.of([swap(0, True, None)])
    assert (tags.changed, tags.mean_change, tags.mean_size) == (1.0, None, None)


@pytest.mark.parametrize(
    ("task", "record", "after"),
    [
        (ax.tasks.MultiLabel(("a", "b")), Labelled("Asha yuko", ()), "John yuko"),
        (ax.tasks.PairClassification(("a", "b")), Pair("Asha", "na John"), "John / na Asha"),
        (ax.tasks.Similarity(), Pair("Asha", "na John"), "John / na Asha"),
        (
            ax.tasks.TokenClassification(("O", "B-PER", "I-PER")),
            Tagged(("Asha", "yuko"), ()),
            "John yuko",
        ),
        (
            ax.tasks.TokenClassification(("N", "V"), scheme="plain"),
            Tagged(("Asha", "yuko"), ()),
            "John yuko",
        ),
        (ax.tasks.QuestionAnswering(), Passage("1", "Nani?", "Asha yuko"), "Nani? / John yuko"),
        (
            ax.tasks.Summarization(length=1),
            Document(("Asha  yuko.", "Mvua."), (False, False)),
            "John yuko. Mvua.",
        ),
    ],
)
def test_every_task_with_an_answer_is_audited(small, task, record, after):
    found = ax.audit(small, adapter_for(small, task), [record], swaps=[("Asha", "John")])
    (swap,) = found.swaps.worst
    assert swap.after == after
    assert (swap.changed is None) == isinstance(task, ax.tasks.Similarity)
    unscored = (ax.tasks.TokenClassification, ax.tasks.Summarization)
    assert (swap.change is None) == isinstance(task, unscored)
    assert [part.title for part in parts(found)]


def test_words_with_a_space_in_them_are_no_swap(small):
    adapter = adapter_for(small, ax.tasks.TokenClassification(("O", "B-PER", "I-PER")))
    records = [Tagged(("600 000", "watu"), ("O", "O")), Tagged(("Asha", "600 000"), ("O", "O"))]
    found = ax.audit(small, adapter, records, swaps=[("Asha", "John")]).swaps
    assert (found.total.rows, found.total.swaps, found.without) == (1, 1, 1)
    (swap,) = found.worst
    (answer,) = small.predict([["John", "600 000"]], adapter)
    assert swap.answer_after == str(answer)


def test_a_spans_text_is_swapped_too_before_it_is_compared(small):
    """The same span in both passages is the same answer, whoever's name it is."""
    adapter = adapter_for(small, ax.tasks.QuestionAnswering(longest=1))
    adapter.head.weight.data.zero_()  # every token is as likely: the first one answers
    record = Passage("1", "Nani?", "Asha yuko")
    (swap,) = ax.audit(small, adapter, [record], swaps=[("Asha", "John")]).swaps.worst
    assert (swap.answer_before[:4], swap.answer_after[:4]) == ("Asha", "John")
    assert swap.changed is False


@pytest.mark.parametrize("length", [1, 2])
def test_the_same_sentences_are_the_same_summary(small, length):
    """Whoever's names stand in them: those that were chosen, swapped, beside those chosen then."""
    adapter = adapter_for(small, ax.tasks.Summarization(length=length))
    sentences = ["Asha yuko hapa sana.", "Mvua inanyesha.", "John  alikuja na Asha jana."]
    record = Document(tuple(sentences), (False,) * 3)
    (swap,) = ax.audit(small, adapter, [record], swaps=[("Asha", "John Juma")]).swaps.worst
    swapped = ["John Juma yuko hapa sana.", "Mvua inanyesha.", "John  alikuja na John Juma jana."]
    before, after = small.predict([sentences, swapped], adapter)
    places = [
        [texts.index(sentence.text) for sentence in answer.sentences]
        for texts, answer in ((sentences, before), (swapped, after))
    ]
    assert swap.changed == (places[0] != places[1])


def test_what_cant_be_audited_is_refused(small):
    topics = adapter_for(small, TOPICS)
    rows = [Example("Asha yuko", "afya"), Example("John yuko", "michezo")]
    for options, said in (
        ({}, "nothing to audit"),
        ({"groups": ["w"]}, "1 groups for 2 rows"),
        ({"groups": ["w", "w"]}, "name 1 group (w)"),
        ({"groups": ["", " "]}, "name 0 groups (every row is empty)"),
        ({"swaps": [("Neema", "Juma")]}, "None of the 2 rows holds one of the terms (Neema, Juma)"),
    ):
        with pytest.raises(OptionError, match=re.escape(said)):
            ax.audit(small, topics, rows, **options)
    with pytest.raises(OptionError, match="no rows"):
        ax.audit(small, topics, [], swaps=NAMES)
    with pytest.raises(DataError, match="one term"):
        ax.audit(small, topics, rows, swaps=[("Asha",)])
    with pytest.raises(DataError, match="unknown label"):
        ax.audit(small, topics, [Example("a", "x"), Example("b", "y")], groups=["w", "m"])
    bare = ax.Adapter.new(small, ax.tasks.Retrieval(), None, name="bare")
    with pytest.raises(OptionError, match="has no head"):
        ax.audit(small, bare, [Pair("a", "b")], swaps=NAMES)
    language = ax.Adapter.new(small, ax.tasks.MaskedLanguage(), None, name="language")
    with pytest.raises(OptionError, match="answers nothing"):
        ax.audit(small, language, [Example("Asha")], swaps=NAMES)


def test_a_page_of_an_audit_escapes_its_texts(small):
    rows = [Example("Asha <script>alert(1)</script>", "afya"), Example("John & co", "michezo")]
    found = ax.audit(
        small, adapter_for(small, TOPICS), rows, groups=["<w>", "m"], swaps=[("Asha", "John")]
    )
    html = audit_page(found)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<w>" not in html and "John &amp; co" in html
    assert "Fewer than 30 rows: &lt;w&gt;, m." in html.replace("m, &lt;w&gt;", "&lt;w&gt;, m")
