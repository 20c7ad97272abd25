"""Hard negatives for retrieval, mined: texts that an encoder finds near, and that don't belong.

For each first text a, the second texts of other pairs by their cosine with a, the nearest first.
Left out are a's own (all that stand with an equal a), and what is nearer than `below` times its own
b's cosine: such a text is often a right answer that nobody marked (de Souza P. Moreira et al. 2024,
"NV-Retriever", arXiv 2407.15831).

N pairs, M different second texts, H width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaptx.adapters.adapter import Adapter
from adaptx.data.duplicates import normalized
from adaptx.data.records import Pair
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from adaptx.tasks import Retrieval

_AT_ONCE = 1024  # searches


def mine_negatives(
    encoder: Encoder,
    pairs: Sequence[Pair],
    adapter: Adapter | None = None,
    *,
    count: int = 4,
    below: float = 0.95,
    batch_size: int = 32,
) -> list[Pair]:
    """The pairs with at most `count` negatives each, as the encoder, or a retrieval adapter, ranks.

    Negatives that a pair has already are replaced. Raises OptionError.
    """
    if type(count) is not int or count < 1:
        raise OptionError(f"count={count!r} must be a whole number, at least 1.")
    if not isinstance(below, (int, float)) or not 0 < below <= 1:
        raise OptionError(f"below={below!r} must be a number above 0, and at most 1.")
    if adapter is not None and not isinstance(adapter.task, Retrieval):
        raise OptionError(f"Adapter {adapter.name!r} isn't of retrieval: its answers can't rank.")
    own: dict[str, set[str]] = defaultdict(set)  # of each first text, what belongs to it
    for pair in pairs:
        own[normalized(pair.text)].add(normalized(pair.other))
    others: dict[str, str] = {}  # as they are first met
    for pair in pairs:
        others.setdefault(normalized(pair.other), pair.other)
    texts, place = list(others.values()), {name: i for i, name in enumerate(others)}
    a_NH = _vectors(encoder, [pair.text for pair in pairs], adapter, batch_size)
    b_MH = _vectors(encoder, texts, adapter, batch_size)
    found = []
    for start in range(0, len(pairs), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        for pair, cosines in zip(pairs[part], a_NH[part] @ b_MH.T, strict=True):
            limit = below * cosines[place[normalized(pair.other)]]
            right = [place[name] for name in own[normalized(pair.text)]]
            cosines[right] = np.inf
            cosines = np.where(cosines < limit, cosines, -np.inf)
            nearest = np.argsort(-cosines, kind="stable")[:count]
            negatives = tuple(texts[i] for i in nearest if np.isfinite(cosines[i]))
            found.append(replace(pair, negatives=negatives))
    return found


def _vectors(
    encoder: Encoder, texts: Sequence[str], adapter: Adapter | None, batch_size: int
) -> np.ndarray:
    """fp32 `[texts, H]`, of length 1."""
    found = np.stack(encoder.predict(texts, adapter, batch_size=batch_size))
    vectors: np.ndarray = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return vectors
