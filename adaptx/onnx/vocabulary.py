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

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer

from adaptx.data.encode import check_texts
from adaptx.errors import DataError, OptionError
from adaptx.onnx.pieces import pieces_of
from adaptx.runtime.layout import INPUT_IDS

MARGIN = 26_000  # pieces: with some thousand sentences, 99 of 100 tokens are found again
HELD_OUT = 10  # every tenth text
SAMPLE = 300  # held-out texts that a cut vocabulary brings along
TOGETHER = 1000  # texts tokenized at once


@dataclass(frozen=True)
class Cut:
    """A part of a vocabulary.

    `kept` int64 `[K]` are ids of the whole one, ascending: a piece's new id is its place here.
    `tokenizer_json` is the tokenizer with the new ids. `coverage` has, by language, what became of
    its held-out texts: `texts`, the share that is tokenized exactly as before, `tokens`, the share
    of their tokens that are the same at the same place, and `held_out`, how many texts that were.
    `held_out` are some of these texts, the languages in turn.
    """

    kept: np.ndarray
    tokenizer_json: str
    coverage: dict[str, dict[str, float]]
    held_out: tuple[str, ...] = ()


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
    vocabulary = pieces_of(whole)
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
    in_turn = (text for texts in zip_longest(*held_out.values()) for text in texts if text)
    return Cut(kept, made_json, coverage, tuple(islice(in_turn, SAMPLE)))


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
