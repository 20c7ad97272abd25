"""What the benchmarks of scores share: runs by language, method and seed, cached and resumable.

A `Suite` says the data, the task and the grids; its module's docstring says what was searched and
why. Each run's result is kept under --cache, by the data, the method, its settings and the seed, so
that a benchmark that was cut off goes on where it was. The last line is JSON: {language: {method:
{…}}}, means over the seeds, "mean" over the languages, and "differences" with 95% intervals of the
bootstrap over test rows, paired, drawn within each language.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import adaptx
from adaptx.data.large import open_records
from adaptx.errors import DataError, OptionError, choices
from adaptx.evaluation.compare import paired_bootstrap, paired_ratio
from adaptx.evaluation.report import Report
from adaptx.tasks import Task
from adaptx.tasks.base import title

ENCODER = "bundled:multilingual-e5-small"
LORA = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    langs, few   all languages; those with `seeds` seeds, the others have one
    splits       from the data root and a language to the files of train, dev and test
    load         from a split's files and the kind of task to its records
    grids        the settings of each method; `chosen` are places in them, by --search on `searched`
    metric       what is compared
    """

    name: str
    langs: Sequence[str]
    few: Sequence[str]
    splits: Callable[[Path, str], Mapping[str, Sequence[Path]]]
    task: Callable[[], Task]
    metric: str
    grids: Mapping[str, Sequence[Mapping[str, Any]]]
    chosen: Mapping[str, int]
    searched: Sequence[str]
    load: Callable[[Sequence[Path], str], Sequence[Any]] = lambda files, kind: open_records(
        files[0], kind
    )

    def main(self, doc: str) -> None:
        """Read the command line, run, and print the JSON."""
        options = self.arguments(doc)
        if options.data is None:
            raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
        methods = (options.search or options.methods).split(",")
        if unknown := sorted(set(methods) - self.grids.keys()):
            raise OptionError(f"No method {choices(unknown)}; there is {choices(self.grids)}.")
        found = self.search(methods, options) if options.search else self.compare(methods, options)
        print(json.dumps(found))

    def compare(self, methods: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
        """Every method with its chosen settings, on every language and seed."""
        runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for lang in options.langs.split(","):
            for method in methods:
                settings = self.grids[method][self.chosen[method]]
                many = lang in self.few and method not in ("full", "plain")
                seeds = range(options.seeds if many else 1)
                found = [self.cached(lang, method, settings, seed, options) for seed in seeds]
                runs.setdefault(lang, {})[method] = found
        results: dict[str, Any] = {
            lang: {method: mean(found) for method, found in by_method.items()}
            for lang, by_method in runs.items()
        }
        results["mean"] = {
            m: {self.metric: round(float(np.mean([results[k][m][self.metric] for k in runs])), 5)}
            for m in methods
        }
        self.show(results)
        first, *others = methods
        results["differences"] = {f"{first} - {m}": self.less(runs, first, m) for m in others}
        for name, found in results["differences"].items():
            Console(stderr=True).print(
                f"{name}: {found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
            )
        return results

    def search(self, methods: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
        """Each setting of the grids: its score on dev, the mean over `searched`, seed 0."""
        found: dict[str, Any] = {}
        for method in methods:
            for settings in self.grids[method]:
                runs = [self.cached(lang, method, settings, 0, options) for lang in self.searched]
                score = round(float(np.mean([run["dev"] for run in runs])), 5)
                found.setdefault(method, []).append({"lr": settings.get("lr"), "dev": score})
                print(method, found[method][-1], file=sys.stderr)
        return found

    def cached(
        self,
        lang: str,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        options: argparse.Namespace,
    ) -> dict[str, Any]:
        """The result of a run, from the cache where it stands there."""
        files = self.splits(options.data, lang)
        run_by = [adaptx.__version__, ENCODER, settings]
        digest = hashlib.sha256(json.dumps(run_by, sort_keys=True).encode())
        for split in ("train", "dev", "test"):
            for file in files[split]:
                digest.update(file.read_bytes())
        path = options.cache / f"{lang}-{method}-{seed}-{digest.hexdigest()[:12]}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        print(f"{lang}, {method}, lr {settings.get('lr')}, seed {seed} …", file=sys.stderr)
        result = self.run(files, f"{lang}-{method}", method, settings, seed)
        options.cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.replace(path)
        return result

    def run(
        self,
        files: Mapping[str, Sequence[Path]],
        name: str,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
    ) -> dict[str, Any]:
        """Train on train, to the best epoch on dev; count on dev and test."""
        from peft import LoraConfig

        task, settings = self.task(), dict(settings)
        train, dev, test = (
            self.load(files[split], task.kind) for split in ("train", "dev", "test")
        )
        lora = settings.pop("lora", None)
        config = LoraConfig(**lora) if lora else None
        if method == "full":
            config = adaptx.Full(dropout=settings.pop("dropout"))
        encoder = adaptx.Encoder.from_pretrained(ENCODER)
        started = time.perf_counter()
        if method == "plain":  # the encoder as it comes
            adapter = adaptx.Adapter.new(encoder, task, None, name=name)
            best = {"epoch": 0, **adaptx.evaluate(encoder, adapter, dev).scores}
        else:
            adapter = adaptx.train(
                encoder, task, config, name=name, train=train, dev=dev, seed=seed, **settings
            )
            best = adapter.facts.training["best"]
        seconds = time.perf_counter() - started
        report = adaptx.evaluate(encoder, adapter, test)
        return {
            **report.scores,
            "dev": best[self.metric],
            "epoch": best["epoch"],
            "trainable_share": adapter.parameters_count / encoder.parameters,
            "seconds": round(seconds, 1),
            "rows": rows_of(report, self.metric),
        }

    def less(
        self, runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], one: str, two: str
    ) -> dict[str, Any]:
        """One method's score less another's over all languages' test rows, seed 0 of both."""
        langs = list(runs)
        groups = np.concatenate([[lang] * len(runs[lang][one][0]["rows"][0]) for lang in langs])
        first, second = (
            [np.concatenate([runs[lang][m][0]["rows"][i] for lang in langs]) for i in (0, 1)]
            for m in (one, two)
        )
        if self.metric in ("accuracy", "macro_f1", "weighted_f1"):
            found = paired_bootstrap(
                first[0], first[1], second[1], metric=self.metric, groups=groups
            )
        else:
            pairs = [(np.array(x, float), np.array(y, float)) for x, y in (first, second)]
            found = paired_ratio(*pairs, metric=self.metric, groups=groups)
        return found.to_json()

    def show(self, results: Mapping[str, Any]) -> None:
        """The table, on stderr."""
        table = Table("language", "method", title(self.metric), "dev", "s")
        for lang, by_method in results.items():
            for method, found in by_method.items():
                line = [f"{found[key]:.3f}" if key in found else "" for key in (self.metric, "dev")]
                table.add_row(lang, method, *line, f"{found.get('seconds', 0):.0f}")
        Console(stderr=True).print(table)

    def arguments(self, doc: str) -> argparse.Namespace:
        """The options of the command line."""
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        root = os.environ.get("ADAPTX_DATA")
        parser.add_argument("--data", type=Path, default=Path(root) if root else None)
        parser.add_argument("--langs", default=",".join(self.langs), help="comma-separated")
        parser.add_argument("--seeds", type=int, default=3, help=f"of {', '.join(self.few)}")
        parser.add_argument("--methods", default="lora", help=f"of {', '.join(self.grids)}")
        parser.add_argument("--search", metavar="METHODS", help="score the grids on dev instead")
        parser.add_argument(
            "--cache", type=Path, default=Path(f"benchmarks/.cache/{self.name}"), help="a folder"
        )
        return parser.parse_args()


def rows_of(report: Any, metric: str) -> list[list[Any]]:
    """What a paired comparison needs: targets and answers, or the metric's sums by row."""
    if isinstance(report, Report):
        return [report.targets.tolist(), report.predicted.tolist()]
    return [part.tolist() for part in report.tally[metric]]


def mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The runs' scores averaged."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, (int, float))]
    return {key: round(float(np.mean([run[key] for run in runs])), 5) for key in numbers}
