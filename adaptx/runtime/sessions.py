"""onnxruntime sessions of a bundle's graph, and how rows share them.

Many rows go to workers of one thread each, a few rows at a time, whose states stay in a core's
cache; a lone row goes to one session with all threads, and a graph of its own. All give the same
bits.
Each session is opened when it is first needed. B rows, S tokens, H width.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptx.errors import FolderError
from adaptx.machine import overflows
from adaptx.runtime.bank import Chunk
from adaptx.runtime.layout import (
    CHECK,
    HIDDEN,
    IDS,
    INPUT_IDS,
    LONE,
    MASK,
    MEAN,
    MODEL,
    PROBE,
    WEIGHTS,
)

ROWS, TOKENS = 8, 512  # of a micro-batch, at most (but one row may be longer)
BINDINGS = 64  # that a thread keeps
EXACT = "session.x64quantprecision"  # where products of u8 with s8 may overflow: u8 with u8
REWRITES = [  # other optimizers of the same level: they would undo what was measured, or sum anew
    "AttentionFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion",
    "CommonSubexpressionElimination", "ConstantFolding", "DivMulFusion", "EmbedLayerNormFusion",
    "FastGeluFusion", "GatherToSliceFusion", "GeluFusionL1", "GeluFusionL2",
    "GemmActivationFusion", "GemmSumFusion", "GemmTransposeFusion", "LayerNormFusionL1",
    "LayerNormFusionL2", "Level1_RuleBasedTransformer", "Level2_RuleBasedTransformer",
    "MatMulActivationFusion", "MatMulAddFusion", "MatMulScaleFusion", "MatmulTransposeFusion",
    "NotWhereFusion", "QuickGeluFusion", "ReshapeFusion", "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion", "TransposeOptimizer",
]  # fmt: skip


def open_session(
    path: Path | bytes, threads: int, *, arena: bool = True, prepack: bool = True
) -> Any:
    """A session that runs a graph, a file or its bytes, as it was written: that measured best.

    But where u8 x s8 overflows, the weights become u8: exact sums, for a quarter to a third more
    of a product's time.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact := overflows():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry(EXACT, "1")
    options.enable_cpu_mem_arena = arena
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(
            path,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=REWRITES if exact else None,
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        said = " ".join(str(error).split())
        what = path if isinstance(path, Path) else "The model"
        raise FolderError(f"{what} can't be opened by onnxruntime: {said}") from error


class MicroBatch(NamedTuple):
    """Rows that run together: int64 `[B, S]` ids and mask, slots `[B]` of one chunk."""

    input_ids: np.ndarray
    mask: np.ndarray
    slots: np.ndarray
    chunk: Chunk
    hidden: bool  # whether token states are asked for, beside their mean


class Graphs:
    """A bundle's graphs, opened when they are needed: from the files that stood there at first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files = self._stamps()

    def open(self, name: str, threads: int, **options: bool) -> Any:
        """A session (see open_session); FolderError where the bundle has become another."""
        try:
            return open_session(self.folder / name, threads, **options)
        finally:  # an error of onnxruntime's, too, has its reason in this
            if self._stamps() != self._files:
                raise FolderError(
                    f"{self.folder} isn't the bundle that was opened: its files were replaced or "
                    f"taken away since. Open it again."
                )

    def _stamps(self) -> dict[str, tuple[int, ...]]:
        """What tells a file from another of its name."""
        found: dict[str, tuple[int, ...]] = {}
        for name in (MODEL, LONE, CHECK, WEIGHTS, PROBE):
            with suppress(FileNotFoundError):
                file = (self.folder / name).stat()
                found[name] = file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
        return found


class Sessions:
    """The sessions and workers of a bundle."""

    def __init__(self, graphs: Graphs, width: int, threads: int, arena: bool):
        self.graphs, self.width, self.threads, self.arena = graphs, width, threads, arena
        self.has_lone = (graphs.folder / LONE).is_file()
        self._opened: dict[tuple[str, int], Any] = {}
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._running = 0
        self._workers: ThreadPoolExecutor | None = None

    def session(self, name: str, threads: int) -> Any:
        """The session of one of the bundle's graphs with so many threads."""
        key = name, threads
        if key not in self._opened:  # who has a session already doesn't wait for another's
            with self._opening:
                if key not in self._opened:
                    self._opened[key] = self.graphs.open(name, threads, arena=self.arena)
        return self._opened[key]

    def first(self) -> Any:
        """The session that a lone text takes."""
        return self.session(LONE if self.has_lone else MODEL, self.threads)

    def rows_at_once(self, rows: int, tokens: int) -> int:
        """How many rows of up to `tokens` tokens make a micro-batch, of `rows` in all."""
        share = -(-rows // self.threads)
        return max(1, min(ROWS, share, TOKENS // max(tokens, 1)))

    def run(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(mean fp32 `[B, H]`, hidden fp32 `[B, S, H]` where asked for) of each micro-batch, in
        order; none is kept here once it is given.
        """
        with self._lock:
            self._running += 1
            alone = self._running == 1 and len(batches) == 1
        try:
            if alone or self.threads == 1:
                for batch in batches:
                    yield self._one(batch, self.threads)
                return
            with self._lock:
                if self._workers is None:
                    self._workers = ThreadPoolExecutor(self.threads, "adaptx")
                jobs: deque[Future[Any]] = deque(
                    self._workers.submit(self._one, batch, 1) for batch in batches
                )
            while jobs:
                yield jobs.popleft().result()
        finally:
            with self._lock:
                self._running -= 1

    def _one(self, batch: MicroBatch, threads: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A lone row of a lone request goes through its own graph; it gives the same bits."""
        lone = self.has_lone and threads == self.threads and batch.mask.shape[0] == 1
        if lone and batch.mask.all():
            return self._lone(batch)
        session = self.session(MODEL, threads)
        binding = self._bound(session, batch.chunk, -1, lambda: batch.chunk.values)[0]
        binding.bind_cpu_input(MASK, batch.mask)
        if batch.chunk.values:
            same = bool((batch.slots == batch.slots[0]).all())
            slots = batch.slots[:1] if same else batch.slots
            binding.bind_cpu_input(IDS, np.ascontiguousarray(slots[:, None]))
        binding.bind_cpu_input(INPUT_IDS, batch.input_ids)
        return _run(session, binding, batch.hidden)

    def _lone(self, batch: MicroBatch) -> tuple[np.ndarray, np.ndarray | None]:
        """With inputs and outputs that stay bound: of 3 ms, binding them anew takes a tenth."""
        session, slot = self.session(LONE, self.threads), int(batch.slots[0])
        binding, mean_1H = self._bound(
            session, batch.chunk, slot, lambda: batch.chunk.slot_values(slot), batch.hidden
        )
        kept = self._local.__dict__.setdefault("ids", {})  # by their number
        tokens = batch.input_ids.shape[1]
        if tokens not in kept:
            kept[tokens] = _shared(np.empty((1, tokens), np.int64))
        ids_1S, value = kept[tokens]
        ids_1S[:] = batch.input_ids
        binding.bind_ortvalue_input(INPUT_IDS, value)
        if batch.hidden:
            return _run(session, binding, True)
        session.run_with_iobinding(binding)
        return mean_1H.copy(), None

    def _bound(
        self,
        session: Any,
        chunk: Chunk,
        slot: int,
        values: Callable[[], Mapping[str, Any]],
        hidden: bool = False,
    ) -> tuple[Any, np.ndarray]:
        """The asking thread's binding of a chunk's banks, or of one slot of them, and where the
        mean of a lone row will be. Some hundred inputs are bound once: those used last are kept.
        """
        held: OrderedDict[tuple[int, int, int, bool], tuple[Any, np.ndarray, Any]]
        held = self._local.__dict__.setdefault("bindings", OrderedDict())
        key = (id(session), id(chunk), slot, hidden)  # they live on in what is kept
        if key not in held:
            binding, inputs = session.io_binding(), values()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            mean_1H, value = _shared(np.empty((1, self.width), np.float32))
            if slot >= 0:
                binding.bind_ortvalue_output(MEAN, value)
            held[key] = (binding, mean_1H, (session, inputs, chunk, value))
            if len(held) > BINDINGS:
                held.popitem(last=False)
        held.move_to_end(key)
        return held[key][:2]

    def close(self) -> None:
        """End the workers; runs under way end first. A later run starts others."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()


def _run(session: Any, binding: Any, hidden: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Run what is bound; the mean, and the token states where they are asked for."""
    binding.clear_binding_outputs()
    binding.bind_output(MEAN)
    if hidden:
        binding.bind_output(HIDDEN)
    session.run_with_iobinding(binding)
    mean, *states = binding.copy_outputs_to_cpu()
    return mean, states[0] if hidden else None


def _shared(array: np.ndarray) -> tuple[np.ndarray, Any]:
    """An array, and onnxruntime's view of its memory."""
    import onnxruntime

    return array, onnxruntime.OrtValue.ortvalue_from_numpy(array)
