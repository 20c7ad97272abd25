"""The pieces of a tokenizer's vocabulary: which belong together, and which some languages need.

One class for each kind of tokenizer's model, on its JSON (see adaptx.onnx.vocabulary for what is
kept and why).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from adaptx.errors import OptionError, choices
from adaptx.onnx.spelling import Spelling, grams_of

SCRIPT = 0.001  # of a language's letters: a script with less is a stray name or quotation
FIRST = 4  # ids that stay: among them is the padding from which RoBERTa's positions count
EVIDENCE = 0.5  # how much of the spelling's evidence counts: letters aren't independent
PIECES = 2e4  # how all languages spell is learnt as if from so many, so of rare pieces little
BYTE = re.compile("<0x[0-9A-F]{2}>")  # what byte fallback writes
PARTIAL = "\ufffd"  # a part of a character, where pieces are made of bytes


class Pieces:
    """A tokenizer's JSON, and the ids of its model's pieces."""

    def __init__(self, data: dict[str, Any]):
        self.data, self.model = data, data["model"]
        self.ids = self.read()
        self.byte_level = _is_byte_level(data)
        self.marks = [
            mark
            for key in ("continuing_subword_prefix", "end_of_word_suffix")
            if (mark := self.model.get(key))
        ]
        self.special = self.framing() | self.unknown()
        self.bodies = {id_: self.body(piece) for piece, id_ in self.ids.items()}

    def read(self) -> dict[str, int]:
        """The id of each piece of the model."""
        return dict(self.model["vocab"])

    def cut_model(self, new: Mapping[int, int]) -> None:
        """Leave the pieces that have a new id in the model, with that."""
        vocab = {piece: new[old] for piece, old in self.ids.items() if old in new}
        self.model["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))

    def unknown(self) -> set[int]:
        """What the model needs where a text has an unknown character."""
        token = self.model.get("unk_token")
        return {self.ids[token]} if token in self.ids else set()

    def frequency(self, id_: int) -> float:
        """The log of how often a piece comes in all texts, up to a constant: trainers sort so."""
        return -math.log(id_ + 1)

    def closed(self, ids: Iterable[int]) -> set[int]:
        """The ids, and those without which their pieces wouldn't come about."""
        return set(ids)

    def body(self, piece: str) -> str:
        """The text of a piece, without the marks of a word's begin, middle and end."""
        if self.byte_level and all(letter in _byte_of() for letter in piece):
            body = bytes(_byte_of()[letter] for letter in piece).decode("utf-8", "replace")
            return body.strip(" ")
        for mark in self.marks:
            piece = piece.removeprefix(mark).removesuffix(mark)
        return piece.strip("▁")

    def scripts(self, used: Sequence[Mapping[int, int]]) -> set[str]:
        """The scripts of the pieces that a language uses, and what all scripts share."""
        found = {""}
        for counts in used:
            letters: Counter[str] = Counter()
            for id_, count in counts.items():
                for character in self.bodies.get(id_, ""):
                    letters[_script(character)] += count
            del letters[""]
            least = SCRIPT * letters.total()
            found.update(script for script, count in letters.items() if count >= least)
        return found

    def framing(self) -> set[int]:
        """The ids of special and added tokens, of templates and of padding."""
        found: list[int] = []

        def seen(old: int) -> int:
            found.append(old)
            return old

        _renumber(self.data, seen)
        return set(found)

    def single(self, piece: str, body: str, scripts: set[str]) -> bool:
        """Whether a piece is a mark, a byte, a number, or a character kept whatever the texts."""
        if BYTE.fullmatch(piece) or (self.byte_level and len(piece) == 1):
            return True
        if len(body) != 1:
            return not body or (body.isascii() and body.isdigit())
        known = unicodedata.category(body)[0] in "LMNPS" and _script(body) in scripts
        return body.isascii() or known

    def kept(self, used: Sequence[Mapping[int, int]], margin: int) -> np.ndarray:
        """The ids to keep `[K]`, ascending, where each language uses what `used` counts."""
        scripts = self.scripts(used)
        chosen = self.special.union(*used, (id_ for id_ in self.ids.values() if id_ < FIRST))
        chosen.update(
            id_
            for piece, id_ in self.ids.items()
            if id_ not in chosen and self.single(piece, self.bodies[id_], scripts)
        )
        found = self.closed(chosen)
        limit = len(found) + margin
        for id_ in self.likely(found, scripts, used) if margin else ():
            if len(found) >= limit:
                break
            found |= self.closed([id_])
        return np.array(sorted(found), np.int64)

    def likely(
        self, found: set[int], scripts: set[str], used: Sequence[Mapping[int, int]]
    ) -> list[int]:
        """What isn't found yet of the scripts' pieces, the likeliest in these languages first."""
        ours = {
            id_: piece
            for piece, id_ in self.ids.items()
            if id_ not in self.special and scripts.issuperset(map(_script, self.bodies[id_]))
        }
        most = max(map(self.frequency, ours), default=0.0)  # scores may be ranks, far below 0
        shares = {piece: math.exp(self.frequency(id_) - most) for id_, piece in ours.items()}
        scale = PIECES / max(sum(shares.values()), 1.0)
        everyone = Spelling({piece: scale * share for piece, share in shares.items()})
        languages = [
            Spelling({ours[i]: count for i, count in counts.items() if i in ours})
            for counts in used
        ]

        def likelihood(id_: int) -> float:
            grams = grams_of(ours[id_])
            evidence = max(spelling.log(grams) for spelling in languages) - everyone.log(grams)
            return self.frequency(id_) + EVIDENCE * evidence

        return sorted(ours.keys() - found, key=lambda id_: (-likelihood(id_), id_))

    def remapped(self, kept: np.ndarray) -> dict[str, Any]:
        """The tokenizer's JSON with the kept pieces only, and their new ids."""
        new = {old: place for place, old in enumerate(kept.tolist())}
        self.cut_model(new)
        _renumber(self.data, new.__getitem__)
        return self.data


class _Unigram(Pieces):
    def read(self) -> dict[str, int]:
        return {piece: id_ for id_, (piece, _) in enumerate(self.model["vocab"])}

    def cut_model(self, new: Mapping[int, int]) -> None:
        vocab = self.model["vocab"]
        self.model["vocab"] = [vocab[old] for old in new if old < len(vocab)]
        self.model["unk_id"] = new[self.model["unk_id"]]

    def unknown(self) -> set[int]:
        unk_id = self.model.get("unk_id")
        if unk_id is None:
            raise OptionError(
                "This Unigram tokenizer can't be cut: it has no unknown piece (unk_id), and fails "
                "on a character that isn't kept."
            )
        scores = [score for _, score in self.model["vocab"]]
        return {unk_id, int(np.argmin(scores))}  # from the lowest follows the unknown piece's score

    def frequency(self, id_: int) -> float:
        return float(self.model["vocab"][id_][1])


class _WordPiece(Pieces):
    def unknown(self) -> set[int]:
        found = super().unknown()
        if not found:
            raise OptionError(
                f"This WordPiece tokenizer can't be cut: its unknown token "
                f"{self.model.get('unk_token')!r} isn't in its vocabulary."
            )
        return found


class _BPE(Pieces):
    def __init__(self, data: dict[str, Any]):
        super().__init__(data)
        self.pieces = {id_: piece for piece, id_ in self.ids.items()}
        self.ranks = {(a, b): rank for rank, (a, b) in enumerate(self.model["merges"])}
        self.parts = defaultdict(list)  # of every merge that makes a piece
        for pair in self.ranks:
            self.parts[self.joined(*pair)].append(pair)

    def joined(self, a: str, b: str) -> str:
        return a + b[len(self.model.get("continuing_subword_prefix") or "") :]

    def cut_model(self, new: Mapping[int, int]) -> None:
        super().cut_model(new)
        vocab = self.model["vocab"]
        self.model["merges"] = [
            [a, b]
            for a, b in self.model["merges"]
            if a in vocab and b in vocab and self.joined(a, b) in vocab
        ]

    def closed(self, ids: Iterable[int]) -> set[int]:
        found, left = set(), list(ids)
        while left:
            id_ = left.pop()
            if id_ not in found:
                found.add(id_)
                if id_ in self.pieces:  # an added token may stand beside the model
                    left += [self.ids[part] for part in self.way(self.pieces[id_])]
        return found

    def way(self, piece: str) -> set[str]:
        """The pieces from which merging makes this one.

        Most are made by one merge. Converted vocabularies have a merge for every pair that gives a
        piece: merging the piece's characters, as any text's, shows which are taken.
        """
        if self.marks or len(self.parts[piece]) < 2:
            return {part for pair in self.parts[piece] for part in pair}
        symbols, found = list(piece), set(piece)
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            ranked = [(self.ranks[p], i) for i, p in enumerate(pairs) if p in self.ranks]
            if not ranked:
                return set()  # merging never makes it: it is found whole, or not at all
            _, i = min(ranked)
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
            found.add(symbols[i])
        return found


KINDS: dict[str, type[Pieces]] = {"Unigram": _Unigram, "WordPiece": _WordPiece, "BPE": _BPE}


def pieces_of(tokenizer: Tokenizer) -> Pieces:
    """The pieces of a tokenizer; OptionError for a kind that can't be cut."""
    data = json.loads(tokenizer.to_str())
    kind = data["model"]["type"]
    if kind not in KINDS:
        raise OptionError(
            f"A {kind} tokenizer's vocabulary can't be cut; these can: {choices(KINDS)}."
        )
    return KINDS[kind](data)


@functools.cache
def _script(character: str) -> str:
    """A letter's or mark's script, by the first word of its name; "" for what all scripts share."""
    if unicodedata.category(character)[0] in "LM" or character == PARTIAL:
        return unicodedata.name(character, "?").split(" ", 1)[0]
    return ""


def _renumber(data: dict[str, Any], number: Callable[[int], int]) -> None:
    """Put `number(id)` for every id that a tokenizer's JSON has outside of its model."""
    for token in data["added_tokens"]:
        token["id"] = number(token["id"])
    if data.get("padding"):
        data["padding"]["pad_id"] = number(data["padding"]["pad_id"])
    left = [data["post_processor"]] if data.get("post_processor") else []
    while left:
        part = left.pop()
        left += part.get("processors", ())  # a Sequence
        if part["type"] == "TemplateProcessing":
            for token in part["special_tokens"].values():
                token["ids"] = [number(old) for old in token["ids"]]
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            for end in ("sep", "cls"):
                part[end] = [part[end][0], number(part[end][1])]


def _is_byte_level(data: dict[str, Any]) -> bool:
    """Whether pieces are written in GPT-2's letters for bytes."""
    left = [data.get("normalizer"), data.get("pre_tokenizer")]
    while left:
        if part := left.pop():
            if part["type"] == "ByteLevel":
                return True
            left += [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
    return False


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones for themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
