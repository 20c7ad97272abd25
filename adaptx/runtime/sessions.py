"""onnxruntime sessions of a bundle's graph, and how rows share them.

Many rows go to workers of one thread each, a few rows at a time, whose states stay in a core's
cache; a lone batch of a few rows goes to one session with all threads. Both give the same bits.
Each session is opened when it is first needed. B rows, S tokens, H width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.errors import FolderError
from adaptx.runtime.bank import Chunk
from adaptx.runtime.layout import HIDDEN, IDS, INPUT_IDS, MASK, MEAN, MODEL

ROWS, TOKENS = 8, 512  # of a micro-batch, at most (but one row may be longer)


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
        self.path, self.threads, self.arena = folder / MODEL, threads, arena
        self._opened: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._running = 0
        self._workers: ThreadPoolExecutor | None = None

    def session(self, threads: int) -> Any:
        """The session with so many threads."""
        with self._lock:
            if threads not in self._opened:
                self._opened[threads] = open_session(self.path, threads, arena=self.arena)
            return self._opened[threads]

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
                session = self.session(self.threads)
                return [self._one(session, batch) for batch in batches]
            session = self.session(1)
            with self._lock:
                if self._workers is None:
                    self._workers = ThreadPoolExecutor(self.threads, "adaptx")
                jobs: list[Future[Any]] = [
                    self._workers.submit(self._one, session, batch) for batch in batches
                ]
            return [job.result() for job in jobs]
        finally:
            with self._lock:
                self._running -= 1

    def _one(self, session: Any, batch: MicroBatch) -> tuple[np.ndarray, np.ndarray | None]:
        binding = self._binding(session, batch.chunk)
        binding.bind_cpu_input(INPUT_IDS, batch.input_ids)
        binding.bind_cpu_input(MASK, batch.mask)
        if batch.chunk.values:
            same = bool((batch.slots == batch.slots[0]).all())
            slots = batch.slots[:1] if same else batch.slots
            binding.bind_cpu_input(IDS, np.ascontiguousarray(slots[:, None]))
        binding.clear_binding_outputs()
        binding.bind_output(MEAN)
        if batch.hidden:
            binding.bind_output(HIDDEN)
        session.run_with_iobinding(binding)
        mean, *hidden = binding.copy_outputs_to_cpu()
        return mean, hidden[0] if hidden else None

    def _binding(self, session: Any, chunk: Chunk) -> Any:
        """The binding of a chunk for the thread that asks: some hundred inputs, bound once."""
        held: dict[tuple[int, int], tuple[Any, Chunk]]
        held = self._local.__dict__.setdefault("bindings", {})
        key = (id(session), id(chunk))  # both live on in the binding
        if key not in held:
            binding = session.io_binding()
            for name, value in chunk.values.items():
                binding.bind_ortvalue_input(name, value)
            held[key] = (binding, chunk)
        return held[key][0]

    def close(self) -> None:
        """End the workers; runs under way end first. A later run starts others."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
