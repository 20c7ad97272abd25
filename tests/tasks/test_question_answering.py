import re
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data.records import Passage
from adaptx.data.windows import Window
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.evaluation.questions import normalized, word_f1
from adaptx.tasks import QuestionAnswering, task_from_json
from adaptx.tasks.base import IGNORED
from adaptx.tasks.question_answering import END, START, Span

seeded = settings(derandomize=True, deadline=None, max_examples=60)
PASSAGE = "Samia alizaliwa Zanzibar mwaka 1960, na alisoma Mzumbe. " * 12


def asked(answer, at=None, context=PASSAGE):
    start = context.index(answer) if at is None else at
    return Passage("q", "Wapi?", context, ((answer, start),) if answer else ())


def test_fit_sees_questions_without_an_answer():
    task = QuestionAnswering().fit([asked("Zanzibar")])
    assert task == QuestionAnswering() and task_from_json(task.to_json()) == task
    assert QuestionAnswering().fit([asked("Zanzibar"), asked("")]).unanswerable
    with pytest.raises(DataError, match="no question has an answer"):
        QuestionAnswering().fit([asked("")])
    with pytest.raises(DataError, match="no training"):
        QuestionAnswering().fit([])


@pytest.mark.parametrize("options", [{"longest": 0}, {"labels": ("a",)}, {"pooling": "cls"}])
def test_options_that_cant_be_are_refused(options):
    with pytest.raises(OptionError):
        QuestionAnswering(**options)


@seeded
@given(st.sampled_from(["Zanzibar", "1960", "Mzumbe", "Samia", "alisoma"]), st.integers(0, 11))
def test_targets_are_the_answers_tokens_in_each_window_that_has_them(small, answer, which):
    """What logits at the targets decode to is the answer, wherever in the passage it stands."""
    place = [i for i in range(len(PASSAGE)) if PASSAGE.startswith(answer, i)][which]
    task, record = QuestionAnswering(), asked(answer, place)
    (windows,) = task.windows(small.text, "query: ", task.inputs([record]), 90)
    targets = task.targets([record], [windows])
    assert len(windows) > 1
    outputs, held = [], 0
    for target in targets:
        assert (target >= 0).sum() > 1 and target[0] >= 0
        assert ((target & START > 0) & (target >= 0)).sum() == 1
        assert ((target & END > 0) & (target >= 0)).sum() == 1
        held += target[0] == 0
        logits = np.zeros((len(target), 2))
        for column, bit in enumerate((START, END)):
            logits[(target >= 0) & ((target & bit) > 0), column] = 20
        outputs.append(logits)
    assert held  # some window has all of it
    found = task.answer(task.inputs([record])[0], windows, outputs)
    assert (found.text, found.start, found.end) == (answer, place, place + len(answer))
    assert found.score == pytest.approx(1, abs=1e-3)


def test_losses_are_the_mean_of_both_cross_entropies():
    task = QuestionAnswering()
    targets = torch.tensor([[0, IGNORED, START, END, 0, IGNORED], [START | END, 0, 0, 0, 0, 0]])
    logits = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    found = task.losses(logits, targets)
    for row, (kept, start, end) in enumerate([([0, 2, 3, 4], 1, 2), (list(range(6)), 0, 0)]):
        parts = [
            -torch.log_softmax(logits[row, kept, column], 0)[place]
            for column, place in ((0, start), (1, end))
        ]
        assert float(found[row]) == pytest.approx(float(sum(parts)) / 2, abs=1e-5)


def test_the_likeliest_span_of_all_windows_is_the_answer_and_none_is_longer_than_asked():
    text = "aa bb cc dd"
    offsets = np.array([(-1, -1), (0, 2), (2, 5), (5, 8), (8, 11), (-1, -1)], np.int32)
    window, logits = Window([0, 1, 2, 3, 4, 5], offsets), np.zeros((6, 2))
    logits[1, 0] = logits[4, 1] = 5
    (one,) = [QuestionAnswering().answer(("q", text), [window], [logits])]
    assert (one.text, one.start, one.end) == ("aa bb cc dd", 0, 11)
    short = QuestionAnswering(longest=2).answer(("q", text), [window], [logits])
    assert len(short.text.split()) <= 2
    sure = logits.copy()
    sure[2] = 9
    found = QuestionAnswering().answer(("q", text), [window, window], [logits, sure])
    assert (found.text, found.start) == ("bb", 3)  # the space before it isn't its own
    nothing = np.zeros((6, 2))
    nothing[0] = 9
    assert QuestionAnswering(unanswerable=True).answer(("q", text), [window], [nothing]).text == ""
    assert QuestionAnswering().answer(("q", text), [window], [nothing]).text


@pytest.mark.parametrize(
    ("said", "gold", "f1"),
    [
        ("The Nile.", "nile", 1.0),
        ("mto Nile", "Nile", 2 / 3),
        ("Kongo", "Nile", 0.0),
        ("", "", 1.0),
        ("", "Nile", 0.0),
        ("a a b", "a b b", 2 * 1 / (1 + 2)),  # articles are left out: b, and b b
    ],
)
def test_word_f1(said, gold, f1):
    assert word_f1(said, gold) == pytest.approx(f1)


def by_squads_script(text):
    """evaluate-v1.1.py's: lower case, no string.punctuation, no articles, one space."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@pytest.mark.parametrize(
    "text", ["$5.2 Billion", "x + y", "<b>", "10^9", "a=b", "The H~O", "1 | 2", "an `x`", "50 %"]
)
def test_what_is_compared_of_ascii_is_what_squads_script_compares(text):
    assert normalized(text) == by_squads_script(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("¿Qué?", "qué"),
        ("“Dodoma” — 1973–1996", "dodoma 19731996"),
        ("दिल्ली।", "दिल्ली"),
        ("el río, der Fluss", "el río der fluss"),  # only English articles go
        ("5 €", "5 €"),  # a symbol beyond ASCII stays, as in MLQA's script
    ],
)
def test_beyond_ascii_unicodes_punctuation_goes_too(text, kept):
    assert normalized(text) == kept


def test_the_nearest_of_several_gold_answers_counts():
    record = Passage("q", "?", "Nile mto", (("Nile", 0), ("Nile mto", 0)))
    scores = task_scores(QuestionAnswering(), [record], [Span("nile mto", 0, 8, 1.0)])
    assert scores == {"f1": 1.0, "exact_match": 1.0}
