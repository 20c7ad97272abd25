"""What the benchmarks of scores share: runs by language, method and seed, cached and resumable.

A `Suite` says the data, the task and the grids; its module's docstring says what was searched and
why. Languages with the same training files share one training. The results of each are kept under
--cache, by the data, the method, its settings and the seed, so that a benchmark that was cut off
goes on where it was. The last line is JSON: {language: {method: {…}}}, means over the seeds; "mean"
over the languages; and "differences", of scores averaged over the seeds that each method has, with
95% intervals of the bootstrap over test rows, paired, drawn within each language.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
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
from adaptx.errors import DataError, OptionError, choices
from adaptx.evaluation.compare import paired_bootstrap, paired_ratio
from adaptx.evaluation.report import Report
from adaptx.tasks import Task
from adaptx.tasks.base import title
from adaptx.tasks.classification import METRICS as CLASSIFICATION

ENCODER = "bundled:multilingual-e5-small"
LORA = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"}
AT_ONCE = 8  # rows that are scored: on a CPU larger batches take longer


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    langs, once  all languages; those with one seed whatever --seeds says
    splits       from the data root and a language to the files of train, dev and test
    load         from a split's files and its name to its records
    grids        the settings of each method; `chosen` are places in them, by --search on `searched`
    metric       what is compared
    joined       dev is too small to choose by: the last epoch stands; settings are chosen by
                 two-fold cross-validation over the rows of train and dev, and then all of these
                 are trained on, but for --train-only
    """

    name: str
    langs: Sequence[str]
    splits: Callable[[Path, str], Mapping[str, Sequence[Path]]]
    load: Callable[[Sequence[Path], str], Sequence[Any]]
    task: Callable[[], Task]
    metric: str
    grids: Mapping[str, Sequence[Mapping[str, Any]]]
    chosen: Mapping[str, int]
    searched: Sequence[str]
    once: Sequence[str] = ()
    joined: bool = False

    def main(self, doc: str) -> None:
        """Read the command line, run, and print the JSON."""
        options = self.arguments(doc)
        if options.data is None:
            raise DataError("the data root isn't given: pass --data, or set $ADAPTX_DATA.")
        if min(options.seeds, options.full_seeds) < 1:
            raise OptionError("--seeds and --full-seeds are how many, at least 1.")
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
                seeds = options.full_seeds if method == "full" else options.seeds
                if lang in self.once or "epochs" not in settings:  # solved, or nothing to train
                    seeds = 1
                found = [
                    self.cached(lang, method, settings, seed, options) for seed in range(seeds)
                ]
                runs.setdefault(lang, {})[method] = found
        results: dict[str, Any] = {
            lang: {method: mean(found) for method, found in by_method.items()}
            for lang, by_method in runs.items()
        }
        results["mean"] = {m: mean([results[lang][m] for lang in runs]) for m in methods}
        self.show(results)
        first, *others = methods
        results["differences"] = {f"{first} - {m}": self.less(runs, first, m) for m in others}
        for name, found in results["differences"].items():
            Console(stderr=True).print(
                f"{name}: {found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
            )
        return results

    def search(self, methods: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
        """Each setting of the grids: its score on held-out rows, the mean over `searched`."""
        found: dict[str, Any] = {}
        folds, score = ((0, 1), self.metric) if self.joined else ((None,), "dev")
        for method in methods:
            grid = self.grids[method]
            for settings in grid:
                runs = [
                    self.cached(lang, method, settings, 0, options, fold)
                    for lang in self.searched
                    for fold in folds
                ]
                differing = {
                    name: value
                    for name, value in settings.items()
                    if any(other.get(name) != value for other in grid)
                }
                held_out = round(float(np.mean([run[score] for run in runs])), 5)
                found.setdefault(method, []).append({**differing, "held_out": held_out})
                print(method, found[method][-1], file=sys.stderr)
        return found

    def cached(
        self,
        lang: str,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        options: argparse.Namespace,
        fold: int | None = None,
    ) -> dict[str, Any]:
        """The result of a run, from the cache where it stands there.

        With `fold`, 0 or 1, one half of train's and dev's rows is trained on, the other scored.
        """
        joined = fold is None and self.joined and not options.train_only
        part = joined if fold is None else f"fold {fold}"
        files = self.splits(options.data, lang)
        trained = [*files["train"], *files["dev"]]

        def place(lang: str, test: Sequence[Path]) -> Path:
            run_by = [adaptx.__version__, ENCODER, settings, *([part] if self.joined else [])]
            digest = hashlib.sha256(json.dumps(run_by, sort_keys=True).encode())
            for file in (*trained, *test):
                if not file.is_file():
                    raise DataError("there is no such file.", file)
                digest.update(file.read_bytes())
            return options.cache / f"{lang}-{method}-{seed}-{digest.hexdigest()[:12]}.json"

        path = place(lang, files["test"])
        if not path.is_file():
            print(f"{lang}, {method}, lr {settings.get('lr')}, seed {seed} …", file=sys.stderr)
            each = {other: self.splits(options.data, other) for other in self.langs} | {lang: files}
            tests = {
                other: its["test"]
                for other, its in each.items()
                if [*its["train"], *its["dev"]] == trained
            }
            paths = {other: place(other, test) for other, test in tests.items()}
            started = time.perf_counter()
            name = f"{lang}-{method}"
            results = self.run(files, tests, name, method, settings, seed, joined, fold)
            print(f"… {time.perf_counter() - started:.0f} s with its scores", file=sys.stderr)
            options.cache.mkdir(parents=True, exist_ok=True)
            for other, result in results.items():
                part = paths[other].with_suffix(".part")
                part.write_text(json.dumps(result))
                part.replace(paths[other])
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def run(
        self,
        files: Mapping[str, Sequence[Path]],
        tests: Mapping[str, Sequence[Path]],
        name: str,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        joined: bool,
        fold: int | None,
    ) -> dict[str, dict[str, Any]]:
        """Train once, to the best epoch on dev (`joined`: on dev too); count on each test set (with
        `fold`: on the half that wasn't trained on).
        """
        from peft import LoraConfig

        task, settings = self.task(), dict(settings)
        train, dev = (list(self.load(files[split], split)) for split in ("train", "dev"))
        loaded = {lang: self.load(test, "test") for lang, test in tests.items()}
        if joined:
            train, dev = train + dev, []
        elif fold is not None:
            every = train + dev
            order = np.random.default_rng(0).permutation(len(every))
            halves = [[every[i] for i in order[start::2]] for start in (fold, 1 - fold)]
            train, dev, loaded = halves[0], [], dict.fromkeys(tests, halves[1])
        lora = settings.pop("lora", None)
        config = LoraConfig(**lora) if lora else None
        if method == "full":
            config = adaptx.Full(dropout=settings.pop("dropout"))
        encoder = adaptx.Encoder.from_pretrained(ENCODER)
        started = time.perf_counter()
        if method == "plain":  # the encoder as it comes
            adapter = adaptx.Adapter.new(encoder, task, None, name=name)
        else:
            chooses = None if self.joined else dev
            adapter = adaptx.train(
                encoder, task, config, name=name, train=train, dev=chooses, seed=seed, **settings
            )
        seconds = time.perf_counter() - started
        best = adapter.facts.training.get("best") or {}
        if dev and not best:
            best = adaptx.evaluate(encoder, adapter, dev).scores
        reports = {
            lang: adaptx.evaluate(encoder, adapter, rows, batch_size=AT_ONCE)
            for lang, rows in loaded.items()
        }
        return {
            lang: {
                **report.scores,
                **({"dev": best[self.metric]} if best else {}),
                "epoch": best.get("epoch", settings.get("epochs", 0)),
                "trainable_share": adapter.parameters_count / encoder.parameters,
                "seconds": round(seconds, 1),
                "rows": rows_of(report, self.metric),
            }
            for lang, report in reports.items()
        }

    def less(
        self, runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], one: str, two: str
    ) -> dict[str, Any]:
        """One method's score less another's over all languages' test rows, means over seeds."""
        groups = np.repeat(
            list(runs), [len(by_method[one][0]["rows"][0]) for by_method in runs.values()]
        )
        first, second = (by_seed([by_method[m] for by_method in runs.values()]) for m in (one, two))
        if self.metric in CLASSIFICATION:
            targets, a, b = first[0][:, 0], first[1].T, second[1].T
            found = paired_bootstrap(targets, a, b, metric=self.metric, groups=groups)
        else:
            found = paired_ratio(first, second, metric=self.metric, groups=groups)
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
        but = f"; {', '.join(self.once)} have one" if self.once else ""
        parser.add_argument("--seeds", type=int, default=3, help=f"how many{but}")
        parser.add_argument("--full-seeds", type=int, default=1, help="of full fine-tuning")
        parser.add_argument("--methods", default="lora", help=f"of {', '.join(self.grids)}")
        parser.add_argument("--search", metavar="METHODS", help="score the grids on dev instead")
        if self.joined:
            parser.add_argument("--train-only", action="store_true", help="don't train on dev too")
        parser.add_argument(
            "--cache", type=Path, default=Path(f"benchmarks/.cache/{self.name}"), help="a folder"
        )
        return parser.parse_args()


def rows_of(report: Any, metric: str) -> list[list[Any]]:
    """What a paired comparison needs: targets and answers, or the metric's sums by row."""
    if isinstance(report, Report):
        return [report.targets.tolist(), report.predicted.tolist()]
    return [part.tolist() for part in report.tally[metric]]


def by_seed(
    runs: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Both parts of the rows of all languages, `[rows, seeds]`.

    A language with fewer seeds than another has its own repeated, each as often as the others.
    """
    seeds = range(math.lcm(*map(len, runs)))
    first, second = (
        np.concatenate(
            [np.stack([its[i % len(its)]["rows"][part] for i in seeds], 1) for its in runs]
        )
        for part in (0, 1)
    )
    return first, second


def mean(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scores that all runs have, averaged."""
    numbers = [
        key for key in runs[0] if all(isinstance(run.get(key), (int, float)) for run in runs)
    ]
    return {key: round(float(np.mean([run[key] for run in runs])), 5) for key in numbers}
