"""Topic classification on SIB-200: LoRA adapters against the frozen encoder's probe.

Data      SIB-200 (Adelani et al. 2024, arXiv 2309.07445), 701/99/204 rows a language, 7 labels, in
          DATA/sib200/<language>/{train,dev,test}.tsv; DATA is --data or $ADAPTX_DATA.
Settings  below, chosen on dev rows only (docs/results.md says how). The probe chooses its
          regularization on dev too, among 13 values, for each language.
Command   python -m benchmarks.sib200 --langs swh_Latn --seeds 1 --methods lora,probe

Each run's result is kept under --cache, by the data, the method, its settings and the seed: a run
that was cut off goes on where it was. The last line is JSON: {language: {method: {…}}}, means over
the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import adaptx
from adaptx.cli.run import run as run_script
from adaptx.data.read import find_split, read_examples
from adaptx.errors import DataError, OptionError, choices

ENCODER = "bundled:multilingual-e5-small"
LORA = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA, "lr": 1e-3, "epochs": 10, "batch_size": 16, "precision": "bf16"},
    "probe": {},
}


def main() -> None:
    options = arguments()
    methods = options.methods.split(",")
    if unknown := sorted(set(methods) - SETTINGS.keys()):
        raise OptionError(f"No method {choices(unknown)}; there is {choices(SETTINGS)}.")
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for lang in options.langs.split(","):
        folder = options.data / "sib200" / lang
        for method in methods:
            seeds = [cached(folder, method, seed, options) for seed in range(options.seeds)]
            mean = {key: float(np.mean([run[key] for run in seeds])) for key in seeds[0]}
            results.setdefault(lang, {})[method] = {k: round(v, 5) for k, v in mean.items()}
    show(results)
    print(json.dumps(results))


def cached(folder: Path, method: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The result of a run, from the cache where it stands there."""
    run_by = [adaptx.__version__, ENCODER, SETTINGS[method]]
    digest = hashlib.sha256(json.dumps(run_by, sort_keys=True).encode())
    for split in ("train", "dev", "test"):
        digest.update(find_split(folder, split).read_bytes())
    key = f"{folder.name}-{method}-{seed}-{digest.hexdigest()[:12]}.json"
    path = options.cache / key
    if path.is_file():
        return json.loads(path.read_text())
    print(f"{folder.name}, {method}, seed {seed} …", file=sys.stderr)
    result = run(folder, method, seed)
    options.cache.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.replace(path)
    return result


def run(folder: Path, method: str, seed: int) -> dict[str, float]:
    """Train on train, choose on dev, count on test."""
    from accelerate import Accelerator
    from peft import LoraConfig

    from adaptx.evaluation.metrics import classification_scores

    train, dev, test = (
        read_examples(find_split(folder, split)) for split in ("train", "dev", "test")
    )
    settings = dict(SETTINGS[method])
    lora, precision = settings.pop("lora", None), settings.pop("precision", "bf16")
    encoder = adaptx.Encoder.from_pretrained(ENCODER)
    started = time.perf_counter()
    adapter = adaptx.train(
        encoder,
        adaptx.tasks.Classification(),
        LoraConfig(**lora) if lora else None,
        name=f"{folder.name}-{method}",
        train=train,
        dev=dev,
        seed=seed,
        accelerator=Accelerator(mixed_precision=precision),
        **settings,
    )
    seconds = time.perf_counter() - started
    assert adapter.task is not None
    answers = encoder.predict([row.text for row in test], adapter)
    index = {label: i for i, label in enumerate(adapter.task.labels)}
    predicted = np.array([index[answer.label] for answer in answers])
    return {
        **classification_scores(adapter.task.targets(test), predicted),
        "dev_accuracy": adapter.facts.training["best"]["accuracy"],
        "trainable_share": adapter.parameters_count / encoder.parameters,
        "seconds": round(seconds, 1),
    }


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """A table on stderr: a row for each language and method."""
    table = Table(title="SIB-200, test")
    for column in ("language", "method", "accuracy", "macro F1", "dev", "trainable", "seconds"):
        table.add_column(column)
    for lang, methods in results.items():
        for method, run in methods.items():
            table.add_row(
                lang,
                method,
                *(f"{run[key]:.3f}" for key in ("accuracy", "macro_f1", "dev_accuracy")),
                f"{run['trainable_share']:.2%}",
                f"{run['seconds']:.0f}",
            )
    Console(stderr=True).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--langs", default="swh_Latn", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--methods", default="lora,probe", help="comma-separated")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
