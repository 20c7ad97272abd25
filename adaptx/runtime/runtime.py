"""Opening a bundle and answering from it: `Runtime.open(...)`, `predict`, `rank`, `add`, `remove`.

    rt = Runtime.open("build/bundle")
    rt.predict(["Nimefurahi sana", "Inu mi dun"], adapter=["sw-topics", "yo-topics"])

Every method may be called from any thread at any time. H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from adaptx import storage
from adaptx.adapters.folder import read_facts
from adaptx.data.encode import TextEncoder, check_texts
from adaptx.data.windows import Input, Window
from adaptx.errors import FolderError, OptionError, choices
from adaptx.machine import cores
from adaptx.runtime.answers import AdapterInfo, Answer
from adaptx.runtime.bank import LiveBank, Place
from adaptx.runtime.forward import Forward
from adaptx.runtime.layout import (
    ADAPTERS,
    CHECK,
    TOKENIZER,
    WEIGHTS,
    BundleFacts,
    check_files,
    check_locations,
    read_bundle,
)
from adaptx.runtime.loading import load
from adaptx.runtime.pool import Counts, Known, Pool, Resident, parse_limit
from adaptx.runtime.reading import check_call, plain_ids, refuse_cut, windows_of
from adaptx.runtime.saturation import Check
from adaptx.runtime.sessions import Graphs, Sessions
from adaptx.tasks import Task
from adaptx.tasks.retrieval import Ranked, ranked

SLOTS = 32  # of a chunk of the bank
TOO_LONG = ("truncate", "refuse")


class Runtime:
    """An open bundle.

    folder  where it lies
    facts   what its bundle.json says
    text    the TextEncoder: texts -> token ids
    pool    the adapters, in the bank and on disk
    """

    def __init__(
        self,
        folder: Path,
        facts: BundleFacts,
        text: TextEncoder,
        sessions: Sessions,
        bank: LiveBank,
        max_resident: int | str | None,
    ):
        self.folder, self.facts, self.text, self._sessions = folder, facts, text, sessions
        self._forward = Forward(text, sessions, bank.nothing)
        self._check = Check(sessions.graphs, facts) if (folder / CHECK).is_file() else None
        self.pool = Pool(bank, lambda path: load(path, facts), self._saturation, max_resident)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        arena: bool = True,
        slots: int = SLOTS,
        library: str | Path | None = None,
        max_resident: int | str | None = None,
        pin: Sequence[str] = (),
    ) -> Runtime:
        """Open a bundle, every file checked against its sha256; an adapter's when it is read.

        threads       how many to use; None: every core that this process may use
        arena         keep onnxruntime's memory between runs: faster, and more of it
        slots         adapters for which the bank takes memory at a time
        library       a folder of adapters' folders, known beside the bundle's own and read when
                      they are first asked for. Of two of one name the bundle's own counts; a folder
                      without an adapter in order is left out, with a warning
        max_resident  how many adapters (100), or how much of them ("512MB"), stay in the bank; the
                      least recently used go first. None: all that are asked for
        pin           names that always stay

        Raises FolderError for a bundle that is damaged or isn't one.
        """
        if not isinstance(folder, (str, Path)):
            raise OptionError(f"Runtime.open takes a bundle's folder, not {folder!r}.")
        for name, value in (("threads", threads), ("slots", slots)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name}={value!r} must be a whole number, at least 1.")
        if isinstance(pin, str):
            raise OptionError(f"pin={pin!r} must be a list of names, as in pin=[{pin!r}].")
        parse_limit(max_resident)
        folder = Path(folder).absolute()  # a later chdir changes nothing
        facts, listed = read_bundle(folder)
        sessions = Sessions(Graphs(folder), facts.hidden_size, threads or cores(), arena)
        check_files(folder, listed, but=(WEIGHTS,))
        check_locations(folder)
        # onnxruntime and sha256 let other threads run meanwhile; reading a tokenizer takes longest.
        with ThreadPoolExecutor(2) as beside:
            whole = beside.submit(storage.check_file, folder, WEIGHTS, listed)
            opened = beside.submit(sessions.first)
            text = _text_encoder(folder, facts)
            whole.result()
            opened.result()
        bank = LiveBank(facts.banks, facts.bank_dtype, slots)
        made = cls(folder, facts, text, sessions, bank, max_resident)
        pool = made.pool
        if library is not None and not Path(library).is_dir():
            raise FolderError(f"There is no folder {library} of adapters.")
        own = [folder / ADAPTERS / name for name in facts.adapters]
        for path in own:
            about, _ = read_facts(path)
            pool.know(path, about, pin=about.name in pin, check=False)
        if library is not None:
            pool.know_library(Path(library), pin)
        if unknown := sorted(set(pin) - pool.known.keys()):
            raise OptionError(f"pin names {choices(unknown)}; there is {choices(pool.known)}.")
        first = [
            n for n, k in pool.known.items() if k.pinned or (k.folder in own and not max_resident)
        ]
        with pool.lease(first):
            pass
        pool.counts = Counts()
        return made

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker threads."""
        self._sessions.close()

    def __repr__(self) -> str:
        return (
            f"Runtime({str(self.folder)!r}, {self.facts.quantization}, {len(self.pool.known)} "
            f"adapters, {self._sessions.threads} threads)"
        )

    def predict(
        self,
        texts: Sequence[Input],
        adapter: str | Sequence[str | None] | None = None,
        *,
        language: str | Sequence[str | None] | None = None,
        max_length: int | None = None,
        too_long: str = "truncate",
    ) -> list[Answer]:
        """An answer to each text, in order; (question, passage) for a task that reads two.

        `adapter` names one for all texts, or one (or None) for each; `language` takes the adapter
        of that language instead. A text beyond the limit of its adapter, or of `max_length` tokens,
        loses its end and its answer says how much, or is refused with `too_long="refuse"`.
        Raises OptionError for a name that there isn't, and for what is no text.
        """
        check_call(texts, max_length)
        if too_long not in TOO_LONG:
            raise OptionError(f"too_long={too_long!r} is none of {choices(TOO_LONG)}.")
        names = self._names(len(texts), adapter, language)
        with self.pool.lease([name for name in names if name is not None]) as held:
            rows = [held[name] if name is not None else None for name in names]
            windows = windows_of(self.text, self.facts.prefix, texts, rows, max_length)
            if too_long == "refuse":
                refuse_cut(windows)
            # (row, number of its window), one after another
            places = [(i, n) for i, its in enumerate(windows) for n in range(len(its))]
            ids = [windows[i][n].ids for i, n in places]
            taken = [rows[i] for i, _ in places]
            outputs = iter(self._forward.states(ids, taken, then=partial(_output, taken)))
            return [
                _answer(one, name, row, its, [next(outputs) for _ in its])
                for one, name, row, its in zip(texts, names, rows, windows, strict=True)
            ]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        adapter: str | None = None,
        *,
        top: int | None = None,
    ) -> list[Ranked]:
        """The documents that are nearest to a query, the nearest first; at most `top` of them.

        `adapter` is one of retrieval; None ranks by the plain encoder's vectors. Documents that are
        equally near keep their order. Raises OptionError for no documents, and for an adapter that
        answers with something else than vectors.
        """

        def embed(texts: list[str]) -> list[np.ndarray]:
            return [answer.value for answer in self.predict(texts, adapter)]

        task = self.task(adapter) if adapter is not None else None
        return ranked(query, documents, adapter, task, embed, top)

    def embed(
        self,
        texts: Sequence[str],
        adapter: str | Sequence[str | None] | None = None,
        *,
        max_length: int | None = None,
    ) -> np.ndarray:
        """The pooled state of each text, fp32 `[texts, H]`; heads are left out."""
        check_call(texts, max_length)
        check_texts(texts)
        names = self._names(len(texts), adapter, None)
        with self.pool.lease([name for name in names if name is not None]) as held:
            rows = [held[name] if name is not None else None for name in names]
            ids = plain_ids(self.text, self.facts.prefix, texts, rows, max_length)
            return self._stacked(self._forward.states(ids, rows, tokens=False))

    def _stacked(self, vectors: list[np.ndarray]) -> np.ndarray:
        none = np.zeros((0, self.facts.hidden_size), np.float32)
        return np.stack(vectors) if vectors else none

    def pooled(
        self, ids: Sequence[Sequence[int]], adapter: str | Sequence[str | None] | None = None
    ) -> np.ndarray:
        """The pooled state of each row of token ids, fp32 `[rows, H]`; one adapter or one each.

        An adapter whose task reads every token's state has as many for a row as it has tokens.
        """
        names = self._names(len(ids), adapter, None)
        with self.pool.lease([name for name in names if name is not None]) as held:
            rows = [held[name] if name is not None else None for name in names]
            states = self._forward.states(ids, rows)
            return self._stacked([state for one in states for state in np.atleast_2d(one)])

    def has_head(self, name: str) -> bool:
        """Whether an adapter answers with labels."""
        with self.pool.lease([name]) as held:
            return held[name].loaded.head is not None

    def task(self, name: str) -> Task | None:
        """An adapter's task."""
        with self.pool.lease([name]) as held:
            return held[name].loaded.task

    def logits(self, pooled: np.ndarray, adapter: str) -> np.ndarray:
        """An adapter's head on pooled states: fp32 `[rows, H]` -> `[rows, L]`."""
        with self.pool.lease([adapter]) as held:
            head = held[adapter].loaded.head
            if head is None:
                raise OptionError(f"Adapter {adapter!r} has no head.")
            return head(pooled)

    def add(self, folder: str | Path, *, pin: bool = False, check: bool = True) -> AdapterInfo:
        """Put an adapter into the bank while others answer; what is known of it then.

        `check` measures on the probe texts how much of it int8 cuts off, and warns of too much.
        Raises FolderError or FingerprintError, and changes nothing, for a folder that doesn't fit.
        """
        folder = Path(folder)
        loaded = load(folder, self.facts)
        return _info(loaded.facts.name, *self.pool.add(folder, loaded, pin=pin, check=check))

    def check(self, name: str, *, warn: bool = True) -> float | None:
        """The saturation of an adapter (see AdapterInfo), with a warning where it is too large."""
        with self.pool.lease([name]) as held:
            found = self._saturation(name, held[name].place, warn=warn)
        self.pool.about(name)[0].saturation = found
        return found

    def _saturation(self, name: str, place: Place | None, *, warn: bool = True) -> float | None:
        """That of an adapter in the bank; None where nothing is cut off."""
        if self._check is None:
            return None
        found = self._check.measure(name, place or Place(self.pool.bank.nothing, 0))
        if warn:
            self._check.warn(name, found)
        return found

    def remove(self, name: str) -> None:
        """Take an adapter out; answers under way that use it are given still."""
        self.pool.forget(name)

    def adapters(self) -> list[AdapterInfo]:
        """What can be asked for, by name."""
        return [_info(name, *both) for name, both in sorted(self.pool.all().items())]

    def counts(self) -> dict[str, float]:
        """How often an adapter was in the bank when it was asked for, and what loading took."""
        resident = list(self.pool.resident.values())
        return {
            **asdict(self.pool.counts),
            "resident": len(resident),
            "resident_bytes": sum(r.bytes for r in resident),
            "known": len(self.pool.known),
        }

    def _names(
        self,
        rows: int,
        adapter: str | Sequence[str | None] | None,
        language: str | Sequence[str | None] | None,
    ) -> list[str | None]:
        if adapter is not None and language is not None:
            raise OptionError("Give adapter or language, not both.")
        asked = adapter if language is None else language
        many = isinstance(asked, Iterable) and not isinstance(asked, str)
        each: list[Any] = list(cast(Iterable[Any], asked)) if many else [asked] * rows
        if wrong := [name for name in each if name is not None and not isinstance(name, str)]:
            raise OptionError(f"{wrong[0]!r} can't be the name of an adapter or a language.")
        if len(each) != rows:
            raise OptionError(
                f"{len(each)} adapters or languages for {rows} texts: give one for all, or one (or "
                f"None) for each."
            )
        if language is None:
            return each
        return [None if one is None else self._of_language(one) for one in each]

    def _of_language(self, language: str) -> str:
        known = list(self.pool.known.items())
        found = [name for name, one in known if one.facts.language == language]
        if len(found) == 1:
            return found[0]
        if found:
            raise OptionError(
                f"Language {language!r} has {len(found)} adapters, {choices(found)}: name one."
            )
        there = sorted({k.facts.language for _, k in known if k.facts.language})
        raise OptionError(
            f"There is no adapter for the language {language!r}; there is "
            f"{choices(there) or 'none'}."
        )


def _info(name: str, known: Known, resident: Resident | None) -> AdapterInfo:
    task = known.facts.task or {}
    return AdapterInfo(
        name=name,
        language=known.facts.language,
        task=task.get("kind"),
        labels=tuple(task.get("labels", ())),
        rank=resident.loaded.rank if resident else None,
        resident=resident is not None,
        pinned=known.pinned,
        saturation=known.saturation,
    )


def _output(rows: Sequence[Resident | None], i: int, state: np.ndarray) -> np.ndarray:
    """What the head of a row's adapter makes of its state; without a head, the state."""
    row = rows[i]
    return row.loaded.head.row(state) if row is not None and row.loaded.head is not None else state


def _answer(
    one: Input,
    name: str | None,
    row: Resident | None,
    windows: Sequence[Window],
    outputs: Sequence[np.ndarray],
) -> Answer:
    cut = sum(window.cut for window in windows)
    if row is None or row.loaded.task is None:
        return Answer(name, None, outputs[0], cut)
    answer = row.loaded.task.answer(one, windows, outputs)
    is_vector = isinstance(answer, np.ndarray)
    return Answer(name, None if is_vector else answer, answer if is_vector else None, cut)


def _text_encoder(folder: Path, facts: BundleFacts) -> TextEncoder:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise FolderError(f"{path} can't be read as a tokenizer: {error}") from error
    return TextEncoder(tokenizer, pad_id=facts.pad_id, max_length=facts.max_length)
