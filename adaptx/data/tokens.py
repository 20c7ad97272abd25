"""How a tokenizer cuts up a language: tokens per word, characters per token, what it can't see.

A word is what stands between white space. Scripts that don't set words apart (Thai, Lao, Khmer,
Burmese, Tibetan, Chinese, Japanese) have no such words, and finding them takes a dictionary for
each language: there `tokens_per_word` is None, and characters per token is the figure to compare.
Fewer tokens per word mean less time, and less of a text lost to truncation; they also go with
better scores: Rust et al. 2021, "How Good is Your Tokenizer?" (arXiv 2012.15613).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer

from adaptx.errors import DataError

UNSPACED = (
    *("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
    *("JAVANESE", "BALINESE", "TAI"),
)


@dataclass(frozen=True)
class Tokenization:
    """Texts under a tokenizer, without prefix and special tokens; white space doesn't count.

    tokens_per_word        None in a script without spaces between words
    characters_per_token   Unicode code points
    tokens_per_text        comparable between languages where the texts are translations
    unknown                share of the characters that became an unknown token
    """

    texts: int
    tokens_per_word: float | None
    characters_per_token: float
    tokens_per_text: float
    unknown: float


def tokenization(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenization:
    """Count `texts` under `tokenizer`; raises DataError where there is nothing to count."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encodings)
    characters = sum(map(_visible, texts))
    if not tokens or not characters:
        raise DataError("there is no text to count: every row is empty.")
    unknown_id = _unknown_id(tokenizer)
    lost = sum(
        _visible(text[start:end])
        for text, encoding in zip(texts, encodings, strict=True)
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if id_ == unknown_id
    )
    words = sum(len(text.split()) for text in texts)
    return Tokenization(
        texts=len(texts),
        tokens_per_word=None if is_unspaced(texts) else tokens / words,
        characters_per_token=characters / tokens,
        tokens_per_text=tokens / len(texts),
        unknown=lost / characters,
    )


def is_unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of the texts stand in a script without spaces between words."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return sum(map(is_unspaced_letter, letters)) > len(letters) / 2


@lru_cache(maxsize=1 << 16)
def is_unspaced_letter(letter: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    return unicodedata.name(letter, "").startswith(UNSPACED)


def _visible(text: str) -> int:
    return sum(not c.isspace() for c in text)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what the model doesn't know; None where it knows every byte."""
    model = tokenizer.model
    if hasattr(model, "unk_token"):
        return tokenizer.token_to_id(model.unk_token) if model.unk_token else None
    found = json.loads(tokenizer.to_str())["model"].get("unk_id")  # Unigram says it nowhere else
    return found if isinstance(found, int) else None
