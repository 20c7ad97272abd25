"""A frozen pretrained encoder: `Encoder.from_pretrained(...)`, `predict`, `embed`, `rank`.

Dimensions: B rows, S tokens, H hidden width, L labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.data.encode import Batch, TextEncoder
from adaptx.data.windows import Input, Window, whole
from adaptx.encoder.bundled import check_bundled
from adaptx.encoder.families import model_inputs
from adaptx.encoder.fingerprint import FingerprintCache, fingerprint
from adaptx.encoder.opening import (
    BUNDLED,
    find_folder,
    load_model,
    load_tokenizer,
    pad_id,
    positions,
)
from adaptx.encoder.sites import Route, Site, checkpoint_contexts, plain_copy, routed, wrap_sites
from adaptx.errors import OptionError
from adaptx.tasks.base import TOKENS, Task
from adaptx.tasks.retrieval import Ranked, ranked


class RoutedAdapter(Protocol):
    """What `Encoder.predict` asks of an adapter (see adaptx.adapters.Adapter)."""

    model: nn.Module | None  # its own, where a bank can't hold it
    task: Task | None

    @property
    def name(self) -> str:
        """The adapter's name."""
        ...

    @property
    def pooling(self) -> str:
        """What becomes of token states: "mean", "cls", or "tokens", all of them."""
        ...

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise FingerprintError unless the adapter belongs to this encoder."""
        ...

    def check_answers(self) -> None:
        """Raise OptionError for an adapter that answers nothing."""
        ...

    def to(self, device: Any) -> Any:
        """Move the adapter's own tensors to a device."""
        ...

    def bank(self, adapters: Sequence[Any], encoder: Encoder) -> Any:
        """The adapters' bank, whose `route(slots)` makes a Route; adapter i is slot i + 1."""
        ...

    def windows(
        self, text: TextEncoder, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """How each input is read: in one window, or in several."""
        ...

    def outputs(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """What token states come to: `[B, S, H]`, `[B, S]` -> `[B, L]`, or `[B, S, L]`."""
        ...

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """The answer to an input, from the outputs of its windows."""
        ...


class Encoder:
    """A frozen Hugging Face encoder (its AutoModel, no head, no dropout) and its tokenizer.

    name          what it was opened by
    folder        where its files are
    model         the AutoModel, every Linear wrapped as a Site; never trained, always in eval()
    sites         the Sites by module path, such as "encoder.layer.3.attention.self.query"
    text          the TextEncoder: texts -> token ids
    prefix        put before every text; e5 models expect "query: "
    fingerprint   see adaptx.encoder.fingerprint
    """

    def __init__(
        self,
        model: nn.Module,
        text: TextEncoder,
        *,
        name: str,
        folder: Path,
        fingerprint: str,
        prefix: str,
    ):
        self.model = model.requires_grad_(False)
        self.sites: dict[str, Site] = wrap_sites(self.model)
        self.model.eval()
        self.text, self.name, self.folder = text, name, folder
        self.fingerprint, self.prefix = fingerprint, prefix
        self.config: Any = model.config
        self.hidden_size: int = self.config.hidden_size

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, prefix: str | None = None, revision: str | None = None
    ) -> Encoder:
        """Open an encoder by Hub name, local folder, or `bundled:multilingual-e5-small`.

        `prefix` goes before every text; None takes "query: " for an e5 model and nothing for any
        other. Only safetensors weights are read. Raises EncoderNotFound when the name leads
        nowhere, FolderError when the files are damaged, OptionError for an unknown family.
        """
        folder = find_folder(str(name), revision)
        config, model = load_model(folder)
        tokenizer = load_tokenizer(folder, config)
        cache = FingerprintCache(folder)
        found = cache.read()
        if found is None:
            found = fingerprint(model, config.to_dict(), tokenizer.to_str())
            cache.write(found)
        if str(name).startswith(BUNDLED):
            check_bundled(str(name).removeprefix(BUNDLED), folder, found)
        if prefix is None:
            parts = set(re.split(r"[-_.]", Path(str(name)).name.lower()))
            prefix = "query: " if "e5" in parts and "instruct" not in parts else ""
        return cls(
            model,
            TextEncoder(
                tokenizer, pad_id=pad_id(folder, tokenizer, config), max_length=positions(config)
            ),
            name=str(name),
            folder=folder,
            fingerprint=found,
            prefix=prefix,
        )

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, {len(self.sites)} sites, {self.fingerprint[:19]}…)"

    @property
    def device(self) -> torch.device:
        """The device the encoder's weights are on."""
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        """How many weights the encoder has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def table(self) -> Tensor:
        """The vocabulary's embeddings `[V, H]`, frozen."""
        return cast(Any, self.model).get_input_embeddings().weight

    def to(self, device: torch.device | str) -> Encoder:
        """Move the weights to a device; returns the encoder itself."""
        self.model.to(device)
        return self

    @contextmanager
    def checkpointing(self, own: nn.Module | None = None) -> Iterator[None]:
        """Inside, activations are recomputed in the backward pass instead of kept (less memory).

        `own` is an adapter's own model, which then is the one that recomputes.

        transformers checkpoints layers in train() mode only, so they are put into it meanwhile:
        every dropout of the encoder is 0 (see `load_model`), so that changes no answer.
        """
        model = cast(Any, own or self.model)
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": checkpoint_contexts}
        )
        model.train()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()
            model.eval()

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        route: Route | None = None,
        own: nn.Module | None = None,
    ) -> Tensor:
        """Token states of the last layer: int64 `[B, S]`, int64 `[B, S]` -> `[B, S, H]`.

        `own` is an adapter's own model, which answers in the encoder's place.
        """
        model = own or self.model
        with routed(route):
            return model(**model_inputs(self.config, input_ids, attention_mask))[0]

    def embed(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> np.ndarray:
        """The plain encoder's mean-pooled states, fp32 `[texts, H]`."""
        vectors = self.predict(texts, batch_size=batch_size, max_length=max_length)
        none = np.zeros((0, self.hidden_size), dtype=np.float32)
        return np.stack(cast(list[np.ndarray], vectors)) if vectors else none

    @torch.inference_mode()
    def predict(
        self,
        texts: Sequence[Input],
        adapters: RoutedAdapter | Sequence[RoutedAdapter | None] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Any]:
        """An answer to each text, in order; (question, passage) for a task that reads two.

        `adapters` is one adapter (or None) for all texts, or a list with one for each; a list of
        length 1 stands for all. Rows of different adapters share batches, but for adapters that
        bring their own model. A row answers as its adapter's task does (a Prediction, Tags …);
        without a task with its pooled vector, fp32 `[H]`.
        Raises FingerprintError for an adapter of another encoder.
        """
        rows = _per_row(texts, adapters)
        distinct = list({id(adapter): adapter for adapter in rows if adapter is not None}.values())
        for adapter in distinct:
            adapter.check_encoder(self)
            adapter.check_answers()
        windows = self._windows(texts, rows, max_length)
        banked = [adapter for adapter in distinct if adapter.model is None]
        bank = banked[0].bank(banked, self) if banked else None
        slots = {id(adapter): slot for slot, adapter in enumerate(banked, 1)}
        owners = [row if row is not None and row.model is not None else None for row in rows]
        answers: list[Any] = [None] * len(texts)
        outputs: list[dict[int, np.ndarray]] = [{} for _ in texts]
        for owner in {id(a): a for a in owners}.values():
            # (row, number of the window) of each window that runs here
            places = [
                (i, n) for i, a in enumerate(owners) if a is owner for n in range(len(windows[i]))
            ]
            if owner is not None:
                owner.to(self.device)  # a bank follows the encoder by itself
            for batch in self.text.batches([windows[i][n].ids for i, n in places], batch_size):
                taken = [places[place] for place in batch.rows]
                chosen = [rows[i] for i, _ in taken]
                numbers = [slots.get(id(adapter), 0) for adapter in chosen]
                if len(set(numbers)) == 1:
                    numbers = numbers[:1]  # one slot for the batch: nothing to gather for each row
                route = bank.route(numbers) if bank and not owner else None
                found = self._outputs(batch, chosen, route)
                for (i, n), output in zip(taken, found, strict=True):
                    outputs[i][n] = output
                    if len(outputs[i]) == len(windows[i]):
                        ordered = [outputs[i].pop(k) for k in range(len(windows[i]))]
                        owned = rows[i]
                        answers[i] = (
                            owned.answer(texts[i], windows[i], ordered) if owned else ordered[0]
                        )
        return answers

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        adapter: RoutedAdapter | None = None,
        *,
        top: int | None = None,
        batch_size: int = 32,
    ) -> list[Ranked]:
        """The documents that are nearest to a query, the nearest first; at most `top` of them.

        `adapter` is one of retrieval; None ranks by the plain encoder's vectors. Documents that are
        equally near keep their order. Raises OptionError for no documents, and for an adapter that
        answers with something else than vectors.
        """

        def embed(texts: list[str]) -> list[np.ndarray]:
            return self.predict(texts, adapter, batch_size=batch_size)

        name, task = (adapter.name, adapter.task) if adapter is not None else (None, None)
        return ranked(query, documents, name, task, embed, top)

    def _windows(
        self,
        texts: Sequence[Input],
        rows: Sequence[RoutedAdapter | None],
        max_length: int | None,
    ) -> list[list[Window]]:
        """The windows of each text, as its own adapter reads it."""
        groups: dict[int, list[int]] = {}
        for i, adapter in enumerate(rows):
            groups.setdefault(id(adapter), []).append(i)
        found: list[list[Window]] = [[]] * len(texts)
        for places in groups.values():
            adapter, inputs = rows[places[0]], [texts[i] for i in places]
            if adapter is None:
                made = [[window] for window in whole(self.text, self.prefix, inputs, max_length)]
            else:
                made = adapter.windows(self.text, inputs, max_length)
            for i, windows in zip(places, made, strict=True):
                found[i] = windows
        return found

    def _outputs(
        self, batch: Batch, chosen: list[RoutedAdapter | None], route: Route | None
    ) -> list[np.ndarray]:
        """What each window of a batch comes to, without its padding."""
        mask = torch.from_numpy(batch.attention_mask).to(self.device)
        input_ids = torch.from_numpy(batch.input_ids).to(self.device)
        own = chosen[0].model if chosen[0] else None
        states = self.hidden(input_ids, mask, route, own).float()
        lengths = batch.attention_mask.sum(1)
        found: list[np.ndarray] = [np.empty(0)] * len(chosen)
        for adapter in {id(a): a for a in chosen}.values():
            places = [i for i, other in enumerate(chosen) if other is adapter]
            outputs = adapter.outputs if adapter else mean_pool
            numbers = outputs(states[places], mask[places]).cpu().numpy()
            ragged = adapter is not None and adapter.pooling == TOKENS
            for i, output in zip(places, numbers, strict=True):
                found[i] = output[: lengths[i]] if ragged else output
        return found

    def merged_model(self, deltas: dict[str, Tensor]) -> nn.Module:
        """A copy of the plain AutoModel with `deltas` `[out, in]` added to its Linears."""
        return plain_copy(self.model, deltas)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token states that aren't padding: `[B, S, H]`, `[B, S]` -> `[B, H]`."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _per_row(
    texts: Sequence[Input], adapters: RoutedAdapter | Sequence[RoutedAdapter | None] | None
) -> list[RoutedAdapter | None]:
    if isinstance(texts, str):
        raise OptionError("texts must be a list of texts, not one text.")
    if not isinstance(adapters, (list, tuple)):
        return [cast("RoutedAdapter | None", adapters)] * len(texts)
    if len(adapters) == 1:
        return [adapters[0]] * len(texts)
    if len(adapters) != len(texts):
        raise OptionError(
            f"{len(adapters)} adapters for {len(texts)} texts: give one for all, or one (or None) "
            f"for each."
        )
    return list(adapters)
