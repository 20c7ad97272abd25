"""Topic classification on SIB-200: LoRA against the frozen encoder's probe and full fine-tuning.

Data      SIB-200 (Adelani et al. 2024, arXiv 2309.07445), 701/99/204 rows a language, 7 labels, in
          DATA/sib200/<language>/{train,dev,test}.tsv; DATA is --data or $ADAPTX_DATA.
Search    GRIDS below: two learning rates for LoRA and two for full fine-tuning, each scored on the
          dev rows of SEARCHED with seed 0; the best mean is in CHOSEN. The probe chooses its
          regularization among 13 values by cross-validation. No epoch is chosen: 99 dev rows can't
          tell epochs apart, and the last one's averaged weights stand.
Fit       With the chosen settings every method is trained on the rows of train and dev together:
          the choice is made, and 99 rows more matter beside 701. --train-only leaves them out.
Command   python -m benchmarks.sib200 --langs swh_Latn --seeds 1 --methods lora,probe
          python -m benchmarks.sib200 --search lora,full

Each run's result is kept under --cache, by the data, the method, its settings and the seed: a run
that was cut off goes on where it was. Differences come with 95% intervals of the paired bootstrap
over the pooled test rows, drawn within each language. The last line is JSON: {language: {method:
{…}}}, means over the seeds, "pooled" over the languages, and "differences".
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
from adaptx.evaluation.compare import Difference, paired_bootstrap
from adaptx.evaluation.metrics import classification_scores

ENCODER = "bundled:multilingual-e5-small"
LORA = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"}
COMMON = {"epochs": 7, "batch_size": 16, "precision": "bf16"}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "lora": [{**COMMON, "lora": LORA, "lr": lr} for lr in (5e-4, 1e-3)],
    "full": [{**COMMON, "dropout": 0.1, "lr": lr} for lr in (5e-5, 1e-4)],
    "probe": [{}],
}
CHOSEN = {"lora": 0, "full": 0, "probe": 0}  # places in the grids, by --search
SEARCHED = ("swh_Latn", "yor_Latn")


def main() -> None:
    options = arguments()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    methods = (options.search or options.methods).split(",")
    if unknown := sorted(set(methods) - GRIDS.keys()):
        raise OptionError(f"No method {choices(unknown)}; there is {choices(GRIDS)}.")
    print(json.dumps(search(methods, options) if options.search else compare(methods, options)))


def compare(methods: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Every method with its chosen settings, on every language and seed."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for lang in options.langs.split(","):
        for method in methods:
            settings = GRIDS[method][CHOSEN[method]]
            # Full fine-tuning takes long, and a probe has no seed: its optimum is one.
            seeds = {"full": options.full_seeds, "probe": 1}.get(method, options.seeds)
            found = [
                cached(lang, method, settings, seed, options, with_dev=not options.train_only)
                for seed in range(seeds)
            ]
            runs.setdefault(lang, {})[method] = found
    results: dict[str, Any] = {
        lang: {method: mean(found) for method, found in by_method.items()}
        for lang, by_method in runs.items()
    }
    results["pooled"] = {m: mean([r for lang in runs for r in runs[lang][m]]) for m in methods}
    first, *others = methods
    compared = {f"{first} - {m}": difference(runs, first, m) for m in others}
    show(results, compared)
    results["differences"] = {name: found.to_json() for name, found in compared.items()}
    return results


def search(methods: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Each setting of the grids: its dev accuracy, the mean over SEARCHED."""
    found: dict[str, Any] = {}
    for method in methods:
        for settings in GRIDS[method]:
            runs = [cached(lang, method, settings, 0, options) for lang in SEARCHED]
            scores = mean(runs)
            entry = {"dev_accuracy": scores["dev_accuracy"], "seconds": scores["seconds"]}
            found.setdefault(method, []).append({"lr": settings.get("lr"), **entry})
            print(method, found[method][-1], file=sys.stderr)
    return found


def cached(
    lang: str,
    method: str,
    settings: dict[str, Any],
    seed: int,
    options: argparse.Namespace,
    *,
    with_dev: bool = False,
) -> dict[str, Any]:
    """The result of a run, from the cache where it stands there."""
    folder = options.data / "sib200" / lang
    run_by = [adaptx.__version__, ENCODER, settings, with_dev]
    digest = hashlib.sha256(json.dumps(run_by, sort_keys=True).encode())
    for split in ("train", "dev", "test"):
        digest.update(find_split(folder, split).read_bytes())
    path = options.cache / f"{lang}-{method}-{seed}-{digest.hexdigest()[:12]}.json"
    if path.is_file():
        return json.loads(path.read_text())
    print(f"{lang}, {method}, lr {settings.get('lr')}, seed {seed} …", file=sys.stderr)
    result = run(folder, method, settings, seed, with_dev)
    options.cache.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.replace(path)
    return result


def run(
    folder: Path, method: str, settings: dict[str, Any], seed: int, with_dev: bool
) -> dict[str, Any]:
    """Train on train, or on train and dev, to the last epoch; count on dev and test."""
    from peft import LoraConfig

    train, dev, test = (
        read_examples(find_split(folder, split)) for split in ("train", "dev", "test")
    )
    settings = dict(settings)
    lora = settings.pop("lora", None)
    config = LoraConfig(**lora) if lora else None
    if method == "full":
        config = adaptx.Full(dropout=settings.pop("dropout"))
    encoder = adaptx.Encoder.from_pretrained(ENCODER)
    started = time.perf_counter()
    adapter = adaptx.train(
        encoder,
        adaptx.tasks.Classification(),
        config,
        name=f"{folder.name}-{method}",
        train=train + dev if with_dev else train,
        seed=seed,
        **settings,
    )
    seconds = time.perf_counter() - started
    report = adaptx.evaluate(encoder, adapter, test)
    unseen = {} if with_dev else adaptx.evaluate(encoder, adapter, dev).scores
    return {
        **classification_scores(report.targets, report.predicted),
        **({"dev_accuracy": unseen["accuracy"]} if unseen else {}),
        "trainable_share": adapter.parameters_count / encoder.parameters,
        "seconds": round(seconds, 1),
        "targets": report.targets.tolist(),
        "predicted": report.predicted.tolist(),
    }


def mean(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The runs' scores averaged."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, (int, float))]
    return {key: round(float(np.mean([run[key] for run in runs])), 5) for key in numbers}


def difference(runs: dict[str, dict[str, list[dict[str, Any]]]], one: str, two: str) -> Difference:
    """The accuracy of one method less another's, over all languages' test rows."""

    def answers(method: str) -> np.ndarray:
        return np.concatenate([[r["predicted"] for r in runs[lang][method]] for lang in runs], 1)

    targets = np.concatenate([runs[lang][one][0]["targets"] for lang in runs])
    groups = np.concatenate([[lang] * len(runs[lang][one][0]["targets"]) for lang in runs])
    return paired_bootstrap(targets, answers(one), answers(two), groups=groups)


def show(results: dict[str, dict[str, dict[str, float]]], compared: dict[str, Difference]) -> None:
    """A table on stderr: a row for each language and method; then the differences."""
    console = Console(stderr=True)
    table = Table(title="SIB-200, test")
    for column in ("language", "method", "accuracy", "macro F1", "trainable", "seconds"):
        table.add_column(column)
    for lang, methods in results.items():
        for method, scores in methods.items():
            table.add_row(
                lang,
                method,
                *(f"{scores[key]:.3f}" for key in ("accuracy", "macro_f1")),
                f"{scores['trainable_share']:.2%}",
                f"{scores['seconds']:.0f}",
            )
    console.print(table)
    for name, found in compared.items():
        console.print(
            f"{name}: {found.difference:+.3f} accuracy, 95% interval {found.low:+.3f} to "
            f"{found.high:+.3f}"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--langs", default="swh_Latn", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--full-seeds", type=int, default=1, help="how many of full fine-tuning")
    parser.add_argument(
        "--methods", default="lora,probe", help="comma-separated: lora, full, probe"
    )
    parser.add_argument("--train-only", action="store_true", help="don't train on dev too")
    parser.add_argument("--search", help="score these methods' grids on dev instead")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
