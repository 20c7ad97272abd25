"""From an adapter's folder to a merged int8 model, and how fast it answers on this CPU.

Command   python export/merged_int8.py runs/lora_sw/sw-topics build/sw-topics-int8 [--dev dev.tsv]
Time      under a minute on 2 CPU cores.

Writes the model's folder (see export/README.md for what is in it), after the parity gate has
compared it with torch, and prints the median time of a call at three batch shapes, in ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

import adaptx as ax
from adaptx.cli.opening import open_adapter
from adaptx.cli.run import run
from adaptx.runtime.sessions import EXACT
from adaptx.tasks.base import title

SHAPES = ((1, 16), (8, 32), (32, 48))  # rows x tokens


def main() -> None:
    options = arguments()
    encoder, adapter = open_adapter(options.adapter, options.encoder)
    report = ax.export_merged(
        encoder,
        adapter,
        options.output,
        quantize=None if options.fp32 else "int8",
        dev=options.dev,
        overwrite=options.overwrite,
    )
    size = sum(path.stat().st_size for path in options.output.iterdir()) / 1e6
    print(f"Wrote {options.output} ({size:.0f} MB).")
    share, texts = report["max_relative_difference"], report["texts"]
    print(f"At most {share:.1%} of the largest output from torch on {texts} probe texts.")
    if "agreement" in report:
        print(f"Same label as torch on {report['agreement']:.1%} of them.")
    if "dev" in report:
        metric = report["metric"]
        torch_, onnx_ = (report["dev"][kind][metric] for kind in ("torch", "onnx"))
        print(f"{title(metric)} on dev: torch {torch_:.3f}, ONNX {onnx_:.3f}.")
    times = timings(options.output, options.threads, encoder.config.vocab_size)
    for shape, milliseconds in times.items():
        print(f"{shape:>6} rows x tokens: {milliseconds:.1f} ms")
    print(json.dumps({"size_mb": round(size, 1), "ms": times}))


def timings(folder: Path, threads: int, vocabulary: int) -> dict[str, float]:
    """Median ms of a call at each shape, after warming up."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(EXACT, "1")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    found = {}
    for rows, tokens in SHAPES:
        feeds = {
            "input_ids": rng.integers(5, vocabulary, (rows, tokens), dtype=np.int64),
            "attention_mask": np.ones((rows, tokens), dtype=np.int64),
        }
        seconds = []
        for _ in range(23):
            started = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - started)
        found[f"{rows}x{tokens}"] = round(1000 * statistics.median(seconds[3:]), 1)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", type=Path, help="the adapter's folder")
    parser.add_argument("output", type=Path, help="the model's new folder")
    parser.add_argument("--dev", type=Path, help="labelled data to compare torch and ONNX on")
    parser.add_argument("--encoder", help="default: the one that the adapter names")
    parser.add_argument("--fp32", action="store_true", help="don't quantize")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
