"""How a language spells: which pieces of a vocabulary look like its words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

LETTERS = 3  # before a letter, that its probability depends on
RARE = 1e-4  # the probability of a letter that no piece has


class Spelling:
    """How likely letters follow each other in weighted pieces (Witten and Bell's interpolation).

    p(x | h) = (n(h x) + u(h) p(x | h without its first)) / (n(h) + u(h))

    n weights, u(h) how many different letters follow the letters h. A gram is h and x as one text.
    """

    def __init__(self, weights: Mapping[str, float]):
        seen: dict[str, float] = defaultdict(float)
        for piece, weight in weights.items():
            for gram in grams_of(piece):
                seen[gram] += weight
        self.after: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for gram, weight in seen.items():
            for start in range(len(gram)):
                self.after[gram[start:-1]][gram[-1]] += weight
        self.sums = {h: (sum(after.values()), len(after)) for h, after in self.after.items()}
        self.logs: dict[str, float] = {}

    def log(self, grams: Sequence[str]) -> float:
        """The log of the probability of a piece with these grams."""
        for gram in grams:
            if gram not in self.logs:
                self.logs[gram] = math.log(self.probability(gram))
        return sum(self.logs[gram] for gram in grams)

    def probability(self, gram: str) -> float:
        """Of a gram's last letter, where the others stand before it."""
        shorter = self.probability(gram[1:]) if len(gram) > 1 else RARE
        if gram[:-1] not in self.sums:
            return shorter
        weight, different = self.sums[gram[:-1]]
        seen = self.after[gram[:-1]].get(gram[-1], 0.0)
        return (seen + different * shorter) / (weight + different)


def grams_of(piece: str) -> list[str]:
    """Each letter of a piece with those before it; its begin and its end are letters too."""
    framed = f"\0{piece}\1"
    return [framed[max(0, i - LETTERS) : i + 1] for i in range(1, len(framed))]
