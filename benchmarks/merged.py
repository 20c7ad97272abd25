"""A merged model in fp32 and int8: size, speed, and how far its answers are from torch.

Data      --dev: labelled rows, recipes/data/swh/dev.jsonl unless given.
Models    fp32; int8 as adaptx exports it (the FFN's second product in fp32); int8 as optimum's
          preset has it, every product quantized.
Command   python -m benchmarks.merged runs/lora_sw/sw-topics

Times are medians of 40 calls, the models taken in turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from adaptx.cli.opening import open_adapter
from adaptx.cli.run import run
from adaptx.data.read import read_examples
from adaptx.onnx.merged import MODEL, kept_fp32, quantize_int8, write_merged
from adaptx.onnx.parity import MergedSession, torch_logits
from adaptx.onnx.probe_texts import PROBE_TEXTS

SHAPES = ((1, 16), (8, 32), (32, 48))  # rows x tokens
ROUNDS = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", help="the adapter's folder")
    parser.add_argument("--dev", type=Path, default=Path("recipes/data/swh/dev.jsonl"))
    options = parser.parse_args()
    encoder, adapter = open_adapter(Path(options.adapter), None)
    assert adapter.task is not None
    dev = read_examples(options.dev)
    texts = [*PROBE_TEXTS, *(row.text for row in dev)]
    targets = adapter.task.targets(dev)
    wanted = torch_logits(encoder, adapter, texts)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sessions = {}
        for kind in ("fp32", "int8", "int8, every product"):
            folder = Path(temporary) / kind
            folder.mkdir()
            write_merged(encoder, adapter, folder)
            if kind != "fp32":
                quantize_int8(folder, kept_fp32(folder / MODEL) if kind == "int8" else [])
            found = MergedSession(folder).logits(texts)
            results[kind] = {
                "mb": round((folder / MODEL).stat().st_size / 1e6, 1),
                "relative_difference": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
                "agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
                "dev_accuracy": float((found[len(PROBE_TEXTS) :].argmax(1) == targets).mean()),
            }
            sessions[kind] = onnxruntime.InferenceSession(
                str(folder / MODEL), providers=["CPUExecutionProvider"]
            )
        for kind, times in timings(sessions, encoder.config.vocab_size).items():
            results[kind]["ms"] = times
    show(results)
    print(json.dumps(results))


def timings(
    sessions: dict[str, onnxruntime.InferenceSession], vocabulary: int
) -> dict[str, dict[str, float]]:
    """Median ms of a call, by model and shape; the models take turns, so drift hits all alike."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {kind: {} for kind in sessions}
    for rows, tokens in SHAPES:
        feeds = {
            "input_ids": rng.integers(5, vocabulary, (rows, tokens), dtype=np.int64),
            "attention_mask": np.ones((rows, tokens), dtype=np.int64),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in sessions}
        for _ in range(ROUNDS + 3):
            for kind, session in sessions.items():
                started = time.perf_counter()
                session.run(["logits"], feeds)
                seconds[kind].append(time.perf_counter() - started)
        for kind, times in seconds.items():
            found[kind][f"{rows}x{tokens}"] = round(1000 * statistics.median(times[3:]), 1)
    return found


def show(results: dict[str, Any]) -> None:
    shapes = [f"{rows}x{tokens}" for rows, tokens in SHAPES]
    table = Table(title="Merged models, onnxruntime on this CPU")
    for column in ("model", "MB", "difference", "agreement", "dev", *(f"{s} ms" for s in shapes)):
        table.add_column(column)
    for kind, found in results.items():
        table.add_row(
            kind,
            f"{found['mb']:.0f}",
            f"{found['relative_difference']:.2g}",
            f"{found['agreement']:.1%}",
            f"{found['dev_accuracy']:.3f}",
            *(f"{found['ms'][shape]:.1f}" for shape in shapes),
        )
    Console(stderr=True).print(table)


if __name__ == "__main__":
    run(main)
