"""How fast a bundle answers here: mixed adapters, one adapter, none, and merged models beside it.

Models of a comparison take turns, each after a rest: the threads of the one before spin for a while
after a run, and would take its cores. Times are medians of whole calls on token ids, through
`Runtime.pooled`; heads, which take microseconds, are left out. B rows, S tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptx import storage
from adaptx.errors import FolderError, MissingExtra, OptionError
from adaptx.machine import cores
from adaptx.runtime.layout import INPUT_IDS, MASK, MODEL
from adaptx.runtime.runtime import Runtime
from adaptx.runtime.sessions import EXACT

SHAPES = ((1, 16), (8, 32), (32, 48))  # rows x tokens
ROUNDS = 5
MIXED, ONE, NONE = "mixed adapters", "one adapter", "no adapter"
REST = 0.05  # seconds
LEAST, MOST = 3, 10  # calls of a turn
TURN = 0.2  # seconds that a turn may take beyond the fewest calls
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


@dataclass(frozen=True)
class Timing:
    """The median time of a call, in ms, of one model at one shape."""

    model: str
    threads: int
    rows: int
    tokens: int
    ms: float

    @property
    def rows_per_second(self) -> float:
        """Texts answered in a second."""
        return 1000 * self.rows / self.ms

    @property
    def tokens_per_second(self) -> float:
        """Tokens read in a second."""
        return self.rows_per_second * self.tokens


def thread_counts() -> list[int]:
    """Powers of two below the cores that this process may use, and those."""
    return [*(2**i for i in range((cores() - 1).bit_length())), cores()]


def bench(
    bundle: str | Path,
    merged: Sequence[str | Path] = (),
    *,
    threads: Sequence[int] | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = ROUNDS,
    say: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Time a bundle, and merged models' folders, at each number of threads and each shape.

    A merged model is opened with onnxruntime's defaults, and as many threads. Raises OptionError
    for a shape that is too long, and FolderError for what isn't a bundle, or a merged model.
    """
    counts, say = list(threads or thread_counts()), say or (lambda _: None)
    for value in (*counts, *(size for shape in shapes for size in shape), rounds):
        if value < 1:
            raise OptionError(f"{value} can't be a number of threads, rows, tokens or rounds.")
    folders = _names([Path(folder) for folder in merged])
    vocabularies = [_checked(folder) for folder in folders.values()]
    found = []
    for count in counts:
        say(f"{count} threads")
        with Runtime.open(bundle, threads=count) as runtime:
            sessions = {name: _session(folder, count) for name, folder in folders.items()}
            vocabulary = min([runtime.text.tokenizer.get_vocab_size(), *vocabularies])
            for rows, tokens in shapes:
                ids = _token_ids(runtime, vocabulary, rows, tokens)
                calls = _calls(runtime, ids) | {
                    name: _run(session, ids) for name, session in sessions.items()
                }
                times = interleaved(calls, rounds)
                found += [Timing(model, count, rows, tokens, ms) for model, ms in times.items()]
    return found


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median ms of each call; they take turns, each after a rest and a call that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(REST)
            call()
            began = time.perf_counter()
            for i in range(MOST):
                started = time.perf_counter()
                if i >= LEAST and started - began > TURN:
                    break
                call()
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def _calls(runtime: Runtime, ids: Sequence[Sequence[int]]) -> dict[str, Callable[[], Any]]:
    """What is timed of a bundle: adapters in their turn for the rows, the first one, none."""
    names = runtime.facts.adapters
    calls: dict[str, Callable[[], Any]] = {}
    if len(names) > 1:
        mixed = [names[row % len(names)] for row in range(len(ids))]
        calls[MIXED] = lambda: runtime.pooled(ids, mixed)
    if names:
        calls[ONE] = lambda: runtime.pooled(ids, names[0])
    return calls | {NONE: lambda: runtime.pooled(ids)}


def _token_ids(runtime: Runtime, vocabulary: int, rows: int, tokens: int) -> list[list[int]]:
    """Rows of random pieces between the special tokens that frame a text."""
    frame = runtime.text.ids([""])[0]
    if not len(frame) <= tokens <= runtime.facts.max_length:
        raise OptionError(
            f"{rows}x{tokens} can't be timed: this bundle reads rows of {len(frame)} to "
            f"{runtime.facts.max_length} tokens."
        )
    rng = np.random.default_rng(0)
    special = {*frame, runtime.facts.pad_id}
    pieces = np.array([id_ for id_ in range(vocabulary) if id_ not in special])
    return [
        [*frame[:-1], *(int(id_) for id_ in rng.choice(pieces, tokens - len(frame))), *frame[-1:]]
        for _ in range(rows)
    ]


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Merged models by the names that a table gives them."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise OptionError("A merged model was given twice.")
    ends = [folder.resolve().name for folder in folders]
    return {
        f"merged {end if ends.count(end) == 1 else folder}": folder
        for end, folder in zip(ends, folders, strict=True)
    }


def _checked(folder: Path) -> int:
    """The size of a merged model's vocabulary, after its files have been checked."""
    from tokenizers import Tokenizer

    if not folder.is_dir():
        raise FolderError(f"There is no merged model {folder}: make one with `adaptx export`.")
    manifest = storage.read_manifest(folder, "merged")
    for name in manifest["files"]:
        if name.startswith(MODEL):
            storage.check_file(folder, name, manifest)
    path = storage.check_file(folder, "tokenizer.json", manifest)
    return int(Tokenizer.from_file(str(path)).get_vocab_size())


def _session(folder: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT, "1")
    if threads != cores():  # else onnxruntime's own choice
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])


def _run(session: Any, ids: Sequence[Sequence[int]]) -> Callable[[], Any]:
    input_ids = np.array(ids, np.int64)
    feeds = {INPUT_IDS: input_ids, MASK: np.ones_like(input_ids)}
    return lambda: session.run(None, feeds)


def check_plot() -> None:
    """Raise MissingExtra where a plot couldn't be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "train", "A plot") from error


def plot(timings: Sequence[Timing], path: str | Path, title: str) -> None:
    """Write a PNG: for each shape, latency above and throughput below, by threads and model."""
    check_plot()
    import matplotlib
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys((t.rows, t.tokens) for t in timings))
    models = list(dict.fromkeys(t.model for t in timings))
    counts = list(dict.fromkeys(t.threads for t in timings))
    found = {(t.model, t.threads, t.rows, t.tokens): t for t in timings}
    bar = 0.8 / len(models)
    width = max(2.2, 0.8 + 0.34 * len(counts) * len(models))
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(max(5.5, width * len(shapes)), 6.4), dpi=150, layout="constrained")
        axes = figure.subplots(2, len(shapes), squeeze=False)
        for column, (rows, tokens) in enumerate(shapes):
            above, below = axes[:, column]
            for i, model in enumerate(models):
                mine = [found[model, count, rows, tokens] for count in counts]
                places = np.arange(len(counts)) + (i - (len(models) - 1) / 2) * bar
                colour = COLOURS[i % len(COLOURS)]
                for axis, values in (
                    (above, [t.ms for t in mine]),
                    (below, [t.tokens_per_second / 1000 for t in mine]),
                ):
                    bars = axis.bar(places, values, 0.9 * bar, color=colour, label=model)
                    axis.bar_label(bars, [f"{v:.3g}" for v in values], padding=2, rotation=90)
            above.set_title(f"{rows} x {tokens}")
            for axis in (above, below):
                axis.set_xticks(range(len(counts)), counts)
                axis.set_ylim(0, 1.25 * axis.dataLim.y1)
                axis.tick_params(axis="x", length=0)
                axis.spines[["top", "right"]].set_visible(False)
            below.set_xlabel("threads")
        axes[0, 0].set_ylabel("ms a call, median")
        axes[1, 0].set_ylabel("thousand tokens/s")
        figure.suptitle(f"{title}: rows x tokens")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
        figure.savefig(path, format="png", metadata={"Software": None})
