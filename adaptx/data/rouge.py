"""ROUGE: what a summary has in common with a reference (Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries"), for any script; and labels of sentences made of it.

ROUGE-N: F1 of the words (N = 1) or pairs of words (N = 2) in common, each as often as in both.
ROUGE-L: F1 of the longest common subsequence of words, of the whole texts.
A word is a run of letters, marks and digits, in lower case; in a script without spaces between
words each character is one. Nothing is stemmed.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from adaptx.data.tokens import is_unspaced_letter

Words = Sequence[str]


def words(text: str) -> list[str]:
    """The words of a text."""
    found: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFC", text).lower():
        if unicodedata.category(character)[0] not in "LMN":
            inside = False
        elif is_unspaced_letter(character):
            found.append(character)
            inside = False
        elif inside:
            found[-1] += character
        else:
            found.append(character)
            inside = True
    return found


def rouge_n(said: Words, gold: Words, n: int) -> float:
    """F1 of the n-grams in common."""
    a, b = (Counter(zip(*(of[i:] for i in range(n)), strict=False)) for of in (said, gold))
    return _f1((a & b).total(), a.total(), b.total())


def rouge_l(said: Words, gold: Words) -> float:
    """F1 of the longest common subsequence."""
    return _f1(common_length(said, gold), len(said), len(gold))


def common_length(a: Words, b: Words) -> int:
    """The length of the longest common subsequence, a word of b at a time, a's in the bits of one
    number (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        both = row & places.get(word, 0)
        row = (row + both | row - both) & every
    return len(a) - row.bit_count()


def chosen_by_rouge(sentences: Sequence[str], summary: str) -> tuple[bool, ...]:
    """Which sentences make an extract near to a summary: one after another, that which adds most to
    ROUGE-1 + ROUGE-2, while any adds something (Nallapati et al. 2017, arXiv 1611.04230).
    """
    gold, parts = words(summary), [words(sentence) for sentence in sentences]
    left = {i for i, part in enumerate(parts) if set(part) & set(gold)}  # others add nothing
    taken: set[int] = set()

    def score(places: set[int]) -> float:
        said = [word for i in sorted(places) for word in parts[i]]
        return rouge_n(said, gold, 1) + rouge_n(said, gold, 2)

    best = 0.0
    while left:
        top, place = max((score(taken | {i}), -i) for i in left)
        if top <= best:
            break
        best = top
        left.remove(-place)
        taken.add(-place)
    return tuple(i in taken for i in range(len(parts)))


def _f1(common: int, said: int, gold: int) -> float:
    return 2 * common / (said + gold) if common else 0.0
