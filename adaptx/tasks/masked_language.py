"""Masked language modelling: an adapter learns a language from plain text (Devlin et al. 2019).

log p_MV = log_softmax(E_VH (W_HH h_MH + b_H))        loss = -log p of the tokens that were there

at the M masked positions alone, of h, the token states. E, the encoder's own input embeddings, is
frozen; W and b are the head. Words are masked whole (their first and all further tokens), about
`share` of a window's tokens: 80% become the mask token, 10% another token, 10% stay. Training rows
are masked anew in each epoch, dev rows always alike.

An encoder is opened without its own masked-language head, and some never had one (multilingual-e5):
W and b begin at random, and the first steps go into them. What is learnt is an adapter for a
language and this small map; the encoder's own head, where there was one, is not continued.

M masked positions, S tokens, H width, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx.data.encode import TextEncoder
from adaptx.data.records import Example
from adaptx.data.windows import Input, Window, sliding
from adaptx.errors import DataError, OptionError
from adaptx.tasks.base import IGNORED, TOKENS, Task

if TYPE_CHECKING:
    from torch import Tensor

MASKS = ("<mask>", "[MASK]")
LONGEST = 10  # tokens: a longer "word" is a text without spaces, and is masked token by token
LOGITS = 1 << 25  # at once, which is 128 MB: a vocabulary is large


@dataclass(frozen=True)
class MaskedLanguage(Task):
    """The tokens that were masked, from those around them. It is trained on, and answers nothing.

    `share` is how many of the tokens are masked, about.
    """

    share: float = 0.15
    labels: tuple[str, ...] = ()
    pooling: str = TOKENS

    kind = "masked-language"
    hub = "fill-mask"
    record = Example
    slides = True
    chooses = False
    answers = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        self.check_pooling((TOKENS,))
        if self.labels:
            raise OptionError("Masked language modelling has no labels: its words are its own.")
        if not isinstance(self.share, (int, float)) or not 0 < self.share < 1:
            raise OptionError(f"share={self.share!r} must be a number between 0 and 1.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The exp of the mean loss of dev's masked tokens: the lower, the better."""
        return ("perplexity",)

    @property
    def reads(self) -> str:
        """What it does, in words."""
        return "It knows a language from plain text (masked language modelling), and has no answers"

    @property
    def outputs(self) -> None:
        """As many as the encoder's embeddings are wide."""
        return None

    def fit(self, train: Sequence[Example], dev: Sequence[Example] = ()) -> MaskedLanguage:
        """The task; DataError where there is no text."""
        if not train:
            raise DataError("there is no text to learn from.")
        return self

    def windows(
        self, text: TextEncoder, prefix: str, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """Each text from its beginning to its end, in windows without overlap."""
        Vocabulary.of(text)  # OptionError where nothing can be masked
        return sliding(text, prefix, inputs, max_length, overlap=0)

    def targets(
        self, records: Sequence[Example], windows: Sequence[Sequence[Window]] = ()
    ) -> list[np.ndarray]:
        """int64 `[S]` of each window: the number of each token's word, -1 where none is masked."""
        found = [numbered(window) for its in windows for window in its]
        if records and not any((words >= 0).any() for words in found):
            raise records[0].error("no text here becomes a token, so there is nothing to mask.")
        return found

    def drawn(
        self,
        text: TextEncoder,
        ids: Sequence[list[int]],
        targets: Sequence[np.ndarray],
        seed: tuple[int, ...],
    ) -> tuple[list[list[int]], list[np.ndarray]]:
        """Windows with words masked, and int64 `[S]` of each: what was there, IGNORED elsewhere.

        What is masked follows from the seed and the window itself, wherever it stands.
        """
        vocabulary = Vocabulary.of(text)
        made = []
        for tokens, words in zip(ids, targets, strict=True):
            row = np.array(tokens, np.int64)
            random = np.random.default_rng([*seed, zlib.crc32(row.tobytes())])
            chosen = whole_words(words, self.share, random)
            target = np.full(len(row), IGNORED, np.int64)
            target[chosen] = row[chosen]
            row[chosen] = vocabulary.replaced(row[chosen], random)
            made.append((row.tolist(), target))
        return [row for row, _ in made], [target for _, target in made]

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """How many tokens are masked in each row."""
        found: np.ndarray = (targets != IGNORED).sum(1)
        return found

    def losses(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        table: Tensor | None = None,
    ) -> Tensor:
        """Outputs `[B, S, H]`, targets int64 `[B, S]`, table `[V, H]` -> each row's mean, fp32."""
        import torch

        assert table is not None
        places = targets != IGNORED
        losses = tied_losses(outputs[places].float(), table, targets[places], smoothing)
        rows = torch.zeros(len(targets), device=outputs.device)
        rows = rows.index_add(0, places.nonzero()[:, 0], losses)
        return rows / places.sum(1).clamp(min=1)

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """Nothing: raises OptionError."""
        raise OptionError("Masked language modelling answers nothing.")


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer masking needs: its mask token, its size, and its special tokens."""

    mask: int
    size: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, text: TextEncoder) -> Vocabulary:
        """A text encoder's; OptionError where it has no mask token."""
        tokenizer = text.tokenizer
        found = [id_ for name in MASKS if (id_ := tokenizer.token_to_id(name)) is not None]
        if not found:
            raise OptionError(
                f"The encoder's tokenizer has no mask token ({' or '.join(MASKS)}), so it can't be "
                f"trained by masking: take an encoder that was, such as xlm-roberta-base."
            )
        added = tokenizer.get_added_tokens_decoder()
        special = sorted(id_ for id_, token in added.items() if token.special)
        return cls(found[0], tokenizer.get_vocab_size(), tuple(special))

    def replaced(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """80% of the tokens as the mask token, 10% as any ordinary one, 10% as they are."""
        other = random.integers(self.size - len(self.special), size=len(tokens))
        for id_ in self.special:
            other += other >= id_
        way = random.random(len(tokens))
        return np.select([way < 0.8, way < 0.9], [np.full(len(tokens), self.mask), other], tokens)


def numbered(window: Window) -> np.ndarray:
    """int64 `[S]`: the number of each token's word; -1 for special tokens and the prefix.

    Words are the tokenizer's: what begins with "▁" in SentencePiece and goes on without it, what
    goes on with "##" in WordPiece. Of more than LONGEST tokens, each counts as one.
    """
    assert window.words is not None
    words = window.words.astype(np.int64)
    lengths = np.bincount(words + 1)
    long = (lengths[words + 1] > LONGEST) & (words >= 0)
    words[long] = len(lengths) + np.flatnonzero(long)
    return words


def whole_words(words: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Which tokens to mask, bool `[S]`: words at random while they fit into the share; one fits
    always.
    """
    names, place, lengths = np.unique(words, return_inverse=True, return_counts=True)
    order = random.permutation(np.flatnonzero(names >= 0))
    room = max(1, round(share * int(lengths[order].sum())))
    taken = np.zeros(len(names), bool)
    for word in order:
        if lengths[word] <= room or not taken.any():
            taken[word] = True
            room -= lengths[word]
    return taken[place]


def tied_losses(
    states_MH: Tensor, table_VH: Tensor, gold_M: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cross entropies `[M]` of `states table^T` with the gold tokens, a part of the rows at a time.

    With p = softmax(states table^T), d loss / d states = (p - gold) table: it is made at once, so
    that no logits are kept for the backward pass, nor made again. The table gets no gradient.
    """
    import torch

    size = len(table_VH)
    parts = [x.split(max(1, LOGITS // size)) for x in (states_MH, gold_M)]
    losses, slopes = [], []
    with torch.no_grad():
        for state, gold in zip(*parts, strict=True):
            logits = state @ table_VH.T
            total = logits.logsumexp(1)
            right = logits.gather(1, gold[:, None])[:, 0]
            losses.append(total - (1 - smoothing) * right - smoothing * logits.mean(1))
            if states_MH.requires_grad:
                p = logits.sub_(total[:, None]).exp_().sub_(smoothing / size)
                p[torch.arange(len(gold)), gold] -= 1 - smoothing
                slopes.append(p @ table_VH)
    found = torch.cat(losses)
    if not states_MH.requires_grad:
        return found
    along = (states_MH * torch.cat(slopes)).sum(1)
    return found + (along - along.detach())  # adds 0, and the gradient
