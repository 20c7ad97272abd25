"""Question answering: exact match and F1 after SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250).

Texts are compared in lower case, without punctuation, without the English words a, an and the, and
with one space for any white space; a question with several gold answers counts the nearest.
Punctuation is `string.punctuation`, as in SQuAD's script, and every character of Unicode's category
P, as in MLQA's (Lewis et al. 2020, arXiv 1910.07475). Words are what then stands between spaces, in
every language; no other language's articles are left out.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from adaptx.data.records import Passage
from adaptx.evaluation.tally import Tally
from adaptx.tasks.question_answering import Span

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def answer_tally(records: Sequence[Passage], answers: Sequence[Span]) -> Tally:
    """F1 and exact match of each question, over 1."""
    f1, exact = np.zeros(len(records)), np.zeros(len(records))
    for i, (record, answer) in enumerate(zip(records, answers, strict=True)):
        gold = [text for text, _ in record.answers] or [""]
        f1[i] = max(word_f1(answer.text, text) for text in gold)
        exact[i] = max(normalized(answer.text) == normalized(text) for text in gold)
    ones = np.ones(len(records))
    return {"f1": (f1, ones), "exact_match": (exact, ones)}


def word_f1(said: str, gold: str) -> float:
    """Of two texts' words; of two empty ones 1."""
    a, b = normalized(said).split(), normalized(gold).split()
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def normalized(text: str) -> str:
    """What is compared."""
    kept = "".join(c for c in text.lower() if not _is_punctuation(c))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
