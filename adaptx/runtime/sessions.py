"""onnxruntime sessions of a bundle's graph, and how rows share them.

Many rows go to workers of one thread each, a few rows at a time, whose states stay in a core's
cache; a lone row goes to one session with all threads, and a graph of its own. All give the same
bits.
Each session is opened when it is first needed. B rows, S tokens, H width.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.errors import FolderError
from adaptx.runtime.bank import Chunk
from adaptx.runtime.layout import (
    HIDDEN,
    IDS,
    INPUT_IDS,
    LONE,
    MASK,
    MEAN,
    MODEL,
)

ROWS, TOKENS = 8, 512  # of a micro-batch, at most (but one row may be longer)
BINDINGS = 64  # that a thread keeps


def cores() -> int:
    """The CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def open_session(path: Path, threads: int, *, arena: bool = True, prepack: bool = True) -> Any:
    """A session that runs the graph as it is: it was written in the form that measures best."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = arena
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        said = " ".join(str(error).split())
        raise FolderError(f"{path} can't be opened by onnxruntime: {said}") from error


@dataclass(frozen=True)
class MicroBatch:
    """Rows that run together: int64 `[B, S]` ids and mask, slots `[B]` of one chunk."""

    input_ids: np.ndarray
    mask: np.ndarray
    slots: np.ndarray
    chunk: Chunk
    hidden: bool  # whether token states are asked for, beside their mean


class Sessions:
    """The sessions and workers of a bundle."""

    def __init__(self, folder: Path, threads: int, arena: bool):
        self.folder, self.threads, self.arena = folder, threads, arena
        self.has_lone = (folder / LONE).is_file()
        self._opened: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._running = 0
        self._workers: ThreadPoolExecutor | None = None

    def session(self, name: str, threads: int) -> Any:
        """The session of one of the bundle's graphs with so many threads."""
        with self._lock:
            if (name, threads) not in self._opened:
                opened = open_session(self.folder / name, threads, arena=self.arena)
                self._opened[name, threads] = opened
            return self._opened[name, threads]

    def first(self) -> Any:
        """The session that a lone text takes."""
        return self.session(LONE if self.has_lone else MODEL, self.threads)

    def rows_at_once(self, rows: int, tokens: int) -> int:
        """How many rows of up to `tokens` tokens make a micro-batch, of `rows` in all."""
        share = -(-rows // self.threads)
        return max(1, min(ROWS, share, TOKENS // max(tokens, 1)))

    def run(self, batches: Sequence[MicroBatch]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(mean fp32 `[B, H]`, hidden fp32 `[B, S, H]` where asked for) of each micro-batch."""
        with self._lock:
            self._running += 1
            alone = self._running == 1 and len(batches) == 1
        try:
            if alone or self.threads == 1:
                return [self._one(batch, self.threads) for batch in batches]
            with self._lock:
                if self._workers is None:
                    self._workers = ThreadPoolExecutor(self.threads, "adaptx")
                jobs: list[Future[Any]] = [
                    self._workers.submit(self._one, batch, 1) for batch in batches
                ]
            return [job.result() for job in jobs]
        finally:
            with self._lock:
                self._running -= 1

    def _one(self, batch: MicroBatch, threads: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A lone row of a lone request goes through its own graph; it gives the same bits."""
        lone = self.has_lone and threads == self.threads and batch.mask.shape[0] == 1
        if lone and batch.mask.all():
            session = self.session(LONE, threads)
            binding = self._slot(session, batch.chunk, int(batch.slots[0]))
        else:
            session = self.session(MODEL, threads)
            binding = self._banks(session, batch.chunk)
            binding.bind_cpu_input(MASK, batch.mask)
            if batch.chunk.values:
                same = bool((batch.slots == batch.slots[0]).all())
                slots = batch.slots[:1] if same else batch.slots
                binding.bind_cpu_input(IDS, np.ascontiguousarray(slots[:, None]))
        binding.bind_cpu_input(INPUT_IDS, batch.input_ids)
        binding.clear_binding_outputs()
        binding.bind_output(MEAN)
        if batch.hidden:
            binding.bind_output(HIDDEN)
        session.run_with_iobinding(binding)
        mean, *hidden = binding.copy_outputs_to_cpu()
        return mean, hidden[0] if hidden else None

    def _banks(self, session: Any, chunk: Chunk) -> Any:
        """The asking thread's binding of a chunk's banks."""
        return self._bound(session, chunk, -1, lambda: chunk.values)

    def _slot(self, session: Any, chunk: Chunk, slot: int) -> Any:
        """The asking thread's binding of one slot."""
        return self._bound(session, chunk, slot, lambda: chunk.slot_values(slot))

    def _bound(
        self, session: Any, chunk: Chunk, slot: int, values: Callable[[], Mapping[str, Any]]
    ) -> Any:
        """A binding with some hundred inputs, bound once: those used last are kept."""
        held: OrderedDict[tuple[int, int, int], tuple[Any, Any, Chunk]]
        held = self._local.__dict__.setdefault("bindings", OrderedDict())
        key = (id(session), id(chunk), slot)  # all three live on in what is kept
        if key not in held:
            binding, inputs = session.io_binding(), values()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            held[key] = (binding, inputs, chunk)
            if len(held) > BINDINGS:
                held.popitem(last=False)
        held.move_to_end(key)
        return held[key][0]

    def close(self) -> None:
        """End the workers; runs under way end first. A later run starts others."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
