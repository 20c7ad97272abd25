import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from adaptx.data.records import Document
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.tasks import Summarization, task_from_json
from adaptx.tasks.base import IGNORED
from adaptx.tasks.summarization import Sentence, Summary, owned

seeded = settings(derandomize=True, deadline=None, max_examples=40)
SENTENCES = ["Mvua ilinyesha.", "Barabara ilifungwa na maji mengi.", "Shule", "Basi halikuja leo"]
documents = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=40)


def test_it_is_written_down_and_refuses_what_cant_be():
    task = Summarization(length=2)
    assert task_from_json(task.to_json()) == task
    for options in ({"length": 0}, {"length": 1.5}, {"labels": ("a",)}, {"pooling": "mean"}):
        with pytest.raises(OptionError):
            Summarization(**options)
    with pytest.raises(DataError, match="no sentence belongs to a summary"):
        task.fit([Document(("a",), (False,))])
    with pytest.raises(DataError, match="every sentence belongs"):
        task.fit([Document(("a",), (True,))])
    with pytest.raises(OptionError, match="list of its sentences"):
        task.answer([1], [], [])


@seeded
@given(documents, st.integers(40, 64))
def test_each_sentence_is_one_windows_which_has_most_of_it(small, sentences, limit):
    """However long the document: none is lost, none counts twice."""
    task = Summarization()
    (windows,) = task.windows(small.text, "query: ", [sentences], limit)
    spans, at = [], 0
    for sentence in sentences:
        spans.append((at, at + len(sentence)))
        at += len(sentence) + 1
    inside = [
        [
            sum(a < end and b > start and b > a >= 0 for a, b in window.offsets.tolist())
            for start, end in spans
        ]
        for window in windows
    ]
    numbers = owned(spans, windows)
    for sentence in range(len(sentences)):
        owners = [i for i, its in enumerate(numbers) if (its == sentence).any()]
        assert len(owners) == 1
        counts = [row[sentence] for row in inside]
        assert counts[owners[0]] == max(counts) == (numbers[owners[0]] == sentence).sum()


@seeded
@given(st.lists(documents, min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([0, 0.2]))
def test_losses_are_the_formula_sentence_by_sentence(small, texts, seed, smoothing):
    random = np.random.default_rng(seed)
    task = Summarization()
    records = [Document(tuple(t), tuple((random.random(len(t)) < 0.4).tolist())) for t in texts]
    windows = task.windows(small.text, "", task.inputs(records), 48)
    targets = task.targets(records, windows)
    longest = max(map(len, targets))
    stacked = torch.from_numpy(task.stacked(targets, longest))
    outputs = torch.randn(len(targets), longest, 1, generator=torch.Generator().manual_seed(seed))
    found = task.losses(outputs, stacked, smoothing)
    row = 0
    for record, its in zip(records, windows, strict=True):
        spans = list(_places(record.sentences))
        for numbers in owned(spans, its):
            losses = []
            for sentence in sorted(set(numbers[numbers >= 0].tolist())):
                places = np.flatnonzero(numbers == sentence)
                logit = outputs[row, places, 0].mean()
                gold = float(record.chosen[sentence]) * (1 - smoothing) + smoothing / 2
                losses.append(float(binary_cross_entropy_with_logits(logit, torch.tensor(gold))))
            assert float(found[row]) == pytest.approx(np.mean(losses) if losses else 0, abs=1e-5)
            row += 1


def _places(sentences):
    at = 0
    for sentence in sentences:
        yield at, at + len(sentence)
        at += len(sentence) + 1


def test_padding_and_other_windows_sentences_count_for_nothing(small):
    task = Summarization()
    records = [Document(("Moja.", "Mbili tatu."), (True, False)), Document(("Nne",), (True,))]
    windows = task.windows(small.text, "query: ", task.inputs(records))
    stacked = task.stacked(task.targets(records, windows), 12)
    prefix = len(small.text.tokenizer.encode("query:", add_special_tokens=False).ids)
    assert (stacked[:, : 1 + prefix] == IGNORED).all() and (stacked[:, -1] == IGNORED).all()
    assert set(stacked[0][stacked[0] != IGNORED]) == {1, 2}


def test_the_best_sentences_come_in_the_documents_order_with_their_places(small):
    task = Summarization(length=2)
    text = "Kwanza mvua. Pili jua!\nTatu upepo mkali."
    windows = task.windows(small.text, "query: ", [text])
    spans = [(0, 12), (13, 22), (23, 40)]
    (numbers,) = owned(spans, windows[0])
    logits = np.select([numbers == 0, numbers == 1, numbers == 2], [1.0, -2.0, 3.0], 9.0)[:, None]
    found = task.answer(text, windows[0], [logits])
    assert [(s.text, s.start, s.end) for s in found.sentences] == [
        ("Kwanza mvua.", 0, 12), ("Tatu upepo mkali.", 23, 40)
    ]  # fmt: skip
    assert [s.score for s in found.sentences] == pytest.approx(
        [1 / (1 + np.exp(-x)) for x in (1, 3)]
    )
    assert all(text[s.start : s.end] == s.text for s in found.sentences)
    assert found.to_json()["summary"][1]["start"] == 23
    assert str(found) == "Kwanza mvua. Tatu upepo mkali."


def test_a_document_of_nothing_has_an_empty_summary(small):
    task = Summarization()
    for nothing in ("", " \n", []):
        (windows,) = task.windows(small.text, "query: ", [nothing])
        outputs = [np.zeros((len(window.ids), 1)) for window in windows]
        assert task.answer(nothing, windows, outputs) == Summary(())


def test_scores_are_rouge_beside_the_reference_or_the_chosen_sentences():
    said = Summary((Sentence("Mvua kubwa", 0, 10, 0.9), Sentence("leo jioni", 20, 29, 0.8)))
    reference = Document(("x",), (True,), "mvua kubwa jioni")
    own = Document(("Mvua kubwa", "kesho", "leo jioni"), (True, False, True))
    found = task_scores(Summarization(), [reference, own], [said, said])
    assert found["rouge_1"] == pytest.approx((6 / 7 + 1) / 2)  # 3 of 4 and of 3 words
    assert found["rouge_2"] == pytest.approx((2 / 5 + 1) / 2)  # 1 of 3 and of 2 pairs
    assert found["rouge_l"] == pytest.approx((6 / 7 + 1) / 2)
