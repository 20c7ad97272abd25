"""A part of an encoder's vocabulary: the pieces that some languages' texts need, and their rows.

A text whose pieces are all kept is cut into the same pieces as before; ids move, meanings don't:

    Unigram    a path of kept pieces keeps its score, and no other gains: a character whose own
               piece is gone costs the unknown piece's score, which lies below every piece's. That
               score follows from the lowest of the vocabulary, so the lowest stays
    WordPiece  the longest match is still there, and nothing longer has come. (A word that the whole
               vocabulary calls unknown may find pieces where a piece holds a character that has no
               `##` piece of its own; trained vocabularies have none.)
    BPE        with a piece stay the pieces on its way, and the merges whose three pieces stay, in
               their order: each step's first merge is still there, and nothing earlier has come

Kept are: what special tokens, templates, padding and unknown characters need; bytes; every piece of
the texts, alone and behind each prefix; numbers; the single characters of the texts' scripts, of
ASCII, and all digits, punctuation and symbols. And, as a margin, other pieces in those scripts,
first those that are frequent and spelt as a language of the texts spells:

    log p(piece) + max over languages of log(p_language(spelling) / p_any(spelling)) / 2

with p(piece) by the Unigram score, or one over the place in the vocabulary. A small corpus needs
the spelling: by frequency alone, most of the margin is other languages' words.

Every tenth text of a language is held out: coverage is measured on it, and the vocabulary counted
from the other nine tenths only, in the end too.

Dimensions: V rows of the whole table, K kept rows, H width.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer

from adaptx.data.encode import check_texts
from adaptx.errors import DataError, OptionError, choices
from adaptx.runtime.layout import INPUT_IDS

MARGIN = 26_000  # pieces: with some thousand sentences, 99 of 100 tokens are found again
HELD_OUT = 10  # every tenth text
SCRIPT = 0.001  # of a language's letters: a script with less is a stray name or quotation
FIRST = 4  # ids that stay: among them is the padding from which RoBERTa's positions count
EVIDENCE = 0.5  # how much of the spelling's evidence counts: letters aren't independent
LETTERS = 3  # before a letter, that its probability depends on
PIECES = 2e4  # how all languages spell is learnt as if from so many, so of rare pieces little
RARE = 1e-4  # the probability of a letter that no piece has
TOGETHER = 1000  # texts tokenized at once
BYTE = re.compile("<0x[0-9A-F]{2}>")  # what byte fallback writes
PARTIAL = "\ufffd"  # a part of a character, where pieces are made of bytes


@dataclass(frozen=True)
class Cut:
    """A part of a vocabulary.

    `kept` int64 `[K]` are ids of the whole one, ascending: a piece's new id is its place here.
    `tokenizer_json` is the tokenizer with the new ids. `coverage` has, by language, what became of
    its held-out texts: `texts`, the share that is tokenized exactly as before, `tokens`, the share
    of their tokens that are the same at the same place, and `held_out`, how many texts that were.
    """

    kept: np.ndarray
    tokenizer_json: str
    coverage: dict[str, dict[str, float]]


def cut(
    tokenizer_json: str,
    texts: Mapping[str, Sequence[str]],
    *,
    margin: int = MARGIN,
    prefixes: Sequence[str] = (),
) -> Cut:
    """The part of a tokenizer's vocabulary that `texts`, by language, need.

    Blank texts and repetitions within a language aren't counted, and not held out. Raises DataError
    for a corpus without texts, or with fewer of a language than the ten of which one is held out,
    and OptionError for a tokenizer that can't be cut.
    """
    if margin < 0:
        raise OptionError(f"margin={margin} must be 0 or more pieces.")
    counted, held_out = _split(texts)
    whole = _opened(tokenizer_json)
    vocabulary = _vocabulary(whole)
    check_texts(prefixes)
    used = {
        language: _used(whole, [*prefixes, *_behind(["", *prefixes], rows)])
        for language, rows in counted.items()
    }
    kept = vocabulary.kept(list(used.values()), margin)
    made_json = json.dumps(vocabulary.remapped(kept), ensure_ascii=False, separators=(",", ":"))
    made = _opened(made_json)
    for place, old in enumerate(kept.tolist()):  # the library numbers added tokens by itself
        if made.id_to_token(place) != whole.id_to_token(old):
            raise OptionError(
                f"This tokenizer's vocabulary can't be cut: its ids have gaps, and the token "
                f"{whole.id_to_token(old)!r} would get another id than its row."
            )
    coverage = {key: _coverage(whole, made, kept, rows) for key, rows in held_out.items()}
    return Cut(kept, made_json, coverage)


def new_id(kept: np.ndarray, old: int) -> int:
    """The new id of an old one; OptionError where it wasn't kept."""
    place = int(np.searchsorted(kept, old))
    if place == len(kept) or kept[place] != old:
        raise OptionError(f"Token {old} isn't among the {len(kept)} kept ones.")
    return place


def cut_table(model: onnx.ModelProto, kept: np.ndarray) -> onnx.ModelProto:
    """The model with the rows `kept` `[K]` of its word table `[V, H]`: it takes the new ids.

    Raises OptionError for rows that the table doesn't have, for a graph that does more with its ids
    than read constants' rows and compare them with a constant, and where such a constant (the
    padding from which RoBERTa's positions count) would mean another token.
    """
    kept = np.asarray(kept)
    if kept.ndim != 1 or not len(kept) or kept.dtype.kind != "i" or (np.diff(kept) <= 0).any():
        raise OptionError("The kept ids must be a list of whole numbers, each above the last.")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    tables, elsewhere = set(), set()
    for node in made.graph.node:
        inputs = list(node.input)
        by_id = node.op_type == "Gather" and inputs[1] == INPUT_IDS and inputs[0] in constants
        if by_id and not any(a.name == "axis" and a.i for a in node.attribute):
            tables.add(inputs[0])
            continue
        elsewhere.update(inputs)
        if INPUT_IDS not in inputs or node.op_type == "Shape":
            continue
        others = [name for name in inputs if name != INPUT_IDS]
        if node.op_type != "Equal" or len(others) != 1 or others[0] not in constants:
            raise OptionError(
                f"This graph's vocabulary can't be cut: {node.op_type} node {node.name} reads its "
                f"ids too."
            )
        compared = numpy_helper.to_array(constants[others[0]])
        for value in compared.reshape(-1):
            if not np.array_equal(kept == value, np.arange(len(kept)) == value):
                raise OptionError(
                    f"This graph counts on token {value} (its padding), which would get another "
                    f"id: this encoder's vocabulary can't be cut."
                )
    if not tables or tables & elsewhere:
        raise OptionError("This graph's vocabulary can't be cut: it has no word table of its own.")
    for name in tables:
        rows = constants[name].dims[0]
        if kept[0] < 0 or kept[-1] >= rows:
            raise OptionError(
                f"The kept ids go from {kept[0]} to {kept[-1]}; the table has {rows} rows."
            )
        table_KH = numpy_helper.to_array(constants[name])[kept]
        constants[name].CopyFrom(numpy_helper.from_array(table_KH, name))
    return made


def _split(
    texts: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What is counted, and what is held out, by language."""
    if not texts:
        raise DataError("the corpus has no texts: give some for each language.")
    counted, held_out = {}, {}
    for language, given in texts.items():
        if isinstance(given, str):
            raise OptionError(f"The texts of language {language!r} must be a list, not one text.")
        check_texts(given)
        # A text that is there twice would be counted and held out.
        rows = [text for text in dict.fromkeys(given) if text.strip()]
        if len(rows) < HELD_OUT:
            raise DataError(
                f"the corpus has {len(rows)} different texts of language {language!r}; of every "
                f"{HELD_OUT} one is held out, so give at least {HELD_OUT}."
            )
        held_out[language] = rows[HELD_OUT - 1 :: HELD_OUT]
        counted[language] = [text for i, text in enumerate(rows, 1) if i % HELD_OUT]
    return counted, held_out


def _opened(tokenizer_json: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise OptionError(f"This can't be read as a tokenizer: {error}") from error
    return tokenizer


def _bare(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Any]:
    """The texts' encodings without special tokens, padding and truncation."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for start in range(0, len(texts), TOGETHER):
        rows = list(texts[start : start + TOGETHER])
        yield from tokenizer.encode_batch(rows, add_special_tokens=False)


def _behind(prefixes: Sequence[str], texts: Sequence[str]) -> Iterator[str]:
    return (prefix + text for prefix in dict.fromkeys(prefixes) for text in texts)


def _used(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """How often each id comes."""
    found: Counter[int] = Counter()
    for encoding in _bare(tokenizer, texts):
        found.update(encoding.ids)
    return found


def _coverage(
    whole: Tokenizer, made: Tokenizer, kept: np.ndarray, texts: Sequence[str]
) -> dict[str, float]:
    """How a language's held-out texts fare (see `Cut`)."""
    new = {old: place for place, old in enumerate(kept.tolist())}
    exact, same, tokens = 0, 0, 0
    for before, after in zip(_bare(whole, texts), _bare(made, texts), strict=True):
        wanted = [new.get(old, -1) for old in before.ids]
        exact += wanted == after.ids
        placed = set(zip(after.ids, after.offsets, strict=True))
        same += sum(token in placed for token in zip(wanted, before.offsets, strict=True))
        tokens += len(wanted)
    return {
        "texts": exact / len(texts),
        "tokens": same / tokens if tokens else 1.0,
        "held_out": len(texts),
    }


@functools.cache
def _script(character: str) -> str:
    """A letter's or mark's script, by the first word of its name; "" for what all scripts share."""
    if unicodedata.category(character)[0] in "LM" or character == PARTIAL:
        return unicodedata.name(character, "?").split(" ", 1)[0]
    return ""


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    data = json.loads(tokenizer.to_str())
    kind = data["model"]["type"]
    if kind not in KINDS:
        raise OptionError(
            f"A {kind} tokenizer's vocabulary can't be cut; these can: {choices(KINDS)}."
        )
    return KINDS[kind](data)


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


class _Spelling:
    """How likely letters follow each other in weighted pieces (Witten and Bell's interpolation).

    p(x | h) = (n(h x) + u(h) p(x | h without its first)) / (n(h) + u(h))

    n weights, u(h) how many different letters follow the letters h. A gram is h and x as one text.
    """

    def __init__(self, weights: Mapping[str, float]):
        seen: dict[str, float] = defaultdict(float)
        for piece, weight in weights.items():
            for gram in _grams(piece):
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


def _grams(piece: str) -> list[str]:
    """Each letter of a piece with those before it; its begin and its end are letters too."""
    framed = f"\0{piece}\1"
    return [framed[max(0, i - LETTERS) : i + 1] for i in range(1, len(framed))]


class _Vocabulary:
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
        everyone = _Spelling({piece: scale * share for piece, share in shares.items()})
        languages = [
            _Spelling({ours[i]: count for i, count in counts.items() if i in ours})
            for counts in used
        ]

        def likelihood(id_: int) -> float:
            grams = _grams(ours[id_])
            evidence = max(spelling.log(grams) for spelling in languages) - everyone.log(grams)
            return self.frequency(id_) + EVIDENCE * evidence

        return sorted(ours.keys() - found, key=lambda id_: (-likelihood(id_), id_))

    def remapped(self, kept: np.ndarray) -> dict[str, Any]:
        """The tokenizer's JSON with the kept pieces only, and their new ids."""
        new = {old: place for place, old in enumerate(kept.tolist())}
        self.cut_model(new)
        _renumber(self.data, new.__getitem__)
        return self.data


class _Unigram(_Vocabulary):
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


class _WordPiece(_Vocabulary):
    def unknown(self) -> set[int]:
        found = super().unknown()
        if not found:
            raise OptionError(
                f"This WordPiece tokenizer can't be cut: its unknown token "
                f"{self.model.get('unk_token')!r} isn't in its vocabulary."
            )
        return found


class _BPE(_Vocabulary):
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


KINDS: dict[str, type[_Vocabulary]] = {"Unigram": _Unigram, "WordPiece": _WordPiece, "BPE": _BPE}
