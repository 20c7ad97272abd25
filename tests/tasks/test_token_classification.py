import itertools
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score

from adaptx.data.read import read_tagged
from adaptx.data.records import Tagged
from adaptx.data.windows import Window, sliding
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.tasks import TASKS, TokenClassification, task_from_json
from adaptx.tasks.base import IGNORED
from adaptx.tasks.token_classification import Tags
from adaptx.tasks.words import first_tokens, word_spans

seeded = settings(derandomize=True, deadline=None, max_examples=60)
TASK = TokenClassification(("O", "B-LOC", "I-LOC", "B-PER", "I-PER"))
NFD = unicodedata.normalize("NFD", "kọ́-kọ́ tẹ́'lẹ̀ é-é")
TAGS = st.sampled_from(TASK.labels)


def row(text, tags, line=3):
    return Tagged(tuple(text.split()), tuple(tags.split()), "train.conll", line)


def test_fit_gives_each_type_both_its_tags():
    task = TokenClassification().fit([row("Juma yuko Kenya", "B-PER O B-LOC")])
    assert task == TASK
    assert task_from_json(task.to_json()) == task
    assert TASKS["token-classification"] is TokenClassification


def test_plain_tags_are_taken_as_they_are():
    task = TokenClassification(scheme="plain").fit([row("Juma yuko", "NOUN VERB")])
    assert (task.labels, task.metrics) == (("NOUN", "VERB"), ("accuracy",))
    logits = np.eye(2)[[0, 1]] * 9.0
    answer = task.answer(["Juma", "yuko"], [window([(0, 4), (5, 9)])], [padded(logits)])
    assert (answer.tags, answer.entities) == (("NOUN", "VERB"), ())
    assert answer.to_json() == {"words": ["Juma", "yuko"], "tags": ["NOUN", "VERB"]}


@pytest.mark.parametrize(
    ("labels", "scheme", "said"),
    [
        (("ADJ", "NOUN"), "plain", ("", "NOUN", "")),
        (TASK.labels, "bio", ("O", "B-LOC", "O")),
        (("B-LOC", "I-LOC"), "bio", ("", "I-LOC", "")),
    ],
)
def test_a_word_that_became_no_token_has_no_tag(labels, scheme, said):
    task = TokenClassification(labels, scheme)
    logits = np.zeros((1, len(labels)))
    logits[0, 1] = 9
    answer = task.answer(["\u200b", "mtu", "\u200b"], [window([(2, 5)])], [padded(logits)])
    assert answer.tags == said
    assert [entity.text for entity in answer.entities] == ["mtu"] * (scheme == "bio")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (
            "B-LOC NOUN O",
            r"conll, line 3.*word 2, 'b': the tag 'NOUN' is none of BIO's.*plain",
        ),
        ("O I-LOC O", r"word 2, 'b': I-LOC follows O, .*begin it with B-LOC.*--repair"),
        ("B-PER I-LOC O", "word 2, 'b': I-LOC follows B-PER"),
        ("B- O O", "the tag 'B-' is none of BIO's"),
    ],
)
def test_bad_tags_are_refused_with_their_place(tags, said):
    rows = [row("x y", "B-LOC O", 1), row("a b c", tags)]
    with pytest.raises(DataError, match=said):
        TokenClassification().fit(rows)


@pytest.mark.parametrize(
    ("task", "tag", "said"),
    [
        (TokenClassification(), "PER", "none of BIO's.*scheme='plain', --scheme plain"),
        (TokenClassification(), "I-PER", "I-PER follows O"),
        (TASK, "B-ORG", "unknown tag 'B-ORG'"),
        (TokenClassification(), "B-ORG", "'ORG' stands in dev but not in train"),
    ],
)
def test_in_a_conll_file_the_line_is_that_of_the_word(tmp_path, task, tag, said):
    path = tmp_path / "a.conll"
    path.write_text(f"# id = 1\nJuma B-PER\n\nRais O\nyuko O\nKenya {tag}\n")
    train = [row("Juma yuko", "B-PER O")]
    with pytest.raises(DataError, match=f"a.conll, line 6: .*{said}"):
        task.fit(train, read_tagged(path))


def test_repair_begins_an_entity_where_nothing_goes_on():
    task = TokenClassification(repair=True).fit([row("a b c", "O I-LOC I-LOC")])
    (target,) = task.targets([row("a b c", "O I-LOC I-LOC")], [[window([(0, 1), (2, 3), (4, 5)])]])
    assert target.tolist() == [IGNORED, 0, 1, 2, IGNORED]
    said = Tags(("a", "b", "c"), ("O", "B-LOC", "I-LOC"), (), True)
    found = task_scores(task, [row("a b c", "O I-LOC I-LOC")], [said])
    assert found == dict.fromkeys(task.metrics, 1.0)


def test_what_dev_has_alone_and_one_tag_alone_are_refused():
    with pytest.raises(DataError, match="'LOC' stands in dev but not in train"):
        TokenClassification().fit([row("a b", "B-PER O")], [row("a", "B-LOC")])
    with pytest.raises(DataError, match="one tag only"):
        TokenClassification().fit([row("a b", "O O")])
    with pytest.raises(DataError, match="unknown tag 'B-ORG'; allowed"):
        TASK.fit([row("a b", "B-ORG O")])


@pytest.mark.parametrize(
    "options",
    [{"scheme": "bilou"}, {"pooling": "mean"}, {"labels": ("NOUN",)}, {"labels": ("O", "O")}],
)
def test_options_that_cant_be_are_refused(options):
    with pytest.raises(OptionError):
        TokenClassification(**options)


def test_repair_needs_the_label_that_begins_an_entity():
    with pytest.raises(OptionError, match="have 'I-PER' and no 'B-PER', which repair writes"):
        TokenClassification(("O", "B-LOC", "I-LOC", "I-PER"), repair=True)
    assert TokenClassification(("O", "B-PER"), repair=True).repair


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Rais, Samia!", ["Rais", ",", "Samia", "!"]),
        ("ng'ombe 3.5 (leo)", ["ng'ombe", "3.5", "(", "leo", ")"]),
        ("Adé lọ sí  Ìbàdàn.", ["Adé", "lọ", "sí", "Ìbàdàn", "."]),
        ("किताब है।", ["किताब", "है", "।"]),
        ("  ", []),
        ("a--b", ["a", "-", "-", "b"]),
        ("दो-तीन की-बोर्ड", ["दो-तीन", "की-बोर्ड"]),
        (NFD, NFD.split()),
    ],
)
def test_words_of_a_text(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("李明住在北京。", "李 明 住 在北京 。"),
        ("他用iPhone打电话，2024年。", "他 用 iPhone 打电话 ， 2024 年 。"),
        ("นายกรัฐมนตรีเดินทางไปเชียงใหม่ 3.5 กม.", "นายกรัฐมนตรี เดินทางไป เชียงใหม่ 3.5 กม ."),
        ("東京に行きました。", "東京 に行きました 。"),
        ("ស្រី ស្រឡាញ់ប្រទេសកម្ពុជា", "ស្រី ស្រឡាញ់ ប្រទេសកម្ពុជា"),
        ("ຂ້ອຍຢູ່ວຽງຈັນ", "ຂ້ອຍ ຢູ່ ວຽງຈັນ"),
        ("ကျွန်တော်ရန်ကုန်မှာနေတယ်။", "ကျွန် တော် ရန် ကုန် မှာ နေ တယ် ။"),
        ("Rais 李明在北京 alisema", "Rais 李 明 在北京 alisema"),
    ],
)
def test_in_scripts_without_spaces_tokens_are_words(small, text, words):
    (windows,) = TASK.windows(small.text, "query: ", [text])
    answer = TASK.answer(text, windows, [np.zeros((len(one.ids), 5)) for one in windows])
    assert answer.words == tuple(words.split())
    assert answer.words == tuple(text[start:end] for start, end in answer.spans)


@seeded
@given(st.lists(st.text(st.characters(exclude_categories=("Z", "C")), min_size=1), max_size=9))
def test_words_given_keep_their_places(words):
    text = " ".join(words)
    assert [text[start:end] for start, end in word_spans(words)] == words


@seeded
@given(st.lists(st.sampled_from(["Adé", "Ìbàdàn", ",", "leo", "ﬁn", "東京"]), max_size=30))
def test_every_word_has_its_first_token_in_some_window(small, words):
    """The token that the tokenizer puts first among a word's own, whatever the window."""
    (windows,) = sliding(small.text, "query: ", [" ".join(words)], 48, 12)
    spans, found = word_spans(words), {}
    for number, one in enumerate(windows):
        for word, token in first_tokens(spans, one, number == 0):
            found.setdefault(word, set()).add(tuple(one.offsets[token].tolist()))
    (once,) = sliding(small.text, "query: ", [" ".join(words)])[0]
    for word, (start, end) in enumerate(spans):
        own = [tuple(o) for o in once.offsets.tolist() if o[1] > start and 0 <= o[0] < end]
        assert found[word] == {own[0]}


@seeded
@given(st.lists(st.lists(st.floats(-4, 4), min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_path_is_the_likeliest_that_bio_allows(rows):
    """Viterbi against trying them all."""
    log_p = np.array(rows)
    found = TASK._path(log_p)

    def allowed(path):
        tags = ["O", *(TASK.labels[i] for i in path)]
        return all(
            not tag.startswith("I-") or before[2:] == tag[2:]
            for before, tag in itertools.pairwise(tags)
        )

    def score(path):
        return sum(log_p[i, tag] for i, tag in enumerate(path))

    every = itertools.product(range(5), repeat=len(rows))
    assert allowed(found)
    assert score(found) == pytest.approx(max(score(path) for path in every if allowed(path)))


def test_a_word_is_answered_by_the_window_that_has_most_around_it():
    words, text = ["a", "b", "c", "d"], "a b c d"
    assert text == " ".join(words)
    windows = [window([(0, 1), (2, 3), (4, 5)]), window([(2, 3), (4, 5), (6, 7)])]
    left, right = np.zeros((3, 5)), np.zeros((3, 5))
    left[:, 1], right[:, 3] = 9, 9  # B-LOC in the first window, B-PER in the second
    answer = TASK.answer(words, windows, [padded(left), padded(right)])
    assert answer.tags == ("B-LOC", "B-LOC", "B-PER", "B-PER")
    assert [e.text for e in answer.entities] == words
    assert answer.entities[2].score == pytest.approx(np.exp(9) / (np.exp(9) + 4))


@seeded
@given(st.data())
def test_losses_are_each_rows_mean_over_its_words(data):
    """The formula, a word at a time."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(3, 4, 5, generator=generator)
    targets = torch.tensor(
        data.draw(st.lists(st.lists(st.sampled_from([IGNORED, 0, 1, 4]), min_size=4, max_size=4),
                           min_size=3, max_size=3))
    )  # fmt: skip
    found = TASK.losses(logits, targets)
    for row_, (its_logits, its_targets) in enumerate(zip(logits, targets, strict=True)):
        each = [
            -float(torch.log_softmax(its_logits[i], 0)[t])
            for i, t in enumerate(its_targets.tolist())
            if t != IGNORED
        ]
        assert float(found[row_]) == pytest.approx(sum(each) / max(len(each), 1), abs=1e-5)


@seeded
@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=6))
def test_scores_are_seqevals(sentences):
    gold = [[a for a, _ in sentence] for sentence in sentences]
    said = [[b for _, b in sentence] for sentence in sentences]
    records = [Tagged(tuple("w" for _ in tags), tuple(tags)) for tags in gold]
    answers = [Tags(tuple("w" for _ in tags), tuple(tags), (), True) for tags in said]
    found = task_scores(TASK, records, answers)
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(score(gold, said, zero_division=0))
    flat = [a == b for sentence in sentences for a, b in sentence]
    assert found["accuracy"] == pytest.approx(np.mean(flat))


def window(places):
    """A window of tokens at these places, between two special ones."""
    offsets = np.array([(-1, -1), *places, (-1, -1)], np.int32)
    return Window([0, *range(5, 5 + len(places)), 2], offsets)


def padded(logits):
    """Logits for the special tokens too, which mean nothing."""
    nothing = np.full((1, logits.shape[1]), 7.0)
    return np.concatenate([nothing, logits, nothing])
