"""Terms that should be interchangeable, and texts in which two of them have changed places.

A file of terms is a TSV, a set of terms on each line ("Asha<tab>John<tab>Mohammed"), or a JSON list
of such sets. A term is found where it stands as words of its own: no letter, digit, mark or
underscore may touch it, except in scripts that set no spaces between words. It is found as it is
written in the file, in lower case, in capitals, and with its first letter alone a capital; its
partner comes in the same case.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations, groupby
from pathlib import Path
from typing import Any

from adaptx.data.records import Placed
from adaptx.data.tables import Line, read_lines
from adaptx.data.tokens import is_unspaced
from adaptx.errors import DataError, choices

Pair = tuple[str, str]


def read_swaps(path: str | Path) -> list[tuple[str, ...]]:
    """The sets of terms in a file.

    Raises DataError, with the line (in JSON the set's number), for a set of less than two terms, a
    term that stands twice, an empty one, and for a file without any, or of another ending.
    """
    path = Path(path)
    if path.suffix not in (".tsv", ".json"):
        raise DataError("terms are read from a .tsv or .json file.", path)
    lines = list(read_lines(path))
    found: list[tuple[Placed, Sequence[Any]]] = []
    if path.suffix == ".tsv":
        found = [(line, line.text().split("\t")) for line in lines if line.text().strip()]
    else:
        try:
            value = json.loads("".join(line.decoded() for line in lines) or "[]")
        except (ValueError, RecursionError) as error:
            raise DataError(f"this isn't JSON: {error}.", path) from None
        if not isinstance(value, list) or not all(isinstance(each, list) for each in value):
            raise DataError('a list of lists is needed: [["Asha", "John"], …].', path)
        found = [(Line(b"", str(path), number), each) for number, each in enumerate(value, 1)]
    if not found:
        raise DataError("the file has no terms: write a set of them on each line.", path)
    return check_swaps([terms for _, terms in found], [place for place, _ in found])


def check_swaps(
    sets: Sequence[Sequence[Any]], places: Sequence[Placed] | None = None
) -> list[tuple[str, ...]]:
    """The sets of terms, without white space around them; raises DataError as `read_swaps`."""
    made, seen = [], set()
    for number, given in enumerate(sets, 1):
        place = places[number - 1] if places else Line(b"", "the terms", number)
        if not all(isinstance(term, str) for term in given):
            raise place.error(f"{list(given)} aren't all texts.")
        terms = tuple(term.strip() for term in given)
        if len(terms) < 2:
            raise place.error(
                f"there is one term, {choices(terms)!r}: at least two that change places are "
                f"needed, with a tab between them."
            )
        for term in terms:
            if not term:
                raise place.error("a term is empty.")
            if term.casefold() in seen:
                raise place.error(f"the term {term!r} stands twice: a term is in one set, once.")
            seen.add(term.casefold())
        made.append(terms)
    return made


def pairs_of(sets: Sequence[Sequence[str]]) -> list[Pair]:
    """Every two terms of a set."""
    return [pair for terms in sets for pair in combinations(terms, 2)]


@dataclass(frozen=True)
class Swapper:
    """Puts each of two terms in the place of the other, everywhere in a text at once.

    Where both are written alike (both capitalized, or neither), doing it twice gives the text back.
    """

    pattern: re.Pattern[str]
    partner: Mapping[str, str]

    def __call__(self, text: str) -> str:
        """The text with the terms swapped."""
        return self.pattern.sub(lambda match: self.partner[match[0]], text)

    def words(self, words: Sequence[str]) -> list[str]:
        """A text's words, spaces between them, once the terms are swapped in it.

        A term's partner is as many words as it has; every other word stays as it is, with the
        spaces that it may hold.
        """
        text = " ".join(words)
        matches = list(self.pattern.finditer(text))
        if not matches:
            return list(words)
        ends = {end - 1 for end in accumulate(len(word) + 1 for word in words)}
        characters = [None if place in ends else text[place] for place in range(len(text))]
        for match in reversed(matches):
            partner = self.partner[match[0]]
            characters[slice(*match.span())] = [None if c == " " else c for c in partner]
        found = [""]
        for character in characters:
            if character is None:
                found.append("")
            else:
                found[-1] += character
        return found


def swapper(pair: Pair) -> Swapper:
    """What swaps two terms."""
    partner: dict[str, str] = {}
    for case in (str, str.lower, str.upper, _capitalized):
        for form in ("NFC", "NFD"):
            one, other = (unicodedata.normalize(form, case(term)) for term in pair)
            partner.setdefault(one, other)
            partner.setdefault(other, one)
    longest_first = sorted(partner, key=lambda term: (-len(term), term))
    return Swapper(re.compile("|".join(map(_standing, longest_first))), partner)


def _capitalized(term: str) -> str:
    return term[:1].upper() + term[1:]


def _standing(term: str) -> str:
    """The pattern of a term as words of its own."""
    if is_unspaced([term]):
        return re.escape(term)
    touching = f"[\\w{_marks()}]"
    return f"(?<!{touching}){re.escape(term)}(?!{touching})"


@lru_cache
def _marks() -> str:
    r"""Combining marks, such as Devanagari's vowels, as a class's ranges: \w lacks most of them."""
    marks = [i for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("M")]
    runs = (
        [i for _, i in run] for _, run in groupby(enumerate(marks), key=lambda one: one[1] - one[0])
    )
    return "".join(f"{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}" for run in runs)
