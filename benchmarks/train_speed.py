"""Training speed beside transformers.Trainer with PEFT: tokens a second, memory, accuracy.

Model     bundled:multilingual-e5-small, mean pooling, a linear head; LoRA r=16 on all linear sites,
          batch 32, AdamW, the same learning rate and epochs for all.
Peers     trainer     transformers.Trainer + PEFT as they come: fp32, the encoder's dropout, SDPA,
                      rows in any order
          peft best   the same at their best: no dropout, rows of like length together, and the
                      faster of two: eager attention in bf16, by autocast or with the frozen weights
                      in bf16 too; or, on a processor that doesn't multiply in bf16, fp32 with eager
                      attention or SDPA
          allocator   those two once more with glibc's allocator told to keep what it has
Data      SIB-200 (DATA/sib200); DATA is --data or $ADAPTX_DATA. Swahili for speed and memory,
          LANGUAGES for accuracy.
Command   python -m benchmarks.train_speed
          python -m benchmarks.train_speed --parts speed

Each contender trains in a process of its own and stops between blocks of STEPS steps, so that they
take turns on a machine that does nothing else; medians of the blocks. Tokens are counted without
padding, evaluation is left out. Accuracy's runs are kept under --cache. The last line is JSON:

adaptx_over_trainer, adaptx_over_peft_best, adaptx_over_peft_allocator  tokens/s over the peer's
share_of_limit     time that the step's unavoidable matrix products take by themselves, in the
                   faster dtype, over the step's time: the Linears' forward, the gradients of their
                   inputs, and LoRA's own; attention's products are left out
rss_over_trainer   largest resident memory over Trainer's
many_over_sequential  see benchmarks.train_many
dev_accuracy_minus_trainer  after EPOCHS epochs, languages and seeds pooled
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adaptx.cli.run import run as run_script
from adaptx.errors import DataError, OptionError, choices
from adaptx.machine import has_bf16
from benchmarks.train_peers import BATCH, EPOCHS, LR, RANK, STEPS, child

LANGUAGES, SEEDS = ("swh_Latn", "yor_Latn", "eng_Latn"), 3
SITES = ((384, 384, 48, 3), (384, 1536, 12, 0), (1536, 384, 12, 0))  # widths, all, in the lowest
PARTS = ("speed", "many", "accuracy")
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
ALLOCATOR = ", allocator"
BEST = ("autocast", "bf16") if has_bf16() else ("fp32", "fp32 SDPA")
CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {  # kind, environment
    "adaptx": ("adaptx", {}),
    "trainer": ("trainer", {}),
    **{f"peft {kind}": (kind, {}) for kind in BEST},
    **{f"peft {kind}{ALLOCATOR}": (kind, KEEP) for kind in BEST},
}


def main() -> None:
    options = arguments()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    if options.child:
        child(options.child, options.data, options.lang, options.seed)
        return
    asked = options.parts.split(",")
    if unknown := sorted(set(asked) - set(PARTS)):
        raise OptionError(f"No part {choices(unknown)}; there is {choices(PARTS)}.")
    found: dict[str, Any] = {}
    for part in asked:
        found |= globals()[f"part_{part}"](options)
        print(json.dumps(found, indent=1), file=sys.stderr)
    print(json.dumps(found))


def part_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Blocks of steps in turns."""
    running = {name: start(name, options) for name in CONTENDERS}
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    limits = []  # the machine drifts: the products take their turn as well
    for _ in range(options.rounds):
        for name, process in running.items():
            blocks[name].append(ask(process, "go"))
        tokens = blocks["adaptx"][-1]["tokens"] / STEPS
        limits.append(tokens / unavoidable(int(tokens)))
    peaks = {name: ask(process, "stop")["peak_mb"] for name, process in running.items()}
    speed = {
        name: statistics.median(b["tokens"] / b["seconds"] for b in found)
        for name, found in blocks.items()
    }
    peft = [name for name in speed if name.startswith("peft")]
    best = max((name for name in peft if ALLOCATOR not in name), key=lambda name: speed[name])
    kept = max((name for name in peft if ALLOCATOR in name), key=lambda name: speed[name])
    limit = statistics.median(limits)
    show(speed, peaks, limit)
    return {
        "adaptx_over_trainer": round(speed["adaptx"] / speed["trainer"], 3),
        "adaptx_over_peft_best": round(speed["adaptx"] / speed[best], 3),
        "adaptx_over_peft_allocator": round(speed["adaptx"] / speed[kept], 3),
        "peft_best": best,
        "share_of_limit": round(speed["adaptx"] / limit, 3),
        "rss_over_trainer": round(peaks["adaptx"] / peaks["trainer"], 3),
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "peak_mb": {name: round(value) for name, value in peaks.items()},
    }


def part_many(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.train_many import many_over_sequential

    found = many_over_sequential(options.data)
    return {"many_over_sequential": found["many_over_sequential"], "many_seconds": found["seconds"]}


def part_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Dev accuracy of both after the same epochs, each run in a process of its own."""
    right: dict[str, list[float]] = {"adaptx": [], "trainer": []}
    for seed in range(options.seeds):
        for lang in LANGUAGES:
            for kind, found in right.items():
                found.append(accuracy(kind, lang, seed, options))
    scores = {kind: float(np.mean(found)) for kind, found in right.items()}
    return {
        "dev_accuracy": {kind: round(score, 4) for kind, score in scores.items()},
        "dev_accuracy_minus_trainer": round(scores["adaptx"] - scores["trainer"], 4),
    }


def accuracy(kind: str, lang: str, seed: int, options: argparse.Namespace) -> float:
    path = options.cache / f"{kind}-{lang}-{seed}-{RANK}-{BATCH}-{LR:g}-{EPOCHS}.json"
    if not path.is_file():
        print(f"{kind}, {lang}, seed {seed} …", file=sys.stderr)
        process = start(kind, options, "--lang", lang, "--seed", str(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(ask(process, "whole")))
        part.replace(path)
    return float(json.loads(path.read_text())["dev_accuracy"])


def start(name: str, options: argparse.Namespace, *more: str) -> subprocess.Popen[str]:
    kind, environment = CONTENDERS[name]
    command = [sys.executable, "-m", "benchmarks.train_speed", "--data", str(options.data)]
    return subprocess.Popen(
        [*command, "--child", kind, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def ask(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """Send a line, and read the answer: a line of JSON among what libraries say."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"answer"'):
            return dict(json.loads(line)["answer"])
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


def unavoidable(tokens: int) -> float:
    """Seconds of a step's matrix products by themselves, in the faster of fp32 and bf16."""
    import torch

    dtype = torch.bfloat16 if has_bf16() else torch.float32
    seconds = 0.0
    for inputs, outputs, times, lowest in SITES:
        for product, below in products(tokens, inputs, outputs, dtype):
            seconds += median_time(product) * (times - lowest if below else times)
    return seconds


def products(
    tokens: int, inputs: int, outputs: int, dtype: Any
) -> Iterator[tuple[Callable[[], Any], bool]]:
    """A site's products, and whether those that read the embeddings are spared them."""
    import torch

    x, dy = torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, outputs).to(dtype)
    w, u = torch.randn(outputs, inputs).to(dtype), torch.randn(tokens, RANK).to(dtype)
    a, b = torch.randn(RANK, inputs).to(dtype), torch.randn(outputs, RANK).to(dtype)
    for forward in (lambda: x @ w.T, lambda: x @ a.T, lambda: u @ b.T):
        yield forward, False
    for backward in (lambda: dy @ b, lambda: u.T @ x, lambda: dy.T @ u):
        yield backward, False
    for below in (lambda: dy @ w, lambda: u @ a):
        yield below, True


def median_time(call: Callable[[], Any], times: int = 15) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:])


def show(speed: dict[str, float], peaks: dict[str, float], limit: float) -> None:
    table = Table(title="Training, tokens/s", width=80)
    for column in ("", "tokens/s", "largest MB"):
        table.add_column(column)
    for name, value in speed.items():
        table.add_row(name, f"{value:.0f}", f"{peaks[name]:.0f}")
    table.add_row("matrix products alone", f"{limit:.0f}", "")
    Console(stderr=True).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of accuracy")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each contender")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument(
        "--cache", type=Path, default=Path(__file__).parent / ".cache" / "train_speed"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--lang", default="swh_Latn", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
