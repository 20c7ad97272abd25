"""ROUGE against counts by hand, sentences, and documents' rows."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.check import check
from adaptx.data.large import open_records
from adaptx.data.rouge import chosen_by_rouge, common_length, rouge_l, rouge_n, words
from adaptx.data.sentences import sentence_spans
from adaptx.errors import DataError
from tests.data.files import as_format, refusal, seeded, write

lists = st.lists(st.sampled_from("abcd"), max_size=9)


def longest(a, b):
    """By the plain recurrence."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a)), range(len(b))):
        same = a[i] == b[j]
        rows[i + 1][j + 1] = rows[i][j] + 1 if same else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def harmonic(common, said, gold):
    if not common:
        return 0.0
    precision, recall = common / said, common / gold
    return 2 * precision * recall / (precision + recall)


@seeded
@given(lists, lists)
def test_rouge_is_what_is_counted_by_hand(a, b):
    assert common_length(a, b) == longest(a, b)
    assert rouge_l(a, b) == pytest.approx(harmonic(longest(a, b), len(a), len(b)))
    for n in (1, 2):
        said, gold = ([of[i : i + n] for i in range(len(of) - n + 1)] for of in (a, b))
        left, common = list(gold), 0
        for gram in said:
            if gram in left:
                left.remove(gram)
                common += 1
        assert rouge_n(a, b, n) == pytest.approx(harmonic(common, len(said), len(gold)))


def test_a_published_example():
    """Lin 2004, section 3.1: of the reference three words in order are in S2, two in S3."""
    gold = words("police killed the gunman")
    assert common_length(words("police kill the gunman"), gold) == 3
    assert rouge_l(words("the gunman kill police"), gold) == pytest.approx(2 / 4)


def test_words_of_any_script():
    assert words("Ng'ombe 3, za-Asha!") == ["ng", "ombe", "3", "za", "asha"]
    assert words("ሰላም ለዓለም።") == ["ሰላም", "ለዓለም"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("今天, ok") == ["今", "天", "ok"]
    assert words("e\u0301te") == words("Éte") == ["éte"]


@seeded
@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), min_size=1, max_size=5)
)
def test_chosen_sentences_cant_be_bettered_by_one_more(parts):
    sentences, gold = [" ".join(part) for part in parts], ["a", "b", "c", "d"]

    def score(places):
        said = [word for i in sorted(places) for word in parts[i]]
        return rouge_n(said, gold, 1) + rouge_n(said, gold, 2)

    chosen = chosen_by_rouge(sentences, "a b c d")
    taken = {i for i, mark in enumerate(chosen) if mark}
    assert all(score(taken | {i}) <= score(taken) for i in range(len(parts)))
    if taken:
        alone = [score({i}) for i in range(len(parts))]
        assert alone.index(max(alone)) in taken  # the first that is taken
    else:
        assert not set("abcd") & set(itertools.chain(*parts))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Habari. J. K. Nyerere alisema: “Twende!” Wote wakacheka... kisha wakaondoka.", 3),
        ("Bei ni 3.5 leo?\nNdiyo", 2),
        ("今天下雨。我们不去！“好”他说。", 3),
        ("हाँ। यह है।", 2),
        ("መጣ። ሄደ።", 2),
        ("Kesho? (Ndiyo.) Sawa", 3),
        (" \n ", 0),
    ],
)
def test_sentences_end_where_they_do(text, sentences):
    assert len(sentence_spans(text)) == sentences


@seeded
@given(st.text(st.sampled_from("aB .!?\n。”)J"), max_size=30))
def test_sentences_hold_all_of_a_text_but_white_space(text):
    spans = sentence_spans(text)
    assert [a < b for a, b in spans] == [True] * len(spans)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())
    assert all(text[a:b] == text[a:b].strip() for a, b in spans)


def read(path):
    return open_records(path, "extractive-summarization")


def line(**values):
    return json.dumps(values)


def test_a_document_has_labels_or_a_summary_that_makes_them(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join([
        line(sentences=["A b c.", "D e."], labels=[0, 1]),
        line(text="Paka mweusi. Mbwa mkubwa.", summary="mbwa mkubwa"),
        line(sentences=["A b", "C"], labels=[1, 1], summary="Z"),
    ]))  # fmt: skip
    labelled, text, both = read(path)
    assert (labelled.sentences, labelled.chosen) == (("A b c.", "D e."), (False, True))
    assert labelled.reference == "D e."
    assert (text.sentences, text.chosen) == (("Paka mweusi.", "Mbwa mkubwa."), (False, True))
    assert text.reference == "mbwa mkubwa"
    assert (both.chosen, both.reference) == ((True, True), "Z")
    assert check(path, "extractive-summarization").labels == {"rest": 2, "summary": 4}


@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_a_table_of_texts_and_summaries_is_read(tmp_path, ending):
    rows = [("Paka. Mbwa.", "Mbwa")]
    path = write(tmp_path / f"a{ending}", as_format(ending, rows, ("article", "highlights")))
    (found,) = read(path)
    assert (found.sentences, found.chosen) == (("Paka.", "Mbwa."), (False, True))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sentences": []}, "the document has no sentences"),
        ({"sentences": ["a", 3], "labels": [1, 0]}, "number 2 of the sentences"),
        (
            {"sentences": ["a", "b"], "labels": [1]},
            r"1 labels \(column 'labels'\), and 2 sentences",
        ),
        ({"sentences": ["a", "b"], "labels": [1, 2]}, "have 2: each is 1"),
        ({"sentences": ["a", "b"], "labels": [1, "0"]}, "have '0': each is 1"),
        ({"sentences": ["a", "b"]}, "neither labels nor a summary"),
        ({"sentences": ["a", "b"], "summary": " "}, "the summary .* is ' '"),
        ({"sentences": ["a"], "labels": "1"}, "the labels .* are '1': a list"),
        ({"text": " ", "summary": "a"}, "the text .* is ' '"),
        ({"summary": "a"}, "no column looks like the text"),
    ],
)
def test_a_document_that_isnt_one_is_refused_with_its_line(tmp_path, values, said):
    path = write(
        tmp_path / "a.jsonl", f"{line(sentences=['a', 'b'], labels=[0, 1])}\n{line(**values)}"
    )
    assert re.search(said, refusal(read, path, 2))


def test_an_empty_file_of_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        read(write(tmp_path / "a.jsonl", "\n"))
