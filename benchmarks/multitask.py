"""Three tasks of Swahili on one shared adapter, against an adapter for each.

Data      SIB-200's topics (swh_Latn), MasakhaNER's names (swa), AfriSenti's sentiment (swa), as
          benchmarks.sib200, masakhaner and afrisenti have them; DATA is --data or $ADAPTX_DATA.
Search    GRID below, for the shared adapter: epochs, learning rates and weights of the names'
          loss, scored on dev's mean with seed 0. The first two have run, CHOSEN is the better. Each
          separate adapter has the settings that its own benchmark chose. All are trained on train
          alone. The shared one has r=48: as many weights as three of r=16.
Score     accuracy, span F1 and weighted F1 on test, and the mean of the three. The difference has
          the 95% interval of the three tasks' paired bootstraps, taken as independent.
Command   python -m benchmarks.multitask
          python -m benchmarks.multitask --search
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
from adaptx.errors import DataError
from benchmarks.afrisenti import SUITE as AFRISENTI
from benchmarks.masakhaner import SUITE as MASAKHANER
from benchmarks.scored import AT_ONCE, ENCODER, LORA, Suite, mean, rows_of
from benchmarks.sib200 import SUITE as SIB200

TASKS: dict[str, tuple[Suite, str]] = {
    "topics": (SIB200, "swh_Latn"),
    "names": (MASAKHANER, "swa"),
    "sentiment": (AFRISENTI, "swa"),
}
COMMON = {"batch_size": 16, "precision": "auto", "sampling": "temperature"}
SHARED = {**LORA, "r": 48, "lora_alpha": 48}
GRID = [
    {"epochs": epochs, **COMMON, "lora": SHARED, "lr": lr, "weights": {"names": names}}
    for epochs, lr, names in ((4, 5e-4, 4.0), (7, 5e-4, 4.0), (4, 1e-3, 4.0), (4, 5e-4, 1.0))
]
CHOSEN = 0


def main() -> None:
    options = arguments()
    if options.data is None:
        raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
    if options.search:
        found = [{**settings, **means(shared(settings, 0, options))} for settings in GRID]
        print(json.dumps(found))
        return
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in TASKS}
    for seed in range(options.seeds):
        together = shared(GRID[CHOSEN], seed, options)
        for task in TASKS:
            runs[task].setdefault("shared", []).append(together[task])
            runs[task].setdefault("separate", []).append(separate(task, seed, options))
    results: dict[str, Any] = {}
    for task, by_method in runs.items():
        metric = TASKS[task][0].metric
        results[task] = {
            method: {"score": mean(found)[metric], **mean(found)}
            for method, found in by_method.items()
        }
    results["mean"] = {
        method: {
            "score": round(float(np.mean([results[task][method]["score"] for task in TASKS])), 5)
        }
        for method in ("shared", "separate")
    }
    results["differences"] = differences(runs)
    show(results)
    print(json.dumps(results))


def shared(
    settings: dict[str, Any], seed: int, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Each task's result on the shared adapter, from the cache where it stands there."""
    from peft import LoraConfig

    files = {task: suite.splits(options.data, lang) for task, (suite, lang) in TASKS.items()}
    digest = hashlib.sha256(json.dumps([adaptx.__version__, ENCODER, settings]).encode())
    for file in (file for its in files.values() for split in its.values() for file in split):
        digest.update(file.read_bytes())
    path = options.cache / f"shared-{seed}-{digest.hexdigest()[:12]}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    print(f"shared, lr {settings['lr']}, {settings['weights']}, seed {seed} …", file=sys.stderr)
    rows = {
        task: {split: TASKS[task][0].load(its[split], split) for split in its}
        for task, its in files.items()
    }
    encoder = adaptx.Encoder.from_pretrained(ENCODER)
    started = time.perf_counter()
    adapters = adaptx.train_together(
        encoder,
        {
            task: adaptx.Part(
                TASKS[task][0].task(),
                [adaptx.Source(its["train"], its["dev"], language="sw")],
                settings["weights"].get(task, 1.0),
            )
            for task, its in rows.items()
        },
        LoraConfig(**settings["lora"]),
        name="shared",
        seed=seed,
        **{key: value for key, value in settings.items() if key not in ("lora", "weights")},
    )
    seconds = round(time.perf_counter() - started, 1)
    found = {}
    for task, adapter in adapters.items():
        suite = TASKS[task][0]
        report = adaptx.evaluate(encoder, adapter, rows[task]["test"], batch_size=AT_ONCE)
        best = adapter.facts.training["best"]
        found[task] = {
            **report.scores,
            "dev": best[suite.metric],
            "epoch": best["epoch"],
            "seconds": seconds,
            "rows": rows_of(report, suite.metric),
        }
    options.cache.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)
    return found


def separate(task: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a task's own adapter, as its own benchmark trains it, on train alone."""
    suite, lang = TASKS[task]
    own = argparse.Namespace(data=options.data, cache=options.cache / suite.name, train_only=True)
    return suite.cached(lang, "lora", suite.grids["lora"][suite.chosen["lora"]], seed, own)


def means(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The mean of the tasks' scores on dev."""
    return {"dev": round(float(np.mean([one["dev"] for one in found.values()])), 5)}


def differences(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Shared less separate, for each task and for their mean."""
    found = {
        task: TASKS[task][0].less({task: by_method}, "shared", "separate")
        for task, by_method in runs.items()
    }
    middle = float(np.mean([one["difference"] for one in found.values()]))
    down, up = (
        float(np.sqrt(sum((one[end] - one["difference"]) ** 2 for one in found.values())))
        / len(found)
        for end in ("low", "high")
    )
    both = {"difference": middle, "low": middle - down, "high": middle + up}
    return {**found, "mean": both}


def show(results: dict[str, Any]) -> None:
    """The table, on stderr."""
    table = Table("task", "shared", "separate", "difference", "95% interval")
    for task in (*TASKS, "mean"):
        found = results["differences"][task]
        scores = (f"{results[task][method]['score']:.3f}" for method in ("shared", "separate"))
        table.add_row(
            task,
            *scores,
            f"{found['difference']:+.3f}",
            f"{found['low']:+.3f} to {found['high']:+.3f}",
        )
    Console(stderr=True).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multitask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.environ.get("ADAPTX_DATA")
    parser.add_argument("--data", type=Path, default=Path(root) if root else None)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--search", action="store_true", help="score the grid on dev instead")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/.cache/multitask"))
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
