"""What benchmarks ask of a process that serves a bundle: no torch here, as on a server.

Command   python -m benchmarks.served --child edge BUNDLE
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.runtime.runtime import Runtime

REST = 0.05  # seconds: a session's threads spin for a while after a run


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, inner: int
) -> dict[str, float]:
    """Median ms of each call; they take turns, `inner` calls each after a rest and a first one."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(REST)
            call()
            for _ in range(inner):
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def child_edge(folder: str) -> dict[str, float]:
    """Resident memory and ms for one row of 16 tokens on one thread."""
    with Runtime.open(folder, threads=1) as rt:
        row = [[0, *range(5, 19), 2]]
        calls = {"one": lambda: rt.pooled(row, rt.facts.adapters[0])}
        ms = interleaved(calls, 5, 20)["one"]
        return {"rss_mb": round(_resident(), 1), "ms_1x16": round(ms, 2)}


def child_memory(folder: str, *adapters: str) -> float:
    with Runtime.open(folder) as rt:
        for path in adapters:
            rt.add(path, check=False)
        ids = rows_of(250_000, 100, 48)
        names = [info.name for info in rt.adapters()]
        rt.pooled(ids, [names[i % len(names)] for i in range(len(ids))])
        return round(_resident(), 1)


def rows_of(vocabulary: int, rows: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """Rows of token ids, each between the special tokens that frame a text."""
    rng = np.random.default_rng(seed)
    return [
        [0, *(int(token) for token in rng.integers(5, vocabulary, tokens - 2)), 2]
        for _ in range(rows)
    ]


def _resident() -> float:
    """Resident memory of this process in MB, mapped weights included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return float("nan")


if __name__ == "__main__":
    print(json.dumps(globals()[f"child_{sys.argv[2]}"](*sys.argv[3:])))
